"""Defects in images with exact masks: scratches, blobs and swapped patches, for anomaly detection without labels.

A pixel outside of the mask is unchanged. The defect of an image depends on (seed, kind) and the size alone, never on its batch.

>>> import torch
>>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
>>> y, mask = add_defects(x, "scratch", seeds=[7, 8])
>>> bool((x != y).any(1).eq(mask).all()), mask.sum((1, 2)).tolist()
(True, [45, 34])
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.errors import check_name

__all__ = ["DEFECTS", "add_defects"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
DEFECTS = ("scratch", "blob", "swap")
"""Kinds of defects."""
LEAST = 16
"""Least side of an image, in pixels."""


def add_defects(x: Tensor, kind: str, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Add one defect to each image.

    A scratch is a curved line, lighter or darker than what it crosses; a blob is an irregular stain of another colour; a swap
    exchanges two square patches of the image, whose colours and texture are then right and their place is wrong.

    Args:
        x: images (N, C, H, W) in [0, 1], at least 16 x 16.
        kind: kind of the defect, one of :data:`DEFECTS`.
        seeds: random seed of the defect of each image.

    Returns:
        Images (N, C, H, W), and masks (N, H, W) bool of the pixels that the defect covers.

    Raises:
        ValueError: there is no such kind, the images are no batch or too small, their number is not that of the seeds, or they
            are integers.
    """
    check_name("defect", kind, DEFECTS)
    if x.dim() != 4 or min(x.shape[2:]) < LEAST:
        raise ValueError(f"expected images (N, C, H, W) of at least {LEAST} x {LEAST}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(
            f"expected floating-point images in [0, 1], got {x.dtype}; convert them (uint8: x / 255)"
        )
    if isinstance(seeds, int) or len(seeds) != len(x):
        raise ValueError(f"expected a seed for each of the {len(x)} images, got {seeds!r}")
    images, masks = [], []
    for image, seed in zip(x.detach().cpu().double().numpy(), seeds, strict=True):
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        changed, mask = FUNCTIONS[kind](image, rng)
        images.append(torch.from_numpy(changed))
        masks.append(torch.from_numpy(mask))
    if not images:
        return x.clone(), torch.zeros(0, *x.shape[2:], dtype=torch.bool, device=x.device)
    masked = torch.stack(masks).to(x.device)
    changed_all = torch.stack(images).to(x)
    return torch.where(masked[:, None], changed_all, x), masked


def _scratch(image: Array, rng: np.random.Generator) -> tuple[Array, Mask]:
    """A quadratic curve of 1 to 2 % of the shorter side, half mixed with white or black, whichever is farther."""
    height, width = image.shape[1:]
    side = min(height, width)
    start, bend, end = rng.uniform(0.1, 0.9, (3, 2)) * (height, width)
    away = end - start
    length = max(float(np.hypot(*away)), 1e-6)
    end = start + away / length * side * rng.uniform(0.35, 0.7)
    t = np.linspace(0, 1, 4 * side)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    thick = max(1.0, side * rng.uniform(0.01, 0.02))
    rows, columns = np.mgrid[:height, :width] + 0.5
    nearest = np.full((height, width), np.inf)
    for y, x in curve[::2]:
        np.minimum(nearest, (rows - y) ** 2 + (columns - x) ** 2, out=nearest)
    mask = nearest <= thick**2
    if not mask.any():
        mask[height // 2, width // 4 : 3 * width // 4] = True
    tone = float(image[:, mask].mean() < 0.5)
    return _painted(image, mask, np.full(len(image), tone), 0.6), mask


def _blob(image: Array, rng: np.random.Generator) -> tuple[Array, Mask]:
    """A closed curve of radius 6 to 14 % of the shorter side around a point, mixed with a colour that the image lacks."""
    height, width = image.shape[1:]
    side = min(height, width)
    y, x = rng.uniform(0.2, 0.8, 2) * (height, width)
    rows, columns = np.mgrid[:height, :width] + 0.5
    angle = np.arctan2(rows - y, columns - x)
    radius = np.full((height, width), side * rng.uniform(0.06, 0.14))
    for k in (2, 3, 5):
        radius *= 1 + rng.uniform(0, 0.25) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    mask = np.hypot(rows - y, columns - x) <= np.maximum(radius, 1.5)
    mean = image.mean((1, 2))
    colour = np.clip(mean + np.where(mean < 0.5, 1, -1) * rng.uniform(0.2, 0.5, len(mean)), 0, 1)
    return _painted(image, mask, colour, 0.75), mask


def _swap(image: Array, rng: np.random.Generator) -> tuple[Array, Mask]:
    """Two disjoint squares of 14 to 22 % of the shorter side that change places."""
    height, width = image.shape[1:]
    side = max(4, int(min(height, width) * rng.uniform(0.14, 0.22)))
    top, other = (int(v) for v in rng.integers(0, height - side + 1, 2))
    left = int(rng.integers(0, width // 2 - side + 1))
    right = int(rng.integers(width // 2, width - side + 1))
    changed, mask = image.copy(), np.zeros((height, width), bool)
    one = (slice(top, top + side), slice(left, left + side))
    two = (slice(other, other + side), slice(right, right + side))
    changed[(slice(None), *one)], changed[(slice(None), *two)] = (
        image[(slice(None), *two)],
        image[(slice(None), *one)],
    )
    mask[one] = mask[two] = True
    return changed, mask


def _painted(image: Array, mask: Mask, colour: Array, share: float) -> Array:
    """The image mixed with a colour inside a mask."""
    mixed = (1 - share) * image + share * colour[:, None, None]
    return np.where(mask, mixed, image)


FUNCTIONS: dict[str, Callable[[Array, np.random.Generator], tuple[Array, Mask]]] = {
    "scratch": _scratch,
    "blob": _blob,
    "swap": _swap,
}
