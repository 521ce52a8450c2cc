"""Dining tables, coffee tables and desks."""

from __future__ import annotations

import numpy as np

from testtime.scenes.furniture.model import Model, Surface, assembled, fronts, legs
from testtime.scenes.geometry import box, cylinder
from testtime.scenes.style import Style

__all__ = ["coffee_table", "desk", "table"]


def table(style: Style, rng: np.random.Generator) -> Model:
    """Build a dining table."""
    m, (fw, fd, fh) = style.material, style.proportions
    top, thick, wood = 0.75 * fh**0.4, rng.uniform(0.025, 0.05), m("wood")
    if rng.random() < 0.25:
        r = 0.52 * fw**0.6
        parts = [
            cylinder((0, 0, top - thick), r, thick, wood, segments=20),
            cylinder((0, 0, 0.03), 0.05, top - 0.05, m("metal")),
            cylinder((0, 0, 0), r * 0.5, 0.03, m("metal"), r * 0.42, 16),
        ]
        e = r * 0.65
        return assembled("table", parts, [Surface((-e, -e), (e, e), top)])
    w, d = rng.uniform(1.25, 1.7) * fw**0.5, 0.85 * fd**0.5
    parts = [
        box((0, 0, top - thick), (w, d, top), wood),
        *legs(style, (0.04, 0.04, 0), (w - 0.04, d - 0.04, top - thick), 0.07, wood),
    ]
    if style.leg != "runner":
        parts.append(box((0.09, 0.06, top - thick - 0.08), (w - 0.09, d - 0.06, top - thick), wood))
    return assembled("table", parts, [Surface((0.08, 0.08), (w - 0.08, d - 0.08), top)])


def coffee_table(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    top, wood = rng.uniform(0.36, 0.46) * fh**0.5, m("wood2")
    if rng.random() < 0.35:
        r = 0.42 * fw**0.5
        feet = [
            cylinder((r * 0.7 * np.cos(a), r * 0.7 * np.sin(a), 0), 0.016, top, m("metal"), segments=6)
            for a in np.arange(3) * 2.0944
        ]
        parts = [cylinder((0, 0, top - 0.03), r, 0.03, wood, segments=20), *feet]
        return assembled("table", parts, [Surface((-r * 0.65, -r * 0.65), (r * 0.65, r * 0.65), top)])
    w, d = 1.05 * fw**0.5, 0.55 * fd**0.5
    parts = [
        box((0, 0, top - 0.04), (w, d, top), wood),
        box((0.05, 0.05, 0.12), (w - 0.05, d - 0.05, 0.14), wood),
        *legs(style, (0.0, 0.0, 0), (w, d, top - 0.04), 0.06, m("metal") if style.leg == "runner" else wood),
    ]
    return assembled("table", parts, [Surface((0.06, 0.06), (w - 0.06, d - 0.06), top)])


def desk(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, top, wood = 1.25 * fw**0.5, 0.62 * fd**0.5, 0.74 * fh**0.3, m("wood")
    parts = [
        box((0, 0, top - 0.035), (w, d, top), wood),
        *legs(style, (0.02, 0.03, 0), (w * 0.62, d - 0.03, top - 0.035), 0.05, m("metal")),
        box((w * 0.66, 0.03, 0.08), (w - 0.02, d - 0.05, top - 0.035), m("front")),
        *fronts(w * 0.66, w - 0.02, d - 0.05, 0.09, top - 0.04, 1, 3, m("front"), m("handle")),
        box((w * 0.66, 0.05, 0), (w - 0.04, d - 0.1, 0.08), m("dark")),
        box((w * 0.28 - 0.2, 0.32, top), (w * 0.28 + 0.2, 0.45, top + 0.018), m("dark")),
    ]
    return assembled("desk", parts, [Surface((w * 0.52, 0.06), (w - 0.06, d - 0.06), top)])
