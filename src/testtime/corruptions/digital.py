"""Digital: brightness, contrast, elastic transform, pixelate, JPEG compression, saturate.

Each function takes images, the constants of one severity (rows of `CIFAR` and `IMAGENET`) and random
numbers; `testtime.corruptions.corrupt` checks the images, and clips and quantises the result.

Reference: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from testtime.corruptions import filters
from testtime.corruptions.rng import Rng
from testtime.errors import need_pillow

__all__ = [
    "CIFAR",
    "IMAGENET",
    "brightness",
    "contrast",
    "elastic_transform",
    "jpeg_compression",
    "pixelate",
    "saturate",
    "store_as_jpeg",
]

CIFAR = {
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
IMAGENET = {
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (  # 244 stands in the published code; 224 was meant
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}


def brightness(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Raise the value of HSV by c: :math:`x\,v' / v` with :math:`v = \max_{rgb} x` and :math:`v' = \min(v + c, 1)`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: increment of the value.
        rng: not used.
    """
    value = x.amax(1, keepdim=True)
    raised = (value + c).clamp(max=1)
    return torch.where(value > 0, x / value.clamp(min=1e-12) * raised, raised)


def saturate(x: Tensor, c: tuple[float, float], rng: Rng) -> Tensor:
    r"""Change the saturation of HSV to :math:`s' = \min(a s + b, 1)`: :math:`v - (v - x)\,s' / s`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: a and b.
        rng: not used.

    Departures: none; grey has the hue of red in HSV, so b > 0 makes it reddish, as published.
    """
    value = x.amax(1, keepdim=True)
    distance = value - x
    span = distance.amax(1, keepdim=True)
    wanted = (c[0] * span / value.clamp(min=1e-12) + c[1]).clamp(max=1)
    red = torch.tensor([0.0, 1.0, 1.0], device=x.device)[:, None, None]
    share = torch.where(span > 0, distance / span.clamp(min=1e-12), red)
    return value * (1 - wanted * share)


def contrast(x: Tensor, c: float, rng: Rng) -> Tensor:
    r"""Shrink each channel towards its mean: :math:`c\,(x - \bar{x}) + \bar{x}`.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: remaining fraction of the contrast.
        rng: not used.
    """
    mean = x.mean((2, 3), keepdim=True)
    return c * (x - mean) + mean


def elastic_transform(x: Tensor, c: tuple[float, float, float], rng: Rng) -> Tensor:
    """Apply a random affine map, then a smooth random displacement of every pixel.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: strength of the displacement, its smoothness (sigma), and the largest shift of the three points that define the
            affine map; all in pixels, whatever the size of the image.
        rng: one sequence of random numbers for each image.

    Departures: the affine map interpolates at exact positions, where OpenCV rounds them to 1/32 of a pixel; in an image that
    is not square the three points lie around its centre.
    """
    strength, sigma, shift = c
    h, w = x.shape[2:]
    side = min(h, w) // 3
    before = torch.tensor([[side, side], [side, -side], [-side, -side]], dtype=torch.float64, device=x.device)
    before += torch.tensor([w // 2, h // 2], dtype=torch.float64, device=x.device)
    after = before + shift * (2 * rng.uniform(3, 2).double() - 1)
    back = torch.linalg.solve(torch.cat([after, torch.ones_like(after[..., :1])], 2), before.expand_as(after))
    noise = filters.gaussian_blur(2 * rng.uniform(2, h, w) - 1, sigma, mode="reflect", truncate=3.0)
    across = torch.arange(w, device=x.device).float()
    down = torch.arange(h, device=x.device).float()[:, None]
    ax, ay, a1 = back.float()[:, :, :, None, None].unbind(1)  # each (N, 2, 1, 1): from x, from y, constant
    source = ax * across + ay * down + a1
    moved = filters.affine_grid_sample(x, source[:, 0], source[:, 1], mirror_pixel=True)
    across, down = across + strength * noise[:, 0], down + strength * noise[:, 1]
    return filters.affine_grid_sample(moved, across, down, mirror_pixel=False)


def box_down(x: Tensor, size: int) -> Tensor:
    """Shrink the last dimension to `size` by averaging whole pixels, rounded to 8 bits, as Pillow's BOX filter does."""
    length = x.shape[-1]
    scale = length / size
    centre = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    offset = (torch.arange(length) + 0.5 - centre) / scale
    weight = ((offset > -0.5) & (offset <= 0.5)).double()
    weight /= weight.sum(1, keepdim=True)
    return (x @ weight.T.to(x) * 255 + 0.5 + 1e-3).floor() / 255


def pixelate(x: Tensor, c: float, rng: Rng) -> Tensor:
    """Shrink the image to a fraction c of its size by box averaging, and enlarge it again by repeating pixels.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: fraction of the height and of the width.
        rng: not used.
    """
    h, w = x.shape[2:]
    small_h, small_w = max(1, int(h * c)), max(1, int(w * c))
    small = box_down(box_down(x, small_w).mT, small_h).mT
    rows = ((torch.arange(h, device=x.device) + 0.5) * (small_h / h)).long()
    columns = ((torch.arange(w, device=x.device) + 0.5) * (small_w / w)).long()
    return small[:, :, rows][:, :, :, columns]


def jpeg_compression(x: Tensor, c: int, rng: Rng) -> Tensor:
    """Compress the image as JPEG of quality c and decompress it.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        c: quality of the JPEG on Pillow's scale, 1 to 95.
        rng: not used.

    Raises:
        ImportError: Pillow is not installed.
    """
    return store_as_jpeg(x, c)


def store_as_jpeg(x: Tensor, quality: int = 85) -> Tensor:
    """Compress images as JPEG and decompress them; those of ImageNet-C are stored with quality 85.

    Args:
        x: floating-point images (N, 3, H, W) in [0, 1], truncated to 8 bits.
        quality: quality of the JPEG on Pillow's scale, 1 to 95.

    Raises:
        ImportError: Pillow is not installed.

    >>> store_as_jpeg(torch.full((1, 3, 8, 8), 102 / 255)).mul(255).unique()
    tensor([102.])
    """
    need_pillow()
    from PIL import Image

    pixels = (filters.to_8_bits(x.float()) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels)
    for source, target in zip(pixels, out, strict=True):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "JPEG", quality=quality)
        target[:] = np.asarray(Image.open(file))
    return torch.from_numpy(out).to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255
