"""Cameras in a house: positions at a distance from furniture and from each other, with views of several objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from testtime.moved import renamed
from testtime.scenes.furniture import CLASSES, STRUCTURE
from testtime.scenes.geometry import Array
from testtime.scenes.style import generator
from testtime.scenes.tracer import Tracer, tracer

if TYPE_CHECKING:
    from testtime.scenes.house import House
    from testtime.scenes.plan import Room

__all__ = ["RINGS", "Camera", "intrinsics", "place_cameras", "rays"]

__getattr__ = renamed(__name__, {"look": "camera_pose"})

CLEARANCE = 0.3
"""Least horizontal distance of a camera from any mesh, in metres."""

FURNITURE = 0.2
"""Least share of a view that shows furniture or objects on it."""

FLAT = (*STRUCTURE, "curtain", "picture", "mirror")
"""Classes that are not furniture, for the selection of views: parts of the house, and objects on its walls."""

RINGS = 4
"""Number of rings of a room."""


@final
@dataclass(frozen=True, eq=False)
class Camera:
    """A camera in a house.

    Attributes:
        pose: camera-to-world matrix, (4, 4) float64, in metres, in the convention of OpenGL: x right, y up, viewing
            direction -z.
        fov_degrees: horizontal angle of view, in degrees.
        room: index of its room.
        ring: index of its ring, 0 in the middle. The rings of a room are separated by :data:`RINGS` - 1 rectangles: the
            room, scaled about its centre by a quarter, a half and three quarters.
    """

    pose: Array
    fov_degrees: float
    room: int = 0
    ring: int = 0

    @property
    def position(self) -> Array:
        """Position in the world, (3,) float64, in metres."""
        position: Array = self.pose[:3, 3]
        return position


def intrinsics(fov_degrees: float, size: tuple[int, int]) -> Array:
    """Return the intrinsic matrix (3, 3) float64 of an image with square pixels and a centred principal point.

    The centre of a pixel is at its column and row plus a half.

    Args:
        fov_degrees: horizontal angle of view, in degrees.
        size: size of the image (H, W), in pixels.

    >>> intrinsics(90, (64, 64)).tolist()
    [[32.0, 0.0, 32.0], [0.0, 32.0, 32.0], [0.0, 0.0, 1.0]]
    """
    height, width = size
    f = round(width / 2 / float(np.tan(np.radians(fov_degrees) / 2)), 9)
    return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])


def rays(camera: Camera, size: tuple[int, int], pixels: Array | None = None) -> Array:
    """Return the directions (N, 3) float64 of rays through the centres of pixels, in the world.

    Their component along the optical axis is 1, so that the distance t is depth.

    Args:
        camera: camera of the image.
        size: size of the image (H, W), in pixels.
        pixels: flat indices of the pixels, (N,), in row-major order; None for all H * W.
    """
    k, (height, width) = intrinsics(camera.fov_degrees, size), size
    x = (np.arange(width) + 0.5 - k[0, 2]) / k[0, 0]
    y = -(np.arange(height) + 0.5 - k[1, 2]) / k[1, 1]
    local = np.full((height * width if pixels is None else len(pixels), 3), -1.0)
    if pixels is None:
        grid = local.reshape(height, width, 3)
        grid[..., 0], grid[..., 1] = x, y[:, None]
    else:
        rows, columns = np.divmod(pixels, width)
        local[:, 0], local[:, 1] = x[columns], y[rows]
    directions: Array = local @ camera.pose[:3, :3].T
    return directions


def camera_pose(position: Array, yaw: float, pitch: float) -> Array:
    """Return the pose (4, 4) of a camera without roll.

    Args:
        position: position in the world, (3,), in metres.
        yaw: direction about the vertical axis, in radians; 0 is +x.
        pitch: elevation of the viewing direction, in radians; positive is up.
    """
    c, s = np.cos(pitch), np.sin(pitch)
    forward = np.array([np.cos(yaw) * c, np.sin(yaw) * c, s])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(right, forward), -forward, position
    return pose


def ring_of(room: Room, x: float, y: float) -> int:
    """Return the ring of a point (x, y) of a room; see :class:`Camera`."""
    (x0, y0), (x1, y1) = room.low, room.high
    away = max(abs(2 * x - x0 - x1) / (x1 - x0), abs(2 * y - y0 - y1) / (y1 - y0))
    return min(int(away * RINGS), RINGS - 1)


def place_cameras(house: House, count: int, seed: int = 0) -> list[Camera]:
    """Place cameras in the rooms in turn.

    A position is drawn uniformly in its room, at least 0.3 m from any mesh and from the walls, and by Poisson-disc sampling
    from the room's other cameras (with a distance that decreases in full rooms). The height is uniform in 0.9 to 1.7 m, the yaw
    uniform, the pitch normal with mean -8 and standard deviation 10 degrees, the angle of view uniform in 60 to 90 degrees. A
    view is rejected if its median depth is below 0.6 m, if it shows fewer than three classes or three instances, or if less
    than a fifth of it is furniture, without objects on walls.

    Args:
        house: house of the cameras.
        count: number of cameras.
        seed: random seed, not negative; a list starts with the cameras of shorter lists.

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
    obstacles = [o.footprint for o in house.objects if _is_obstacle(o.room, o.name, o.base, room.index)]
    # The radius at which this number of discs would cover the floor; it decreases with every trial.
    radius = 0.7 * np.sqrt(room.area / (np.pi * (len(others) + 1)))
    best: tuple[float, Camera] | None = None
    for _ in range(200):
        radius *= 0.97
        point = rng.uniform(low, high)
        yaw, pitch = rng.uniform(-np.pi, np.pi), np.radians(rng.normal(-8, 10))
        tall, fov = rng.uniform(0.9, 1.7), rng.uniform(60, 90)
        if len(others) and np.linalg.norm(others - point, axis=1).min() < radius:
            continue
        near = min((float(t.distance(point[None])[0]) for t in obstacles), default=np.inf)
        camera = Camera(
            camera_pose(np.array([*point, tall]), yaw, float(pitch)),
            float(fov),
            room.index,
            ring_of(room, *point.tolist()),
        )
        if near < CLEARANCE:
            if best is None or near > best[0]:
                best = (near, camera)  # for a room so full that no position is far enough from all objects
            continue
        if _is_informative(house, camera, probe):
            return camera
        if best is None or best[0] < CLEARANCE:
            best = (near, camera)
    assert best is not None
    return best[1]


def _is_obstacle(of: int, name: str, base: float, room: int) -> bool:
    return of == room and name not in ("wall", "floor", "ceiling", "window", "rug") and base < 1.8


def _is_informative(house: House, camera: Camera, probe: Tracer) -> bool:
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
