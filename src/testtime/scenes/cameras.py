"""Cameras in a house: places that keep their distance from furniture and from each other, views that show something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from testtime.scenes.furniture import CLASSES, STRUCTURE
from testtime.scenes.geometry import Array
from testtime.scenes.style import generator
from testtime.scenes.tracer import Tracer, tracer

if TYPE_CHECKING:
    from testtime.scenes.house import House
    from testtime.scenes.plan import Room

__all__ = ["RINGS", "Camera", "intrinsics", "place_cameras", "rays"]

CLEARANCE = 0.3
"""The least distance of a camera from any mesh, seen from above, in metres."""

FURNITURE = 0.2
"""The least part of a view that is furniture or lies on it."""

FLAT = (*STRUCTURE, "curtain", "picture", "mirror")
"""Classes that are not furniture, for the choice of views: parts of the house, and what hangs on its walls."""

RINGS = 4
"""The number of rings of a room."""


@final
@dataclass(frozen=True, eq=False)
class Camera:
    """Where a picture is taken.

    Attributes:
        pose: (4, 4) float64, camera to world, OpenGL's convention: x right, y up, looking along -z; metres.
        fov_degrees: the angle of view across the width.
        room: the room it stands in.
        ring: which of :data:`RINGS` concentric rectangles of its room it stands in, 0 in the middle: the room, shrunk
            about its centre to a quarter, a half, three quarters of its edges, divides it.
    """

    pose: Array
    fov_degrees: float
    room: int = 0
    ring: int = 0

    @property
    def position(self) -> Array:
        """(3,) float64, in metres."""
        position: Array = self.pose[:3, 3]
        return position


def intrinsics(fov_degrees: float, size: tuple[int, int]) -> Array:
    """(3, 3) float64 for a size (H, W) in pixels: square pixels, the axis through the middle of the picture; a pixel's
    centre is at its column and row plus a half.

    >>> intrinsics(90, (64, 64)).tolist()
    [[32.0, 0.0, 32.0], [0.0, 32.0, 32.0], [0.0, 0.0, 1.0]]
    """
    height, width = size
    f = round(width / 2 / float(np.tan(np.radians(fov_degrees) / 2)), 9)
    return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])


def rays(camera: Camera, size: tuple[int, int], pixels: Array | None = None) -> Array:
    """Directions (N, 3) float64 in the world through the centres of pixels; their part along the axis is 1, so that t is
    depth.

    Args:
        camera: from where.
        size: (H, W) in pixels.
        pixels: (N,) numbers of the pixels wanted, row by row; None for all H * W.
    """
    k, (height, width) = intrinsics(camera.fov_degrees, size), size
    rows, columns = np.divmod(np.arange(height * width) if pixels is None else pixels, width)
    x = (np.arange(width) + 0.5 - k[0, 2]) / k[0, 0]
    y = -(np.arange(height) + 0.5 - k[1, 2]) / k[1, 1]
    local = np.stack([x[columns], y[rows], np.full(len(rows), -1.0)], axis=1)
    directions: Array = local @ camera.pose[:3, :3].T
    return directions


def look(position: Array, yaw: float, pitch: float) -> Array:
    """The pose (4, 4) of a camera: yaw 0 looks along +x, a positive pitch upwards; no roll."""
    c, s = np.cos(pitch), np.sin(pitch)
    forward = np.array([np.cos(yaw) * c, np.sin(yaw) * c, s])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(right, forward), -forward, position
    return pose


def ring_of(room: Room, x: float, y: float) -> int:
    """The ring of a point of a room; see :class:`Camera`."""
    (x0, y0), (x1, y1) = room.low, room.high
    away = max(abs(2 * x - x0 - x1) / (x1 - x0), abs(2 * y - y0 - y1) / (y1 - y0))
    return min(int(away * RINGS), RINGS - 1)


def place_cameras(house: House, count: int, seed: int = 0) -> list[Camera]:
    """Place cameras, the rooms in turn.

    A place is drawn uniformly in its room, 0.3 m or more from any mesh and from the walls, and as far from the room's
    other cameras as Poisson-disc sampling keeps it (a distance that gives way where the room is full). Height 0.9 to
    1.7 m, yaw uniform, pitch normal with mean -8 and deviation 10 degrees, angle of view 60 to 90 degrees. A view is
    rejected where its median depth is below 0.6 m, where it shows less than three classes or three instances, or where
    less than a fifth of it is furniture, not counting what hangs on walls.

    Args:
        house: where.
        count: how many.
        seed: 0 or more; a longer list starts with the shorter one.

    Raises:
        ValueError: count is below 1 or the seed negative.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"expected a count of 1 or more and a seed of 0 or more, got {count} and {seed}")
    probe = tracer(house.mesh.triangles)
    made: list[Camera] = []
    draws = [generator(house.seed, house.style, "cameras", seed, room.index) for room in house.rooms]
    for k in range(count):
        room = house.rooms[k % len(house.rooms)]
        others = np.array([c.position[:2] for c in made if c.room == room.index]).reshape(-1, 2)
        made.append(_one(house, room, others, draws[room.index], probe))
    return made


def _one(house: House, room: Room, others: Array, rng: np.random.Generator, probe: Tracer) -> Camera:
    low, high = np.array(room.low) + CLEARANCE, np.array(room.high) - CLEARANCE
    things = [o.footprint for o in house.objects if _in_the_way(o.room, o.name, o.base, room.index)]
    # The radius at which so many discs would cover the floor; it shrinks with every try.
    radius = 0.7 * np.sqrt(room.area / (np.pi * (len(others) + 1)))
    best: tuple[float, Camera] | None = None
    for _ in range(200):
        radius *= 0.97
        point = rng.uniform(low, high)
        yaw, pitch = rng.uniform(-np.pi, np.pi), np.radians(rng.normal(-8, 10))
        tall, fov = rng.uniform(0.9, 1.7), rng.uniform(60, 90)
        if len(others) and np.linalg.norm(others - point, axis=1).min() < radius:
            continue
        near = min((float(t.distance(point[None])[0]) for t in things), default=np.inf)
        camera = Camera(
            look(np.array([*point, tall]), yaw, float(pitch)),
            float(fov),
            room.index,
            ring_of(room, *point.tolist()),
        )
        if near < CLEARANCE:
            if best is None or near > best[0]:
                best = (near, camera)  # of a room so full that no place is far enough from everything
            continue
        if _shows_something(house, camera, probe):
            return camera
        if best is None or best[0] < CLEARANCE:
            best = (near, camera)
    assert best is not None
    return best[1]


def _in_the_way(of: int, name: str, base: float, room: int) -> bool:
    return of == room and name not in ("wall", "floor", "ceiling", "window", "rug") and base < 1.8


def _shows_something(house: House, camera: Camera, probe: Tracer) -> bool:
    hits = probe.view(camera, (16, 16))
    seen = hits.triangle[hits.triangle >= 0]
    if len(seen) < len(hits.triangle) * 0.9 or np.median(hits.t) < 0.6:
        return False
    instances, counts = np.unique(house.mesh.instance[seen], return_counts=True)
    labels = house.labels[instances]
    if len(instances) < 3 or len(np.unique(labels)) < 3:
        return False
    furniture = counts[~np.isin(labels, [CLASSES.index(name) for name in FLAT])].sum()
    return bool(furniture >= FURNITURE * len(seen))
