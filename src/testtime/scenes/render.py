"""Rendering of frames: images of a house with labels of every pixel."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from testtime.errors import missing_extra
from testtime.scenes.cameras import Camera, intrinsics, rays
from testtime.scenes.geometry import Array
from testtime.scenes.house import House
from testtime.scenes.plan import WALL
from testtime.scenes.shading import Lamps, dot, shaded, unit
from testtime.scenes.shifts import Shift, resolve_shift
from testtime.scenes.texture import Paint
from testtime.scenes.tracer import Hits, Tracer, tracer

__all__ = ["CANNY", "LEAST_BOX", "Box", "Frame", "Renderer", "canny_edges", "occlusion_edges"]

CANNY = (80, 180)
"""Thresholds of Canny's edges on the 8-bit grey image, with a Sobel operator of 3 x 3."""

LEAST_BOX = 20
"""Least number of visible pixels of an object with a box."""

STEP = 0.06
"""Least distance of neighbouring points of one object from each other's tangent plane at an edge, in metres."""

UNBOXED = 3
"""Number of the first classes without boxes: walls, floors and ceilings."""

BLOCK = 2**14
"""Number of rays that are shaded at a time, whose intermediate results stay in a cache."""

OFF = 2e-3
"""Distance from the surface at which rays to the lights start, in metres."""


@final
@dataclass(frozen=True)
class Box:
    """The tight box around the visible part of an object.

    Attributes:
        instance: number of the instance in the house.
        label: class index.
        x0, y0, x1, y1: corners, in pixels; x1 and y1 are exclusive.
        visibility: number of visible pixels divided by that without other objects.
    """

    instance: int
    label: int
    x0: int
    y0: int
    x1: int
    y1: int
    visibility: float


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """An image of a house and its labels.

    Attributes:
        rgb: image, (H, W, 3) uint8, sRGB.
        depth: depth along the optical axis in metres, (H, W) float32, 0 without a hit.
        normal: unit normals in the camera frame (x right, y up, z towards the viewer), (H, W, 3) float32, zeros without a
            hit.
        occlusion: edges at discontinuities of depth and between objects, (H, W) bool, the label of "edge".
        semantic: class indices, (H, W) uint8, indices into ``CLASSES``, 255 without a hit.
        instance: instances of the house, (H, W) uint16, 0 without a hit.
        boxes: boxes of the visible objects, sorted by instance, without walls, floors and ceilings.
        pose: camera-to-world matrix, (4, 4) float64, in the convention of OpenGL.
        intrinsics: intrinsic matrix, (3, 3) float64, in pixels.
        room, ring: room and ring of the camera, see :class:`~testtime.scenes.cameras.Camera`.
        shift: name of the domain shift, "" for none.
    """

    rgb: Array
    depth: Array
    normal: Array
    occlusion: Array
    semantic: Array
    instance: Array
    boxes: tuple[Box, ...]
    pose: Array
    intrinsics: Array
    room: int
    ring: int
    shift: str

    @cached_property
    def canny(self) -> Array:
        """Edges of the image, (H, W) bool (:func:`canny_edges`)."""
        return canny_edges(self.rgb)


