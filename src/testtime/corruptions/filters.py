"""Image operators of several corruptions, with the conventions of the libraries that made the published sets."""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "affine_grid_sample",
    "canny",
    "clipped_zoom",
    "distance_to",
    "equalise",
    "filter2d",
    "gaussian_blur",
    "grey",
    "motion_blur",
    "opencv",
    "pick",
    "to_8_bits",
    "to_bytes",
    "transposed",
]

TAPS = 32  # a Fourier transform costs as much as about so many taps


@lru_cache(maxsize=1)
def opencv() -> ModuleType | None:
    """Return OpenCV, or None where it is not installed; it is used where it computes the same values in less time."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def to_8_bits(x: Tensor) -> Tensor:
    """Truncate values in [0, 1] to k / 255, as ``np.uint8(255 * x)`` does; 8-bit values are unchanged.

    The published code computes in double precision; here a value within 0.001 of the next integer counts as that integer.

    >>> to_8_bits(torch.tensor([0.0, 0.5, 1.0])).mul(255)
    tensor([  0., 127., 255.])
    """
    return x.clamp(0, 1).mul_(255).add_(1e-3).floor_().div_(255)


def to_bytes(x: Tensor) -> Tensor:
    """Truncate values in [0, 1] to uint8 0..255, as `to_8_bits` does; numpy converts five times as fast as torch.

    >>> to_bytes(torch.tensor([0.0, 0.5, 1.0]))
    tensor([  0, 127, 255], dtype=torch.uint8)
    """
    levels = x.clamp(0, 1).mul_(255).add_(1e-3)
    return levels.to(torch.uint8) if x.is_cuda else torch.from_numpy(levels.numpy().astype(np.uint8))


def pick(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return the entries `index` of a dimension; numpy takes half the time of torch for it on a CPU."""
    if x.is_cuda:
        return x.index_select(dim, index)
    return torch.from_numpy(x.numpy().take(index.numpy(), axis=dim, mode="clip"))


