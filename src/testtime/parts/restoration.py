"""Stochastic restoration: some weights of an adapting model return to the source at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from testtime.parts.randomness import generator

__all__ = ["restore_at_random"]


@torch.no_grad()
def restore_at_random(
    parameters: Sequence[Tensor], origin: Sequence[Tensor], chance: float, seed: int, step: int
) -> None:
    """Return each weight to the source with a chance, in place.

    Args:
        parameters: the adapting parameters.
        origin: the source's value of each.
        chance: probability in [0, 1] that a weight returns; nothing is drawn at 0.
        seed: random seed of the adapter.
        step: number of the step.

    Reference: Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation, CVPR 2022, eq. 7 and 8.

    >>> p = torch.zeros(1000)
    >>> restore_at_random([p], [torch.ones(1000)], 0.25, seed=0, step=0)
    >>> bool(200 < p.sum() < 300)
    True
    """
    if chance <= 0:
        return
    device, sizes = parameters[0].device, [p.numel() for p in parameters]
    rng = generator(seed, step, "restoration", device)
    chosen = torch.rand(sum(sizes), generator=rng, device=device).lt(chance).split(sizes)
    for p, source, mask in zip(parameters, origin, chosen, strict=True):
        p.copy_(torch.where(mask.view_as(p), source, p))