def canny_edges(rgb: Array, thresholds: tuple[int, int] = CANNY) -> Array:
    """Return Canny's edges (H, W) bool of an image (H, W, 3) uint8 (Canny, 1986).

    Raises:
        ImportError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise missing_extra("opencv-python-headless", "scenes") from error
    edges: Array = cv2.Canny(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), *thresholds) > 0
    return edges


@final
class Renderer:
    """Renderer of a house.

    Args:
        house: house to render.
        backend: name of the tracer: "embree", "numpy" or "gl"; None for Embree, or numpy if Embree is not installed. Images
            of "gl" have coarser shadows, see :mod:`testtime.scenes.gl`.
        smooth: whether pixels at edges of the geometry are the mean of four rays; labels are always those of the pixels'
            centres.

    Raises:
        ImportError: the backend's package is not installed.
        OSError: there is no OpenGL.
        ValueError: there is no such backend.
    """

    def __init__(self, house: House, backend: str | None = None, smooth: bool = True) -> None:
        self.house, self.backend, self.smooth = house, backend, smooth
        self.mesh = house.mesh
        self.tracer = tracer(self.mesh.triangles, backend)
        corners = self.mesh.triangles
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
        self.flat = np.ascontiguousarray(flat.T)
        self.corners, self.local = (
            np.ascontiguousarray(v.transpose(1, 2, 0)) for v in (self.mesh.normals, self.mesh.local)
        )
        self.curved = (np.abs(self.mesh.normals - self.mesh.normals[:, :1]) > 1e-6).any(axis=(1, 2))
        self.paint = Paint(house.drawn_style.materials)
        bounds = np.array([[*r.low, *r.high] for r in house.rooms])
        self.cells = bounds + np.array([-WALL, -WALL, WALL, WALL])
        self.alone: dict[int, Tracer] = {}
        self.rows: dict[int, Array] = {}

    def frame(
        self,
        camera: Camera,
        size: tuple[int, int] = (64, 64),
        shift: str | Shift | None = None,
        boxes: bool = True,
    ) -> Frame:
        """Render a frame.

        Args:
            camera: camera of the frame.
            size: size of the image (H, W), in pixels.
            shift: domain shift, or its name in ``SHIFTS``; None for none.
            boxes: whether boxes are computed, which takes time.

        Raises:
            ValueError: the size is not positive, or there is no such shift.
        """
        if min(size) < 1:
            raise ValueError(f"size: expected at least 1 x 1 pixels, got {size[0]} x {size[1]}")
        name, change = resolve_shift(shift)
        camera = change.camera(camera, self.house)
        directions = rays(camera, size)
        views = _columns(directions)
        hits, instance, depth, normals = self._view(camera, size, directions, views)
        turned = camera.pose[:3, :3].T @ normals
        shape = (*size, 3)
        edges, border = _edges(
            instance.reshape(size), depth.reshape(size), turned.reshape(3, *size), camera.fov_degrees
        )
        paint = change.paint(self.paint, self.house)
        lamps = Lamps(self.house, change.lights(self.house.lights))
        pixel = 2 * np.tan(np.radians(camera.fov_degrees) / 2) / size[1]
        light = self._shade(camera, views, hits, normals, paint, lamps, pixel)
        if self.smooth:
            self._smoothed(light, camera, border, paint, lamps, pixel)
        seen = change.air(light.T.reshape(shape), depth.reshape(size))
        picture = srgb(tone(seen))
        seed = [self.house.seed, zlib.crc32(np.ascontiguousarray(camera.pose).tobytes())]
        picture = change.sensor(picture, np.random.default_rng(seed))
        return Frame(
            rgb=np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8, order="C"),
            depth=depth.reshape(size),
            normal=turned.T.reshape(shape).astype(np.float32, order="C"),
            occlusion=edges,
            semantic=self.house.labels[instance].reshape(size),
            instance=instance.reshape(size),
            boxes=self._boxes(camera, instance.reshape(size), depth.reshape(size), directions)
            if boxes
            else (),
            pose=camera.pose,
            intrinsics=intrinsics(camera.fov_degrees, size),
            room=camera.room,
            ring=camera.ring,
            shift=name,
        )

    def _view(
        self, camera: Camera, size: tuple[int, int], directions: Array, views: Array
    ) -> tuple[Hits, Array, Array, Array]:
        """Return hits, instances (N,), depth (N,) and normals (3, N) in the world of a camera's rays."""
        hits = self.tracer.view(camera, size, directions=directions)
        hit = hits.triangle >= 0
        instance = np.where(hit, _taken(self.mesh.instance, hits.triangle), 0).astype(np.uint16)
        depth = np.where(hit, hits.t, 0).astype(np.float32)
        return hits, instance, depth, self._normals(hits, views)

    def _normals(self, hits: Hits, views: Array) -> Array:
        """Return the unit normals (3, N) of the surfaces, towards the viewer; zeros without a hit."""
        flat = _taken(self.flat, hits.triangle)
        normals = flat.copy()
        at = np.flatnonzero(_taken(self.curved, hits.triangle))
        if len(at):
            normals[:, at] = unit(_blended(self.corners, hits.part(at)))
        flat *= np.where(dot(flat, views) > 0, -1, 1).astype(np.float32)
        normals *= np.where(dot(normals, flat) < 0, -1, 1).astype(np.float32)
        away = np.flatnonzero(dot(normals, views) > 0)  # at the silhouette of a curved surface
        if len(away):
            rim, turned = unit(views.take(away, 1)), normals.take(away, 1)
            normals[:, away] = unit(turned - dot(turned, rim) * rim)
        normals[:, hits.triangle < 0] = 0
        return normals

    def _shade(
        self,
        camera: Camera,
        views: Array,
        hits: Hits,
        normals: Array,
        paint: Paint,
        lamps: Lamps,
        pixel: float,
    ) -> Array:
        """Return linear light (3, N) float32 along rays: diffuse and specular reflection with shadows, and ambient light."""
        light = np.empty_like(views)
        for first in range(0, views.shape[1], BLOCK):
            rows = slice(first, first + BLOCK)
            block, view, across = hits.part(rows), views[:, rows], normals[:, rows]
            hit = block.triangle >= 0
            t = np.where(hit, block.t, 0).astype(np.float32)
            points = camera.position.astype(np.float32)[:, None] + t * view + OFF * across
            length = np.sqrt(dot(view, view))
            slant = np.maximum(-dot(across, view) / length, 0.15)
            view = view / length
            material = _taken(self.mesh.material, block.triangle).astype(np.int64)
            albedo = paint.albedo(material, _blended(self.local, block).T, pixel * t / slant).T
            room, gloss = self._rooms(points), _taken(paint.gloss, material)
            total = light[:, rows]
            for k in np.flatnonzero(np.bincount(room)).tolist():
                at = np.flatnonzero(room == k)
                places = (
                    v if len(at) == len(room) else v.take(at, 1) for v in (points, across, gloss[None], view)
                )
                where, normal, shiny, way = places
                diffuse, shine = shaded(lamps, self.tracer, k, where, normal, shiny[0], way)
                total[:, at] = albedo.take(at, 1) * diffuse + shine
            glowing = np.flatnonzero(_taken(paint.glow, material))
            strength = paint.glow[material[glowing]]
            total[:, glowing] += albedo.take(glowing, 1) * strength * lamps.glow(room[glowing])
            total[:, ~hit] = 0
        return light

    def _smoothed(
        self, light: Array, camera: Camera, border: Array, paint: Paint, lamps: Lamps, pixel: float
    ) -> None:
        """Replace the light of pixels at edges by the mean of four rays through them, in place."""
        size = border.shape
        at = np.flatnonzero(border)
        if not len(at):
            return
        fine = (2 * size[0], 2 * size[1])
        corner = 2 * (at // size[1]) * fine[1] + 2 * (at % size[1])  # first of the four subpixels of a pixel
        four = (corner[:, None] + [0, 1, fine[1], fine[1] + 1]).reshape(-1)
        chosen = rays(camera, fine, four)
        views = _columns(chosen)
        hits = self.tracer.view(camera, fine, four, chosen)
        parts = self._shade(camera, views, hits, self._normals(hits, views), paint, lamps, pixel / 2)
        light[:, at] = tone_back(tone(parts).reshape(3, -1, 4).mean(axis=2))

    def _rooms(self, points: Array) -> Array:
        room = np.zeros(points.shape[1], np.int64)
        for k, (x0, y0, x1, y1) in enumerate(self.cells[1:].tolist(), 1):
            x, y = points[0], points[1]
            room[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)] = k
        return room

    def _boxes(self, camera: Camera, instance: Array, depth: Array, directions: Array) -> tuple[Box, ...]:
        counts = np.bincount(instance.reshape(-1), minlength=len(self.house.labels))
        found = []
        for number in np.flatnonzero(counts >= LEAST_BOX).tolist():
            label = int(self.house.labels[number])
            if number == 0 or label < UNBOXED:
                continue
            mine = instance == number
            rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
            hidden = self._hidden(number, camera, mine, depth, directions)
            found.append(
                Box(
                    number,
                    label,
                    int(columns[0]),
                    int(rows[0]),
                    int(columns[-1]) + 1,
                    int(rows[-1]) + 1,
                    float(counts[number] / (counts[number] + hidden)),
                )
            )
        return tuple(found)

    def _hidden(self, number: int, camera: Camera, mine: Array, depth: Array, directions: Array) -> int:
        """Return the number of pixels of an object that other objects occlude."""
        if number not in self.rows:
            self.rows[number] = np.flatnonzero(self.mesh.instance == number)
        points = self.mesh.triangles[self.rows[number]].reshape(-1, 3) - camera.position
        local = points @ camera.pose[:3, :3]
        z = -local[:, 2]
        height, width = mine.shape
        k = intrinsics(camera.fov_degrees, (height, width))
        y0, y1, x0, x1 = 0, height, 0, width
        if z.min() > 0.05:
            x, y = k[0, 2] + k[0, 0] * local[:, 0] / z, k[1, 2] - k[1, 1] * local[:, 1] / z
            x0, x1 = max(int(np.floor(x.min() - 0.5)), 0), min(int(np.ceil(x.max() + 0.5)), width)
            y0, y1 = max(int(np.floor(y.min() - 0.5)), 0), min(int(np.ceil(y.max() + 0.5)), height)
        if x1 <= x0 or y1 <= y0:
            return 0
        window = np.s_[y0:y1, x0:x1]
        before = depth[window]
        rows, columns = np.nonzero(~mine[window] & (before > 0) & (before < z.max()))
        candidates = (rows + y0) * width + columns + x0
        if not len(candidates):
            return 0
        if number not in self.alone:
            self.alone[number] = tracer(self.mesh.triangles[self.rows[number]], self.backend)
        hits = self.alone[number].view(
            camera, (height, width), candidates, directions.take(candidates, axis=0)
        )
        return int((hits.triangle >= 0).sum())


