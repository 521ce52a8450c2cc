"""The classes of a house, and the furniture among them: parametric models made of boxes and turned shapes.

A model stands on z = 0, is centred at x = y = 0 and faces +y; its back, at the lowest y, goes to the wall. Every builder
takes a style and a generator, so that the same style always gives the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from testtime.scenes.geometry import (
    Array,
    Mesh,
    box,
    cushion,
    cylinder,
    joined,
    lathe,
    leaf,
    panel,
    sphere,
    wave,
)
from testtime.scenes.style import ACCENTS, PICTURES, Style

__all__ = ["CLASSES", "MODELS", "SMALL", "STRUCTURE", "Model", "Surface", "build", "label_of"]

STRUCTURE = ("wall", "floor", "ceiling", "window", "door")
"""Classes that belong to the house itself."""

SMALL = ("pillow", "book", "mug", "bottle", "vase", "box")
"""Classes that lie on others and can be moved."""

CLASSES = (
    *STRUCTURE,
    *(
        "bed",
        "sofa",
        "chair",
        "table",
        "desk",
        "cabinet",
        "wardrobe",
        "shelf",
        "tv",
        "fridge",
        "stove",
        "sink",
    ),
    *("toilet", "bathtub", "lamp", "plant", "rug", "curtain", "picture", "mirror"),
    *SMALL,
)
"""The names of the classes; a label is an index into them."""


def label_of(name: str) -> int:
    """The label of a class.

    >>> label_of("wall"), CLASSES[label_of("mug")]
    (0, 'mug')
    """
    return CLASSES.index(name)


@final
@dataclass(frozen=True)
class Surface:
    """A rectangle on which small things may lie, in the model's coordinates.

    Attributes:
        low, high: corners (x, y).
        height: above the floor, in metres.
        room: free height above it, in metres.
        takes: the classes that may lie there.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    height: float
    room: float = 1.0
    takes: tuple[str, ...] = ("book", "mug", "bottle", "vase", "box")


@final
@dataclass(frozen=True, eq=False)
class Model:
    """A piece of furniture.

    Attributes:
        name: its class.
        mesh: its triangles.
        surfaces: where small things may lie.
        lift: how far above the floor it hangs, in metres; its mesh starts at z = 0 all the same.
    """

    name: str
    mesh: Mesh
    surfaces: tuple[Surface, ...] = ()
    lift: float = 0.0

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, depth and height, in metres."""
        low, high = self.mesh.bounds
        w, d, h = (high - low).tolist()
        return w, d, h


def _model(name: str, parts: Sequence[Mesh], surfaces: Sequence[Surface] = (), lift: float = 0.0) -> Model:
    """Centre the parts in x and y, and stand them on the floor."""
    mesh = joined(parts)
    low, high = mesh.bounds
    dx, dy = (-(low + high) / 2)[:2]
    dz = -low[2]
    moved = tuple(
        Surface(
            (s.low[0] + dx, s.low[1] + dy), (s.high[0] + dx, s.high[1] + dy), s.height + dz, s.room, s.takes
        )
        for s in surfaces
    )
    return Model(name, mesh.moved((dx, dy, dz)), moved, lift)


def _legs(
    style: Style, low: Sequence[float], high: Sequence[float], thick: float, material: int
) -> list[Mesh]:
    """Four legs, or two runners, under a rectangle: ``low`` and ``high`` are (x, y, z)."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    if style.leg == "runner":
        t = thick * 0.7
        return [
            part
            for x in (x0, x1 - t)
            for part in (
                box((x, y0, z0), (x + t, y0 + t, z1), material),
                box((x, y1 - t, z0), (x + t, y1, z1), material),
                box((x, y0 + t, z0), (x + t, y1 - t, z0 + t), material),
            )
        ]
    spots = [(x, y) for x in (x0 + thick / 2, x1 - thick / 2) for y in (y0 + thick / 2, y1 - thick / 2)]
    if style.leg == "round":
        return [cylinder((x, y, z0), thick * 0.32, z1 - z0, material, thick * 0.5, 8) for x, y in spots]
    return [
        box((x - thick / 2, y - thick / 2, z0), (x + thick / 2, y + thick / 2, z1), material)
        for x, y in spots
    ]


