"""Intersections of rays and triangles: Embree by default, numpy as a reference and substitute, OpenGL on request.

A tracer has three methods. ``build(triangles)`` sets the triangles, ``view(camera, size)`` returns the first triangle at every
pixel, ``occluded(origins, targets)`` returns whether a triangle is between two points. Embree and numpy also trace arbitrary
rays with ``trace(origins, directions)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final

import numpy as np

from testtime.errors import missing_extra
from testtime.moved import renamed
from testtime.scenes.geometry import Array

if TYPE_CHECKING:
    from testtime.scenes.cameras import Camera

__all__ = [
    "BACKENDS",
    "EmbreeTracer",
    "Hits",
    "NumpyTracer",
    "RayTracer",
    "Tracer",
    "default_backend",
    "tracer",
    "warn_if_slow",
]

__getattr__ = renamed(__name__, {"available": "default_backend", "nothing": "no_hits"})

SHORT = 1 - 1e-4
"""Length of a ray to a light, as a fraction of the distance."""


@final
@dataclass(frozen=True, eq=False)
class Hits:
    """The first hits of N rays.

    Attributes:
        triangle: indices of the triangles, (N,) int32, -1 without a hit.
        t: distances as multiples of the direction, (N,) float32, infinite without a hit.
        u, v: barycentric weights of the second and the third corner, (N,) float32.
    """

    triangle: Array
    t: Array
    u: Array
    v: Array

    @property
    def weights(self) -> Array:
        """Barycentric weights of the three corners, (N, 3) float32."""
        return np.stack([1 - self.u - self.v, self.u, self.v], axis=1)

    def part(self, rows: slice | Array) -> Hits:
        """Return the hits of some of the rays."""
        return Hits(self.triangle[rows], self.t[rows], self.u[rows], self.v[rows])


class Tracer(ABC):
    """The interface of the backends."""

    @abstractmethod
    def build(self, triangles: Array) -> None:
        """Set the triangles, (F, 3, 3) float32."""

    @abstractmethod
    def view(
        self,
        camera: Camera,
        size: tuple[int, int],
        pixels: Array | None = None,
        directions: Array | None = None,
    ) -> Hits:
        """Return the first hits through the centres of pixels; t is depth.

        Args:
            camera: camera of the image.
            size: size of the image (H, W), in pixels.
            pixels: flat indices of the pixels, (N,), in row-major order; None for all.
            directions: rays of the pixels, (N, 3), where the caller has them (`testtime.scenes.cameras.rays`).
        """

    @abstractmethod
    def occluded(self, origins: Array, targets: Array) -> Array:
        """Return whether a triangle is between origins and targets, both (N, 3), as (N,) bool."""


class RayTracer(Tracer):
    """A backend that traces arbitrary rays."""

    @abstractmethod
    def trace(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays with origins and directions (N, 3) of any length."""

    def view(
        self,
        camera: Camera,
        size: tuple[int, int],
        pixels: Array | None = None,
        directions: Array | None = None,
    ) -> Hits:
        """Return the first hits through the centres of pixels, with a ray for each."""
        from testtime.scenes.cameras import rays

        if directions is None:
            directions = rays(camera, size, pixels)
        return self.trace(np.broadcast_to(camera.position, directions.shape), directions)


