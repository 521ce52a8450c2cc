"""Cabinets, wardrobes and shelves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from testtime.scenes.furniture.model import Model, Surface, assembled, fronts, legs
from testtime.scenes.geometry import box, panel
from testtime.scenes.style import ACCENTS, Style

__all__ = ["counter", "dresser", "nightstand", "shelf", "sideboard", "wall_cabinet", "wardrobe"]


def nightstand(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, _, fh) = style.material, style.proportions
    w, d, h, wood = 0.45 * fw**0.5, 0.4, 0.5 * fh, m("wood2")
    parts = [
        box((0, 0, 0.1), (w, d, h), wood),
        *legs(style, (0.01, 0.01, 0), (w - 0.01, d - 0.01, 0.1), 0.04, wood),
        *fronts(0.0, w, d, 0.11, h - 0.015, 1, 2, m("front"), m("handle")),
    ]
    return assembled("cabinet", parts, [Surface((0.04, 0.04), (w - 0.04, d - 0.02), h)])


def sideboard(style: Style, rng: np.random.Generator) -> Model:
    """Build a low cabinet for a television or a vase."""
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, h = rng.uniform(1.25, 1.7) * fw**0.5, 0.42 * fd**0.5, rng.uniform(0.42, 0.62) * fh**0.7
    parts = [
        box((0, 0, 0.08), (w, d, h), m("wood")),
        *legs(style, (0.02, 0.02, 0), (w - 0.02, d - 0.02, 0.08), 0.05, m("wood")),
        *fronts(0.02, w - 0.02, d, 0.1, h - 0.03, 3, 1, m("front"), m("handle")),
    ]
    return assembled("cabinet", parts, [Surface((0.05, 0.05), (w - 0.05, d - 0.05), h)])


def dresser(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, h = rng.uniform(0.8, 1.2) * fw**0.5, 0.46 * fd**0.5, rng.uniform(0.8, 1.05) * fh
    parts = [
        box((0, 0, 0.07), (w, d, h), m("wood2")),
        box((0.03, 0.03, 0), (w - 0.03, d - 0.05, 0.07), m("dark")),
        *fronts(0.01, w - 0.01, d, 0.09, h - 0.02, 2 if w > 1 else 1, 4, m("front"), m("handle")),
    ]
    return assembled("cabinet", parts, [Surface((0.05, 0.05), (w - 0.05, d - 0.05), h)])


def counter(style: Style, rng: np.random.Generator) -> Model:
    """Build a kitchen unit, 60 cm wide, with a worktop."""
    m = style.material
    rows = 1 if rng.random() < 0.5 else 3
    parts = [
        box((0, 0, 0.1), (0.6, 0.58, 0.87), m("front")),
        box((0, 0, 0), (0.6, 0.52, 0.1), m("dark")),
        box((0, 0, 0.87), (0.6, 0.62, 0.91), m("counter")),
        *fronts(0, 0.6, 0.58, 0.11, 0.86, 1, rows, m("front"), m("handle")),
    ]
    return assembled("cabinet", parts, [Surface((0.05, 0.08), (0.55, 0.56), 0.91, 0.45)])


def wall_cabinet(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    parts = [
        box((0, 0, 0), (0.6, 0.33, 0.65), m("front")),
        *fronts(0, 0.6, 0.33, 0.0, 0.65, 1, 1, m("front"), m("handle")),
    ]
    return assembled("cabinet", parts, lift=1.45)


def wardrobe(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    doors = int(rng.integers(2, 4))
    w, d, h = doors * 0.5 * fw**0.5, 0.58 * fd**0.4, min(2.05 * fh**0.6, 2.3)
    parts = [
        box((0, 0, 0.07), (w, d, h), m("wood")),
        box((0.02, 0.02, 0), (w - 0.02, d - 0.04, 0.07), m("dark")),
    ]
    drawers = 0.45 if rng.random() < 0.5 else 0.09
    parts += fronts(0.01, w - 0.01, d, drawers, h - 0.02, doors, 1, m("front"), m("handle"))
    if drawers > 0.2:
        parts += fronts(0.01, w - 0.01, d, 0.09, drawers, 1, 2, m("front"), m("handle"))
    if rng.random() < 0.4:
        parts.append(panel((w / doors + 0.06, d + 0.019, 0.6), w / doors - 0.12, h - 0.75, m("glass")))
    return assembled("wardrobe", parts, [Surface((0.05, 0.05), (w - 0.05, d - 0.1), h, 0.35, ("box",))])


def shelf(style: Style, rng: np.random.Generator) -> Model:
    """Build a bookcase with rows of books."""
    m, (fw, _, fh) = style.material, style.proportions
    w, d, h, t = rng.uniform(0.75, 1.1) * fw**0.5, 0.3, min(rng.uniform(1.4, 2.0) * fh, 2.15), 0.025
    boards, wood = round(h / 0.36), m("wood")
    levels = np.linspace(0.06, h - t, boards + 1)
    parts = [
        box((0, 0, 0), (t, d, h), wood),
        box((w - t, 0, 0), (w, d, h), wood),
        box((t, 0, 0.06), (w - t, 0.012, h), wood),
        *(box((t, 0.012, z), (w - t, d, z + t), wood) for z in levels),
    ]
    surfaces = []
    for low, high in pairwise(levels):
        z, room = float(low) + t, float(high - low) - t
        split = t + 0.02 + (w - 2 * t) * rng.uniform(0.35, 0.75)
        x = t + 0.015
        while x < split - 0.05:  # a row of books
            thick, tall = rng.uniform(0.02, 0.055), min(rng.uniform(0.18, 0.29), room - 0.02)
            deep = rng.uniform(0.14, 0.21)
            parts.append(
                box(
                    (x, d - 0.04 - deep, z),
                    (x + thick, d - 0.04, z + tall),
                    m(f"accent{rng.integers(ACCENTS)}"),
                )
            )
            x += thick + 0.002
        if w - t - split > 0.16:
            surfaces.append(
                Surface(
                    (split + 0.02, 0.05), (w - t - 0.02, d - 0.03), z, room, ("vase", "box", "mug", "book")
                )
            )
    surfaces.append(Surface((0.03, 0.03), (w - 0.03, d - 0.03), h, 0.4, ("box", "vase")))
    return assembled("shelf", parts, surfaces)
