r"""Features of the appearance of images (noise, blur, haze, colour) that ignore their content, and clusters of them.

The features of an image are the logarithm of its power in bands of spatial frequency and in four directions, the logarithm of
the power of its colour noise, the kurtosis of its horizontal differences, and the mean, standard deviation and range of its
channels. Images are clustered by k-means on the standardised features, with centres initialised by k-means++; the centres are
computed from at most 5,000 images.

Reference: Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007. The features are ours.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from testtime.moved import renamed

__all__ = ["appearance_clusters", "appearance_features"]

__getattr__ = renamed(__name__, {"alike": "appearance_clusters", "looks": "appearance_features"})

BANDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0)  # cycles per pixel
FINE = 0.2  # cycles per pixel, above which the power counts by direction
SMALLEST = 1e-8  # power that is added before the logarithm
FAR = 4.0  # standard deviations at which features are clipped
ROUNDS = 50
SAMPLE = 5000  # images from which the centres are computed


@torch.no_grad()
def appearance_features(images: Tensor) -> Tensor:
    """Return features of the appearance of each image.

    Args:
        images: images (N, C, H, W) in [0, 1], at least 4 x 4 pixels.

    Returns:
        Features (N, F) on the CPU; F depends on the size of the images alone.

    Raises:
        ValueError: the images are smaller, or not of the shape (N, C, H, W).

    >>> flat, noisy = torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 3, 8, 8)
    >>> bool((appearance_features(noisy)[0, :4] > appearance_features(flat)[0, :4]).all())
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


def appearance_clusters(features: ArrayLike, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster images by their appearance.

    Args:
        features: features of the images, (M, F), from `appearance_features`.
        count: largest number of clusters; there are fewer where features coincide.
        seed: random seed of the initial centres.

    Returns:
        Index of the cluster of each image, (M,).

    Raises:
        ValueError: there are no features, or count is below 1.

    >>> appearance_clusters([[0.0], [9.0], [0.1], [9.1]], 2).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
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
    """Return the squared distances (M, K) of points (M, F) from centres (K, F)."""
    squares = (x**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * x @ centres.T
    return np.maximum(squares, 0.0)


def _log(power: Tensor) -> Tensor:
    return (power + SMALLEST).log()
