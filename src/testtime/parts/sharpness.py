"""Sharpness-aware minimisation: the gradient at the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["at_worst_point", "sharpness_aware_gradients"]


@contextmanager
def at_worst_point(loss: Tensor, parameters: Sequence[Tensor], rho: float = 0.05) -> Iterator[None]:
    r"""Inside, the parameters are where the loss is worst within a ball; afterwards they are back, bit for bit.

    .. math:: \theta + \rho\, g / \lVert g \rVert_2, \qquad g = \nabla L(\theta)

    Args:
        loss: a scalar with its graph, which is used up.
        parameters: theta; the norm is taken over all of them together.
        rho: the radius.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, eq. 2.
    """
    first = torch.autograd.grad(loss, list(parameters), materialize_grads=True)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(first)))
    scale = rho / (norm + 1e-12)
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p.add_(g * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)


def sharpness_aware_gradients(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], rho: float = 0.05
) -> tuple[Tensor, ...]:
    r"""Gradients of the loss at the worst point within a ball; the parameters are back in their place afterwards.

    .. math:: \nabla L\big(\theta + \rho\, g / \lVert g \rVert_2\big), \qquad g = \nabla L(\theta)

    Args:
        loss: computes the scalar loss again; it is called twice (two forwards, two backwards).
        parameters: theta; the norm is taken over all of them together.
        rho: the radius.

    Returns:
        one gradient per parameter, for :meth:`testtime.Adapter.update`.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, eq. 2 and 3.
    """
    with at_worst_point(loss(), parameters, rho):
        return torch.autograd.grad(loss(), list(parameters), materialize_grads=True)
