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
def poisson_cdf(c: float) -> Tensor:
    """Return (256, K) float64: row v is the distribution function of a Poisson variable of mean c v / 255 at 0..K-1."""
    mean = torch.arange(256, dtype=torch.float64)[:, None] * (c / 255)
    most = torch.arange(1, int(c + 8 * c**0.5 + 20), dtype=torch.float64)
    return torch.special.gammaincc(most, mean).clamp(max=1)


def shot_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Replace each value by a count of photons: :math:`k / c`, :math:`k \sim \mathrm{Poisson}(c\,x)`.

    The count is sampled by inverting the distribution function F_v of its level v, with one uniform number for each value.
    The functions are concatenated as v + F_v(k), a sorted sequence, so that one binary search inverts all 256.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: photons at full intensity.
        rng: one sequence of random numbers for each image.

    Departures: the mean is that of the nearest 8-bit level (the published code takes 8-bit images only).
    """
    level = (x * 255).round().double()
    cdf = poisson_cdf(c).to(x.device)
    rows = torch.arange(256, dtype=torch.float64, device=x.device)[:, None]
    found = torch.searchsorted((cdf + rows).flatten(), level + rng.uniform(*x.shape[1:]), right=True)
    return ((found - level * cdf.shape[1]) / c).float()


def impulse_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    """Replace a fraction c of the values by 0 or 1 with equal probability, independently in each channel.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: fraction of the values that are replaced.
        rng: one sequence of random numbers for each image.
    """
    u = rng.uniform(*x.shape[1:])
    return x.masked_fill(u < c, 0.0).masked_fill(u < c / 2, 1.0)


def speckle_noise(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Add noise proportional to the signal: :math:`x + x\,c\,\epsilon`, :math:`\epsilon \sim \mathcal{N}(0, 1)`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: standard deviation of the noise at full intensity.
        rng: one sequence of random numbers for each image.
    """
    return x + x * (c * rng.normal(*x.shape[1:]))
