"""Windows of a frame, and every modality seen through them."""

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
    """Windows (count, 5) of a frame: top, left, height, width as shares of it, and whether it is mirrored.

    The first is the largest square in the middle, not mirrored. Of the others the area is a share in [smallest, 1] of the
    frame's and the ratio of the sides (in pixels) in [3/4, 4/3], as in 4M; one that does not fit becomes the first.
    """
    height, width = size
    side = min(height, width)
    middle = [(1 - side / height) / 2, (1 - side / width) / 2, side / height, side / width, 0.0]
    found = [middle]
    for area, ratio, top, left, mirror in (
        torch.rand(count - 1, 5, generator=rng).tolist() if count > 1 else []
    ):
        pixels = (smallest + (1 - smallest) * area) * height * width
        aspect = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        w, h = math.sqrt(pixels * aspect) / width, math.sqrt(pixels / aspect) / height
        if w > 1 or h > 1:
            found.append([*middle[:4], float(mirror < 0.5)])
        else:
            found.append([top * (1 - h), left * (1 - w), h, w, float(mirror < 0.5)])
    return torch.tensor(found)


def cropped(value: Any, modality: Modality, window: Sequence[float], size: tuple[int, int]) -> Any:
    """A modality of a frame seen through a window, at a size.

    Pictures are averaged over the pixels that fall together; of everything else the nearest is taken, since a depth between two
    surfaces is that of none. Boxes that lose more than half of their area are left out.
    """
    top, left, height, width, mirror = window
    if modality.kind == "sequence":
        return [box for box in (_seen(b, window) for b in value) if box is not None]
    planes = value if value.dim() == 3 else value[None]
    h, w = planes.shape[-2:]
    y0, x0 = round(top * h), round(left * w)
    part = planes[
        ..., y0 : max(y0 + 1, round((top + height) * h)), x0 : max(x0 + 1, round((left + width) * w))
    ]
    if modality.kind == "image" and modality.normalise == "unit":
        out = F.interpolate(part[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[
            0
        ].clamp(0, 1)
    else:
        rows = ((torch.arange(size[0]) + 0.5) * part.shape[-2] / size[0]).long()
        columns = ((torch.arange(size[1]) + 0.5) * part.shape[-1] / size[1]).long()
        out = part[..., rows[:, None], columns[None, :]]
    out = modality.mirrored(out) if mirror else out
    return out if value.dim() == 3 else out[0]


def _seen(box: Box, window: Sequence[float]) -> Box | None:
    """The box as a window shows it, or None if that hides more than half of it."""
    top, left, height, width, mirror = window
    x0, x1 = ((min(max(x, left), left + width) - left) / width for x in (box.x0, box.x1))
    y0, y1 = ((min(max(y, top), top + height) - top) / height for y in (box.y0, box.y1))
    whole = (box.x1 - box.x0) * (box.y1 - box.y0)
    if (x1 - x0) * width * (y1 - y0) * height < 0.5 * whole or whole == 0:
        return None
    seen = Box(x0, y0, min(x1, 1.0), min(y1, 1.0), box.name, box.score)
    return seen.mirrored() if mirror else seen
