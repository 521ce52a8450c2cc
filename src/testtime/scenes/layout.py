"""Placement of models in rooms, against walls, beside each other, on the floor and on each other, without intersections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from testtime.scenes.furniture import Model, Surface, label_of, stretched
from testtime.scenes.geometry import Array, Mesh
from testtime.scenes.plan import Plan, Room, Side

__all__ = ["Footprint", "Layout", "Placed", "overlap"]

GAP = 0.015
"""Distance of the back of a model from its wall, in metres."""


@final
@dataclass(frozen=True, eq=False)
class Placed:
    """An object of a house.

    Attributes:
        instance: number of the instance, from 1 on.
        label: class index, an index into ``CLASSES``.
        name: name of the class.
        centre: centre of the box, (3,) float64, in metres.
        size: size of the box along its axes, (3,) float64, in metres.
        yaw: direction of the axes in the house, in radians.
        room: index of the room.
        movable: whether :meth:`House.moved` moves it.
        on: instance that supports it, or None.
        model: model of the object; None for parts of the house.
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
        """Footprint on the floor."""
        x, y, _ = self.centre.tolist()
        return Footprint(x, y, float(self.size[0]) / 2, float(self.size[1]) / 2, self.yaw)

    @property
    def base(self) -> float:
        """Height of the lowest point, in metres."""
        return float(self.centre[2] - self.size[2] / 2)


