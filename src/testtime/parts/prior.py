"""Class frequencies of a batch, and predictions corrected for them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["reweighted", "smoothed_prior"]


def smoothed_prior(p: Tensor) -> Tensor:
    r"""How often each class is among the predictions, smoothed the more the flatter that is and the smaller the batch.

    .. math:: \bar p = \frac{\hat p + \gamma}{1 + \gamma C}, \qquad \hat p = \tfrac1N \sum_i p_i, \qquad
        \gamma = \frac{\max(1 / N, 1 / C)}{\max_c \hat p_c}

    Args:
        p: predictions (N, C), each a distribution.

    Returns:
        (C,), a distribution.

    Reference: Marsden, Döbler and Yang, Universal Test-Time Adaptation, WACV 2024, section 3.

    >>> smoothed_prior(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0.7500, 0.2500])
    """
    n, classes = p.shape
    prior = p.mean(dim=0)
    gamma = max(1 / n, 1 / classes) / prior.max()
    return (prior + gamma) / (1 + gamma * classes)


def reweighted(
    logits: Tensor, good: Tensor, of: Literal["probabilities", "logits"] = "probabilities"
) -> Tensor:
    """The logits (N, C) under the smoothed prior of their batch, in their own precision.

    Args:
        logits: logits of the batch, (N, C).
        good: (N,) rows that the prior is estimated from; where there is none, the logits come back.
        of: quantity that the prior multiplies, "probabilities" or "logits".
    """
    if not bool(good.any()):
        return logits
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    prior = smoothed_prior(z[good].softmax(dim=1))
    return (z * prior if of == "logits" else z + prior.log()).to(logits.dtype)