def transposed(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the contiguous transpose of a matrix of bytes."""
    cv2 = opencv()
    return np.ascontiguousarray(x.T) if cv2 is None else cv2.transpose(x)


def grey(x: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of images (N, 3, H, W) by ITU-R BT.601."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


@lru_cache(maxsize=64)
def gaussian_matrix(size: int, sigma: float, mode: str, truncate: float) -> Tensor:
    """Return the matrix (size, size) that blurs a line of `size` values, summed in float64 for any radius and border."""
    radius = int(truncate * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    weight = (
        torch.exp(-0.5 * (offset.double() / sigma) ** 2) if radius else torch.ones(1, dtype=torch.float64)
    )
    source = torch.arange(size)[:, None] + offset
    if mode == "nearest":
        source = source.clamp(0, size - 1)
    else:  # "reflect" of scipy: d c b a | a b c d | d c b a
        source = source % (2 * size)
        source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, source, (weight / weight.sum()).expand(size, -1))
    return matrix.float()


@lru_cache(maxsize=64)
def gaussian_bands(
    size: int, sigma: float, mode: str, truncate: float, device: torch.device
) -> list[tuple[slice, Tensor]]:
    """Return the matrix of a Gaussian blur in bands of 32 rows, each with the columns that are not 0.

    An image of fewer than 128 pixels is blurred by one product: bands would take longer.
    """
    matrix = gaussian_matrix(size, sigma, mode, truncate)
    bands = []
    for rows in matrix.split(32 if size >= 128 else size):
        inside = rows.any(0).nonzero()
        columns = slice(int(inside[0]), int(inside[-1]) + 1) if size >= 128 else slice(None)
        bands.append((columns, rows[:, columns].contiguous().to(device)))
    return bands


def gaussian_blur(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Blur the last two dimensions with a Gaussian truncated at `truncate` sigmas; `mode` is the border mode of scipy."""
    rows, columns = (gaussian_bands(size, sigma, mode, truncate, x.device) for size in x.shape[-2:])
    x = torch.cat([matrix @ x[..., inside, :] for inside, matrix in rows], -2)
    return torch.cat([x[..., inside] @ matrix.T for inside, matrix in columns], -1)


def filter2d(x: Tensor, kernel: Tensor, border: str = "reflect") -> Tensor:
    """Correlate every channel of (N, C, H, W) with an odd (k, l) kernel.

    It is done tap by tap, and above `TAPS` weights by Fourier transforms, which differ by rounding (1e-6). The border is
    mirrored about the centre of its pixel ("reflect", OpenCV's 101) or repeated ("replicate").
    """
    h, w = x.shape[2:]
    pad = (kernel.shape[1] // 2,) * 2 + (kernel.shape[0] // 2,) * 2
    if border == "reflect" and (w <= pad[0] or h <= pad[2]):
        raise ValueError(
            f"expected images of more than {pad[2]} x {pad[0]} pixels for a filter of {tuple(kernel.shape)}, got {h} x {w}; "
            'enlarge them, or choose constants="cifar"'
        )
    padded = F.pad(x, pad, mode=border)
    if kernel.count_nonzero() > TAPS:
        return correlate(padded, kernel)[..., :h, :w]
    out = torch.zeros_like(x)
    for i, row in enumerate(kernel.tolist()):
        for j, value in enumerate(row):
            if value != 0:
                out.add_(padded[..., i : i + h, j : j + w], alpha=value)
    return out


def correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate images (..., H, W) cyclically with a kernel by Fourier transforms, of sizes that are fast."""
    size = [
        next(s for s in range(-(-n // 16) * 16, 4 * n + 64, 16) if 2**20 * 3**8 * 5**6 % s == 0)
        for n in x.shape[-2:]
    ]
    weight = torch.fft.rfft2(kernel.to(x), s=size).conj()
    return torch.fft.irfft2(torch.fft.rfft2(x, s=size).mul_(weight), s=size)


def clipped_zoom(x: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of (N, C, H, W) by `factor` >= 1 to the same size, bilinear with aligned corners."""
    h, w = x.shape[-2:]
    ch, cw = math.ceil(h / factor), math.ceil(w / factor)
    top, left = (h - ch) // 2, (w - cw) // 2
    size = (round(ch * factor), round(cw * factor))
    crop = x[..., top : top + ch, left : left + cw]
    big = F.interpolate(crop, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return big[..., top : top + h, left : left + w]


def motion_blur(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    r"""Blur each image one-sidedly along its own direction and truncate it to 8 bits, as ImageMagick does.

    :math:`y(p) = \sum_{i=0}^{2r} w_i\, x(p + \mathrm{round}(i\,(\cos\theta, \sin\theta)))` with
    :math:`w_i \propto \exp(-i^2 / 2 \sigma^2)` and the border repeated.

    Args:
        x: images (N, C, H, W) in [0, 1].
        radius: radius r of the blur, in pixels.
        sigma: standard deviation of the weights, in pixels.
        angle: direction of the blur of each image, (N,), in degrees clockwise from the x axis.
    """
    h, w = x.shape[-2:]
    step = torch.arange(2 * radius + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (step / sigma) ** 2)
    weights = (weight / weight.sum()).tolist()
    theta = torch.deg2rad(angle.cpu().double())[:, None]
    # halves round down: ceil(v - 0.5)
    across = torch.ceil(step * theta.cos() - 0.5).long().tolist()
    down = torch.ceil(step * theta.sin() - 0.5).long().tolist()
    pad = 2 * radius
    padded = F.pad(x, (pad,) * 4, mode="replicate")
    out = torch.zeros_like(x)
    for image, source, dxs, dys in zip(out, padded, across, down, strict=True):
        for value, dx, dy in zip(weights, dxs, dys, strict=True):
            image.add_(source[:, pad + dy : pad + dy + h, pad + dx : pad + dx + w], alpha=value)
    return to_8_bits(out)


def affine_grid_sample(x: Tensor, across: Tensor, down: Tensor, mirror_pixel: bool) -> Tensor:
    """Interpolate (N, C, H, W) bilinearly at pixel coordinates (N, H, W).

    The border is mirrored about the centre of the outer pixel (OpenCV's 101) or about its outer edge (scipy's "reflect").
    """
    h, w = x.shape[-2:]
    if mirror_pixel:
        grid = torch.stack([2 * across / (w - 1) - 1, 2 * down / (h - 1) - 1], -1)
    else:
        grid = torch.stack([(2 * across + 1) / w - 1, (2 * down + 1) / h - 1], -1)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=mirror_pixel)


def neighbours(x: Tensor) -> dict[tuple[int, int], Tensor]:
    """Return (N, 1, H, W) shifted by each of the eight steps (down, across); values outside are 0."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return {(i, j): padded[..., 1 + i : 1 + i + h, 1 + j : 1 + j + w] for i, j in steps}


def canny(x: Tensor, low: float, high: float) -> Tensor:
    """Find edges of 8-bit grey images: Sobel, non-maximum suppression, and hysteresis.

    Args:
        x: images (N, 1, H, W) with values 0..255.
        low, high: thresholds of |gx| + |gy| for weak and strong edges.

    Returns:
        (N, 1, H, W) bool.

    Reference: Canny, *A computational approach to edge detection*, PAMI 1986, with the conventions of OpenCV.
    """
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    gx = filter2d(x, torch.outer(smooth, slope), border="replicate")
    gy = filter2d(x, torch.outer(slope, smooth), border="replicate")
    magnitude = gx.abs() + gy.abs()
    near = neighbours(magnitude)
    flat = gy.abs() < gx.abs() * math.tan(math.pi / 8)
    steep = gy.abs() > gx.abs() * math.tan(3 * math.pi / 8)
    peak_across = (magnitude > near[0, -1]) & (magnitude >= near[0, 1])
    peak_down = (magnitude > near[-1, 0]) & (magnitude >= near[1, 0])
    peak_falling = (magnitude > near[-1, -1]) & (magnitude > near[1, 1])
    peak_rising = (magnitude > near[-1, 1]) & (magnitude > near[1, -1])
    peak_diagonal = torch.where(gx * gy < 0, peak_rising, peak_falling)
    peak = torch.where(flat, peak_across, torch.where(steep, peak_down, peak_diagonal))
    weak = peak & (magnitude > low)
    edge = weak & (magnitude > high)
    while True:
        grown = spread(spread(edge, -1), -2) & weak
        if torch.equal(grown, edge):
            return edge
        edge = grown


def spread(mask: Tensor, dim: int) -> Tensor:
    """Return a bool mask that also holds the neighbours of its pixels along a dimension."""
    size = mask.shape[dim] - 1
    wide = mask.clone()
    wide.narrow(dim, 1, size).logical_or_(mask.narrow(dim, 0, size))
    wide.narrow(dim, 0, size).logical_or_(mask.narrow(dim, 1, size))
    return wide


def distance_to(mask: Tensor, limit: float) -> Tensor:
    """Return the length of the shortest path from every pixel to one of a bool mask, (N, 1, H, W), at most `limit`.

    A path consists of steps to the side (1), across a corner (1.4) and as a knight (2.1969); its length is within 2 % of the
    Euclidean distance. The lengths are multiples of 2^-16, as in OpenCV's fixed-point arithmetic.
    Reference: Borgefors, *Distance transformations in digital images*, CVGIP 1986.
    """
    h, w = mask.shape[-2:]
    distance = torch.full_like(mask, limit, dtype=torch.float32).masked_fill(mask, 0.0)
    # A shortest path has two kinds of steps at most, in any order: all kinds are added one after the other, and 1, 2, 4, ...
    # steps of a kind at once.
    knight = 143976 / 2**16
    kinds = {(0, 1): 1.0, (1, 0): 1.0, (1, 1): 91750 / 2**16, (1, -1): 91750 / 2**16}
    kinds |= {(1, 2): knight, (1, -2): knight, (2, 1): knight, (2, -1): knight}
    for (down, across), length in kinds.items():
        reached, most = 0, math.ceil(limit / length) - 1
        while reached < most:
            steps = min(reached + 1, most - reached)
            i, j = steps * down, steps * abs(across)
            if i < h and j < w:
                left, right = distance[..., : h - i, : w - j], distance[..., i:, j:]
                if across < 0:
                    left, right = distance[..., : h - i, j:], distance[..., i:, : w - j]
                torch.minimum(right, left + steps * length, out=right)
                torch.minimum(left, right + steps * length, out=left)
            reached += steps
    return distance


def equalise(x: Tensor) -> Tensor:
    """Equalise the histogram of each image (N, 1, H, W) of integers 0..255 as OpenCV does: the darkest level becomes 0."""
    levels = x.flatten(1).long()
    count = torch.zeros(len(x), 256, device=x.device)
    count.scatter_add_(1, levels, torch.ones_like(levels, dtype=count.dtype))
    below = count.cumsum(1)
    darkest = count.gather(1, levels.amin(1, keepdim=True))
    span = below[:, -1:] - darkest
    table = (255 * (below - darkest) / span.clamp(min=1)).round()
    return torch.where(span > 0, table.gather(1, levels), levels.float()).view_as(x)