@final
@dataclass(frozen=True)
class Footprint:
    """A rectangle on the floor.

    Attributes:
        x, y: centre, in metres.
        half_width, half_depth: half of its edges, in metres.
        yaw: direction of its width, in radians.
    """

    x: float
    y: float
    half_width: float
    half_depth: float
    yaw: float = 0.0

    @property
    def radius(self) -> float:
        """Distance of the corners from the centre, in metres."""
        return math.hypot(self.half_width, self.half_depth)

    def corners(self, margin: float = 0.0) -> Array:
        """Return the corners (4, 2) float64 of the rectangle enlarged by a margin in metres."""
        w, d = self.half_width + margin, self.half_depth + margin
        local = np.array([[-w, -d], [w, -d], [w, d], [-w, d]])
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return local @ np.array([[c, s], [-s, c]]) + [self.x, self.y]

    def distance(self, points: Array) -> Array:
        """Return the distances (N,) of points (N, 2); 0 inside."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        local = (points - [self.x, self.y]) @ np.array([[c, -s], [s, c]])
        outside = np.maximum(np.abs(local) - [self.half_width, self.half_depth], 0)
        return np.linalg.norm(outside, axis=1)


def overlap(a: Footprint, b: Footprint) -> bool:
    """Return whether two oriented rectangles overlap, by the separating axis theorem.

    >>> overlap(Footprint(0, 0, 1, 1), Footprint(2.2, 0, 1, 1)), overlap(Footprint(0, 0, 1, 1), Footprint(2.2, 0, 1, 1, 0.785))
    (False, True)
    """
    if math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 1e-6:
        return False  # most pairs: their circles are apart
    one, two = a.corners(), b.corners()
    for yaw in (a.yaw, b.yaw):
        axes = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        p, q = one @ axes, two @ axes
        if ((p.max(axis=0) <= q.min(axis=0) + 1e-9) | (q.max(axis=0) <= p.min(axis=0) + 1e-9)).any():
            return False
    return True


@final
class Layout:
    """The layout of a house while it is being furnished.

    Args:
        plan: floor plan.
        rng: random generator of the positions.
    """

    def __init__(self, plan: Plan, rng: np.random.Generator) -> None:
        self.plan, self.rng = plan, rng
        self.objects: list[Placed] = []
        self.meshes: list[Mesh] = []
        self.blocked: dict[int, list[Footprint]] = {room.index: [] for room in plan.rooms}
        # Occupied parts of each side: (start, end, low, high), in metres.
        self.wall: dict[tuple[int, int], list[tuple[float, float, float, float]]] = {
            (room.index, s): [] for room in plan.rooms for s in range(4)
        }

    def structure(
        self, name: str, mesh: Mesh, room: int, yaw: float = 0.0, origin: Sequence[float] = (0, 0, 0)
    ) -> Placed:
        """Add a part of the house.

        Args:
            name: name of the class.
            mesh: triangles of the part.
            room: index of the room.
            yaw: rotation of the mesh about the vertical axis, in radians.
            origin: translation of the mesh after the rotation, in metres.
        """
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
        """Place a model without a check of free space.

        Args:
            model: model to place.
            room: index of the room.
            x, y: position of its centre, in metres.
            yaw: direction of its axes, in radians.
            base: height of its lowest point, in metres; None takes the model's.
            movable: whether the object can be moved later.
            on: instance that supports it, or None.
            solid: whether its footprint is blocked for other objects.
        """
        placed = self.candidate(model, room, x, y, yaw, base, movable, on)
        self.objects.append(placed)
        self.meshes.append(mesh_of(placed))
        if solid:
            self.blocked[room].append(placed.footprint)
        return placed

    def candidate(
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
        """Return the object that :meth:`put` would add."""
        size = np.array(model.size)
        z = (model.lift if base is None else base) + size[2] / 2
        number, label = len(self.objects) + 1, label_of(model.name)
        return Placed(number, label, model.name, np.array([x, y, z]), size, yaw, room, movable, on, model)

    def fits(self, room: Room, footprint: Footprint, margin: float = 0.0) -> bool:
        """Return whether a footprint is inside a room and overlaps no blocked one, with a margin in metres."""
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
        """Return whether a part of a side is free of openings and objects."""
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
        """Place a model with its back at a wall; None if there is no free place.

        Args:
            room: room of the model.
            model: model to place.
            sides: indices of the walls; None for any.
            tries: number of positions that are tried.
            corner: whether only the two ends of a wall are tried.
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
        """Place models side by side at one wall.

        Args:
            room: room of the models.
            models: models from left to right.
            tries: number of positions that are tried.

        Returns:
            Index of the side, start of the row along it in metres, and the objects; None if the models do not fit.
        """
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
        """Place a model relative to another object; None if it does not fit.

        Args:
            room: room of the model.
            anchor: other object.
            model: model to place.
            dx, dy: position in the axes of the other object, in metres.
            yaw: rotation relative to the other object, in radians.
            solid: whether the model needs free space and its footprint is blocked.
        """
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
        """Place a model at a random position on the floor, aligned with the walls; None if there is no free place.

        Args:
            room: room of the model.
            model: model to place.
            margin: least distance from other objects and walls, in metres.
            tries: number of positions that are tried.
            solid: whether its footprint is blocked for other objects.
            movable: whether the object can be moved later.
        """
        w, d, _ = model.size
        for _ in range(tries):
            x, y = (float(self.rng.uniform(a, b)) for a, b in zip(room.low, room.high, strict=True))
            yaw = float(self.rng.integers(4)) * np.pi / 2
            if self.fits(room, Footprint(x, y, w / 2, d / 2, yaw), margin):
                return self.put(model, room.index, x, y, yaw, movable=movable, solid=solid)
        return None

    def atop(self, model: Model, support: Placed, x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> Placed:
        """Place a model on another object, at a position in the axes of the other, in metres."""
        px, py = Side((float(support.centre[0]), float(support.centre[1])), support.yaw, 0).point(x, y)
        base = support.base + support.size[2]
        return self.put(
            model, support.room, px, py, support.yaw + yaw, base, on=support.instance, solid=False
        )

    def stretch(
        self, room: Room, side: int, model: Model, start: float, end: float, low: float, high: float
    ) -> Placed:
        """Scale a model to a part of a wall and place it there.

        Args:
            room: room of the model.
            side: index of the wall.
            model: model to place.
            start, end: extent along the wall, in metres.
            low, high: extent above the floor, in metres.
        """
        fitted = stretched(model, end - start, model.size[1], high - low)
        x, y = room.sides[side].point((start + end) / 2, fitted.size[1] / 2 + 0.02)
        self.wall[room.index, side].append((start, end, low, high))
        return self.put(fitted, room.index, x, y, room.sides[side].yaw, low, solid=False)


def mesh_of(placed: Placed) -> Mesh:
    """Return the triangles of an object in the house."""
    if placed.model is None:
        raise ValueError(f"{placed.name} {placed.instance} is a part of the house and has no model")
    at = (*placed.centre[:2].tolist(), placed.base)
    return placed.model.mesh.moved(at, placed.yaw).tagged(placed.instance, placed.label)


@final
class Receptacles:
    """The surfaces for small objects in a house, and the objects on them.

    Args:
        objects: objects that cannot be moved.
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
        """Find a free place for a model on a surface, and reserve it.

        Args:
            rng: random generator of the position.
            model: model of the small object.
            rooms: indices of the rooms; None for all.
            tries: number of positions that are tried.

        Returns:
            Supporting object, x, y, height of the base and yaw; None if there is no free place.
        """
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
