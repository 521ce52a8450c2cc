"""Noise: gaussian, shot, impulse, speckle.

Each function takes images, the constants of one severity (rows of `CIFAR` and `IMAGENET`) and random
numbers; `testtime.corruptions.corrupt` checks the images, and clips and quantises the result.

Reference: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from testtime.corruptions.rng import Rng

__all__ = ["CIFAR", "IMAGENET", "gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]

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


@lru_cache(maxsize=16)
def poisson_tables(c: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tables that invert the distribution functions F of Poisson variables of means c v / 255.

    Args:
        c: photons at full intensity.
        device: device of the tables.

    Returns:
        The bounds :math:`F_v(k)\\,2^{24}` of the level v and the count k, rounded up, (256, K) int32, the last of each row
        beyond all draws; and the smallest count of each level for the 256 values of the first 8 bits of a draw, (256, 256).
    """
    level = torch.arange(256, dtype=torch.float64)[:, None]
    most = torch.arange(1, int(c + 8 * c**0.5 + 20), dtype=torch.float64)
    cdf = torch.special.gammaincc(most, level * (c / 255)).clamp(max=1)
    bounds = F.pad(((cdf + level - level) * 2**24).ceil().int(), (0, 1), value=2**24)
    first = torch.arange(0, 2**24, 2**16, dtype=torch.int32).expand(256, -1).contiguous()
    return bounds.to(device), torch.searchsorted(bounds, first, right=True).to(device)


def shot_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Replace each value by a count of photons: :math:`k / c`, :math:`k \sim \mathrm{Poisson}(c\,x)`.

    The count is the number of values of the distribution function F_v of its level v that a uniform number of 24 bits
    reaches: a table gives that of its first 8 bits, a few comparisons the rest.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: photons at full intensity.
        rng: one sequence of random numbers for each image.

    Departures: the mean is that of the nearest 8-bit level (the published code takes 8-bit images only).
    """
    bounds, start = poisson_tables(c, x.device)
    level = (x * 255).round().long().flatten()
    draw = rng.counts(*x.shape[1:]).flatten()
    count = start.take((level << 8).add_(draw >> 16))
    level *= bounds.shape[1]
    rising = draw >= bounds.take(level + count)
    count += rising
    left = rising.nonzero()[:, 0]  # the draws whose next count has not been compared
    while len(left):
        left = left[draw[left] >= bounds.take(level[left] + count[left])]
        count[left] += 1
    return (count / c).view_as(x)


def impulse_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    """Replace a fraction c of the values by 0 or 1 with equal probability, independently in each channel.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: fraction of the values that are replaced.
        rng: one sequence of random numbers for each image.
    """
    u = rng.uniform(*x.shape[1:])
    return torch.where(u < c, (u < c / 2).float(), x)


def speckle_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Add noise proportional to the signal: :math:`x + x\,c\,\epsilon`, :math:`\epsilon \sim \mathcal{N}(0, 1)`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: standard deviation of the noise at full intensity.
        rng: one sequence of random numbers for each image.
    """
    return x + x * (c * rng.normal(*x.shape[1:]))
