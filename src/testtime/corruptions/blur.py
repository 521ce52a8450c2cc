"""Blur: defocus, glass, motion, zoom, gaussian.

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

__all__ = [
    "BYTES",
    "CIFAR",
    "IMAGENET",
    "defocus_blur",
    "gaussian_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
]

BYTES = ()
"""Names of the corruptions that take images as uint8 also."""

CIFAR = {
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
}
IMAGENET = {
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "gaussian_blur": (1, 2, 3, 4, 6),
}


@lru_cache(maxsize=16)
def disk(radius: float, sigma: float) -> Tensor:
    """Return a flat disk of sum 1 with edges blurred by a small Gaussian, (k, k), without its empty border.

    Weights below 1e-9, which change no 32-bit sum, are 0.
    """
    reach = max(8, math.ceil(radius))
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (line[:, None] ** 2 + line**2 <= radius**2).double()
    soft = 1 if radius <= 8 else 2
    weight = torch.exp(-0.5 * (torch.arange(-soft, soft + 1).double() / sigma) ** 2)
    weight /= weight.sum()
    smoothed = filters.filter2d(inside[None, None] / inside.sum(), torch.outer(weight, weight))[0, 0]
    empty = reach - min(reach, int(radius) + soft)
    return F.threshold(smoothed, 1e-9, 0)[empty : len(line) - empty, empty : len(line) - empty].float()


def defocus_blur(x: Tensor, c: tuple[float, float], rng: Rng) -> Tensor:
    """Correlate the image with a disk, the blur of a lens out of focus.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: radius of the disk and sigma of its blurred edge, in pixels.
        rng: not used.

    Departures: none. The disks of radius 8 and 10 fill their window, whose border is mirrored when the edge is blurred: as
    published, their sum is 1.013 and 1.011.
    """
    return filters.filter2d(x, disk(*c))


def scatter_source(down: Tensor, across: Tensor, reach: int) -> Tensor:
    """Return the source of each pixel after one pass of local copies.

    The pass visits the pixels from the last to the first and copies to each the current value at its displacement. The
    source of a pixel that points at an earlier visited one is that pixel's source; these chains are resolved by pointer
    doubling.

    Args:
        down, across: displacements of the pixels, (N, H, W), in -reach..reach - 1.
        reach: width of the border whose pixels are unchanged (the last row and column visited is size - reach).

    Returns:
        Index of the source pixel, (N, H * W) int64.
    """
    h, w = down.shape[1:]
    place = torch.arange(h * w, device=down.device)
    row, column = place // w, place % w
    visited = (row > reach) & (row <= h - reach) & (column > reach) & (column <= w - reach)
    target = torch.where(visited, place + down.flatten(1) * w + across.flatten(1), place)
    chained = visited[target] & (target > place)
    jump = torch.where(chained, target, place)
    while True:
        further = jump.gather(1, jump)
        if torch.equal(further, jump):
            return target.gather(1, jump)
        jump = further


def glass_blur(x: Tensor, c: tuple[float, int, int], rng: Rng) -> Tensor:
    """Blur the image, displace its pixels locally and blur it again, as frosted glass does.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: sigma in pixels, largest displacement in pixels, number of passes.
        rng: one sequence of random numbers for each image.

    Departures: none known. The published code is meant to swap two pixels, but assigns through views of one array, so that
    the second assignment has no effect and pixels are copied; the published sets were made with these copies, and this
    function copies too.
    """
    sigma, reach, passes = c
    pixels = filters.to_8_bits(filters.gaussian_blur(x, sigma)).flatten(2)
    for _ in range(passes):
        displacement = rng.integers(-reach, reach, 2, *x.shape[2:])
        source = scatter_source(displacement[:, 0], displacement[:, 1], reach)
        pixels = pixels.gather(2, source[:, None].expand_as(pixels))
    return filters.gaussian_blur(pixels.view_as(x), sigma)


def motion_blur(x: Tensor, c: tuple[int, float], rng: Rng) -> Tensor:
    """Blur each image along its own direction, uniform in -45..45 degrees, as a moving camera does.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: radius and sigma of the one-sided Gaussian, in pixels.
        rng: one sequence of random numbers for each image.

    Departures: none; ImageMagick's filter is rewritten (`filters.motion_blur`), not called.
    """
    angle = rng.uniform(1)[:, 0] * 90 - 45
    return filters.motion_blur(x, *c, angle)


def zoom_blur(x: Tensor, c: tuple[float, float], rng: Rng) -> Tensor:
    """Average the image and its enlargements, as a camera does that moves towards the scene.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: end and step of the zoom factors, which start at 1 (`numpy.arange`, which reaches the end here by rounding).
        rng: not used.
    """
    factors = np.arange(1, *c).tolist()
    total = x.clone()
    for factor in factors:
        total += filters.clipped_zoom(x, factor)
    return total / (len(factors) + 1)


def gaussian_blur(x: Tensor, c: float, rng: Rng) -> Tensor:
    """Blur with a Gaussian of standard deviation c pixels, truncated at four standard deviations.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: sigma in pixels.
        rng: not used.
    """
    return filters.gaussian_blur(x, c)
