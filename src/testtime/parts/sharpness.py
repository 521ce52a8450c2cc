"""Sharpness-aware minimisation: the gradient at the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["sharpness_aware_gradients"]


def sharpness_aware_gradients(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], rho: float = 0.05
) -> tuple[Tensor, ...]:
    r"""Gradients of the loss at the worst point within a ball; the parameters are back in their place afterwards.

    .. math:: \nabla L\big(\theta + \rho\, g / \lVert g \rVert_2\big), \qquad g = \nabla L(\theta)

    Args:
        loss: computes the scalar loss anew; it is called twice (two forwards, two backwards).
        parameters: theta; the norm is taken over all of them together.
        rho: the radius.

    Returns:
        one gradient per parameter, for :meth:`testtime.Adapter.update`.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, eq. 2 and 3.
    """
    first = torch.autograd.grad(loss(), list(parameters))
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(first)))
    scale = rho / (norm + 1e-12)
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p.add_(g * scale)
    try:
        return torch.autograd.grad(loss(), list(parameters))
    finally:
        with torch.no_grad():
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)
