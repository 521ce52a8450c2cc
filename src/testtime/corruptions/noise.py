"""Noise: gaussian, shot, impulse, speckle.

Each function takes images, the constants of one severity (rows of `CIFAR` and `IMAGENET`) and random
numbers; `testtime.corruptions.corrupt` checks the images, and clips and quantises the result.

Reference: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from testtime.corruptions import filters
from testtime.corruptions.rng import Rng

__all__ = ["BYTES", "CIFAR", "IMAGENET", "gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]

BYTES = ("shot_noise", "impulse_noise")
"""Names of the corruptions that take images as uint8 also."""

CIFAR = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
}
IMAGENET = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
}


def gaussian_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Add white noise: :math:`x + c\,\epsilon`, :math:`\epsilon \sim \mathcal{N}(0, 1)`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: standard deviation of the noise.
        rng: one sequence of random numbers for each image.
    """
    return x + c * rng.normal(*x.shape[1:])


FIRST = 11  # bits of a draw in the index of a table of counts


@lru_cache(maxsize=16)
def poisson_tables(c: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tables that invert the distribution functions F of Poisson variables of means c v / 255.

    Args:
        c: photons at full intensity.
        device: device of the tables.

    Returns:
        The bounds :math:`F_v(k)\\,2^{24}` of the level v and the count k, rounded up, plus :math:`2^{25} v`, (256, K)
        int64, the last of each row beyond all draws; and, for each level and the first `FIRST` bits of a draw, twice the
        smallest count of these draws, plus 1 if they have several, (256 * 2^FIRST,) int16.
    """
    level = torch.arange(256, dtype=torch.float64)[:, None]
    most = torch.arange(1, int(c + 8 * c**0.5 + 20), dtype=torch.float64)
    cdf = torch.special.gammaincc(most, level * (c / 255)).clamp(max=1)
    cdf = cdf + level - level  # rounded: probabilities below 1e-14 are 0
    bounds = F.pad((cdf * 2**24).ceil().long(), (0, 1), value=2**24)
    rest, cells = 24 - FIRST, 2**FIRST + 1
    row = torch.arange(256)[:, None]

    def reached(cell: Tensor) -> Tensor:
        """Return how many bounds are in each cell or before it, where a bound is in the cell `cell`."""
        return (
            torch.bincount((cell + row * cells).flatten(), minlength=256 * cells)
            .view(256, -1)
            .cumsum(1)[:, :-1]
        )

    least, largest = reached(bounds + (2**rest - 1) >> rest), reached(bounds >> rest)
    table = (2 * least + (largest > least)).short().flatten()
    return (bounds + (row << 25)).to(device), table.to(device)


def shot_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Replace each value by a count of photons: :math:`k / c`, :math:`k \sim \mathrm{Poisson}(c\,x)`.

    The count is the number of values of the distribution function F_v of its level v that a uniform number of 24 bits
    reaches: for nearly all draws a table gives it by their first bits, for the others a binary search.

    Args:
        x: images (N, 3, H, W), uint8 or in [0, 1].
        c: photons at full intensity.
        rng: one sequence of random numbers for each image.

    Returns:
        Images (N, 3, H, W), floating-point, from 0 on.

    Departures: the mean is that of the nearest 8-bit level (the published code takes 8-bit images only).
    """
    bounds, table = poisson_tables(c, x.device)
    level = (x if x.dtype == torch.uint8 else (x * 255).round()).int().flatten()
    draw = rng.counts(*x.shape[1:]).flatten()
    found = filters.pick(table, (level << FIRST).add_(draw >> 24 - FIRST), 0)
    count = found >> 1
    several = (found & 1).nonzero()[:, 0]
    row, high = level.index_select(0, several).long(), draw.index_select(0, several)
    count[several] = (
        torch.searchsorted(bounds.flatten(), high + (row << 25), right=True) - row * bounds.shape[1]
    ).short()
    return (count / c).view_as(x)


def impulse_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    """Replace a fraction c of the values by 0 or 1 with equal probability, independently in each channel.

    Args:
        x: images (N, 3, H, W), uint8 or in [0, 1].
        c: fraction of the values that are replaced.
        rng: one sequence of random numbers for each image.

    Returns:
        Images like `x`.
    """
    draw = rng.counts(*x.shape[1:])
    kept, white = draw >= draws_below(c), draw < draws_below(c / 2)
    if x.dtype == torch.uint8:
        return (x * kept.view(torch.uint8)).add_(white.view(torch.uint8), alpha=255)
    return (x * kept).add_(white)


def draws_below(share: float) -> int:
    """Return how many of the 2^24 draws of `Rng.uniform` are below a 32-bit number."""
    return math.ceil(np.float32(share).item() * 2**24)


def speckle_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Add noise proportional to the signal: :math:`x + x\,c\,\epsilon`, :math:`\epsilon \sim \mathcal{N}(0, 1)`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: standard deviation of the noise at full intensity.
        rng: one sequence of random numbers for each image.
    """
    return x + x * (c * rng.normal(*x.shape[1:]))
