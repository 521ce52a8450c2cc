"""Small objects that lie on furniture and can be moved."""

from __future__ import annotations

import numpy as np

from testtime.scenes.furniture.model import Model, assembled
from testtime.scenes.geometry import box, cushion, cylinder, joined, lathe, leaf, sphere
from testtime.scenes.style import ACCENTS, Style

__all__ = ["book", "bottle", "carton", "mug", "pillow", "vase"]


def pillow(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, d = (0.62, 0.4) if rng.random() < 0.5 else (0.44, 0.44)
    cloth = m(["pillow", "pillow2"][int(rng.integers(2))])
    return assembled("pillow", [cushion((0, 0, 0), (w, d, 0.14), 0.069, cloth)])


def book(style: Style, rng: np.random.Generator) -> Model:
    """Build a pile of books."""
    m, parts, z = style.material, [], 0.0
    for _ in range(int(rng.integers(1, 5))):
        w, d, t = rng.uniform(0.14, 0.2), rng.uniform(0.2, 0.28), rng.uniform(0.02, 0.045)
        cover = m(f"accent{rng.integers(ACCENTS)}")
        pile = [
            box((-w / 2, -d / 2, z), (w / 2, d / 2, z + 0.004), cover),
            box((-w / 2, -d / 2, z + t - 0.004), (w / 2, d / 2, z + t), cover),
            box((-w / 2, -d / 2, z), (-w / 2 + 0.006, d / 2, z + t), cover),
            box(
                (-w / 2 + 0.006, -d / 2 + 0.006, z + 0.004),
                (w / 2 - 0.006, d / 2 - 0.006, z + t - 0.004),
                m("paper"),
            ),
        ]
        parts.append(joined(pile).moved(yaw=rng.normal(0, 0.2)))
        z += t
    return assembled("book", parts)


def mug(style: Style, rng: np.random.Generator) -> Model:
    c = style.material(f"accent{rng.integers(ACCENTS)}")
    r, h = rng.uniform(0.037, 0.048), rng.uniform(0.085, 0.11)
    parts = [
        lathe([(0, 0), (r, 0), (r * 1.04, h), (r * 0.92, h), (r * 0.9, 0.02), (0, 0.02)], c, segments=12),
        box((r, -0.006, h * 0.72), (r + 0.03, 0.006, h * 0.82), c),
        box((r, -0.006, h * 0.2), (r + 0.03, 0.006, h * 0.3), c),
        box((r + 0.022, -0.006, h * 0.25), (r + 0.032, 0.006, h * 0.8), c),
    ]
    return assembled("mug", parts)


def bottle(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    r, h = rng.uniform(0.035, 0.05), rng.uniform(0.24, 0.33)
    parts = [
        lathe(
            [(0, 0), (r, 0), (r, h * 0.6), (r * 0.8, h * 0.7), (r * 0.36, h * 0.8), (r * 0.34, h)],
            m(f"accent{rng.integers(ACCENTS)}"),
            segments=12,
        ),
        cylinder((0, 0, h - 0.02), r * 0.4, 0.025, m("dark"), segments=8),
        lathe([(r * 1.015, h * 0.2), (r * 1.015, h * 0.48)], m("paper"), segments=12),
    ]
    return assembled("bottle", parts)


def vase(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    r, h = rng.uniform(0.06, 0.1), rng.uniform(0.2, 0.32)
    profile = [
        (0, 0),
        (r * 0.55, 0),
        (r, h * rng.uniform(0.3, 0.55)),
        (r * 0.42, h * 0.85),
        (r * 0.55, h),
        (r * 0.45, h),
        (r * 0.35, h * 0.8),
    ]
    parts = [lathe(profile, m(f"accent{rng.integers(ACCENTS)}"), segments=14)]
    if rng.random() < 0.6:
        for k in range(5):
            a = 2.4 * k
            parts.append(leaf((0, 0, h * 0.8), a, 0.12, 0.25, 0.03, m("leaf")))
            bloom = (0.07 * np.cos(a), 0.07 * np.sin(a), h + 0.22 + 0.02 * (k % 3))
            parts.append(sphere(bloom, 0.035, m(f"accent{rng.integers(ACCENTS)}"), 6))
    return assembled("vase", parts)


def carton(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, d, h = rng.uniform(0.24, 0.42), rng.uniform(0.2, 0.32), rng.uniform(0.14, 0.28)
    parts = [
        box((0, 0, 0), (w, d, h), m("cardboard")),
        box((0, d / 2 - 0.025, 0.0), (w, d / 2 + 0.025, h + 0.002), m("tape")),
    ]
    return assembled("box", parts)
