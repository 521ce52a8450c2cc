"""Crop windows of a frame, applied to every modality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.space.modalities import Modality
from testtime.space.sequences import Box

__all__ = ["cropped", "windows"]


def windows(count: int, smallest: float, rng: torch.Generator, size: tuple[int, int]) -> Tensor:
    """Draw windows (count, 5): top, left, height, width as fractions of the frame, and whether the crop is mirrored.

    The first is the largest centred square, not mirrored. The area of the others is uniform in [smallest, 1] of the frame's,
    and their aspect ratio (in pixels) is in [3/4, 4/3], as in 4M; a window that does not fit is replaced by the first. Windows
    are aligned to pixels, so that all modalities of the frame's resolution are cropped identically.

    Args:
        count: number of windows.
        smallest: smallest fraction of the frame's area.
        rng: generator of all random numbers.
        size: (H, W) of the frame in pixels.
    """
    height, width = size
    side = min(height, width)
    middle = ((height - side) // 2, (width - side) // 2, side, side)
    found: list[tuple[float, ...]] = [(*middle, 0.0)]
    for area, ratio, top, left, mirror in (
        torch.rand(count - 1, 5, generator=rng).tolist() if count > 1 else []
    ):
        pixels = (smallest + (1 - smallest) * area) * height * width
        aspect = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        h, w = max(1, round(math.sqrt(pixels / aspect))), max(1, round(math.sqrt(pixels * aspect)))
        fits = h <= height and w <= width
        window = (int(top * (height - h + 1)), int(left * (width - w + 1)), h, w) if fits else middle
        found.append((*window, float(mirror < 0.5)))
    return torch.tensor(found) / torch.tensor([height, width, height, width, 1])


def cropped(value: Any, modality: Modality, window: Sequence[float], size: tuple[int, int]) -> Any:
    """Crop a modality of a frame to a window, and resize it.

    Pictures and edges are resized with antialiasing, all else with nearest neighbours, because a depth between two surfaces is
    the depth of neither. Boxes that lose more than half of their area are left out.

    Args:
        value: raw value of the frame.
        modality: modality of the value.
        window: window of :func:`windows`.
        size: (H, W) of the result in pixels.
    """
    top, left, height, width, mirror = window
    if modality.kind == "sequence":
        return [box for box in (_cropped_box(b, window) for b in value) if box is not None]
    planes = value if value.dim() == 3 else value[None]
    h, w = planes.shape[-2:]
    if modality.kind == "image" and modality.normalise == "unit":
        y0, x0 = round(top * h), round(left * w)
        y1, x1 = max(y0 + 1, round((top + height) * h)), max(x0 + 1, round((left + width) * w))
        part = planes[None, :, y0:y1, x0:x1].float()
        out = F.interpolate(part, size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
    else:
        rows, columns = _nearest(top, height, h, size[0]), _nearest(left, width, w, size[1])
        out = planes[..., rows[:, None], columns[None, :]]
    out = modality.mirrored(out) if mirror else out
    return out if value.dim() == 3 else out[0]


def _nearest(begin: float, extent: float, pixels: int, count: int) -> Tensor:
    """Return the pixels at the centres of ``count`` equal parts of a window, which need not be aligned to pixels."""
    middles = begin + (torch.arange(count, dtype=torch.float64) + 0.5) * extent / count
    return (middles * pixels).long().clamp(max=pixels - 1)


def _cropped_box(box: Box, window: Sequence[float]) -> Box | None:
    """Return the box in the coordinates of a window, or None if less than half of its area is inside."""
    top, left, height, width, mirror = window
    x0, x1 = ((min(max(x, left), left + width) - left) / width for x in (box.x0, box.x1))
    y0, y1 = ((min(max(y, top), top + height) - top) / height for y in (box.y0, box.y1))
    whole = (box.x1 - box.x0) * (box.y1 - box.y0)
    if (x1 - x0) * width * (y1 - y0) * height < 0.5 * whole or whole == 0:
        return None
    inside = Box(x0, y0, min(x1, 1.0), min(y1, 1.0), box.name, box.score)
    return inside.mirrored() if mirror else inside
