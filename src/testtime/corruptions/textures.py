"""Procedural textures of the weather: plasma fractals for fog, ice for frost."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from testtime.corruptions import filters
from testtime.corruptions.rng import Rng
from testtime.errors import need_pillow

__all__ = ["frost_textures", "ice", "plasma"]

# Five frosted windows: colour, contrast, number of crystals, their size in pixels, needles of each, share of plasma noise.
WINDOWS = (
    ((0.32, 0.57, 0.64), 0.08, 150, 70, 2, 0.5),
    ((0.79, 0.81, 0.84), 0.09, 260, 75, 2, 0.2),
    ((0.75, 0.79, 0.84), 0.10, 220, 60, 3, 0.2),
    ((0.54, 0.60, 0.65), 0.12, 170, 36, 5, 0.3),
    ((0.44, 0.48, 0.53), 0.16, 170, 42, 6, 0.3),
)


def plasma(size: int, decay: float, rng: Rng) -> Tensor:
    """Draw height maps by the diamond-square algorithm on a torus.

    Args:
        size: side of a map, a power of two.
        decay: factor whose square divides the noise at each halving of the step; small values give rough maps.
        rng: one sequence of random numbers for each map.

    Returns:
        (N, size, size) in [0, 1]; the minimum of each map is 0, its maximum 1.

    Reference: Fournier, Fussell & Carpenter, *Computer rendering of stochastic models*, CACM 1982.
    """
    n = len(rng.seeds)
    height = torch.zeros(n, size, size, device=rng.seeds.device)
    step, noise, used = size, 100.0**2, 0
    drawn = rng.uniform(size * size - 1).mul_(2).sub_(1)

    def jitter(total: Tensor) -> Tensor:
        nonlocal used
        first, used = used, used + total[0].numel()
        return total.div_(4).add_(drawn[:, first:used].view_as(total) * noise)

    while step >= 2:
        half = step // 2
        corner = height[:, ::step, ::step]
        right = corner.roll(-1, 2).add_(corner)
        below = corner.roll(-1, 1).add_(corner)
        centre = jitter(right.roll(-1, 1).add_(right))
        height[:, half::step, half::step] = centre
        height[:, ::step, half::step] = jitter(centre.roll(1, 1).add_(centre).add_(right))
        height[:, half::step, ::step] = jitter(centre.roll(1, 2).add_(centre).add_(below))
        step, noise = half, noise / decay**2
    height -= height.amin((1, 2), keepdim=True)
    return height.div_(height.amax((1, 2), keepdim=True))


def paint_feather(
    relief: Tensor, light: Tensor, rough: Tensor, start: Tensor, angle: float, length: float, tone: float
) -> None:
    """Draw one feather of ice in place, a ridge along a spine with barbs, where it is higher than what is there.

    Args:
        relief, light: height and brightness of the texture so far, (H, W); changed in place.
        rough: noise of standard deviation 1 that distorts the barbs, (H, W).
        start: foot of the feather as (row, column), (2,), in pixels.
        angle: angle of the spine, in radians.
        length: length of the spine, in pixels.
        tone: increase of height and brightness of the feather, 0 to 1.
    """
    h, w = relief.shape
    top, left = (int(v - length) for v in start.tolist())
    rows = slice(max(top, 0), min(top + int(2 * length) + 2, h))
    columns = slice(max(left, 0), min(left + int(2 * length) + 2, w))
    noise = rough[rows, columns]
    down = torch.arange(rows.start, rows.stop)[:, None] - start[0]
    across = torch.arange(columns.start, columns.stop) - start[1]
    along = (across * math.cos(angle) + down * math.sin(angle)) / length
    aside = down * math.cos(angle) - across * math.sin(angle)
    barb = ((along * length - aside.abs() * 0.6) / (3 + 2 * tone) + 0.2 * noise) % 1
    width = length * (0.12 + 0.12 * tone) * (1 - along).clamp(min=0) ** 0.7 * (0.6 + 0.4 * barb)
    roof = torch.where(along > 0, 1 - aside.abs() / width.clamp(min=1e-3), -1.0) + 0.5 * tone
    facet = torch.where(aside > 0, math.sin(angle + 0.8), -math.sin(angle + 0.8))
    spine = torch.exp(-(aside**2)) * (1 - along)
    bright = 0.6 * facet + 0.9 * (barb - 0.5) + 1.5 * spine + tone + 0.25 * noise
    over = roof > relief[rows, columns]
    relief[rows, columns] = torch.where(over, roof, relief[rows, columns])
    light[rows, columns] = torch.where(over, bright, light[rows, columns])


def ice(which: int, height: int = 360, width: int = 480) -> Tensor:
    """Draw a frosted window: feathers of ice with barbs at 60 degrees, lit from one side, over plasma noise.

    Args:
        which: index of the window, 0 to 4; the five have the colours and contrast of the original textures.
        height, width: size of the texture, in pixels.

    Returns:
        (3, height, width) float32, multiples of 1 / 255 in [0, 1]; the same values at every call.
    """
    colour, contrast, crystals, size, needles, cloud = WINDOWS[which]
    rng = Rng(torch.tensor([which]), "ice")
    side = 2 ** (max(height, width) - 1).bit_length()
    haze = standardise(plasma(side, 1.6, rng)[0, :height, :width])
    relief, light = torch.zeros(height, width), 0.5 * haze - 0.3
    rough = standardise(filters.gaussian_blur(rng.normal(height, width)[0], 1.0))
    light += 0.5 * rough
    foot = rng.uniform(crystals, 2)[0] * torch.tensor([height, width])
    turn, spread = rng.uniform(2, crystals)[0]
    longer, tone, bend = rng.uniform(3, crystals, needles)[0]
    for i in range(crystals):
        for j in range(needles):
            angle = 2 * math.pi * (turn[i] + j / needles) + 0.6 * (bend[i, j] - 0.5)
            length = size * (0.3 + spread[i] ** 2) * (0.5 + longer[i, j])
            paint_feather(relief, light, rough, foot[i], float(angle), float(length), float(tone[i, j]))
    pane = standardise((1 - cloud) * standardise(light) + cloud * haze)
    return filters.to_8_bits(torch.tensor(colour)[:, None, None] + contrast * pane)


def standardise(x: Tensor) -> Tensor:
    """Scale values to mean 0 and standard deviation 1."""
    return (x - x.mean()) / x.std()


@lru_cache(maxsize=4)
def frost_textures(folder: Path | None = None) -> tuple[Tensor, ...]:
    """Return the five textures of frost, each (3, H, W) in [0, 1].

    Args:
        folder: folder with ``frost1`` to ``frost5`` as .png or .jpg; None draws them (`ice`).

    Raises:
        FileNotFoundError: a texture is missing.
        ImportError: a folder is given, and Pillow is not installed.
    """
    if folder is None:
        return tuple(ice(which) for which in range(len(WINDOWS)))
    need_pillow()
    from PIL import Image

    textures = []
    for number in range(1, 6):
        files = [folder / f"frost{number}{ending}" for ending in (".png", ".jpg")]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"expected the frost texture {files[0]} or {files[1].name}")
        pixels = np.array(Image.open(file).convert("RGB"))
        textures.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    return tuple(textures)
