"""Floor plans: a rectangle divided into rooms, with doors between them and windows to the outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np

from testtime.scenes.geometry import Array

__all__ = ["DOOR", "WALL", "Opening", "Plan", "Room", "Side", "draw_plan"]

WALL = 0.1
"""Half the thickness of a wall, in metres."""

DOOR = (0.9, 2.0)
"""Width and height of a doorway, in metres."""

LEAST = 2.2
"""Least length of a room's side, in metres."""

KINDS = {
    1: ("living",),
    2: ("living", "bed"),
    3: ("living", "bed", "bath"),
    4: ("living", "bed", "kitchen", "bath"),
    5: ("living", "bed", "kitchen", "study", "bath"),
    6: ("living", "bed", "kitchen", "bed", "study", "bath"),
}
"""Kinds of rooms by number of rooms, from the largest room to the smallest."""


@final
@dataclass(frozen=True)
class Opening:
    """A doorway or a window.

    Attributes:
        start, end: extent along the side, in metres.
        low, high: extent above the floor, in metres.
        leads_to: index of the room behind a door, -1 for the outside; None for a window.
    """

    start: float
    end: float
    low: float
    high: float
    leads_to: int | None = None


@final
@dataclass(frozen=True)
class Side:
    """A wall in the frame of its room: x is along the wall, y into the room, z up.

    Attributes:
        origin: position of x = y = 0 in the house, in metres.
        yaw: rotation from the axes of the wall to those of the house, in radians.
        length: length, in metres.
        openings: openings, sorted by start.
    """

    origin: tuple[float, float]
    yaw: float
    length: float
    openings: tuple[Opening, ...] = ()

    def point(self, along: float, inward: float) -> tuple[float, float]:
        """Convert a point from the frame of the wall to that of the house.

        Args:
            along: position along the wall, in metres.
            inward: distance from the wall into the room, in metres.

        >>> x, y = Side((5.0, 1.0), np.pi / 2, 3.0).point(2.0, 0.5)
        >>> round(x, 6), round(y, 6)
        (4.5, 3.0)
        """
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return float(self.origin[0] + along * c - inward * s), float(self.origin[1] + along * s + inward * c)