def _fronts(
    x0: float, x1: float, y: float, z0: float, z1: float, columns: int, rows: int, material: int, handle: int
) -> list[Mesh]:
    """Doors or drawers on the face y of a body, each with a handle."""
    parts, gap = [], 0.006
    for c in range(columns):
        for r in range(rows):
            a, b = (x0 + (x1 - x0) * (c + i) / columns for i in (0, 1))
            low, high = (z0 + (z1 - z0) * (r + i) / rows for i in (0, 1))
            parts.append(box((a + gap, y, low + gap), (b - gap, y + 0.018, high - gap), material))
            if b - a > 1.4 * (high - low) or rows > 2:  # a drawer
                mid, half = (a + b) / 2, min(0.09, 0.3 * (b - a))
                z = (low + high) / 2 + 0.2 * (high - low)
                parts.append(
                    box((mid - half, y + 0.018, z - 0.008), (mid + half, y + 0.04, z + 0.008), handle)
                )
            else:
                x = b - 0.05 if c % 2 == 0 and columns > 1 else a + 0.05
                z = high - 0.22 if low < 0.4 else low + 0.12
                z = min(max(z, low + 0.06), high - 0.06)
                parts.append(box((x - 0.008, y + 0.018, z - 0.05), (x + 0.008, y + 0.04, z + 0.05), handle))
    return parts


