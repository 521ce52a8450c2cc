"""The classes of a house, models of furniture, and parts that several models share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from testtime.scenes.geometry import Mesh, box, cylinder, joined
from testtime.scenes.style import Style

__all__ = ["CLASSES", "SMALL", "STRUCTURE", "Model", "Surface", "assembled", "fronts", "label_of", "legs"]

STRUCTURE = ("wall", "floor", "ceiling", "window", "door")
"""Classes that belong to the house itself."""

SMALL = ("pillow", "book", "mug", "bottle", "vase", "box")
"""Classes of small objects that lie on others and can be moved."""

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
"""Names of the classes; a label is an index into them."""


def label_of(name: str) -> int:
    """Return the label of a class.

    >>> label_of("wall"), CLASSES[label_of("mug")]
    (0, 'mug')
    """
    return CLASSES.index(name)


@final
@dataclass(frozen=True)
class Surface:
    """A rectangle for small objects, in the coordinates of the model.

    Attributes:
        low, high: corners (x, y), in metres.
        height: height above the floor, in metres.
        room: free height above the surface, in metres.
        takes: names of the classes that may lie there.
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
        name: name of the class.
        mesh: triangles of the model, from z = 0 on.
        surfaces: surfaces for small objects.
        lift: height of the lowest point above the floor, in metres, for objects that hang.
    """

    name: str
    mesh: Mesh
    surfaces: tuple[Surface, ...] = ()
    lift: float = 0.0

    @cached_property
    def size(self) -> tuple[float, float, float]:
        """Width, depth and height, in metres."""
        low, high = self.mesh.bounds
        w, d, h = (high - low).tolist()
        return w, d, h


def assembled(name: str, parts: Sequence[Mesh], surfaces: Sequence[Surface] = (), lift: float = 0.0) -> Model:
    """Assemble a model from parts, centred in x and y and with its lowest point at z = 0."""
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


def legs(
    style: Style, low: Sequence[float], high: Sequence[float], thick: float, material: int
) -> list[Mesh]:
    """Return four legs, or two runners, of a box between the corners ``low`` and ``high`` (x, y, z)."""
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


def fronts(
    x0: float, x1: float, y: float, z0: float, z1: float, columns: int, rows: int, material: int, handle: int
) -> list[Mesh]:
    """Return doors or drawers with handles on the face y of a cabinet."""
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
