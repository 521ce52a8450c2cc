"""Appliances and sanitary fixtures of kitchens and bathrooms."""

from __future__ import annotations

import numpy as np

from testtime.scenes.furniture.model import Model, Surface, assembled, fronts
from testtime.scenes.geometry import Mesh, box, cushion, cylinder, lathe
from testtime.scenes.style import Style

__all__ = ["bath_sink", "bathtub", "fridge", "kitchen_sink", "stove", "toilet"]


def kitchen_sink(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    c, s = m("counter"), m("steel")
    parts = [
        box((0, 0, 0.1), (0.8, 0.58, 0.72), m("front")),
        box((0, 0, 0), (0.8, 0.52, 0.1), m("dark")),
        *fronts(0, 0.8, 0.58, 0.11, 0.86, 2, 1, m("front"), m("handle")),
        box((0, 0, 0.72), (0.12, 0.58, 0.9), m("front")),
        box((0.68, 0, 0.72), (0.8, 0.58, 0.9), m("front")),
        box((0, 0.5, 0.72), (0.8, 0.58, 0.87), m("front")),
        box((0, 0, 0.87), (0.12, 0.62, 0.91), c),
        box((0.68, 0, 0.87), (0.8, 0.62, 0.91), c),
        box((0.12, 0, 0.87), (0.68, 0.12, 0.91), c),
        box((0.12, 0.5, 0.87), (0.68, 0.62, 0.91), c),
        box((0.12, 0.12, 0.72), (0.68, 0.5, 0.73), s),
        box((0.115, 0.115, 0.72), (0.127, 0.505, 0.915), s),
        box((0.673, 0.115, 0.72), (0.685, 0.505, 0.915), s),
        box((0.115, 0.115, 0.72), (0.685, 0.127, 0.915), s),
        box((0.115, 0.493, 0.72), (0.685, 0.505, 0.915), s),
        cylinder((0.4, 0.07, 0.91), 0.02, 0.28, s, segments=8),
        box((0.385, 0.07, 1.16), (0.415, 0.27, 1.185), s),
        box((0.388, 0.245, 1.12), (0.412, 0.27, 1.17), s),
    ]
    return assembled("sink", parts)


def stove(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    body = m("steel") if rng.random() < 0.6 else m("white")
    parts = [
        box((0, 0, 0.06), (0.6, 0.6, 0.9), body),
        box((0, 0, 0), (0.6, 0.54, 0.06), m("dark")),
        box((0.01, 0.02, 0.9), (0.59, 0.59, 0.915), m("dark")),
        box((0.05, 0.6, 0.2), (0.55, 0.615, 0.66), m("dark")),
        box((0.06, 0.62, 0.68), (0.54, 0.65, 0.7), m("metal")),
        box((0, 0, 0.9), (0.6, 0.03, 1.05), body),
    ]
    for x in (0.17, 0.43):
        for y in (0.17, 0.43):
            parts.append(cylinder((x, y, 0.915), 0.085, 0.012, m("burner"), segments=14))
            parts.append(cylinder((x, y, 0.927), 0.05, 0.006, m("metal"), segments=10))
    for x in np.linspace(0.1, 0.5, 5):
        parts.append(box((x - 0.018, 0.6, 0.77), (x + 0.018, 0.63, 0.806), m("dark")))
    if rng.random() < 0.6:  # a pot
        parts.append(
            lathe(
                [(0, 0), (0.1, 0), (0.1, 0.12), (0.092, 0.12), (0.09, 0.01)],
                m("accent0"),
                (0.17, 0.17, 0.933),
            )
        )
    return assembled("stove", parts)


def fridge(style: Style, rng: np.random.Generator) -> Model:
    m, (_, _, fh) = style.material, style.proportions
    h, body = rng.uniform(1.65, 1.9) * fh**0.3, m("steel") if rng.random() < 0.5 else m("white")
    if style.name == "other":
        body = m("lacquer")
    split = h * rng.uniform(0.55, 0.68)
    parts = [
        box((0, 0, 0.04), (0.62, 0.6, h), body),
        box((0.02, 0.03, 0), (0.6, 0.57, 0.04), m("dark")),
        box((0.003, 0.6, 0.06), (0.617, 0.64, split), body),
        box((0.003, 0.6, split + 0.012), (0.617, 0.64, h - 0.003), body),
        box((0.05, 0.64, split - 0.42), (0.075, 0.675, split - 0.06), m("metal")),
        box((0.05, 0.64, split + 0.06), (0.075, 0.675, split + 0.32), m("metal")),
    ]
    return assembled("fridge", parts, [Surface((0.05, 0.05), (0.57, 0.5), h, 0.3, ("box",))])


def bath_sink(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, _, _) = style.material, style.proportions
    c = m("ceramic")
    if rng.random() < 0.45:  # on a pedestal
        parts = [
            lathe([(0, 0), (0.13, 0), (0.09, 0.1), (0.08, 0.6), (0.12, 0.7)], c, (0, 0.22, 0)),
            cushion((-0.29, 0, 0.68), (0.29, 0.46, 0.85), 0.08, c),
            lathe([(0.19, 0.852), (0.15, 0.858), (0, 0.853)], m("water"), (0, 0.25, 0), 16),
        ]
        rim = 0.85
    else:
        w = rng.uniform(0.65, 0.95) * fw**0.5
        parts = [
            box((-w / 2, 0, 0.2), (w / 2, 0.45, 0.78), m("front")),
            *fronts(-w / 2, w / 2, 0.45, 0.21, 0.77, 2, 1, m("front"), m("handle")),
            *(box((x, 0.05, 0), (x + 0.04, 0.09, 0.2), m("metal")) for x in (-w / 2 + 0.03, w / 2 - 0.07)),
            *(box((x, 0.36, 0), (x + 0.04, 0.4, 0.2), m("metal")) for x in (-w / 2 + 0.03, w / 2 - 0.07)),
            box((-w / 2 - 0.01, 0, 0.78), (w / 2 + 0.01, 0.48, 0.81), m("counter")),
            lathe(
                [(0.1, 0.81), (0.19, 0.87), (0.2, 0.92), (0.185, 0.92), (0.16, 0.87), (0, 0.83)],
                c,
                (0, 0.25, 0),
                16,
            ),
        ]
        rim = 0.92
    steel = m("metal")
    parts += [
        cylinder((0, 0.045, rim - 0.1), 0.018, 0.26, steel, segments=8),
        box((-0.014, 0.045, rim + 0.13), (0.014, 0.19, rim + 0.155), steel),
    ]
    return assembled("sink", parts)


def toilet(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    c = m("ceramic")
    bowl = lathe(
        [
            (0, 0),
            (0.12, 0),
            (0.1, 0.12),
            (0.13, 0.22),
            (0.185, 0.36),
            (0.19, 0.4),
            (0.14, 0.4),
            (0.1, 0.3),
            (0, 0.25),
        ],
        c,
        segments=16,
    )
    longer = bowl.triangles * np.array([1, 1.3, 1], np.float32) + np.array([0, 0.42, 0], np.float32)
    seat = lathe([(0.13, 0.4), (0.2, 0.4), (0.2, 0.425), (0.13, 0.425)], m("white"), segments=16)
    seat_longer = seat.triangles * np.array([1, 1.3, 1], np.float32) + np.array([0, 0.42, 0], np.float32)
    lid = cushion((-0.19, 0.185, 0.42), (0.19, 0.215, 0.84), 0.015, m("white"))
    parts = [
        Mesh(longer, bowl.normals, bowl.local, bowl.material, bowl.instance, bowl.label),
        Mesh(seat_longer, seat.normals, seat.local, seat.material, seat.instance, seat.label),
        box((-0.1, 0.1, 0), (0.1, 0.4, 0.36), c),
        cushion((-0.2, 0, 0.38), (0.2, 0.17, 0.78), 0.03, c),
        box((-0.21, -0.0, 0.78), (0.21, 0.18, 0.81), c),
        box((-0.04, 0.05, 0.81), (0.04, 0.11, 0.825), m("metal")),
        lid,
    ]
    return assembled("toilet", parts)


def bathtub(style: Style, rng: np.random.Generator) -> Model:
    m, (_, fd, _) = style.material, style.proportions
    w, d, h, t, c = 1.65, 0.74 * fd**0.4, 0.58, 0.08, m("ceramic")
    parts = [
        cushion((0, 0, 0), (w, t, h), 0.03, c),
        cushion((0, d - t, 0), (w, d, h), 0.03, c),
        cushion((0, 0, 0), (t, d, h), 0.03, c),
        cushion((w - t, 0, 0), (w, d, h), 0.03, c),
        box((t * 0.5, t * 0.5, 0.02), (w - t * 0.5, d - t * 0.5, 0.12), c),
        box((t * 0.9, t * 0.9, 0.12), (w - t * 0.9, d - t * 0.9, 0.3), m("water")),
        box((0.04, 0.0 + d / 2 - 0.02, h), (0.08, d / 2 + 0.02, h + 0.22), m("metal")),
        box((0.06, d / 2 - 0.015, h + 0.18), (0.22, d / 2 + 0.015, h + 0.21), m("metal")),
    ]
    return assembled("bathtub", parts)