def occlusion_edges(instance: Array, depth: Array, normal: Array, fov_degrees: float) -> Array:
    """Return the edges of the geometry, (H, W) bool, one pixel wide, on the nearer side.

    An edge is between two horizontally or vertically neighbouring pixels if their instances differ, or if the point of each is
    farther than :data:`STEP` from the tangent plane of the other, so that an inclined plane has no edge.

    Args:
        instance: instances, (H, W).
        depth: depth along the optical axis in metres, (H, W), 0 without a hit.
        normal: unit normals in the camera frame, (H, W, 3).
        fov_degrees: horizontal angle of view, in degrees.
    """
    return _edges(instance, depth, np.moveaxis(normal, -1, 0), fov_degrees)[0]


def _edges(instance: Array, depth: Array, normal: Array, fov_degrees: float) -> tuple[Array, Array]:
    """Return :func:`occlusion_edges` of normals (3, H, W), and the pixels on both sides of the edges."""
    height, width = instance.shape
    k = intrinsics(fov_degrees, (height, width))
    x = ((np.arange(width) + 0.5 - k[0, 2]) / k[0, 0]).astype(np.float32)
    y = (-(np.arange(height) + 0.5 - k[1, 2]) / k[1, 1]).astype(np.float32)
    points = np.stack([x[None, :] * depth, y[:, None] * depth, -depth])
    edges, border = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for one, two in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1, :], np.s_[1:, :])):
        before, behind = (slice(None), *one), (slice(None), *two)
        step = points[behind] - points[before]
        jump = (np.abs(dot(step, normal[before])) > STEP) & (np.abs(dot(step, normal[behind])) > STEP)
        apart = (instance[one] != instance[two]) | jump
        first_nearer = ((depth[one] <= depth[two]) & (depth[one] > 0)) | (depth[two] == 0)
        edges[one] |= apart & first_nearer
        edges[two] |= apart & ~first_nearer
        border[one] |= apart
        border[two] |= apart
    return edges, border


