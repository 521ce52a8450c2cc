"""Digital: brightness, contrast, elastic transform, pixelate, JPEG compression, saturate.

Each function takes images, the constants of one severity (rows of `CIFAR` and `IMAGENET`) and random
numbers; `testtime.corruptions.corrupt` checks the images, and clips and quantises the result.

Reference: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.corruptions import filters
from testtime.corruptions.rng import Rng
from testtime.errors import need_pillow

__all__ = [
    "BYTES",
    "CIFAR",
    "IMAGENET",
    "STORED",
    "brightness",
    "contrast",
    "elastic_transform",
    "jpeg_compression",
    "pixelate",
    "saturate",
    "store_as_jpeg",
]

BYTES = ("pixelate", "jpeg_compression")
"""Names of the corruptions that take images as uint8 also."""
STORED = BYTES
"""Names of the corruptions whose results are multiples of 1 / 255 already."""

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


@lru_cache(maxsize=64)
def boxes(length: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return how Pillow's BOX filter shrinks `length` pixels to `size` and enlarges them again.

    Returns:
        The first pixel of each box and the number of its pixels, (size,); and the box of each pixel, (length,).
    """
    scale, pixel = length / size, np.arange(length)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    # Pixels whose centre is on the edge of a box are in one box or the other by rounding, so every operation is Pillow's.
    low, high = (centre - scale / 2 + 0.5).astype(np.intp), (centre + scale / 2 + 0.5).astype(np.intp)
    offset = (pixel - centre + 0.5) * (1 / scale)
    inside = (pixel >= low) & (pixel < high) & (offset > -0.5) & (offset <= 0.5)
    back = ((np.arange(length) + 0.5) * (size / length)).astype(np.intp)
    return inside.argmax(1), inside.sum(1), back


@lru_cache(maxsize=64)
def rows_of_boxes(
    length: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, int], Tensor]:
    """Return `boxes` for `box_down`.

    Returns:
        The number of pixels of each box, (size,) float32; the first pixel of each box as a row of successive sums of least,
        ..., most pixels, and `least` and `most`; and the box of each pixel, (length,) int64.
    """
    first, count, back = (torch.from_numpy(values) for values in boxes(length, size))
    least, most = int(count.min()), int(count.max())
    row = first + sum(((count > k) * (length + 1 - k) for k in range(least, most)), torch.tensor(0))
    return count.float().to(device), row.to(device), (least, most), back.to(device)


def box_down(x: Tensor, size: int, white: int) -> Tensor:
    """Shrink dimension 1 to `size` by averaging whole pixels, rounded to integers 0..255, as Pillow's BOX filter does.

    Args:
        x: pixels (M, length, K), floating-point.
        size: number of pixels.
        white: value of a white pixel, 1 or 255.
    """
    count, row, (least, most), _ = rows_of_boxes(x.shape[1], size, x.device)
    sums = [x]
    for k in range(1, most):
        sums.append(sums[-1][:, :-1] + x[:, k:])
    total = torch.cat(sums[least - 1 :], 1).index_select(1, row)
    return total.mul_((255 / white / count)[:, None]).add_(0.5 + 1e-3).floor_()


