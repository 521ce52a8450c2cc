"""Putting models into rooms: against walls, beside each other, in the open, on each other; nothing through nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from testtime.scenes.furniture import Model, Surface, label_of, stretched
from testtime.scenes.geometry import Array, Mesh
from testtime.scenes.plan import Plan, Room, Side

__all__ = ["Footprint", "Layout", "Placed", "overlap"]

GAP = 0.015
"""Between a back and its wall, in metres."""


@final
@dataclass(frozen=True, eq=False)
class Placed:
    """An object of a house.

    Attributes:
        instance: its number, from 1.
        label: its class, an index into ``CLASSES``.
        name: its class by name.
        centre: (3,) float64, of its box, in metres.
        size: (3,) float64, of its box along its own axes.
        yaw: of its axes in the house, in radians.
        room: the room it belongs to.
        movable: whether :meth:`House.moved` puts it elsewhere.
        on: the instance it stands on, or None.
        model: what it looks like; None for parts of the house itself.
    """

    instance: int
    label: int
    name: str
    centre: Array
    size: Array
    yaw: float
    room: int
    movable: bool = False
    on: int | None = None
    model: Model | None = field(default=None, repr=False)

    @property
    def footprint(self) -> Footprint:
        """What it covers of the floor."""
        x, y, _ = self.centre.tolist()
        return Footprint(x, y, float(self.size[0]) / 2, float(self.size[1]) / 2, self.yaw)

    @property
    def base(self) -> float:
        """Its lowest height, in metres."""
        return float(self.centre[2] - self.size[2] / 2)


@final
@dataclass(frozen=True)
class Footprint:
    """A rectangle on the floor: its centre, half its edges, and how it is turned."""

    x: float
    y: float
    half_width: float
    half_depth: float
    yaw: float = 0.0

    def corners(self, margin: float = 0.0) -> Array:
        """(4, 2) float64, grown by a margin."""
        w, d = self.half_width + margin, self.half_depth + margin
        local = np.array([[-w, -d], [w, -d], [w, d], [-w, d]])
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return local @ np.array([[c, s], [-s, c]]) + [self.x, self.y]

    def distance(self, points: Array) -> Array:
        """How far points (N, 2) are from it, (N,); 0 inside."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        local = (points - [self.x, self.y]) @ np.array([[c, -s], [s, c]])
        outside = np.maximum(np.abs(local) - [self.half_width, self.half_depth], 0)
        return np.linalg.norm(outside, axis=1)


def overlap(a: Footprint, b: Footprint) -> bool:
    """Whether two oriented rectangles have a common area: no axis of either separates them.

    >>> overlap(Footprint(0, 0, 1, 1), Footprint(2.2, 0, 1, 1)), overlap(Footprint(0, 0, 1, 1), Footprint(2.2, 0, 1, 1, 0.785))
    (False, True)
    """
    one, two = a.corners(), b.corners()
    for yaw in (a.yaw, b.yaw):
        axes = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        p, q = one @ axes, two @ axes
        if ((p.max(axis=0) <= q.min(axis=0) + 1e-9) | (q.max(axis=0) <= p.min(axis=0) + 1e-9)).any():
            return False
    return True


