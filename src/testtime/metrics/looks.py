r"""What images look like, whatever they show: noise, blur, haze, colour; and which look alike.

The features of an image are the logarithm of its power in bands of spatial frequency and in four directions, that of the noise
in its colours, the heaviness of the tails of its differences, and the mean, deviation and range of its channels. Images are
grouped by k-means (k-means++ for the first centres) on the standardised features; centres are found among 5,000 of them.

Reference: Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007. The features are ours.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["alike", "looks"]

BANDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0)  # cycles per pixel
FINE = 0.2  # cycles per pixel, above which a direction is looked at
SMALLEST = 1e-8  # of a power, below which all are alike
FAR = 4.0  # standard deviations, beyond which a feature counts as that
ROUNDS = 50
SAMPLE = 5000  # images among which the centres are found


@torch.no_grad()
def looks(images: Tensor) -> Tensor:
    """What each image looks like.

    Args:
        images: (N, C, H, W) in [0, 1], 4 x 4 pixels or more.

    Returns:
        (N, F) on the CPU; F depends on the size of the images alone.

    Raises:
        ValueError: the images are smaller, or no batch.

    >>> flat, noisy = torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 3, 8, 8)
    >>> bool((looks(noisy)[0, :4] > looks(flat)[0, :4]).all())
    True
    """
    if images.dim() != 4 or min(images.shape[2:]) < 4:
        raise ValueError(f"expected images (N, C, H, W) of 4 x 4 pixels or more, got {tuple(images.shape)}")
    x = images.float()
    grey = x.mean(dim=1)
    colour = x - grey[:, None]
    power = torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().square() / grey[0].numel()
    down = torch.fft.fftfreq(x.shape[2], device=x.device)[:, None]
    across = torch.fft.fftfreq(x.shape[3], device=x.device)[None]
    radius, angle = torch.hypot(down, across), torch.atan2(down, across) % math.pi
    rings = [(radius > a) & (radius <= b) for a, b in pairwise(BANDS)]
    quarters = [(radius > FINE) & (angle // (math.pi / 4) == i) for i in range(4)]
    bands = [_log(power[:, ring].mean(dim=1)) for ring in rings if ring.any()]
    directions = torch.stack([_log(power[:, quarter].mean(dim=1)) for quarter in quarters], dim=1)
    steps = x.diff(dim=3).flatten(1)
    tails = (steps - steps.mean(dim=1, keepdim=True)).pow(4).mean(dim=1)
    return torch.cat(
        [
            torch.stack(bands, dim=1),
            directions - directions.mean(dim=1, keepdim=True),
            _log(colour.diff(dim=3).square().mean(dim=(1, 2, 3)))[:, None],
            (_log(tails) - 2 * _log(steps.var(dim=1)))[:, None],
            x.mean(dim=(2, 3)),
            x.std(dim=(2, 3)),
            colour.std(dim=(2, 3)),
            x.flatten(1).amin(dim=1, keepdim=True),
            x.flatten(1).amax(dim=1, keepdim=True),
        ],
        dim=1,
    ).cpu()


def alike(features: ArrayLike, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Groups of images that look alike.

    Args:
        features: (M, F), from `looks`.
        count: of groups at most; fewer where images coincide.
        seed: of the first centres.

    Returns:
        (M,) the number of each image's group.

    Raises:
        ValueError: there are no features, or count is below 1.

    >>> alike([[0.0], [9.0], [0.1], [9.1]], 2).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    True
    """
    x = np.asarray(features, dtype=float)
    if x.ndim != 2 or not len(x) or count < 1:
        raise ValueError(f"expected features (M, F) and a count of 1 at least, got {x.shape} and {count}")
    x = np.clip((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6), -FAR, FAR)
    rng = np.random.default_rng(seed)
    some = x if len(x) <= SAMPLE else x[rng.choice(len(x), SAMPLE, replace=False)]
    centres = some[[rng.integers(len(some))]]
    while len(centres) < count and (far := _distances(some, centres).min(axis=1)).max() > 1e-9:
        centres = np.concatenate([centres, some[[rng.choice(len(some), p=far / far.sum())]]])
    group = _distances(some, centres).argmin(axis=1)
    for _ in range(ROUNDS):
        centres = np.stack([some[group == g].mean(axis=0) for g in np.unique(group)])
        before, group = group, _distances(some, centres).argmin(axis=1)
        if np.array_equal(before, group):
            break
    return _distances(x, centres).argmin(axis=1)


def _distances(x: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared, (M, K)."""
    squares = (x**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * x @ centres.T
    return np.maximum(squares, 0.0)


def _log(power: Tensor) -> Tensor:
    return (power + SMALLEST).log()
