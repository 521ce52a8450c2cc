"""Lamps, screens, plants, rugs, curtains, pictures and mirrors."""

from __future__ import annotations

import numpy as np

from testtime.scenes.furniture.model import Model, assembled
from testtime.scenes.geometry import box, cushion, cylinder, lathe, leaf, panel, sphere, wave
from testtime.scenes.style import ACCENTS, PICTURES, Style

__all__ = [
    "bath_rug",
    "ceiling_lamp",
    "curtain",
    "floor_lamp",
    "mirror",
    "monitor",
    "picture",
    "plant",
    "rug",
    "table_lamp",
    "tv",
]


def tv(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, _, _) = style.material, style.proportions
    w = rng.uniform(0.9, 1.3) * fw**0.4
    h = w * 0.58
    parts = [
        box((-w / 2, -0.02, 0.07), (w / 2, 0.02, 0.07 + h), m("dark")),
        panel((-w / 2 + 0.015, 0.0208, 0.085), w - 0.03, h - 0.03, m("screen")),
        box((-0.05, -0.02, 0.01), (0.05, 0.0, 0.1), m("dark")),
        box((-w * 0.22, -0.1, 0), (w * 0.22, 0.1, 0.015), m("dark")),
    ]
    return assembled("tv", parts)


def monitor(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    parts = [
        box((-0.27, 0.04, 0.12), (0.27, 0.065, 0.45), m("dark")),
        panel((-0.255, 0.0655, 0.135), 0.51, 0.3, m("screen")),
        box((-0.03, 0.03, 0), (0.03, 0.05, 0.2), m("dark")),
        box((-0.11, -0.02, 0), (0.11, 0.14, 0.012), m("dark")),
    ]
    return assembled("tv", parts)


def floor_lamp(style: Style, rng: np.random.Generator) -> Model:
    m, (_, _, fh) = style.material, style.proportions
    h = 1.6 * fh**0.7
    r = rng.uniform(0.16, 0.24)
    parts = [
        cylinder((0, 0, 0), 0.15, 0.025, m("metal"), segments=16),
        cylinder((0, 0, 0.02), 0.014, h - 0.1, m("metal"), segments=6),
        lathe([(r, h - 0.32), (r * rng.uniform(0.5, 1.0), h)], m("shade"), segments=16),
        sphere((0, 0, h - 0.18), 0.05, m("bulb"), 8),
    ]
    return assembled("lamp", parts)


def table_lamp(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    r = rng.uniform(0.1, 0.15)
    foot = f"accent{rng.integers(ACCENTS)}"
    parts = [
        lathe(
            [(0, 0), (0.07, 0), (0.075, 0.03), (0.03, 0.1), (0.05, 0.18), (0.012, 0.24), (0, 0.24)], m(foot)
        ),
        lathe([(r, 0.22), (r * 0.65, 0.44)], m("shade"), segments=14),
        sphere((0, 0, 0.3), 0.035, m("bulb"), 6),
    ]
    return assembled("lamp", parts)


def ceiling_lamp(style: Style, rng: np.random.Generator) -> Model:
    """Build a ceiling lamp, whose highest point is at the ceiling."""
    m = style.material
    kind = int(rng.integers(3))
    if kind == 0:
        parts = [lathe([(0, 0), (0.12, 0.015), (0.2, 0.05), (0.22, 0.1)], m("bulb"), segments=16)]
    elif kind == 1:
        parts = [
            lathe([(0.23, 0), (0.12, 0.2), (0.02, 0.24)], m("shade"), segments=16),
            sphere((0, 0, 0.08), 0.06, m("bulb"), 8),
            cylinder((0, 0, 0.22), 0.008, 0.28, m("dark"), segments=5),
        ]
    else:
        parts = [
            sphere((0, 0, 0.15), 0.15, m("bulb"), 14),
            cylinder((0, 0, 0.29), 0.01, 0.16, m("dark"), segments=5),
        ]
    return assembled("lamp", parts)


def plant(style: Style, rng: np.random.Generator) -> Model:
    m, (_, _, fh) = style.material, style.proportions
    r, pot = rng.uniform(0.15, 0.2), rng.uniform(0.28, 0.4)
    parts = [
        lathe(
            [(0, 0), (r * 0.75, 0), (r, pot), (r * 0.9, pot), (r * 0.88, pot - 0.03)], m("pot"), segments=14
        ),
        lathe([(r * 0.9, pot - 0.03), (0, pot - 0.02)], m("soil"), segments=10),
    ]
    if rng.random() < 0.55:
        count = int(rng.integers(14, 22))
        for k in range(count):
            yaw = 2.39996 * k + rng.normal(0, 0.2)
            up = k / count
            parts.append(
                leaf(
                    (0, 0, pot - 0.04),
                    yaw,
                    rng.uniform(0.3, 0.5) * (1.15 - 0.7 * up),
                    (0.35 + 0.75 * up) * fh * rng.uniform(0.9, 1.1),
                    rng.uniform(0.09, 0.15),
                    m("leaf" if k % 3 else "leaf2"),
                )
            )
    else:
        tall = rng.uniform(0.9, 1.3) * fh
        parts.append(cylinder((0, 0, pot - 0.05), 0.025, tall - pot, m("wood2"), 0.018, 7))
        for k in range(int(rng.integers(7, 11))):
            a, z = 2.39996 * k, tall + rng.uniform(-0.3, 0.2)
            spread = rng.uniform(0.08, 0.22)
            size = rng.uniform(0.14, 0.22)
            parts.append(
                sphere(
                    (spread * np.cos(a), spread * np.sin(a), z),
                    (size, size, size * 0.8),
                    m("leaf" if k % 2 else "leaf2"),
                    8,
                )
            )
    return assembled("plant", parts)


def rug(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, _) = style.material, style.proportions
    if rng.random() < 0.25:
        r = rng.uniform(0.8, 1.05)
        return assembled(
            "rug",
            [
                cylinder((0, 0, 0), r, 0.012, m("rug_border"), segments=28),
                cylinder((0, 0, 0.01), r * 0.9, 0.006, m("rug"), segments=28),
            ],
        )
    w, d = rng.uniform(1.7, 2.3) * fw**0.5, rng.uniform(1.2, 1.5) * fd**0.5
    edge = rng.uniform(0.05, 0.14)
    parts = [
        box((0, 0, 0), (w, d, 0.012), m("rug_border")),
        box((edge, edge, 0.01), (w - edge, d - edge, 0.016), m("rug")),
    ]
    return assembled("rug", parts)


def bath_rug(style: Style, rng: np.random.Generator) -> Model:
    return assembled("rug", [cushion((0, 0, 0), (0.8, 0.5, 0.025), 0.012, style.material("rug"))])


def curtain(style: Style, rng: np.random.Generator) -> Model:
    """Build a panel of 1 x 1 m, which is scaled to its window."""
    return assembled("curtain", [wave((0, 0, 0), 1.0, 1.0, 0.09, 3.5, style.material("curtain"), 22)])


def picture(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, h = [(0.9, 0.6), (0.5, 0.7), (0.7, 0.7), (1.2, 0.7), (0.4, 0.5)][int(rng.integers(5))]
    frame = m(["wood2", "dark", "metal", "white"][int(rng.integers(4))])
    t, canvas = 0.035, m(f"picture{rng.integers(PICTURES)}")
    parts = [box((0, 0, 0), (w, 0.025, h), frame)]
    if rng.random() < 0.5:
        parts.append(panel((t, 0.026, t), w - 2 * t, h - 2 * t, m("paper")))
        t += 0.07
    parts.append(panel((t, 0.0275, t), w - 2 * t, h - 2 * t, canvas))
    return assembled("picture", parts, lift=1.55 - h / 2)


def mirror(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, h = rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.85)
    parts = [
        box((0, 0, 0), (w, 0.02, h), m("metal")),
        panel((0.02, 0.0215, 0.02), w - 0.04, h - 0.04, m("glass")),
    ]
    return assembled("mirror", parts, lift=1.15)
