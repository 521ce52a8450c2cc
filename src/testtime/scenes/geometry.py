"""Triangle meshes with normals, object coordinates, materials and labels, and the shapes of houses.

Lengths are in metres, z is up. Every shape is closed or thin. Its *object coordinates*, in which textures are evaluated, move
with the object and are a millimetre below the surface, so that a pattern has no artefacts on a face that coincides with one of
its planes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Mesh",
    "box",
    "cushion",
    "cylinder",
    "joined",
    "lathe",
    "leaf",
    "panel",
    "sphere",
    "wave",
]

Array = NDArray[Any]
"""A numpy array, whose shape and dtype are in the docstrings."""

BELOW = 1e-3
"""Depth of object coordinates below the surface, in metres."""

CREASE = np.cos(np.radians(50))
"""Cosine of the angle between two segments of a profile above which their edge is smooth (50 degrees)."""


@final
@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with separate corners.

    Attributes:
        triangles: corners of the triangles, (F, 3, 3) float32, in metres.
        normals: unit normals at the corners, (F, 3, 3) float32, smooth on curved surfaces.
        local: object coordinates of the corners, (F, 3, 3) float32, in metres.
        material: indices into the materials of the style, (F,) int16.
        instance: numbers of the instances, (F,) uint16, 0 for none.
        label: indices into the classes, (F,) uint8.
    """

    triangles: Array
    normals: Array
    local: Array
    material: Array
    instance: Array
    label: Array

    def __len__(self) -> int:
        return len(self.triangles)

    @property
    def bounds(self) -> Array:
        """Lowest and highest coordinates, (2, 3) float64; zeros without triangles."""
        if not len(self):
            return np.zeros((2, 3))
        points = self.triangles.reshape(-1, 3).astype(np.float64)
        return np.stack([points.min(axis=0), points.max(axis=0)])

    def moved(self, by: Sequence[float] | Array = (0, 0, 0), yaw: float = 0.0) -> Mesh:
        """Rotate the mesh about the z axis, then translate it; object coordinates are unchanged.

        Args:
            by: translation (x, y, z), in metres.
            yaw: angle of the rotation, in radians.

        >>> box((0, 0, 0), (1, 2, 1)).moved((0, 0, 1), yaw=np.pi / 2).bounds.round(6).tolist()
        [[-2.0, 0.0, 1.0], [0.0, 1.0, 2.0]]
        """
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        return replace(
            self,
            triangles=(self.triangles @ turn + np.asarray(by, dtype=np.float64)).astype(np.float32),
            normals=(self.normals @ turn).astype(np.float32),
        )

    def tilted(self, pitch: float) -> Mesh:
        """Rotate the mesh about the x axis by an angle in radians, from y towards z."""
        c, s = np.cos(pitch), np.sin(pitch)
        turn = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
        return replace(
            self,
            triangles=(self.triangles @ turn).astype(np.float32),
            normals=(self.normals @ turn).astype(np.float32),
        )

    def tagged(self, instance: int, label: int) -> Mesh:
        """Return the mesh with one instance and one class."""
        return replace(
            self,
            instance=np.full(len(self), instance, np.uint16),
            label=np.full(len(self), label, np.uint8),
        )

    def chosen(self, mask: Array) -> Mesh:
        """Return the triangles that a mask (F,) selects."""
        return Mesh(
            *(
                getattr(self, name)[mask] for name in self.__dataclass_fields__
            )  # every field has a row per triangle
        )


def joined(meshes: Iterable[Mesh]) -> Mesh:
    """Concatenate meshes in this order."""
    meshes = list(meshes)
    if not meshes:
        return _mesh(np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), 0)
    return Mesh(*(np.concatenate([getattr(m, name) for m in meshes]) for name in Mesh.__dataclass_fields__))


def box(low: Sequence[float], high: Sequence[float], material: int = 0) -> Mesh:
    """Create a box between two corners, with object coordinates from its centre, the first along its longest edge.

    >>> len(box((0, 0, 0), (1, 1, 1)))
    12
    """
    a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    corners = a + _CUBE * (b - a)
    longest_first = np.argsort(-(b - a), kind="stable")
    local = (corners - (a + b) / 2 - BELOW * _CUBE_NORMALS[:, None])[..., longest_first]
    return _mesh(corners, np.repeat(_CUBE_NORMALS[:, None], 3, axis=1), material, local)


