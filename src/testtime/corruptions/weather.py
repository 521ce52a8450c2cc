"""Weather: snow, frost, fog, spatter.

Each function takes images, the constants of one severity (rows of `CIFAR` and `IMAGENET`) and random
numbers; `testtime.corruptions.corrupt` checks the images, and clips and quantises the result.

Reference: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from testtime.corruptions import filters
from testtime.corruptions.rng import Rng
from testtime.corruptions.textures import frost_textures, plasma

__all__ = ["BYTES", "CIFAR", "IMAGENET", "fog", "frost", "snow", "spatter"]

BYTES = ()
"""Names of the corruptions that take images as uint8 also."""

CIFAR = {
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
}
IMAGENET = {
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
}

WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
MUD = (63 / 255, 42 / 255, 20 / 255)
RELIEF = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))
"""Filter that lights the water from one side."""


def snow(x: Tensor, c: tuple[float, float, float, float, int, float, float], rng: Rng) -> Tensor:
    r"""Whiten the image, then add a layer of motion-blurred flakes and the same layer rotated by 180 degrees.

    With flakes S and the luma g: :math:`w\,x + (1 - w) \max(x, 1.5\,g + 0.5) + S + \mathrm{rot}_{180} S`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: mean and deviation of the noise that becomes flakes, its zoom, its threshold, radius and sigma of the motion
            blur in pixels, and the weight w.
        rng: one sequence of random numbers for each image.

    Departures: none.
    """
    mean, deviation, zoom, threshold, radius, sigma, weight = c
    layer = filters.clipped_zoom(mean + deviation * rng.normal(1, *x.shape[2:]), zoom)
    layer = filters.to_8_bits(layer * (layer >= threshold))
    layer = filters.motion_blur(layer, radius, sigma, rng.uniform(1)[:, 0] * 90 - 135)
    white = torch.maximum(x, 1.5 * filters.grey(x) + 0.5)
    return weight * x + (1 - weight) * white + layer + layer.flip(2, 3)


def frost(x: Tensor, c: tuple[float, float, float], rng: Rng, folder: Path | None = None) -> Tensor:
    """Return a weighted sum of the image and of a random crop of one of five textures of ice.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: weight of the image, weight of the texture, scale of the texture.
        rng: one sequence of random numbers for each image.
        folder: folder with the original textures, ``frost1`` to ``frost5`` as .png or .jpg; None uses procedural ones
            (`textures.ice`).

    Departures: procedural textures by default; a texture smaller than the image is enlarged. As in the published code, the
    sixth texture is never used.
    """
    h, w = x.shape[2:]
    textures = []
    for texture in frost_textures(folder):
        scale = max(c[2], (h + 1) / texture.shape[1], (w + 1) / texture.shape[2])
        if scale == 1:
            textures.append(texture)
        else:
            small = F.interpolate(texture[None], scale_factor=scale, mode="bilinear", align_corners=False)
            textures.append((small[0] * 255).round() / 255)
    u = rng.uniform(3).tolist()
    crops = []
    for which, down, across in u:
        texture = textures[int(which * len(textures))]
        top = int(down * (texture.shape[1] - h))
        left = int(across * (texture.shape[2] - w))
        crops.append(texture[:, top : top + h, left : left + w])
    return c[0] * x + c[1] * torch.stack(crops).to(x.device)


def fog(x: Tensor, c: tuple[float, float], rng: Rng) -> Tensor:
    r"""Add a plasma fractal P: :math:`(x + a P)\, m / (m + a)` with m the largest value of the image.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: density a, and the decay of the roughness of the fractal.
        rng: one sequence of random numbers for each image.

    Departures: the side of the fractal is the next power of two (256 for 224, as published), so that any size works.
    """
    h, w = x.shape[2:]
    size = 2 ** (max(h, w) - 1).bit_length()
    brightest = x.amax((1, 2, 3), keepdim=True)
    haze = plasma(size, c[1], rng)[:, None, :h, :w]
    return (x + c[0] * haze).mul_(brightest).div_(brightest + c[0])


def depth_of_water(levels: Tensor) -> Tensor:
    """Return the relief (N, 1, H, W) float32, 0..255, of drops (N, 1, H, W) of integers 0..255: it grows away from edges."""
    depth = filters.distance_to(filters.canny(levels, 50, 150), 20)
    box = torch.ones(3, 3)
    depth = filters.equalise((filters.filter2d(depth, box).double() / 9).floor().float())
    depth = filters.filter2d(depth, torch.tensor(RELIEF)).clamp(0, 255)
    return (filters.filter2d(depth, box) / 9).round()


def depth_by_opencv(levels: Tensor) -> Tensor:
    """Return `depth_of_water` of drops on the CPU, computed by OpenCV.

    Distances come with labels since those without differ from one build to another, by rounding.
    """
    import cv2

    relief, out = np.array(RELIEF, np.float32), torch.empty_like(levels)
    for drops, depth in zip(levels.byte().numpy()[:, 0], out.numpy()[:, 0], strict=True):
        away = cv2.distanceTransformWithLabels(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)[0]
        away = cv2.blur(np.minimum(away, 20, out=away), (3, 3)).astype(np.uint8)
        depth[:] = cv2.blur(cv2.filter2D(cv2.equalizeHist(away), cv2.CV_8U, relief), (3, 3))
    return out


def water_map(liquid: Tensor) -> Tensor:
    """Return the brightness of water, (N, 1, H, W) in [0, 1], from drops (N, 1, H, W) in [0, 1]: it grows away from edges."""
    levels = (filters.to_8_bits(liquid) * 255).round()
    by_opencv = filters.opencv() is not None and not levels.is_cuda
    shine = levels * (depth_by_opencv if by_opencv else depth_of_water)(levels)
    return shine / shine.amax((1, 2, 3), keepdim=True).clamp(min=1)


def spatter(x: Tensor, c: tuple[float, float, float, float, float, int], rng: Rng) -> Tensor:
    """Add drops on the lens: of water at severities 1 to 3, of mud at 4 and 5.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: mean and deviation of the noise that becomes drops, its blur in pixels, its threshold, the strength of the
            water or the blur of the mud in pixels, and whether it is mud.
        rng: one sequence of random numbers for each image.

    Departures: an image without a drop is unchanged.
    """
    mean, deviation, sigma, threshold, strength, mud = c
    liquid = filters.gaussian_blur(mean + deviation * rng.normal(1, *x.shape[2:]), sigma)
    liquid.mul_(liquid >= threshold)  # a product by 0 or 1 takes a tenth of masked_fill's time on a CPU
    colour = torch.tensor(MUD if mud else WATER, device=x.device)[:, None, None]
    if mud:
        cover = filters.gaussian_blur((liquid > threshold).float(), strength)
        cover.mul_(cover >= 0.8)
        return x * (1 - cover) + cover * colour
    return x + strength * water_map(liquid) * colour
