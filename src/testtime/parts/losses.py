"""The losses of the field as pure functions of logits; half precision is computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["entropy", "marginal_entropy", "soft_cross_entropy"]


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def entropy(logits: Tensor, epsilon: float = 0.0) -> Tensor:
    r"""Shannon entropy of the prediction, in nats.

    .. math:: H(x) = -\sum_c p_c(x) \log p_c(x), \qquad p = \operatorname{softmax}(z)

    Args:
        logits: (N, C), or (N, C, H, W).
        epsilon: constant added to p within the logarithm.

    Returns:
        (N,), or (N, H, W), between 0 and log C.

    >>> entropy(torch.zeros(1, 4))  # log 4
    tensor([1.3863])
    """
    log_p = _full(logits).log_softmax(dim=1)
    p = log_p.exp()
    return -(p * ((p + epsilon).log() if epsilon else log_p)).sum(dim=1)


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Cross-entropy of the student against the teacher's soft prediction, in nats.

    .. math:: -\sum_c \operatorname{softmax}(z^{teacher})_c \, \log \operatorname{softmax}(z^{student})_c

    Args:
        student: logits (N, C), or (N, C, H, W).
        teacher: logits of the same form; gradients flow into them too, unless they carry none.

    Returns:
        (N,), or (N, H, W).

    >>> z = torch.zeros(1, 4)
    >>> soft_cross_entropy(z, z)
    tensor([1.3863])
    """
    return -(_full(teacher).softmax(dim=1) * _full(student).log_softmax(dim=1)).sum(dim=1)


def marginal_entropy(logits: Tensor, epsilon: float = 0.0) -> Tensor:
    r"""Entropy of the mean prediction of the batch, in nats: high when the batch is spread over the classes.

    .. math:: H(\bar p) = -\sum_c \bar p_c \log \bar p_c, \qquad \bar p = \tfrac1N \sum_i \operatorname{softmax}(z_i)

    Args:
        logits: (N, C), or (N, C, H, W), whose mean is over images and pixels.
        epsilon: constant added to the mean prediction within the logarithm.

    Returns:
        a scalar.

    >>> marginal_entropy(torch.tensor([[9.0, -9.0], [-9.0, 9.0]]))  # log 2
    tensor(0.6931)
    """
    p = _full(logits).softmax(dim=1)
    p = p.mean(dim=(0, *range(2, p.dim())))
    return -(p * (p + epsilon).clamp_min(torch.finfo(p.dtype).tiny).log()).sum()
