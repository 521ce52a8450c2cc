"""Where rays meet triangles: Embree by default, numpy where it is not installed and to check it.

A tracer has three methods. ``build(triangles)`` takes the triangles, ``trace(origins, directions)`` answers with the
first triangle of every ray, ``occluded(origins, directions)`` says whether anything lies between a point and another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, final

import numpy as np

from testtime.errors import missing_extra
from testtime.scenes.geometry import Array

__all__ = ["BACKENDS", "EmbreeTracer", "Hits", "NumpyTracer", "Tracer", "available", "tracer"]

NEAR = 1e-4
"""Hits closer than this fraction of a direction are not seen by numpy's rays."""


@final
@dataclass(frozen=True, eq=False)
class Hits:
    """What N rays met.

    Attributes:
        triangle: (N,) int32, -1 for nothing.
        t: (N,) float32, as multiples of the direction; infinite for nothing.
        u, v: (N,) float32, weights of the second and the third corner.
    """

    triangle: Array
    t: Array
    u: Array
    v: Array


class Tracer(Protocol):
    """What every backend does."""

    def build(self, triangles: Array) -> None:
        """Take the triangles, (F, 3, 3) float32."""

    def trace(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays, origins and directions (N, 3); directions need no unit length."""

    def occluded(self, origins: Array, targets: Array) -> Array:
        """Say, (N,) bool, whether a triangle lies between origins and targets, (N, 3) both."""


@final
class EmbreeTracer:
    """Intel's Embree, through the package embreex.

    Raises:
        ImportError: embreex is not installed.
    """

    def __init__(self) -> None:
        if find_spec("embreex") is None:
            raise missing_extra("embreex", "scenes")
        self.scene: Any = None

    def build(self, triangles: Array) -> None:
        """Take the triangles, (F, 3, 3) float32."""
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.scene = None
        if len(triangles):
            self.scene = EmbreeScene()
            TriangleMesh(self.scene, np.ascontiguousarray(triangles, dtype=np.float32))

    def trace(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays."""
        if self.scene is None or not len(origins):
            return _nothing(len(origins))
        found = self.scene.run(_single(origins), _single(directions), output=True)
        triangle = np.where(found["geomID"] == -1, np.int32(-1), found["primID"]).astype(np.int32)
        return Hits(
            triangle, np.where(triangle < 0, np.float32(np.inf), found["tfar"]), found["u"], found["v"]
        )

    def occluded(self, origins: Array, targets: Array) -> Array:
        """Say whether a triangle lies between points."""
        if self.scene is None or not len(origins):
            return np.zeros(len(origins), bool)
        origins = _single(origins)
        answer = self.scene.run(origins, _single(targets) - origins, dists=1.0 - 1e-4, query="OCCLUDED")
        return np.asarray(answer) != -1


@final
class NumpyTracer:
    """Möller and Trumbore's intersection (1997), for triangles in blocks that rays miss or meet by their boxes.

    It needs nothing but numpy, takes about a second for what Embree does in ten milliseconds, and is what Embree is
    tested against.

    Args:
        block: triangles in a block.
    """

    def __init__(self, block: int = 24) -> None:
        self.block = block
        self.triangles = np.zeros((0, 3, 3))

    def build(self, triangles: Array) -> None:
        """Take the triangles, (F, 3, 3) float32; neighbours in number should be neighbours in space."""
        self.triangles = np.asarray(triangles, dtype=np.float64)
        starts = range(0, len(self.triangles), self.block)
        corners = [self.triangles[s : s + self.block].reshape(-1, 3) for s in starts]
        self.low = np.array([c.min(axis=0) for c in corners]).reshape(-1, 3) - 1e-6
        self.high = np.array([c.max(axis=0) for c in corners]).reshape(-1, 3) + 1e-6

    def trace(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays."""
        hits = _nothing(len(origins))
        best = np.full(len(origins), np.inf)
        for at, first, t, u, v in self._blocks(origins, directions):
            k = t.argmin(axis=1)
            rows = np.arange(len(at))
            closer = t[rows, k] < best[at]
            rows, k, at = rows[closer], k[closer], at[closer]
            best[at] = t[rows, k]
            hits.triangle[at], hits.u[at], hits.v[at] = first + k, u[rows, k], v[rows, k]
        hits.t[:] = best
        return hits

    def occluded(self, origins: Array, targets: Array) -> Array:
        """Say whether a triangle lies between points."""
        answer = np.zeros(len(origins), bool)
        directions = np.asarray(targets, dtype=np.float64) - origins
        for at, _, t, _, _ in self._blocks(origins, directions, 1 - 1e-4):
            answer[at] |= (t < 1 - 1e-4).any(axis=1)
        return answer

    def _blocks(self, origins: Array, directions: Array, far: float = np.inf) -> Any:
        """For each block: the rays that meet its box, its first triangle, and t, u, v of the rays and its triangles."""
        o, d = np.asarray(origins, dtype=np.float64), np.asarray(directions, dtype=np.float64)
        with np.errstate(divide="ignore"):
            inverse = 1 / d
        for b, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if len(self.triangles) else ():
            with np.errstate(invalid="ignore"):
                one, two = (low - o) * inverse, (high - o) * inverse
            enter = np.nan_to_num(np.minimum(one, two), nan=-np.inf, posinf=np.inf, neginf=-np.inf).max(
                axis=1
            )
            leave = np.nan_to_num(np.maximum(one, two), nan=np.inf, posinf=np.inf, neginf=-np.inf).min(axis=1)
            at = np.flatnonzero((enter <= leave) & (leave > 0) & (enter < far))
            if not len(at):
                continue
            a, e1, e2 = self._edges(b)
            p = np.cross(d[at][:, None], e2)
            determinant = (p * e1).sum(axis=2)
            with np.errstate(divide="ignore", invalid="ignore"):
                scale = 1 / determinant
                s = o[at][:, None] - a
                u = (s * p).sum(axis=2) * scale
                q = np.cross(s, e1)
                v = (d[at][:, None] * q).sum(axis=2) * scale
                t = (q * e2).sum(axis=2) * scale
                inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (np.abs(determinant) > 1e-14)
            yield at, b * self.block, np.where(inside, t, np.inf), u, v

    def _edges(self, b: int) -> tuple[Array, Array, Array]:
        part = self.triangles[b * self.block : (b + 1) * self.block]
        return part[:, 0], part[:, 1] - part[:, 0], part[:, 2] - part[:, 0]


BACKENDS: dict[str, Callable[[], Tracer]] = {"embree": EmbreeTracer, "numpy": NumpyTracer}
"""The tracers by name."""


def available() -> str:
    """The name of the fastest tracer that is installed."""
    return "embree" if find_spec("embreex") is not None else "numpy"


def tracer(triangles: Array, backend: str | None = None) -> Tracer:
    """A tracer of these triangles, (F, 3, 3).

    Args:
        triangles: in metres.
        backend: one of :data:`BACKENDS`; None for the fastest that is installed.

    Raises:
        ImportError: the backend's package is not installed.
        ValueError: there is no such backend.
    """
    backend = available() if backend is None else backend
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    made = BACKENDS[backend]()
    made.build(triangles)
    return made


def _single(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)


def _nothing(count: int) -> Hits:
    return Hits(
        np.full(count, -1, np.int32),
        np.full(count, np.inf, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
    )