def _bed(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w = float(rng.choice([0.95, 1.45, 1.65])) * fw**0.5
    d = 2.05 * fd**0.3
    top = 0.48 * fh
    head = rng.uniform(0.85, 1.15) * fh
    frame = m("wood2")
    parts = [
        box((0, 0.06, 0.12), (w, d, top - 0.2), frame),
        *_legs(style, (0.02, 0.08, 0), (w - 0.02, d - 0.02, 0.13), 0.08, frame),
        cushion((0.03, 0.07, top - 0.22), (w - 0.03, d - 0.03, top), 0.06, m("sheet")),
        cushion((-0.01, d * 0.34, top - 0.17), (w + 0.01, d + 0.01, top + 0.05), 0.07, m("bed_cover")),
        cushion((0.0, d * 0.30, top - 0.06), (w, d * 0.42, top + 0.075), 0.05, m("pillow2")),
    ]
    if rng.random() < 0.5:
        parts.append(cushion((-0.02, 0, 0.1), (w + 0.02, 0.1, head), 0.05, m("sofa_cushion")))
    else:
        parts.append(box((-0.02, 0, 0), (w + 0.02, 0.05, head), frame))
    spots = Surface((0.08, 0.1), (w - 0.08, d * 0.32), top + 0.0, 1.0, ("pillow",))
    foot = Surface((0.1, d * 0.5), (w - 0.1, d - 0.1), top + 0.05, 1.0, ("pillow", "book"))
    return _model("bed", parts, [spots, foot])


def _sofa(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    seats = int(rng.integers(2, 4))
    seat, arm = 0.62 * fw**0.5, rng.uniform(0.14, 0.24)
    w, d = seats * seat + 2 * arm, 0.9 * fd**0.7
    sit, back, arms = 0.43 * fh**0.6, 0.82 * fh, rng.uniform(0.55, 0.66) * fh**0.6
    f, c, foot = m("sofa"), m("sofa_cushion") if rng.random() < 0.35 else m("sofa"), 0.09
    parts = [
        cushion((arm * 0.5, 0.02, foot), (w - arm * 0.5, d - 0.03, sit - 0.12), 0.04, f),
        cushion((arm * 0.6, 0, foot), (w - arm * 0.6, 0.22, back), 0.08, f),
        cushion((0, 0.02, foot), (arm, d, arms), 0.07, f),
        cushion((w - arm, 0.02, foot), (w, d, arms), 0.07, f),
        *_legs(style, (0.03, 0.04, 0), (w - 0.03, d - 0.04, foot + 0.02), 0.06, m("wood2")),
    ]
    for i in range(seats):
        x = arm + i * seat
        parts.append(cushion((x + 0.006, 0.2, sit - 0.14), (x + seat - 0.006, d + 0.01, sit), 0.06, c))
        parts.append(cushion((x + 0.012, 0.14, sit - 0.02), (x + seat - 0.012, 0.34, back + 0.04), 0.08, c))
    spots = Surface((arm + 0.02, 0.34), (w - arm - 0.02, d - 0.05), sit, 1.0, ("pillow",))
    return _model("sofa", parts, [spots])


def _armchair(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, sit, back, arm = 0.82 * fw**0.6, 0.82 * fd**0.7, 0.42 * fh**0.6, 0.85 * fh, 0.13
    f, c = m("sofa"), m("sofa_cushion")
    parts = [
        cushion((0.06, 0.04, 0.12), (w - 0.06, d - 0.02, sit - 0.08), 0.04, f),
        cushion((arm, 0.16, sit - 0.1), (w - arm, d, sit + 0.02), 0.06, c),
        cushion((0.04, 0, 0.12), (w - 0.04, 0.2, back), 0.09, f),
        cushion((0, 0.03, 0.12), (arm, d - 0.04, sit + 0.17), 0.06, f),
        cushion((w - arm, 0.03, 0.12), (w, d - 0.04, sit + 0.17), 0.06, f),
        *_legs(style, (0.05, 0.05, 0), (w - 0.05, d - 0.05, 0.14), 0.06, m("wood2")),
    ]
    return _model(
        "chair", parts, [Surface((arm + 0.02, 0.2), (w - arm - 0.02, d - 0.1), sit + 0.02, 1.0, ("pillow",))]
    )


def _chair(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, sit, back = 0.45 * fw**0.5, 0.46 * fd**0.5, 0.46 * fh**0.4, 0.9 * fh
    wood, t = m("wood"), 0.04
    kind = int(rng.integers(3))
    parts = [*_legs(style, (0, 0, 0), (w, d, sit - 0.03), t, wood)]
    if kind == 0:
        parts.append(box((0, 0, sit - 0.035), (w, d + 0.01, sit), wood))
    else:
        parts.append(
            cushion((-0.005, 0, sit - 0.05), (w + 0.005, d + 0.01, sit + 0.02), 0.025, m("chair_seat"))
        )
    posts = [box((x, 0, sit - 0.03), (x + t, t, back), wood) for x in (0, w - t)]
    if kind == 0:
        slats = [
            box((t, 0.008, z), (w - t, 0.03, z + 0.07), wood) for z in np.linspace(sit + 0.12, back - 0.08, 3)
        ]
        parts += [*posts, *slats]
    elif kind == 1:
        bars = [
            box((x, 0.01, sit), (x + 0.022, 0.03, back - 0.05), wood)
            for x in np.linspace(t + 0.03, w - t - 0.05, 4)
        ]
        parts += [*posts, *bars, box((0, 0, back - 0.07), (w, t, back), wood)]
    else:
        parts += [*posts, cushion((0.0, 0.0, sit + 0.12), (w, 0.06, back + 0.02), 0.025, m("chair_seat"))]
    return _model("chair", parts)


def _office_chair(style: Style, rng: np.random.Generator) -> Model:
    m, (_, _, fh) = style.material, style.proportions
    sit, seat = 0.47 * fh**0.3, m("chair_seat")
    parts = [
        cylinder((0, 0, 0.08), 0.03, sit - 0.1, m("dark"), segments=8),
        cushion((-0.24, -0.23, sit - 0.05), (0.24, 0.25, sit + 0.04), 0.04, seat),
        cushion((-0.21, -0.27, sit + 0.14), (0.21, -0.2, sit + 0.58 * fh), 0.035, seat),
        box((-0.03, -0.27, sit - 0.02), (0.03, -0.24, sit + 0.2), m("dark")),
    ]
    for k in range(5):
        arm = box((0, -0.02, 0.05), (0.27, 0.02, 0.09), m("dark")).moved(yaw=2 * np.pi * k / 5 + np.pi / 2)
        wheel = sphere((0.26, 0, 0.03), 0.03, m("dark"), 6).moved(yaw=2 * np.pi * k / 5 + np.pi / 2)
        parts += [arm, wheel]
    return _model("chair", parts)


def _table(style: Style, rng: np.random.Generator) -> Model:
    """A dining table."""
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
        return _model("table", parts, [Surface((-e, -e), (e, e), top)])
    w, d = rng.uniform(1.25, 1.7) * fw**0.5, 0.85 * fd**0.5
    parts = [
        box((0, 0, top - thick), (w, d, top), wood),
        *_legs(style, (0.04, 0.04, 0), (w - 0.04, d - 0.04, top - thick), 0.07, wood),
    ]
    if style.leg != "runner":
        parts.append(box((0.09, 0.06, top - thick - 0.08), (w - 0.09, d - 0.06, top - thick), wood))
    return _model("table", parts, [Surface((0.08, 0.08), (w - 0.08, d - 0.08), top)])


def _coffee_table(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    top, wood = rng.uniform(0.36, 0.46) * fh**0.5, m("wood2")
    if rng.random() < 0.35:
        r = 0.42 * fw**0.5
        legs = [
            cylinder((r * 0.7 * np.cos(a), r * 0.7 * np.sin(a), 0), 0.016, top, m("metal"), segments=6)
            for a in np.arange(3) * 2.0944
        ]
        parts = [cylinder((0, 0, top - 0.03), r, 0.03, wood, segments=20), *legs]
        return _model("table", parts, [Surface((-r * 0.65, -r * 0.65), (r * 0.65, r * 0.65), top)])
    w, d = 1.05 * fw**0.5, 0.55 * fd**0.5
    parts = [
        box((0, 0, top - 0.04), (w, d, top), wood),
        box((0.05, 0.05, 0.12), (w - 0.05, d - 0.05, 0.14), wood),
        *_legs(style, (0.0, 0.0, 0), (w, d, top - 0.04), 0.06, m("metal") if style.leg == "runner" else wood),
    ]
    return _model("table", parts, [Surface((0.06, 0.06), (w - 0.06, d - 0.06), top)])


def _desk(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, top, wood = 1.25 * fw**0.5, 0.62 * fd**0.5, 0.74 * fh**0.3, m("wood")
    parts = [
        box((0, 0, top - 0.035), (w, d, top), wood),
        *_legs(style, (0.02, 0.03, 0), (w * 0.62, d - 0.03, top - 0.035), 0.05, m("metal")),
        box((w * 0.66, 0.03, 0.08), (w - 0.02, d - 0.05, top - 0.035), m("front")),
        *_fronts(w * 0.66, w - 0.02, d - 0.05, 0.09, top - 0.04, 1, 3, m("front"), m("handle")),
        box((w * 0.66, 0.05, 0), (w - 0.04, d - 0.1, 0.08), m("dark")),
        box((w * 0.28 - 0.2, 0.32, top), (w * 0.28 + 0.2, 0.45, top + 0.018), m("dark")),
    ]
    return _model("desk", parts, [Surface((w * 0.52, 0.06), (w - 0.06, d - 0.06), top)])


def _nightstand(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, _, fh) = style.material, style.proportions
    w, d, h, wood = 0.45 * fw**0.5, 0.4, 0.5 * fh, m("wood2")
    parts = [
        box((0, 0, 0.1), (w, d, h), wood),
        *_legs(style, (0.01, 0.01, 0), (w - 0.01, d - 0.01, 0.1), 0.04, wood),
        *_fronts(0.0, w, d, 0.11, h - 0.015, 1, 2, m("front"), m("handle")),
    ]
    return _model("cabinet", parts, [Surface((0.04, 0.04), (w - 0.04, d - 0.02), h)])


def _sideboard(style: Style, rng: np.random.Generator) -> Model:
    """A low cabinet, on which a television or a vase stands."""
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, h = rng.uniform(1.25, 1.7) * fw**0.5, 0.42 * fd**0.5, rng.uniform(0.42, 0.62) * fh**0.7
    parts = [
        box((0, 0, 0.08), (w, d, h), m("wood")),
        *_legs(style, (0.02, 0.02, 0), (w - 0.02, d - 0.02, 0.08), 0.05, m("wood")),
        *_fronts(0.02, w - 0.02, d, 0.1, h - 0.03, 3, 1, m("front"), m("handle")),
    ]
    return _model("cabinet", parts, [Surface((0.05, 0.05), (w - 0.05, d - 0.05), h)])


def _dresser(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, h = rng.uniform(0.8, 1.2) * fw**0.5, 0.46 * fd**0.5, rng.uniform(0.8, 1.05) * fh
    parts = [
        box((0, 0, 0.07), (w, d, h), m("wood2")),
        box((0.03, 0.03, 0), (w - 0.03, d - 0.05, 0.07), m("dark")),
        *_fronts(0.01, w - 0.01, d, 0.09, h - 0.02, 2 if w > 1 else 1, 4, m("front"), m("handle")),
    ]
    return _model("cabinet", parts, [Surface((0.05, 0.05), (w - 0.05, d - 0.05), h)])


def _counter(style: Style, rng: np.random.Generator) -> Model:
    """A kitchen unit, 60 cm wide, with a worktop."""
    m = style.material
    rows = 1 if rng.random() < 0.5 else 3
    parts = [
        box((0, 0, 0.1), (0.6, 0.58, 0.87), m("front")),
        box((0, 0, 0), (0.6, 0.52, 0.1), m("dark")),
        box((0, 0, 0.87), (0.6, 0.62, 0.91), m("counter")),
        *_fronts(0, 0.6, 0.58, 0.11, 0.86, 1, rows, m("front"), m("handle")),
    ]
    return _model("cabinet", parts, [Surface((0.05, 0.08), (0.55, 0.56), 0.91, 0.45)])


def _wall_cabinet(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    parts = [
        box((0, 0, 0), (0.6, 0.33, 0.65), m("front")),
        *_fronts(0, 0.6, 0.33, 0.0, 0.65, 1, 1, m("front"), m("handle")),
    ]
    return _model("cabinet", parts, lift=1.45)


def _kitchen_sink(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    c, s = m("counter"), m("steel")
    parts = [
        box((0, 0, 0.1), (0.8, 0.58, 0.72), m("front")),
        box((0, 0, 0), (0.8, 0.52, 0.1), m("dark")),
        *_fronts(0, 0.8, 0.58, 0.11, 0.86, 2, 1, m("front"), m("handle")),
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
    return _model("sink", parts)


def _stove(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("stove", parts)


def _fridge(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("fridge", parts, [Surface((0.05, 0.05), (0.57, 0.5), h, 0.3, ("box",))])


def _wardrobe(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    doors = int(rng.integers(2, 4))
    w, d, h = doors * 0.5 * fw**0.5, 0.58 * fd**0.4, min(2.05 * fh**0.6, 2.3)
    parts = [
        box((0, 0, 0.07), (w, d, h), m("wood")),
        box((0.02, 0.02, 0), (w - 0.02, d - 0.04, 0.07), m("dark")),
    ]
    drawers = 0.45 if rng.random() < 0.5 else 0.09
    parts += _fronts(0.01, w - 0.01, d, drawers, h - 0.02, doors, 1, m("front"), m("handle"))
    if drawers > 0.2:
        parts += _fronts(0.01, w - 0.01, d, 0.09, drawers, 1, 2, m("front"), m("handle"))
    if rng.random() < 0.4:
        parts.append(panel((w / doors + 0.06, d + 0.019, 0.6), w / doors - 0.12, h - 0.75, m("glass")))
    return _model("wardrobe", parts, [Surface((0.05, 0.05), (w - 0.05, d - 0.1), h, 0.35, ("box",))])


def _shelf(style: Style, rng: np.random.Generator) -> Model:
    """A bookcase, open to the front, with books of its own."""
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
    return _model("shelf", parts, surfaces)


def _tv(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, _, _) = style.material, style.proportions
    w = rng.uniform(0.9, 1.3) * fw**0.4
    h = w * 0.58
    parts = [
        box((-w / 2, -0.02, 0.07), (w / 2, 0.02, 0.07 + h), m("dark")),
        panel((-w / 2 + 0.015, 0.0208, 0.085), w - 0.03, h - 0.03, m("screen")),
        box((-0.05, -0.02, 0.01), (0.05, 0.0, 0.1), m("dark")),
        box((-w * 0.22, -0.1, 0), (w * 0.22, 0.1, 0.015), m("dark")),
    ]
    return _model("tv", parts)


def _monitor(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    parts = [
        box((-0.27, 0.04, 0.12), (0.27, 0.065, 0.45), m("dark")),
        panel((-0.255, 0.0655, 0.135), 0.51, 0.3, m("screen")),
        box((-0.03, 0.03, 0), (0.03, 0.05, 0.2), m("dark")),
        box((-0.11, -0.02, 0), (0.11, 0.14, 0.012), m("dark")),
    ]
    return _model("tv", parts)


def _bath_sink(style: Style, rng: np.random.Generator) -> Model:
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
            *_fronts(-w / 2, w / 2, 0.45, 0.21, 0.77, 2, 1, m("front"), m("handle")),
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
    return _model("sink", parts)


def _toilet(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("toilet", parts)


def _bathtub(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("bathtub", parts)


def _floor_lamp(style: Style, rng: np.random.Generator) -> Model:
    m, (_, _, fh) = style.material, style.proportions
    h = 1.6 * fh**0.7
    r = rng.uniform(0.16, 0.24)
    parts = [
        cylinder((0, 0, 0), 0.15, 0.025, m("metal"), segments=16),
        cylinder((0, 0, 0.02), 0.014, h - 0.1, m("metal"), segments=6),
        lathe([(r, h - 0.32), (r * rng.uniform(0.5, 1.0), h)], m("shade"), segments=16),
        sphere((0, 0, h - 0.18), 0.05, m("bulb"), 8),
    ]
    return _model("lamp", parts)


def _table_lamp(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("lamp", parts)


def _ceiling_lamp(style: Style, rng: np.random.Generator) -> Model:
    """Hangs from the ceiling: its highest point is the ceiling."""
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
    return _model("lamp", parts)


def _plant(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("plant", parts)


def _rug(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, _) = style.material, style.proportions
    if rng.random() < 0.25:
        r = rng.uniform(0.8, 1.05)
        return _model(
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
    return _model("rug", parts)


def _bath_rug(style: Style, rng: np.random.Generator) -> Model:
    return _model("rug", [cushion((0, 0, 0), (0.8, 0.5, 0.025), 0.012, style.material("rug"))])


def _curtain(style: Style, rng: np.random.Generator) -> Model:
    """One panel, as wide and as high as one: it is stretched to its window."""
    return _model("curtain", [wave((0, 0, 0), 1.0, 1.0, 0.09, 3.5, style.material("curtain"), 22)])


def _picture(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, h = [(0.9, 0.6), (0.5, 0.7), (0.7, 0.7), (1.2, 0.7), (0.4, 0.5)][int(rng.integers(5))]
    frame = m(["wood2", "dark", "metal", "white"][int(rng.integers(4))])
    t, canvas = 0.035, m(f"picture{rng.integers(PICTURES)}")
    parts = [box((0, 0, 0), (w, 0.025, h), frame)]
    if rng.random() < 0.5:
        parts.append(panel((t, 0.026, t), w - 2 * t, h - 2 * t, m("paper")))
        t += 0.07
    parts.append(panel((t, 0.0275, t), w - 2 * t, h - 2 * t, canvas))
    return _model("picture", parts, lift=1.55 - h / 2)


def _mirror(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, h = rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.85)
    parts = [
        box((0, 0, 0), (w, 0.02, h), m("metal")),
        panel((0.02, 0.0215, 0.02), w - 0.04, h - 0.04, m("glass")),
    ]
    return _model("mirror", parts, lift=1.15)


def _pillow(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, d = (0.62, 0.4) if rng.random() < 0.5 else (0.44, 0.44)
    cloth = m(["pillow", "pillow2"][int(rng.integers(2))])
    return _model("pillow", [cushion((0, 0, 0), (w, d, 0.14), 0.069, cloth)])


def _book(style: Style, rng: np.random.Generator) -> Model:
    """A pile of books."""
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
    return _model("book", parts)


def _mug(style: Style, rng: np.random.Generator) -> Model:
    c = style.material(f"accent{rng.integers(ACCENTS)}")
    r, h = rng.uniform(0.037, 0.048), rng.uniform(0.085, 0.11)
    parts = [
        lathe([(0, 0), (r, 0), (r * 1.04, h), (r * 0.92, h), (r * 0.9, 0.02), (0, 0.02)], c, segments=12),
        box((r, -0.006, h * 0.72), (r + 0.03, 0.006, h * 0.82), c),
        box((r, -0.006, h * 0.2), (r + 0.03, 0.006, h * 0.3), c),
        box((r + 0.022, -0.006, h * 0.25), (r + 0.032, 0.006, h * 0.8), c),
    ]
    return _model("mug", parts)


def _bottle(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("bottle", parts)


def _vase(style: Style, rng: np.random.Generator) -> Model:
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
    return _model("vase", parts)


def _box(style: Style, rng: np.random.Generator) -> Model:
    m = style.material
    w, d, h = rng.uniform(0.24, 0.42), rng.uniform(0.2, 0.32), rng.uniform(0.14, 0.28)
    parts = [
        box((0, 0, 0), (w, d, h), m("cardboard")),
        box((0, d / 2 - 0.025, 0.0), (w, d / 2 + 0.025, h + 0.002), m("tape")),
    ]
    return _model("box", parts)


MODELS: dict[str, Callable[[Style, np.random.Generator], Model]] = {
    "bed": _bed,
    "sofa": _sofa,
    "armchair": _armchair,
    "chair": _chair,
    "office_chair": _office_chair,
    "table": _table,
    "coffee_table": _coffee_table,
    "desk": _desk,
    "nightstand": _nightstand,
    "sideboard": _sideboard,
    "dresser": _dresser,
    "counter": _counter,
    "wall_cabinet": _wall_cabinet,
    "kitchen_sink": _kitchen_sink,
    "stove": _stove,
    "fridge": _fridge,
    "wardrobe": _wardrobe,
    "shelf": _shelf,
    "tv": _tv,
    "monitor": _monitor,
    "bath_sink": _bath_sink,
    "toilet": _toilet,
    "bathtub": _bathtub,
    "floor_lamp": _floor_lamp,
    "table_lamp": _table_lamp,
    "ceiling_lamp": _ceiling_lamp,
    "plant": _plant,
    "rug": _rug,
    "bath_rug": _bath_rug,
    "curtain": _curtain,
    "picture": _picture,
    "mirror": _mirror,
    "pillow": _pillow,
    "book": _book,
    "mug": _mug,
    "bottle": _bottle,
    "vase": _vase,
    "box": _box,
}
"""The builders by name; several may build one class."""


def build(name: str, style: Style, variant: int = 0) -> Model:
    """The model of this name in a style; equal arguments give equal triangles.

    Raises:
        ValueError: there is no model of this name.
    """
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](style, style.draw("model", name, variant))


def stretched(model: Model, width: float, depth: float, height: float) -> Model:
    """A model brought to another size, without surfaces."""
    factors = np.array([width, depth, height]) / np.array(model.size)
    mesh, normals = model.mesh, model.mesh.normals / factors
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)

    def scaled(values: Array) -> Array:
        return (values * factors).astype(np.float32)

    parts = Mesh(
        scaled(mesh.triangles),
        normals.astype(np.float32),
        scaled(mesh.local),
        mesh.material,
        mesh.instance,
        mesh.label,
    )
    return Model(model.name, parts, lift=model.lift)
