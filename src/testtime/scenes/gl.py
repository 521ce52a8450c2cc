"""A tracer with OpenGL, which rasterises triangles on the GPU, or with Mesa on the CPU, instead of tracing rays.

OpenGL determines only the first triangle at the centre of each pixel; its intersection with the ray is computed here in
float64, so that depth and normals are those of the other backends. Drivers differ in the triangle of a pixel on a common edge:
equal images need the same driver, which is therefore recorded in ``space.json``.

Shadows are computed with shadow maps (Williams, *Casting Curved Shadows on Curved Surfaces*, SIGGRAPH 1978): six images around
each light, rendered once. The resolution of shadows is that of the maps, and an object casts no shadow on a surface within two
centimetres.

The backend is for machines without a wheel of Embree, or with a GPU: Mesa on a CPU takes about twice as long as Embree.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, final

import numpy as np

from testtime.errors import missing_extra
from testtime.scenes.cameras import Camera, intrinsics, rays
from testtime.scenes.geometry import Array
from testtime.scenes.tracer import SHORT, Hits, Tracer, affine_maps, no_hits

__all__ = ["GLTracer", "driver"]

NEAR = 1e-3
"""Distance of the near plane of cameras, in metres."""

MOST = 2**24
"""Largest number of triangles, whose indices are rendered as float32."""

MAP = 512
"""Rows and columns of each of the six shadow maps of a light."""

CLEAR = 0.02
"""Distance to a point within which triangles cast no shadow on it, in metres, because of the resolution of shadow maps."""

SYSTEM = "on Debian and Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri"

VERTEX = """
#version 330
uniform mat3 turn;     // from the world to the camera
uniform vec3 place;    // of the camera
uniform vec2 scale;    // focal lengths over half the picture
in vec3 point;
void main() {
    vec3 p = turn * (point - place);
    gl_Position = vec4(scale * p.xy, -p.z - 2 * NEAR, -p.z);
}
""".replace("NEAR", repr(NEAR))

FRAGMENT = """
#version 330
uniform float far;
out float number;
void main() {
    number = float(gl_PrimitiveID + 1);
    gl_FragDepth = 1 / (gl_FragCoord.w * far);    // metres, equally fine everywhere
}
"""

FACES = np.stack(
    [
        np.stack([right, np.cross(back, right), back], axis=1)
        for back in (*np.eye(3), *-np.eye(3))
        for right in (np.roll(np.abs(back), 1),)
    ]
)
"""Rotations of cameras along the axes, (6, 3, 3), with the viewing direction opposite to the last column."""


@lru_cache(maxsize=1)
def _context() -> Any:
    """Return the OpenGL context of the process, without a window."""
    try:
        import moderngl
    except ImportError as error:
        raise missing_extra("moderngl", "render-gl") from error
    try:
        # Linux needs EGL without a display; other systems have only one way.
        backend: dict[str, Any] = {"backend": "egl"} if sys.platform == "linux" else {}
        context = moderngl.create_context(standalone=True, require=330, **backend)
    except Exception as error:
        raise OSError(
            f"backend gl: expected OpenGL 3.3 without a window, found none ({error}); install its system libraries "
            f"({SYSTEM}), or take the backend embree"
        ) from error
    context.gc_mode = "auto"
    context.enable_only(moderngl.DEPTH_TEST)
    return context


def driver() -> str:
    """Return the renderer and the version of OpenGL.

    Raises:
        ImportError: moderngl is not installed.
        OSError: there is no OpenGL, or an old one.
    """
    info = _context().info
    return f"{info['GL_RENDERER']}, {info['GL_VERSION']}"


@lru_cache(maxsize=1)
def _program() -> Any:
    return _context().program(vertex_shader=VERTEX, fragment_shader=FRAGMENT)


@lru_cache(maxsize=4)
def _canvas(size: tuple[int, int]) -> Any:
    """Return a framebuffer (H, W) of float32 numbers with depth."""
    context, (height, width) = _context(), size
    return context.framebuffer(
        context.renderbuffer((width, height), 1, dtype="f4"), context.depth_renderbuffer((width, height))
    )


@final
class GLTracer(Tracer):
    """A tracer with OpenGL through the package moderngl, which renders views of cameras and does not trace other rays.

    All tracers of a process belong to the thread of the first.

    Raises:
        ImportError: moderngl is not installed.
        OSError: there is no OpenGL 3.3 without a window.
    """

    def __init__(self) -> None:
        _context()
        self.build(np.zeros((0, 3, 3)))

    def build(self, triangles: Array) -> None:
        """Set the triangles, (F, 3, 3) float32.

        Raises:
            ValueError: there are more than 2^24 of them.
        """
        if len(triangles) >= MOST:
            raise ValueError(
                f"backend gl: expected less than {MOST} triangles, got {len(triangles)}; take embree"
            )
        corners = np.asarray(triangles, dtype=np.float64)
        maps, starts, flat = affine_maps(corners)
        self.drawn = np.flatnonzero(~flat).astype(
            np.int32
        )  # triangles without area must not get a pixel by rounding
        self.corners, self.maps, self.starts = corners, maps, starts
        self.lights: dict[tuple[int, ...], Array] = {}
        self.shape: Any = None
        if len(self.drawn):
            context = _context()
            points = context.buffer(corners[self.drawn].astype(np.float32).tobytes())
            self.shape = context.vertex_array(_program(), [(points, "3f", "point")])
            self.bounds = corners[self.drawn].min(axis=(0, 1)), corners[self.drawn].max(axis=(0, 1))

    def view(
        self,
        camera: Camera,
        size: tuple[int, int],
        pixels: Array | None = None,
        directions: Array | None = None,
    ) -> Hits:
        """Return the first hits through the centres of pixels; see :meth:`Tracer.view`."""
        half = np.array([size[1], size[0]]) / 2
        focal = intrinsics(camera.fov_degrees, size)[0, 0]
        seen = self._draw(camera.position, camera.pose[:3, :3], focal / half, size).reshape(-1)
        seen = seen if pixels is None else seen[pixels]
        hits = no_hits(len(seen))
        at = np.flatnonzero(seen >= 0)
        number = seen[at]
        directions = (rays(camera, size, pixels) if directions is None else directions)[at]
        # The ray in the frame of its triangle, which is in the plane z = 0, meets the plane at u and v.
        maps = self.maps[number]
        o = np.einsum("nij,j->ni", maps, camera.position) + self.starts[number]
        d = np.einsum("nij,nj->ni", maps, directions)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -o[:, 2] / d[:, 2]
            u, v = np.nan_to_num(o[:, 0] + t * d[:, 0]), np.nan_to_num(o[:, 1] + t * d[:, 1])
        # OpenGL rounds corners to a fraction of a pixel: points just outside of the triangle are moved to its edge.
        u, v = np.clip(u, 0, 1), np.clip(v, 0, 1)
        over = np.maximum(u + v, 1)
        u, v = u / over, v / over
        a, b, c = self.corners[number].transpose(1, 0, 2)
        points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
        hits.triangle[at], hits.u[at], hits.v[at] = number, u, v
        hits.t[at] = (camera.position - points) @ camera.pose[:3, 2]
        return hits

    def occluded(self, origins: Array, targets: Array) -> Array:
        """Return whether a triangle is between points, (N,) bool; meant for few different targets, the lights."""
        answer = np.zeros(len(origins), bool)
        if self.shape is None or not len(origins):
            return answer
        near = np.rint(np.asarray(targets, dtype=np.float64) * 1000).astype(
            np.int64
        )  # same light, same millimetre
        span = near.max(axis=0) - near.min(axis=0) + 1
        keys = ((near[:, 0] * span[1]) + near[:, 1]) * span[2] + near[:, 2]
        _, firsts, which = np.unique(keys, return_index=True, return_inverse=True)
        for k, first in enumerate(firsts.tolist()):
            mine = np.flatnonzero(which == k)
            answer[mine] = self._shadowed(tuple(near[first].tolist()), np.asarray(origins, np.float64)[mine])
        return answer

    def _shadowed(self, millimetres: tuple[int, ...], points: Array) -> Array:
        """Return whether the first triangle from a light in the direction of each point is clearly before the point."""
        light = np.array(millimetres) / 1000
        if millimetres not in self.lights:
            self.lights[millimetres] = np.stack(
                [self._draw(light, turn, np.ones(2), (MAP, MAP)) for turn in FACES]
            )
        way = points - light
        face = (way @ -FACES[:, :, 2].T).argmax(axis=1)
        local = np.einsum("ni,nij->nj", way, FACES[face])
        depth = np.maximum(-local[:, 2], 1e-9)
        column, row = ((np.stack([local[:, 0], -local[:, 1]]) / depth + 1) * (MAP / 2)).astype(np.int64)
        last = MAP - 1
        number = self.lights[millimetres][face, np.clip(row, 0, last), np.clip(column, 0, last)]
        height, start = self.maps[number, 2], self.starts[number, 2]  # above the triangle's plane
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -(height @ light + start) / np.einsum("ni,ni->n", height, way)
        before = (1 - t) * np.linalg.norm(way, axis=1) > CLEAR
        return (number >= 0) & (t > 1 - SHORT) & before

    def _draw(self, place: Array, turn: Array, scale: Array, size: tuple[int, int]) -> Array:
        """Render the indices of the first triangles, (H, W) int32, -1 for none.

        Args:
            place: position of the camera, (3,).
            turn: rotation of the camera to the world, (3, 3).
            scale: focal lengths divided by half the size of the image, (2,).
            size: size of the image (H, W).
        """
        if self.shape is None:
            return np.full(size, -1, np.int32)
        canvas, program = _canvas(size), _program()
        program["turn"].value = tuple(
            turn.reshape(-1).tolist()
        )  # column by column: the transpose, its inverse
        program["place"].value = tuple(np.asarray(place).tolist())
        program["scale"].value = tuple(scale.tolist())
        low, high = self.bounds
        program["far"].value = (
            float(np.linalg.norm(np.maximum(np.abs(low - place), np.abs(high - place)))) + 1
        )
        canvas.use()
        canvas.clear(depth=1.0)
        self.shape.render()
        drawn = np.frombuffer(canvas.read(components=1, dtype="f4"), np.float32).reshape(size)[::-1]
        numbers = drawn.astype(np.int32) - 1
        return np.where(numbers >= 0, self.drawn[numbers], np.int32(-1))
