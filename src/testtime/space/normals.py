"""Normals of the surface that a depth map shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normals_of"]


def normals_of(depth: Tensor, intrinsics: Any, radius: int = 1, straight: float = 0.02) -> Tensor:
    r"""Compute the normals (3, H, W) of a pinhole camera's depth map: x right, y up, z to the viewer.

    The inverse depth of a plane is linear in the pixel coordinates:

    .. math:: \frac1Z = A x + B y + C, \quad x = \frac{u - c_x}{f_x},\; y = \frac{v - c_y}{f_y}
              \quad\Rightarrow\quad n \propto (-A,\, B,\, C)

    so that least squares over a square window give the normal, exactly for planes. Of the nine windows that contain a pixel at
    their centre, at a side or in a corner, the one with the smallest residual is chosen (the centred one unless another has
    less than half of its residual), so that normals are not smoothed across the borders of objects and where walls meet.

    Args:
        depth: depth (1, H, W) in metres along the optical axis; NaN or not positive where unknown.
        intrinsics: intrinsics (3, 3) in pixels; a pixel's centre is at its column and row plus one half.
        radius: radius of the windows in pixels, (2 radius + 1)^2 pixels each; larger for a noisy sensor.
        straight: largest root mean square residual of a surface, relative to the depth.

    Returns:
        unit vectors, NaN where the depth is unknown, and at discontinuities, where no window is a surface.

    Raises:
        ValueError: depth or intrinsics have another shape.
    """
    k = torch.as_tensor(np.asarray(intrinsics, dtype=np.float64))
    if depth.dim() != 3 or depth.shape[0] != 1 or k.shape != (3, 3) or radius < 1:
        raise ValueError(
            f"expected depth (1, H, W), intrinsics (3, 3) and a radius of at least 1, got {tuple(depth.shape)}, "
            f"{tuple(k.shape)} and {radius}"
        )
    height, width = depth.shape[-2:]
    known = depth.double().where(depth > 0, torch.nan)
    inverse = F.pad(1 / known[None], [radius] * 4, value=torch.nan)
    side = 2 * radius + 1
    step = torch.arange(-radius, radius + 1, dtype=torch.float64)
    flat, slope = torch.full((side,), 1 / side, dtype=torch.float64), step / (step * step).sum()
    spread = float((step * step).mean())

    def along(plane: Tensor, kernel: Tensor, rows: bool) -> Tensor:
        return F.conv2d(plane, kernel.view((1, 1, -1, 1) if rows else (1, 1, 1, -1)))

    # The filters are separable; NaN of one pixel makes all its windows NaN.
    level = along(inverse, flat, False)
    mean, down = along(level, flat, True)[0, 0], along(level, slope, True)[0, 0]
    across = along(along(inverse, slope, False), flat, True)[0, 0]
    square = along(along(inverse.square(), flat, False), flat, True)[0, 0]
    missed = (square - mean.square() - (across.square() + down.square()) * spread).clamp(min=0)
    missed = missed.sqrt() / mean
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width))
    a, b = across * k[0, 0], down * k[1, 1]
    c = mean - a * (columns - k[0, 2]) / k[0, 0] - b * (rows[:, None] - k[1, 2]) / k[1, 1]
    fits = torch.stack([-a, b, c, missed])
    around = F.pad(fits, [radius] * 4, value=torch.nan)
    best = torch.full((4, height, width), torch.inf, dtype=torch.float64)
    score = torch.full((height, width), torch.inf, dtype=torch.float64)
    for y in (radius, 0, 2 * radius):
        for x in (radius, 0, 2 * radius):
            one = around[:, y : y + height, x : x + width]
            # Differences below 1e-6 are rounding errors.
            cost = (one[3] + 1e-6) * (1 if y == x == radius else 2)
            better = cost.nan_to_num(torch.inf) < score
            best, score = torch.where(better, one, best), torch.where(better, cost, score)
    normals = best[:3] / best[:3].norm(dim=0, keepdim=True)
    surface = (best[3] <= straight) & known[0].isfinite()
    return normals.where(surface, torch.nan).to(depth.dtype)