def cushion(low: Sequence[float], high: Sequence[float], radius: float, material: int = 0) -> Mesh:
    """Create a box with rounded edges and smooth normals, such as upholstery, a mattress or a tub.

    Args:
        low, high: opposite corners (x, y, z), in metres.
        radius: radius of the edges, in metres; at most half of the shortest edge.
        material: index of the material.
    """
    a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    half = (b - a) / 2
    r = min(radius, 0.999 * float(half.min()))
    nodes = np.array([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0]) if r > 0.05 else np.array([-1.0, 0.0, 0.0, 1.0])
    flat = np.array([-1.0] * (len(nodes) // 2) + [1.0] * (len(nodes) // 2))
    quads = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for side in (-1.0, 1.0):
            grid = np.zeros((len(nodes), len(nodes), 3))
            grid[..., axis] = side * half[axis]
            grid[..., u] = (flat * (half[u] - r) + nodes * r)[:, None]
            grid[..., v] = (flat * (half[v] - r) + nodes * r)[None, :]
            quads.append(_grid(grid if side > 0 else grid[::-1]))
    points = np.concatenate(quads)
    inner = np.clip(points, -(half - r), half - r)
    normals = _unit(points - inner)
    surface = inner + r * normals
    return _mesh(surface + (a + b) / 2, normals, material, surface - BELOW * normals)


def lathe(
    profile: Sequence[tuple[float, float]],
    material: int = 0,
    centre: Sequence[float] = (0, 0, 0),
    segments: int = 12,
) -> Mesh:
    """Create a surface of revolution about the vertical axis, with edges at sharp turns of its profile.

    Args:
        profile: points (radius, height) of the outside from bottom to top, in metres; a radius of 0 closes the surface.
        material: index of the material.
        centre: position of radius 0 and height 0.
        segments: number of segments around the axis.
    """
    line = np.asarray(profile, dtype=np.float64)
    steps = np.diff(line, axis=0)
    flat = _unit(
        np.stack([steps[:, 1], -steps[:, 0]], axis=1)
    )  # outward normal of each segment, (radius, height)
    starts, ends = flat.copy(), flat.copy()
    for i in range(len(flat) - 1):
        if flat[i] @ flat[i + 1] > CREASE:
            ends[i] = starts[i + 1] = _unit(flat[i] + flat[i + 1])
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    angles[-1] = 0.0  # the last column is the first one, to the bit
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def turned(pairs: Array) -> Array:  # (S, 2) of (radius, height) -> (S, segments + 1, 3)
        flat_part = pairs[:, None, :1] * around[None]
        return np.concatenate(
            [flat_part, np.broadcast_to(pairs[:, None, 1:], (*flat_part.shape[:2], 1))], axis=2
        )

    def quads(low: Array, high: Array) -> Array:
        a, b, c, d = low[:, :-1], low[:, 1:], high[:, 1:], high[:, :-1]
        return np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)], axis=2).reshape(-1, 3, 3)

    points = quads(turned(line[:-1]), turned(line[1:]))
    normals = _unit(quads(turned(starts), turned(ends)))
    area = np.linalg.norm(np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]), axis=1)
    points, normals = points[area > 1e-10], normals[area > 1e-10]
    return _mesh(points + np.asarray(centre, dtype=np.float64), normals, material, points - BELOW * normals)


def cylinder(
    centre: Sequence[float],
    radius: float,
    height: float,
    material: int = 0,
    top: float | None = None,
    segments: int = 12,
) -> Mesh:
    """Create a closed cylinder with its base at ``centre``, or a truncated cone with the upper radius ``top``."""
    top = radius if top is None else top
    return lathe([(0, 0), (radius, 0), (top, height), (0, height)], material, centre, segments)


