"""Materials, and procedural patterns that are evaluated in object coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np

from testtime.scenes.geometry import Array

__all__ = ["PATTERNS", "Material", "Paint", "linear", "noise"]

SIDE = 48
"""Edge length of the periodic block of noise, in cells."""


@final
@dataclass(frozen=True)
class Material:
    """The material of a surface.

    Attributes:
        colour: first colour, sRGB in [0, 1].
        second: second colour of the pattern, sRGB in [0, 1].
        pattern: name of the pattern, one of :data:`PATTERNS`.
        scale: period of the pattern, in metres.
        gloss: strength of the specular reflection, not negative.
        glow: emitted light, as a multiple of the colour.
        seed: random seed of the offset of the pattern.
    """

    colour: tuple[float, float, float]
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    scale: float = 0.1
    gloss: float = 0.0
    glow: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)}, got {self.pattern!r}")


def linear(srgb: Array | Sequence[float] | Sequence[Sequence[float]]) -> Array:
    """Convert sRGB in [0, 1] to linear light (IEC 61966-2-1).

    >>> [round(float(v), 4) for v in linear([0.0, 0.5, 1.0])]
    [0.0, 0.214, 1.0]
    """
    srgb = np.asarray(srgb, dtype=np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@lru_cache(maxsize=1)
def _block() -> Array:
    """Return periodic noise with a spectrum of 1/f^1.6, (SIDE, SIDE, SIDE) float32, approximately uniform in [0, 1]."""
    white = np.random.default_rng(20240229).normal(size=(SIDE, SIDE, SIDE))
    spectrum = np.fft.rfftn(white)
    f = np.fft.fftfreq(SIDE) * SIDE
    radius = np.sqrt(
        f[:, None, None] ** 2 + f[None, :, None] ** 2 + (np.fft.rfftfreq(SIDE) * SIDE)[None, None] ** 2
    )
    band = np.where(
        radius < 3, 0.0, 1 / np.maximum(radius, 1) ** 1.6
    )  # no wavelengths above a third of the block
    field = np.fft.irfftn(spectrum * band, s=white.shape, axes=(0, 1, 2))
    return np.clip(0.5 + field / (4.5 * field.std()), 0, 1).astype(np.float32)


def noise(points: Array) -> Array:
    """Return smooth noise in [0, 1] at points (N, 3) with features of about one unit and a period of eight."""
    block, x = _block(), points * np.float32(SIDE / 8)
    cell = np.floor(x)
    f = x - cell
    f = f * f * (3 - 2 * f)
    i0 = cell.astype(np.int32)
    i0 -= i0 // SIDE * SIDE  # the remainder, in a fraction of the time of %
    i1 = np.where(i0 == SIDE - 1, 0, i0 + 1)
    flat = block.reshape(-1)
    x0, x1 = i0[:, 0] * (SIDE * SIDE), i1[:, 0] * (SIDE * SIDE)
    y0, y1 = i0[:, 1] * SIDE, i1[:, 1] * SIDE
    z0, z1 = i0[:, 2], i1[:, 2]
    fx, fy, fz = f[:, 0], f[:, 1], f[:, 2]

    def along_x(y: Array, z: Array) -> Array:
        a = flat.take(x0 + y + z, mode="clip")
        return a + fx * (flat.take(x1 + y + z, mode="clip") - a)

    low, high = along_x(y0, z0), along_x(y0, z1)
    low = low + fy * (along_x(y1, z0) - low)
    high = high + fy * (along_x(y1, z1) - high)
    return low + fz * (high - low)


def _hash(cells: Array) -> Array:
    """Return hashes in [0, 1) of integer cells (N, K)."""
    h = np.zeros(len(cells), np.uint32)
    for column, prime in zip(cells.astype(np.int64).T, (73856093, 19349663, 83492791), strict=False):
        h = (h ^ (column * prime).astype(np.uint32)) * np.uint32(2654435761)
        h ^= h >> np.uint32(15)
    return (h.astype(np.float32)) / np.float32(2**32)


# A pattern is a function from object coordinates in periods (N, 3) and the width of a pixel in periods (N,) to the share of the
# second colour, (N,) in [0, 1], and a factor of the brightness, (N,).
PatternValue = tuple[Array, Array]


def _ones(p: Array) -> Array:
    return np.ones(len(p), np.float32)


def _plain(p: Array, wide: Array) -> PatternValue:
    return np.zeros(len(p), np.float32), _ones(p)


def _checker(p: Array, wide: Array) -> PatternValue:
    odd = (np.floor(p).sum(axis=1).astype(np.int64) & 1).astype(np.float32)
    return _faded(odd, 0.5, wide), _ones(p)


def _stripe(p: Array, wide: Array) -> PatternValue:
    return _faded((p[:, 0] - np.floor(p[:, 0]) > 0.6).astype(np.float32), 0.4, wide), _ones(p)


def _noise(p: Array, wide: Array) -> PatternValue:
    return _faded(noise(p), 0.5, wide), _ones(p)


def _weave(p: Array, wide: Array) -> PatternValue:
    return _faded(noise(p * np.array([1, 1, 1], np.float32)), 0.5, wide), 1 + 0.12 * (
        noise(p[:, [1, 2, 0]] * 3) - 0.5
    )


def _wood(p: Array, wide: Array) -> PatternValue:
    grain = noise(p * np.array([0.25, 2.0, 2.0], np.float32))
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (p[:, 1] * 1.3 + p[:, 2] * 1.7 + 2.5 * grain))
    return _faded(0.45 * rings + 0.55 * grain, 0.5, wide), _ones(p)


def _planks(p: Array, wide: Array) -> PatternValue:
    row = np.floor(p[:, 1])
    shift = _hash(np.stack([row, row], axis=1)) * 7
    along = p[:, 0] / 6 + shift
    column = np.floor(along)
    tone = _hash(np.stack([row, column], axis=1))
    grain = noise(p * np.array([0.5, 3.0, 1.0], np.float32) + tone[:, None] * 5)
    gap = np.minimum(p[:, 1] - row, row + 1 - p[:, 1])
    seam = np.where(gap < 0.04, 0.62, 1.0)
    return _faded(0.6 * tone + 0.4 * grain, 0.5, wide / 2), 1 + (seam - 1) * _sharp(wide)


def _tiles(p: Array, wide: Array) -> PatternValue:
    cell = np.floor(p[:, :2])
    seam = (np.abs(p[:, :2] - cell - 0.5) > 0.48).any(axis=1)
    tone = 0.25 * (_hash(cell) - 0.5)
    return _faded(seam.astype(np.float32), 0.08, wide), 1 + tone * _sharp(wide)


def _bricks(p: Array, wide: Array) -> PatternValue:
    row = np.floor(p[:, 1] * 3)
    across = p[:, 0] + 0.5 * (row % 2)
    column = np.floor(across)
    seam = (np.abs(p[:, 1] * 3 - row - 0.5) > 0.42) | (np.abs(across - column - 0.5) > 0.47)
    tone = 0.35 * (_hash(np.stack([row, column], axis=1)) - 0.5)
    return _faded(seam.astype(np.float32), 0.2, wide), 1 + tone * _sharp(wide)


def _dots(p: Array, wide: Array) -> PatternValue:
    f = p - np.floor(p) - 0.5
    near = np.minimum(
        np.minimum(f[:, 0] ** 2 + f[:, 1] ** 2, f[:, 1] ** 2 + f[:, 2] ** 2), f[:, 0] ** 2 + f[:, 2] ** 2
    )
    return _faded((near < 0.08).astype(np.float32), 0.25, wide), _ones(p)


def _painting(p: Array, wide: Array) -> PatternValue:
    bands = noise(p * np.array([1.3, 2.1, 1.0], np.float32) + 3.7)
    return np.clip((np.floor(bands * 6) / 5 - 0.2) * 1.6, 0, 1).astype(np.float32), 0.55 + 0.9 * noise(
        p * 2.3
    )


def _sky(p: Array, wide: Array) -> PatternValue:
    """The ground (second colour) below the sky with a line of trees; the second coordinate is the height in [0, 1]."""
    height = p[:, 1]
    trees = 0.3 + 0.25 * (noise(np.stack([p[:, 0] * 2, p[:, 2] * 0, p[:, 2] * 0], axis=1)) - 0.3)
    ground = 1 / (1 + np.exp(np.clip((height - trees) * 40, -30, 30)))
    return ground.astype(np.float32), (1.05 - 0.25 * np.abs(height - 0.3)).astype(np.float32)


PATTERNS: dict[str, Callable[[Array, Array], PatternValue]] = {
    "plain": _plain,
    "checker": _checker,
    "stripe": _stripe,
    "noise": _noise,
    "weave": _weave,
    "wood": _wood,
    "planks": _planks,
    "tiles": _tiles,
    "bricks": _bricks,
    "dots": _dots,
    "painting": _painting,
    "sky": _sky,
}
"""Patterns by name."""


def _sharp(wide: Array) -> Array:
    """Return the contrast of a pattern where a pixel covers ``wide`` periods: 1 up to a quarter, 0 from 1.2 on."""
    return np.clip((1.2 - wide) / 0.95, 0, 1)


def _faded(amount: Any, mean: float, wide: Array) -> Array:
    faded: Array = mean + (amount - mean) * _sharp(wide)
    return faded


@final
class Paint:
    """A list of materials for vectorised evaluation.

    Args:
        materials: materials of the house.
        textured: whether patterns are evaluated; otherwise a material has the mean colour of its pattern.
    """

    def __init__(self, materials: Sequence[Material], textured: bool = True) -> None:
        names = list(PATTERNS)
        self.first = linear([m.colour for m in materials])
        self.second = linear([m.second for m in materials])
        self.pattern = np.array([names.index(m.pattern) for m in materials])
        self.scale = np.array([m.scale for m in materials], dtype=np.float32)
        self.gloss = np.array([m.gloss for m in materials], dtype=np.float32)
        self.glow = np.array([m.glow for m in materials], dtype=np.float32)
        seeds = np.array([[m.seed, i, 7] for i, m in enumerate(materials)])
        self.offset = np.stack([_hash(seeds + k) for k in range(3)], axis=1) * 8
        self.offset[self.pattern == names.index("sky")] = 0
        self.textured = textured
        self.materials = tuple(materials)

    def plain(self) -> Paint:
        """Return the materials without patterns."""
        return Paint(self.materials, textured=False)

    def albedo(self, material: Array, local: Array, footprint: Array) -> Array:
        """Return the linear colours (N, 3) float32 of points.

        Args:
            material: indices of the materials, (N,).
            local: object coordinates of the points, (N, 3), in metres.
            footprint: width of a pixel on the surface, (N,), in metres; finer patterns fade to their mean.
        """
        names = list(PATTERNS)
        if not self.textured:
            flat = (self.pattern != 0) & (self.pattern != names.index("sky"))
            mean = np.where(flat[:, None], 0.6 * self.first + 0.4 * self.second, self.first)
            return mean[material]
        colour, columns = self.first.T.take(material, axis=1, mode="clip"), np.ascontiguousarray(local.T)
        kinds = self.pattern[material]
        for kind in np.flatnonzero(np.bincount(kinds)).tolist():
            if kind == 0:
                continue
            at = np.flatnonzero(kinds == kind)
            which = material[at]
            p = columns.take(at, 1) / self.scale[which] + self.offset.T.take(which, 1)
            amount, factor = PATTERNS[names[kind]](p.T, footprint[at] / self.scale[which])
            first = colour.take(at, 1)
            mixed = first + amount * (self.second.T.take(which, 1) - first)
            colour[:, at] = mixed * factor
        return colour.T