def tone(light: Array) -> Array:
    """Map unbounded linear light to [0, 1] by x (1 + x / 9) / (1 + x), which is 1 from x = 3 on."""
    light = np.clip(light, 0, 3)
    return light * (1 + light / 9) / (1 + light)


def tone_back(light: Array) -> Array:
    """Invert :func:`tone`.

    >>> np.round(tone_back(tone(np.array([0.0, 0.5, 2.0]))), 6).tolist()
    [0.0, 0.5, 2.0]
    """
    b = 9 * (1 - light)
    return (np.sqrt(b * b + 36 * light) - b) / 2


def srgb(light: Array) -> Array:
    """Convert linear light in [0, 1] to sRGB in [0, 1] (IEC 61966-2-1)."""
    return np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    )


def _columns(vectors: Array) -> Array:
    """Return vectors (N, 3) as (3, N) float32, so that numpy computes with contiguous rows."""
    return np.ascontiguousarray(vectors.T, dtype=np.float32)


def _taken(values: Array, columns: Array) -> Array:
    """Return columns of an array (..., F), the first where there is none (-1), in a quarter of the time of an index."""
    return values.take(columns, axis=-1, mode="clip")


def _blended(corners: Array, hits: Hits) -> Array:
    """Return the values (3, N) at hits from those at the corners of the triangles, (3 corners, 3, F)."""
    at = _taken(corners, hits.triangle)
    blended: Array = (1 - hits.u - hits.v) * at[0] + hits.u * at[1] + hits.v * at[2]
    return blended