@final
@dataclass(frozen=True)
class Room:
    """A room.

    Attributes:
        index: index of the room in the house.
        kind: kind of the room: living, kitchen, bed, bath or study.
        low, high: corners (x, y) of the floor between the walls, in metres.
        sides: walls at the lowest y, the highest x, the highest y and the lowest x.
    """

    index: int
    kind: str
    low: tuple[float, float]
    high: tuple[float, float]
    sides: tuple[Side, ...] = field(default=(), repr=False)

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) of the floor, in metres."""
        return (self.low[0] + self.high[0]) / 2, (self.low[1] + self.high[1]) / 2

    @property
    def area(self) -> float:
        """Area of the floor, in square metres."""
        return (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])


@final
@dataclass(frozen=True)
class Plan:
    """A floor plan.

    Attributes:
        rooms: rooms of the house.
        height: height of the ceiling, in metres.
    """

    rooms: tuple[Room, ...]
    height: float

    def doors(self) -> Iterator[tuple[int, Side, Opening]]:
        """Yield room, side and opening of every door once, for the room with the lower index."""
        for room in self.rooms:
            for side in room.sides:
                for opening in side.openings:
                    if opening.leads_to is not None and (
                        opening.leads_to < 0 or opening.leads_to > room.index
                    ):
                        yield room.index, side, opening


def draw_plan(rng: np.random.Generator, height: float) -> Plan:
    """Generate a floor plan.

    A rectangle of 6 to 14 by 5 to 10 metres is divided, the largest part first, into 1 to 6 rooms with sides of at least 2.2
    metres without walls. The doors are a random spanning tree of the pairs of rooms with a common wall, some further pairs, and
    a door to the outside.

    Args:
        rng: random generator of the plan.
        height: height of the ceiling, in metres.
    """
    count = int(rng.choice(np.arange(1, 7), p=[0.04, 0.08, 0.16, 0.3, 0.24, 0.18]))
    area, aspect = rng.uniform(13, 17) * max(count, 2), rng.uniform(1.0, 1.7)
    width = float(np.clip(np.sqrt(area * aspect), 6, 14))
    depth = float(np.clip(area / width, 5, 10))
    cells = _split(rng, (0.0, 0.0, width, depth), count)
    cells.sort(key=lambda c: -(c[2] - c[0]) * (c[3] - c[1]))
    kinds = list(KINDS[len(cells)])
    middle = kinds[1:-1]
    rng.shuffle(middle)
    kinds[1:-1] = middle
    doors = _doors(rng, cells)
    rooms = []
    for i, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        x0, y0, x1, y1 = cell[0] + WALL, cell[1] + WALL, cell[2] - WALL, cell[3] - WALL
        frames = [
            ((x0, y0), 0.0, x1 - x0),
            ((x1, y0), np.pi / 2, y1 - y0),
            ((x1, y1), np.pi, x1 - x0),
            ((x0, y1), -np.pi / 2, y1 - y0),
        ]
        outside = [cell[1] == 0, cell[2] == width, cell[3] == depth, cell[0] == 0]
        sides: list[Side] = []
        for s, (origin, yaw, length) in enumerate(frames):
            side = Side(origin, yaw, length)
            openings = [
                _doorway(side, point, other) for at, which, other, point in doors if (at, which) == (i, s)
            ]
            if outside[s]:
                if (
                    i == 0
                    and not any(o.leads_to == -1 for done in sides for o in done.openings)
                    and length > 2
                ):
                    start = float(rng.uniform(0.15, length - DOOR[0] - 0.15))
                    openings.append(Opening(start, start + DOOR[0], 0.0, DOOR[1], -1))
                openings += _windows(rng, kind, length, openings, height)
            sides.append(Side(origin, yaw, length, tuple(sorted(openings, key=lambda o: o.start))))
        rooms.append(Room(i, kind, (x0, y0), (x1, y1), tuple(sides)))
    return Plan(tuple(rooms), height)


Cell = tuple[float, float, float, float]  # x0, y0, x1, y1, to the middle of the walls


def _split(rng: np.random.Generator, whole: Cell, count: int) -> list[Cell]:
    cells, least = [whole], LEAST + 2 * WALL
    while len(cells) < count:
        cells.sort(key=lambda c: (c[2] - c[0]) * (c[3] - c[1]))
        cell = cells.pop()
        sizes = np.array([cell[2] - cell[0], cell[3] - cell[1]])
        axis = int(sizes.argmax())
        if sizes[axis] < 2 * least:  # if the largest cannot be divided, no other can
            cells.append(cell)
            break
        low = max(least, 0.34 * sizes[axis])
        cut = cell[axis] + float(rng.uniform(low, sizes[axis] - low))
        first, second = list(cell), list(cell)
        first[axis + 2], second[axis] = cut, cut
        cells += [(first[0], first[1], first[2], first[3]), (second[0], second[1], second[2], second[3])]
    return cells


def _doors(rng: np.random.Generator, cells: list[Cell]) -> list[tuple[int, int, int, tuple[float, float]]]:
    """Return the doors as (room, its side, the other room, centre of the doorway), for both rooms of each."""
    shared = []
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            for axis in (0, 1):  # b is next to a along this axis
                other = 1 - axis
                low, high = max(a[other], b[other]), min(a[other + 2], b[other + 2])
                if a[axis + 2] == b[axis] and high - low >= DOOR[0] + 2 * (WALL + 0.12):
                    shared.append((i, j, axis, low, high))
    order = rng.permutation(len(shared))
    group, found = list(range(len(cells))), []
    for k in order:
        i, j, axis, low, high = shared[k]
        if group[i] == group[j] and rng.random() > 0.2:
            continue
        group = [group[i] if g == group[j] else g for g in group]
        reach = DOOR[0] / 2 + WALL + 0.12
        near = rng.uniform(0, min(0.5, (high - low) / 2 - reach))
        middle = low + reach + near if rng.random() < 0.5 else high - reach - near
        point = (cells[i][2], middle) if axis == 0 else (middle, cells[i][3])
        sides = (1, 3) if axis == 0 else (2, 0)
        found += [(i, sides[0], j, point), (j, sides[1], i, point)]
    return found


def _doorway(side: Side, point: tuple[float, float], other: int) -> Opening:
    """Return the opening of a door in a side from its centre in the house."""
    away: Array = np.array(point) - side.origin
    along = float(away @ [np.cos(side.yaw), np.sin(side.yaw)])
    return Opening(along - DOOR[0] / 2, along + DOOR[0] / 2, 0.0, DOOR[1], other)


def _windows(
    rng: np.random.Generator, kind: str, length: float, others: list[Opening], height: float
) -> list[Opening]:
    found: list[Opening] = []
    count = 2 if length > 5 else 1
    if rng.random() < 0.2:
        return found
    for k in range(count):
        part = length / count
        width = float(rng.uniform(0.9, 1.7)) if kind != "bath" else 0.7
        width = min(width, part - 0.7)
        low = (
            1.3 if kind == "bath" else float(rng.choice([0.4, 0.9, 0.95, 1.0])) if kind == "living" else 0.95
        )
        start = k * part + float(rng.uniform(0.3, part - width - 0.3))
        end = start + width
        if width > 0.5 and all(end + 0.2 < o.start or start - 0.2 > o.end for o in others):
            found.append(Opening(start, end, low, min(2.15, height - 0.25)))
    return found