def box_down_bytes(x: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Shrink dimension 1 of bytes (M, length, K) to `size`, as `box_down` does, in integers of 16 bits."""
    first, count, _ = boxes(x.shape[1], size)
    out = np.empty((len(x), size, x.shape[2]), np.uint8)
    wide = x.astype(np.uint16)
    for pixels in np.unique(count).tolist():  # two numbers at most
        which = np.flatnonzero(count == pixels)
        total = wide.take(first[which], axis=1, mode="clip")
        for k in range(1, pixels):
            total += wide.take(first[which] + k, axis=1, mode="clip")
        total += pixels // 2
        total //= pixels
        out[:, which] = total
    return out


def pixelate_bytes(x: NDArray[np.uint8], small_h: int, small_w: int) -> NDArray[np.uint8]:
    """Pixelate bytes (M, H, W); dimensions are exchanged so that whole rows of bytes are added and copied."""
    m, h, w = x.shape
    columns = box_down_bytes(filters.transposed(x.reshape(m * h, w))[None], small_w)[0]
    small = box_down_bytes(filters.transposed(columns).reshape(m, h, small_w), small_h)
    columns = filters.transposed(small.reshape(m * small_h, small_w))
    wide = filters.transposed(columns.take(boxes(w, small_w)[2], axis=0, mode="clip"))
    return wide.reshape(m, small_h, w).take(boxes(h, small_h)[2], axis=1, mode="clip")


def pixelate(x: Tensor, c: float, rng: Rng) -> Tensor:
    """Shrink the image to a fraction c of its size by box averaging, and enlarge it again by repeating pixels.

    Args:
        x: images (N, 3, H, W), uint8 or in [0, 1].
        c: fraction of the height and of the width.
        rng: not used.
    """
    h, w = x.shape[2:]
    small_h, small_w = max(1, int(h * c)), max(1, int(w * c))
    if x.dtype == torch.uint8 and not x.is_cuda:
        return torch.from_numpy(pixelate_bytes(x.flatten(0, 1).numpy(), small_h, small_w)).view(x.shape)
    white = 1 if x.is_floating_point() else 255
    columns = x.flatten(0, 1).mT.float().contiguous()  # sums of rows are faster than sums of columns
    small = box_down(columns, small_w, white)
    small = box_down(small.mT.contiguous(), small_h, 255)
    small = small.to(x.dtype) if white == 255 else small.div_(255)
    wide = filters.pick(small, rows_of_boxes(w, small_w, x.device)[3], 2)
    return filters.pick(wide, rows_of_boxes(h, small_h, x.device)[3], 1).view(x.shape)


def jpeg_compression(x: Tensor, c: int, rng: Rng) -> Tensor:
    """Compress the image as JPEG of quality c and decompress it.

    Args:
        x: images (N, 3, H, W), uint8 or in [0, 1].
        c: quality of the JPEG on Pillow's scale, 1 to 95.
        rng: not used.

    Raises:
        ImportError: Pillow is not installed.
    """
    return store_as_jpeg(x, c)


def store_as_jpeg(x: Tensor, quality: int = 85) -> Tensor:
    """Compress images as JPEG and decompress them; those of ImageNet-C are stored with quality 85.

    Args:
        x: images (N, 3, H, W): uint8, or floating-point in [0, 1], which are truncated to 8 bits.
        quality: quality of the JPEG on Pillow's scale, 1 to 95.

    Raises:
        ImportError: Pillow is not installed.

    >>> store_as_jpeg(torch.full((1, 3, 8, 8), 102 / 255)).mul(255).unique()
    tensor([102.])
    """
    levels = (x if x.dtype == torch.uint8 else filters.to_bytes(x.float())).contiguous().cpu().numpy()
    through, out = jpeg_codec(), np.empty_like(levels)
    for source, target in zip(levels, out, strict=True):
        through(source, quality, target)
    pixels = torch.from_numpy(out).to(x.device)
    return pixels if x.dtype == torch.uint8 else pixels.to(x.dtype).div_(255)


def through_opencv(image: NDArray[np.uint8], quality: int, out: NDArray[np.uint8]) -> None:
    """Encode and decode an image (3, H, W) with OpenCV, to `out`."""
    import cv2

    _, file = cv2.imencode(".jpg", cv2.merge(tuple(image[::-1])), (cv2.IMWRITE_JPEG_QUALITY, quality))
    decoded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded a line above
    cv2.split(decoded, tuple(out[::-1]))


def through_pillow(image: NDArray[np.uint8], quality: int, out: NDArray[np.uint8]) -> None:
    """Encode and decode an image (3, H, W) with Pillow, to `out`."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "JPEG", quality=quality)
    out[:] = np.asarray(Image.open(file, formats=("JPEG",))).transpose(2, 0, 1)


def jpeg_codec() -> Callable[[NDArray[np.uint8], int, NDArray[np.uint8]], None]:
    """Return the codec: OpenCV where it is installed and computes the values of Pillow, which is slower; otherwise Pillow.

    Raises:
        ImportError: neither is installed.
    """
    if filters.opencv() is not None:
        return through_opencv
    need_pillow()
    return through_pillow