def sphere(
    centre: Sequence[float], radii: Sequence[float] | float, material: int = 0, segments: int = 12
) -> Mesh:
    """Create an ellipsoid with a centre and radii."""
    axes: Array = np.broadcast_to(np.asarray(radii, dtype=np.float64), 3)
    angles = np.linspace(-np.pi / 2, np.pi / 2, max(segments // 2, 3) + 1)
    profile = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    profile[[0, -1], 0] = 0.0
    ball = lathe([(float(r), float(z)) for r, z in profile], material, segments=segments)
    points = ball.triangles * axes
    normals = _unit(ball.triangles / axes)
    return _mesh(points + np.asarray(centre, dtype=np.float64), normals, material, points - BELOW * normals)


def panel(low: Sequence[float], width: float, height: float, material: int = 0) -> Mesh:
    """Create an upright rectangle facing +y, from its low corner in the direction +x, with object coordinates in [0, 1]."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]], dtype=np.float64)
    faces = corners[[[0, 2, 1], [0, 3, 2]]]
    points = np.asarray(low, dtype=np.float64) + faces * np.array([width, 1.0, height])
    return _mesh(points, np.broadcast_to([0.0, 1.0, 0.0], points.shape), material, faces[..., [0, 2, 1]])


def wave(
    low: Sequence[float],
    width: float,
    height: float,
    depth: float,
    folds: float,
    material: int = 0,
    columns: int = 14,
) -> Mesh:
    """Create a hanging cloth with vertical folds along x, facing +y.

    Args:
        low: low corner of the cloth.
        width, height, depth: size of the cloth, in metres; depth is that of the folds.
        folds: number of folds.
        material: index of the material.
        columns: number of strips along x.
    """
    t = np.linspace(0, 1, columns + 1)
    phase = 2 * np.pi * folds * t
    y = depth / 2 * (1 + np.sin(phase))
    slope = depth / 2 * np.cos(phase) * 2 * np.pi * folds / width
    line = np.stack([t * width, y], axis=1)
    grid = np.zeros((columns + 1, 2, 3))
    grid[..., 0], grid[..., 1] = line[:, None, 0], line[:, None, 1]
    grid[:, 1, 2] = height
    across = np.stack([-slope, np.ones_like(slope), np.zeros_like(slope)], axis=1)
    normals = np.broadcast_to(_unit(across)[:, None], grid.shape)
    return _mesh(_grid(grid) + np.asarray(low, dtype=np.float64), _grid(normals), material, _grid(grid))


def leaf(
    base: Sequence[float], yaw: float, length: float, rise: float, width: float, material: int = 0
) -> Mesh:
    """Create a leaf that rises from its base and bends outward.

    Args:
        base: position of the base.
        yaw: horizontal direction, in radians.
        length: horizontal length, in metres.
        rise: height of the highest point, in metres.
        width: width of the widest part, in metres.
        material: index of the material.
    """
    t = np.linspace(0, 1, 5)
    half = width / 2 * np.sin(np.pi * np.clip(t * 0.85 + 0.1, 0, 1))
    height = rise * (1 - (1.15 * t - 1) ** 2) / (1 - 0.0)
    spine = np.stack([length * t**1.3, np.zeros(5), height - height[0]], axis=1)
    grid = np.stack([spine, spine], axis=1)
    grid[:, 0, 1], grid[:, 1, 1] = -half, half
    tangent = np.gradient(spine, axis=0)
    up = _unit(np.stack([-tangent[:, 2], np.zeros(5), tangent[:, 0]], axis=1))
    strip = _mesh(_grid(grid), _grid(np.repeat(up[:, None], 2, axis=1)), material, _grid(grid))
    return strip.moved(base, yaw)


def _mesh(triangles: Array, normals: Array, material: int, local: Array | None = None) -> Mesh:
    count = len(triangles)
    return Mesh(
        np.ascontiguousarray(triangles, dtype=np.float32),
        np.ascontiguousarray(normals, dtype=np.float32),
        np.ascontiguousarray(triangles if local is None else local, dtype=np.float32),
        np.full(count, material, np.int16),
        np.zeros(count, np.uint16),
        np.zeros(count, np.uint8),
    )


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _grid(points: Array) -> Array:
    """Return the triangles (F, 3, 3) of a grid of points (N, M, 3)."""
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    return np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)], axis=2).reshape(-1, 3, 3)


def _unit_cube() -> tuple[Array, Array]:
    faces, normals = [], []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for side in (0.0, 1.0):
            corners = np.zeros((4, 3))
            corners[:, axis] = side
            corners[:, u], corners[:, v] = [0, 1, 1, 0], [0, 0, 1, 1]
            corners = corners if side else corners[::-1]
            faces += [corners[[0, 1, 2]], corners[[0, 2, 3]]]
            normal = np.zeros(3)
            normal[axis] = 2 * side - 1
            normals += [normal, normal]
    return np.stack(faces), np.stack(normals)


_CUBE, _CUBE_NORMALS = _unit_cube()