@final
class Layout:
    """What stands where, while a house is being furnished.

    Args:
        plan: the rooms.
        rng: for the places.
    """

    def __init__(self, plan: Plan, rng: np.random.Generator) -> None:
        self.plan, self.rng = plan, rng
        self.objects: list[Placed] = []
        self.meshes: list[Mesh] = []
        self.blocked: dict[int, list[Footprint]] = {room.index: [] for room in plan.rooms}
        # What hangs on or stands against a side: (start, end, low, high), in metres.
        self.wall: dict[tuple[int, int], list[tuple[float, float, float, float]]] = {
            (room.index, s): [] for room in plan.rooms for s in range(4)
        }

    def structure(
        self, name: str, mesh: Mesh, room: int, yaw: float = 0.0, origin: Sequence[float] = (0, 0, 0)
    ) -> Placed:
        """Add a part of the house, made in a frame that is turned by yaw and then shifted to origin."""
        low, high = mesh.bounds
        middle = (low + high) / 2
        c, s = np.cos(yaw), np.sin(yaw)
        centre = np.array([middle[0] * c - middle[1] * s, middle[0] * s + middle[1] * c, middle[2]]) + origin
        placed = Placed(len(self.objects) + 1, label_of(name), name, centre, high - low, yaw, room)
        self.objects.append(placed)
        self.meshes.append(mesh.moved(origin, yaw).tagged(placed.instance, placed.label))
        return placed

    def put(
        self,
        model: Model,
        room: int,
        x: float,
        y: float,
        yaw: float,
        base: float | None = None,
        movable: bool = False,
        on: int | None = None,
        solid: bool = True,
    ) -> Placed:
        """Put a model somewhere without asking; a solid one keeps others away from its footprint."""
        placed = self.imagined(model, room, x, y, yaw, base, movable, on)
        self.objects.append(placed)
        self.meshes.append(mesh_of(placed))
        if solid:
            self.blocked[room].append(placed.footprint)
        return placed

    def imagined(
        self,
        model: Model,
        room: int,
        x: float,
        y: float,
        yaw: float,
        base: float | None = None,
        movable: bool = False,
        on: int | None = None,
    ) -> Placed:
        """What :meth:`put` would add."""
        size = np.array(model.size)
        z = (model.lift if base is None else base) + size[2] / 2
        number, label = len(self.objects) + 1, label_of(model.name)
        return Placed(number, label, model.name, np.array([x, y, z]), size, yaw, room, movable, on, model)

    def fits(self, room: Room, footprint: Footprint, margin: float = 0.0) -> bool:
        """Whether a footprint lies inside a room and meets no other."""
        corners = footprint.corners(margin)
        if (corners < np.array(room.low) - 1e-9).any() or (corners > np.array(room.high) + 1e-9).any():
            return False
        grown = Footprint(
            footprint.x,
            footprint.y,
            footprint.half_width + margin,
            footprint.half_depth + margin,
            footprint.yaw,
        )
        return not any(overlap(grown, other) for other in self.blocked[room.index])

    def clear(self, room: int, side: int, start: float, end: float, low: float, high: float) -> bool:
        """Whether nothing is on this part of a side: no opening, nothing that hangs or stands there."""
        openings = [(o.start, o.end, o.low, o.high) for o in self.plan.rooms[room].sides[side].openings]
        return not any(
            start < e - 1e-9 and end > s + 1e-9 and low < h - 1e-9 and high > b + 1e-9
            for s, e, b, h in [*openings, *self.wall[room, side]]
        )

    def against(
        self,
        room: Room,
        model: Model,
        sides: Sequence[int] | None = None,
        tries: int = 30,
        corner: bool = False,
    ) -> Placed | None:
        """Stand, or hang, a model with its back to a wall; None where there is no place.

        Args:
            room: where.
            model: what.
            sides: which walls; None for any.
            tries: how many places are tried.
            corner: only the two ends of a wall are tried.
        """
        w = model.size[0]
        choices = list(range(4)) if sides is None else list(sides)
        for _ in range(tries):
            s = choices[int(self.rng.integers(len(choices)))]
            side = room.sides[s]
            slack = side.length - w - 2 * GAP
            if slack < 0:
                continue
            along = float(self.rng.uniform(0, slack))
            if corner:
                along = 0.0 if along < slack / 2 else slack
            if found := self._at(room, model, s, along + GAP + w / 2):
                return found
        return None

    def _at(self, room: Room, model: Model, s: int, middle: float) -> Placed | None:
        (w, d, h), side = model.size, room.sides[s]
        span = (middle - w / 2, middle + w / 2, model.lift, model.lift + h)
        x, y = side.point(middle, d / 2 + GAP * (model.lift == 0) + 0.001)
        footprint = Footprint(x, y, w / 2, d / 2, side.yaw)
        free = self.clear(room.index, s, *span)
        if not free or (model.lift == 0 and not self.fits(room, footprint)):
            return None
        self.wall[room.index, s].append(span)
        return self.put(model, room.index, x, y, side.yaw, solid=model.lift == 0)

    def row(
        self, room: Room, models: Sequence[Model], tries: int = 24
    ) -> tuple[int, float, list[Placed]] | None:
        """Stand models side by side against one wall: the side, where they start, and the models; None if they do not fit."""
        width = sum(m.size[0] for m in models)
        for k in range(tries):
            s = int(self.rng.integers(4))
            side = room.sides[s]
            slack = side.length - width - 2 * GAP
            if slack < 0:
                continue
            start = GAP + float(
                self.rng.choice([0.0, slack]) if k < tries // 2 else self.rng.uniform(0, slack)
            )
            places, at = [], start
            for model in models:
                w, d, h = model.size
                x, y = side.point(at + w / 2, d / 2 + GAP + 0.001)
                shrunk = Footprint(x, y, w / 2, d / 2, side.yaw)
                if not self.clear(room.index, s, at, at + w, 0, h) or not self.fits(room, shrunk):
                    break
                places.append((model, x, y, at))
                at += w
            if len(places) < len(models):
                continue
            placed = []
            for model, x, y, at in places:
                self.wall[room.index, s].append((at, at + model.size[0], 0, model.size[2]))
                placed.append(self.put(model, room.index, x, y, side.yaw))
            return s, start, placed
        return None

    def near(
        self,
        room: Room,
        anchor: Placed,
        model: Model,
        dx: float,
        dy: float,
        yaw: float = 0.0,
        solid: bool = True,
    ) -> Placed | None:
        """Put a model at a point of another's axes, turned against them; None where it does not fit."""
        x, y = Side((float(anchor.centre[0]), float(anchor.centre[1])), anchor.yaw, 0).point(dx, dy)
        w, d, _ = model.size
        footprint = Footprint(x, y, w / 2, d / 2, anchor.yaw + yaw)
        if solid and not self.fits(room, footprint):
            return None
        if not solid:
            corners = footprint.corners()
            if (corners < room.low).any() or (corners > room.high).any():
                return None
        return self.put(model, room.index, x, y, anchor.yaw + yaw, solid=solid)

    def free(
        self,
        room: Room,
        model: Model,
        margin: float = 0.0,
        tries: int = 30,
        solid: bool = True,
        movable: bool = False,
    ) -> Placed | None:
        """Put a model anywhere on the floor, straight or across; None where there is no place."""
        w, d, _ = model.size
        for _ in range(tries):
            x, y = (float(self.rng.uniform(a, b)) for a, b in zip(room.low, room.high, strict=True))
            yaw = float(self.rng.integers(4)) * np.pi / 2
            if self.fits(room, Footprint(x, y, w / 2, d / 2, yaw), margin):
                return self.put(model, room.index, x, y, yaw, movable=movable, solid=solid)
        return None

    def atop(self, model: Model, support: Placed, x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> Placed:
        """Stand a model for good on another, at a point of the other's axes."""
        px, py = Side((float(support.centre[0]), float(support.centre[1])), support.yaw, 0).point(x, y)
        base = support.base + support.size[2]
        return self.put(
            model, support.room, px, py, support.yaw + yaw, base, on=support.instance, solid=False
        )

    def stretch(
        self, room: Room, side: int, model: Model, start: float, end: float, low: float, high: float
    ) -> Placed:
        """Hang a model on a part of a wall, brought to its size."""
        fitted = stretched(model, end - start, model.size[1], high - low)
        x, y = room.sides[side].point((start + end) / 2, fitted.size[1] / 2 + 0.02)
        self.wall[room.index, side].append((start, end, low, high))
        return self.put(fitted, room.index, x, y, room.sides[side].yaw, low, solid=False)


def mesh_of(placed: Placed) -> Mesh:
    """The triangles of an object in the house."""
    if placed.model is None:
        raise ValueError(f"{placed.name} {placed.instance} is a part of the house and has no model")
    at = (*placed.centre[:2].tolist(), placed.base)
    return placed.model.mesh.moved(at, placed.yaw).tagged(placed.instance, placed.label)


@final
class Receptacles:
    """The receptacles of a house, and what lies on them.

    Args:
        objects: the objects that are never moved.
    """

    def __init__(self, objects: Sequence[Placed]) -> None:
        self.places: list[tuple[Placed, Surface]] = [
            (o, surface) for o in objects if o.model is not None for surface in o.model.surfaces
        ]
        self.lying: dict[int, list[tuple[Footprint, float, float]]] = {o.instance: [] for o in objects}
        for o in objects:
            if o.on is not None:
                self.lying[o.on].append((o.footprint, o.base, o.base + float(o.size[2])))

    def place(
        self, rng: np.random.Generator, model: Model, rooms: Sequence[int] | None = None, tries: int = 40
    ) -> tuple[Placed, float, float, float, float] | None:
        """A free place for a model: what it lies on, x, y, its base height and its yaw; None where there is none."""
        w, d, h = model.size
        wanted = [
            (o, s)
            for o, s in self.places
            if model.name in s.takes and s.room >= h and (rooms is None or o.room in rooms)
        ]
        if not wanted:
            return None
        area = np.array([(s.high[0] - s.low[0]) * (s.high[1] - s.low[1]) for _, s in wanted])
        for _ in range(tries):
            o, s = wanted[int(rng.choice(len(wanted), p=area / area.sum()))]
            turn = (
                float(rng.normal(0, 0.12))
                if model.name in ("pillow", "box")
                else float(rng.uniform(-np.pi, np.pi))
            )
            reach = np.abs(Footprint(0, 0, w / 2, d / 2, turn).corners()).max(axis=0)
            low, high = np.array(s.low) + reach, np.array(s.high) - reach
            if (low > high).any():
                continue
            x, y = (float(v) for v in rng.uniform(low, high))
            px, py = Side((float(o.centre[0]), float(o.centre[1])), o.yaw, 0).point(x, y)
            base = o.base + s.height
            footprint = Footprint(px, py, w / 2, d / 2, o.yaw + turn)
            others = self.lying[o.instance]
            if not any(
                base < high_z and base + h > low_z and overlap(footprint, f) for f, low_z, high_z in others
            ):
                others.append((footprint, base, base + h))
                return o, px, py, base, o.yaw + turn
        return None
