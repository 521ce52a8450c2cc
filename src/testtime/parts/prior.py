"""Class frequencies of a batch, and predictions corrected for them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["UnderPrior", "reweighted", "smoothed_prior", "under_prior"]


def smoothed_prior(p: Tensor, good: Tensor | None = None) -> Tensor:
    r"""How often each class is among the predictions, smoothed the more the flatter that is and the smaller the batch.

    .. math:: \bar p = \frac{\hat p + \gamma}{1 + \gamma C}, \qquad \hat p = \tfrac1N \sum_i p_i, \qquad
        \gamma = \frac{\max(1 / N, 1 / C)}{\max_c \hat p_c}

    Args:
        p: predictions (N, C), each a distribution.
        good: rows (N,) that count, one at least; all of them unless given.

    Returns:
        (C,), a distribution.

    Reference: Marsden, Döbler and Yang, Universal Test-Time Adaptation, WACV 2024, section 3.

    >>> smoothed_prior(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0.7500, 0.2500])
    """
    classes = p.shape[1]
    weight = torch.ones_like(p[:, 0]) if good is None else good.to(p.dtype)
    prior = (p * weight[:, None]).sum(dim=0) / weight.sum()
    gamma = weight.sum().reciprocal().clamp(min=1 / classes) / prior.max()
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
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    prior = smoothed_prior(torch.where(good[:, None], z, 0).softmax(dim=1), good)
    corrected = z * prior if of == "logits" else z + prior.log()
    return torch.where(good.any(), corrected, z).to(logits.dtype)


class UnderPrior(nn.Module):
    """A network whose logits are those under the smoothed prior of their batch, as a module.

    Args:
        network: network from a batch to logits (N, C).
        of: quantity that the prior multiplies, "probabilities" or "logits".
    """

    def __init__(self, network: nn.Module, of: Literal["probabilities", "logits"] = "probabilities") -> None:
        super().__init__()
        self.network, self.of = network, of

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, C)."""
        z = self.network(x)
        return reweighted(z, torch.isfinite(z).all(dim=1), self.of)


def under_prior(network: nn.Module, of: Literal["none", "probabilities", "logits"]) -> nn.Module:
    """Return a network as an :class:`UnderPrior`, or as it is for "none".

    Args:
        network: network from a batch to logits (N, C).
        of: quantity that the prior multiplies.
    """
    return network if of == "none" else UnderPrior(network, of)