@final
class EmbreeTracer(RayTracer):
    """A tracer with Intel's Embree through the package embreex.

    Raises:
        ImportError: embreex is not installed.
    """

    def __init__(self) -> None:
        if find_spec("embreex") is None:
            raise missing_extra("embreex", "scenes")
        self.scene: Any = None

    def build(self, triangles: Array) -> None:
        """Set the triangles, (F, 3, 3) float32."""
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.scene = None
        if len(triangles):
            self.scene = EmbreeScene()
            TriangleMesh(self.scene, np.ascontiguousarray(triangles, dtype=np.float32))

    def trace(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays."""
        if self.scene is None or not len(origins):
            return no_hits(len(origins))
        found = self.scene.run(_single(origins), _single(directions), output=True)
        triangle = np.where(found["geomID"] == -1, np.int32(-1), found["primID"]).astype(np.int32)
        return Hits(
            triangle, np.where(triangle < 0, np.float32(np.inf), found["tfar"]), found["u"], found["v"]
        )

    def occluded(self, origins: Array, targets: Array) -> Array:
        """Return whether a triangle is between points."""
        if self.scene is None or not len(origins):
            return np.zeros(len(origins), bool)
        origins = _single(origins)
        answer = self.scene.run(origins, _single(targets) - origins, dists=SHORT, query="OCCLUDED")
        return np.asarray(answer) != -1


@final
class NumpyTracer(RayTracer):
    """A tracer in numpy with float64, the reference in tests and the substitute for Embree.

    Rays are mapped by :func:`affine_maps`. A ray is tested against a block of triangles only if it hits the bounding box of the
    block. The tracer takes about 50 times as long as Embree.

    Args:
        block: number of triangles in a block.
    """

    def __init__(self, block: int = 16) -> None:
        self.block = block
        self.build(np.zeros((0, 3, 3)))

    def build(self, triangles: Array) -> None:
        """Set the triangles, (F, 3, 3) float32; consecutive triangles should be near each other."""
        corners = np.asarray(triangles, dtype=np.float64)
        self.blocks: list[tuple[int, Array, Array, Array, Array]] = []
        for first in range(0, len(corners), self.block):
            part = corners[first : first + self.block]
            inverse, start, _ = affine_maps(part)
            points = part.reshape(-1, 3)
            rows = inverse.transpose(1, 0, 2).reshape(-1, 3)  # u of every triangle, then v, then the height
            self.blocks.append(
                (first, points.min(axis=0) - 1e-6, points.max(axis=0) + 1e-6, rows, start.T.reshape(-1))
            )

    def trace(self, origins: Array, directions: Array) -> Hits:
        """Return the first hits of rays."""
        hits = no_hits(len(origins))
        best = np.full(len(origins), np.inf)
        for at, first, t, u, v in self._met(origins, directions, np.inf):
            k = t.argmin(axis=1)
            rows = np.arange(len(at))
            closer = t[rows, k] < best[at]
            rows, k, at = rows[closer], k[closer], at[closer]
            best[at] = t[rows, k]
            hits.triangle[at], hits.u[at], hits.v[at] = first + k, u[rows, k], v[rows, k]
        hits.t[:] = best
        return hits

    def occluded(self, origins: Array, targets: Array) -> Array:
        """Return whether a triangle is between points."""
        answer = np.zeros(len(origins), bool)
        directions = np.asarray(targets, dtype=np.float64) - origins
        for at, _, t, _, _ in self._met(origins, directions, SHORT):
            answer[at] |= (t < SHORT).any(axis=1)
        return answer

    def _met(
        self, origins: Array, directions: Array, far: float
    ) -> Iterator[tuple[Array, int, Array, Array, Array]]:
        """Yield for each block the rays that hit its box, its first triangle, and t, u, v of these rays and its triangles."""
        o, d = np.asarray(origins, dtype=np.float64), np.asarray(directions, dtype=np.float64)
        columns, inverse = np.ascontiguousarray(o.T), 1 / np.where(np.abs(d.T) < 1e-12, 1e-12, d.T)
        for first, low, high, rows, start in self.blocks:
            enter, leave = np.zeros(len(o)), np.full(len(o), far)
            for axis in range(3):
                one = (low[axis] - columns[axis]) * inverse[axis]
                two = (high[axis] - columns[axis]) * inverse[axis]
                np.maximum(enter, np.minimum(one, two), out=enter)
                np.minimum(leave, np.maximum(one, two), out=leave)
            at = np.flatnonzero(enter <= leave)
            if not len(at):
                continue
            ou, ov, oz = np.split(o[at] @ rows.T + start, 3, axis=1)
            du, dv, dz = np.split(d[at] @ rows.T, 3, axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                t = -oz / dz
                u, v = ou + t * du, ov + t * dv
                inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
            yield at, first, np.where(inside, t, np.inf), u, v


def _gl() -> Tracer:
    from testtime.scenes.gl import GLTracer

    return GLTracer()


BACKENDS: dict[str, Callable[[], Tracer]] = {"embree": EmbreeTracer, "numpy": NumpyTracer, "gl": _gl}
"""Tracers by name."""


def default_backend() -> str:
    """Return the name of the default tracer: Embree, or numpy if Embree is not installed; never OpenGL."""
    return "embree" if find_spec("embreex") is not None else "numpy"


def warn_if_slow(report: Callable[[str], None]) -> None:
    """Report that the slow numpy tracer is used if Embree is not installed.

    Args:
        report: function that receives the message.
    """
    if default_backend() == "numpy":
        report(
            "Embree is not installed: the numpy tracer renders, some 50 times slower; scenes make --backend gl is faster"
        )


def tracer(triangles: Array, backend: str | None = None) -> Tracer:
    """Create a tracer.

    Args:
        triangles: triangles, (F, 3, 3), in metres.
        backend: name of the tracer, one of :data:`BACKENDS`; None for :func:`default_backend`.

    Raises:
        ImportError: the backend's package is not installed.
        OSError: there is no OpenGL.
        ValueError: there is no such backend.
    """
    backend = default_backend() if backend is None else backend
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    made = BACKENDS[backend]()
    made.build(triangles)
    return made


def _single(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)


def affine_maps(triangles: Array) -> tuple[Array, Array, Array]:
    """Return the affine maps of triangles to the unit triangle.

    A map takes the corners of a triangle to (0, 0, 0), (1, 0, 0), (0, 1, 0) and its normal to (0, 0, 1), so that a mapped ray
    meets the plane z = 0 at its u and v (Woop, *A Ray Tracing Hardware Architecture for Dynamic Scenes*, 2004).

    Args:
        triangles: triangles, (F, 3, 3) float64.

    Returns:
        Matrices (F, 3, 3), translations (F, 3), NaN for triangles without area, and whether a triangle has no area, (F,)
        bool.
    """
    a, one, two = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normal = np.cross(one, two)
    flat = np.linalg.norm(normal, axis=1) < 1e-14  # no ray hits a triangle without area
    frame = np.stack([one, two, normal], axis=2)
    frame[flat] = np.eye(3)
    inverse = np.linalg.inv(frame)
    start = -np.einsum("bij,bj->bi", inverse, a)
    start[flat] = np.nan
    return inverse, start, flat


def no_hits(count: int) -> Hits:
    """Return the hits of a number of rays without a hit."""
    return Hits(
        np.full(count, -1, np.int32),
        np.full(count, np.inf, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
    )
