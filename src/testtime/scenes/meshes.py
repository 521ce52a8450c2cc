"""Meshes of scans, Replica and ScanNet++, and their depth, normals, classes and instances at given cameras by ray tracing.

Cameras can have distortion: rays are undistorted (OPENCV, OPENCV_FISHEYE), so that the labels are aligned with the images of
these cameras. No rasteriser and no GPU are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from testtime.data.bounded import read_json
from testtime.data.cameras import Camera
from testtime.data.dense import IGNORE, Sample
from testtime.data.files import AGAIN, need_file
from testtime.errors import DataError, missing_extra
from testtime.scenes.tracer import RayTracer, tracer

__all__ = ["MeshTracer", "ScanFrame", "ScanMesh", "rays", "read_replica", "read_scannetpp"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PLY_LINE, PLY_HEADER = 4096, 2**20
"""Largest size of a line and of the header of a ply file in bytes."""
NOTHING = -1
"""Instance of a face without an object, and of a pixel without a hit."""


@final
@dataclass(frozen=True, eq=False)
class ScanMesh:
    """The mesh of a scan with the object of each triangle.

    Attributes:
        name: name of the scan.
        vertices: vertices, (V, 3) float64, in metres.
        triangles: indices of vertices, (T, 3) int64.
        instances: object of each triangle, (T,) int64, :data:`NOTHING` for none.
        labels: names of the classes, by object.
        colours: colours of the vertices, (V, 3) uint8, or None.

    Raises:
        DataError: there are no triangles, or a triangle refers to a vertex that does not exist.
    """

    name: str
    vertices: Floats
    triangles: Ints
    instances: Ints
    labels: Mapping[int, str]
    colours: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if not len(self.triangles) or self.triangles.min() < 0 or self.triangles.max() >= len(self.vertices):
            raise DataError(
                f"{self.name}: expected triangles of the {len(self.vertices)} vertices, found "
                f"{'others' if len(self.triangles) else 'none'}; {AGAIN}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the objects, sorted."""
        return tuple(sorted(set(self.labels.values())))


@final
@dataclass(frozen=True, eq=False)
class ScanFrame:
    """A view of a scan.

    Attributes:
        depth: depth along the optical axis in metres, (H, W) float32, 0 without a hit.
        normal: unit normals in the camera frame (x right, y up, z towards the viewer), (H, W, 3) float32, zeros without a
            hit.
        instance: objects, (H, W) int64, :data:`NOTHING` for none.
        rgb: interpolated colours of the vertices, (H, W, 3) uint8, zeros without colours.
        labels: names of the classes, by object.
    """

    depth: NDArray[np.float32]
    normal: NDArray[np.float32]
    instance: Ints
    rgb: NDArray[np.uint8]
    labels: Mapping[int, str]

    def semantic(self, classes: Sequence[str]) -> Ints:
        """Return the class index of each pixel, (H, W) int64, 255 for other classes.

        Args:
            classes: names of the classes.

        Raises:
            ValueError: there are more than 255 classes.
        """
        if len(classes) > IGNORE:
            raise ValueError(f"expected at most {IGNORE} classes, got {len(classes)}; choose some")
        numbers = {name: i for i, name in enumerate(classes)}
        seen, at = np.unique(self.instance, return_inverse=True)
        table = np.array([numbers.get(self.labels.get(int(i), ""), IGNORE) for i in seen], np.int64)
        return table[at].reshape(self.instance.shape)

    def sample(
        self, classes: Sequence[str], image: NDArray[np.uint8] | None = None, name: str = ""
    ) -> Sample:
        """Return the labels of an image as a :class:`~testtime.data.Sample`.

        Args:
            classes: names of the classes of "semseg".
            image: image of the same camera, (H, W, 3) uint8; None takes the colours of the scan.
            name: name of the sample, for reports.
        """
        picture = self.rgb if image is None else image
        depth = torch.from_numpy(self.depth.copy())[None]
        normals = torch.from_numpy(self.normal.copy()).permute(2, 0, 1)
        seen = depth > 0
        labels = {
            "semseg": torch.from_numpy(self.semantic(classes)),
            "depth": torch.where(seen, depth, torch.nan),
            "normals": torch.where(seen, normals, torch.nan).contiguous(),
        }
        return Sample(torch.from_numpy(picture).permute(2, 0, 1).float() / 255, labels, name)


@final
class MeshTracer:
    """Renderer of the labels of a scan at cameras.

    Args:
        mesh: mesh of the scan.
        backend: "embree" or "numpy"; numpy tests every triangle and is meant for meshes of a few thousand.

    Raises:
        ImportError: the package of the backend is not installed.
        ValueError: the backend is another.
    """

    def __init__(self, mesh: ScanMesh, backend: str = "embree") -> None:
        self.mesh, self.backend = mesh, backend
        made = tracer(mesh.vertices[mesh.triangles].astype(np.float32), backend)
        if not isinstance(made, RayTracer):
            raise ValueError(f"backend: expected embree or numpy, which follow bent rays, got {backend!r}")
        self._tracer = made

    def frame(self, camera: Camera, size: tuple[int, int] | None = None) -> ScanFrame:
        """Render a view with one ray through the centre of each pixel.

        Args:
            camera: camera of the view, with distortion and pose.
            size: height and width of the view; None takes the camera's.
        """
        local = rays(camera, size)
        form = local.shape[:2]
        local = local.reshape(-1, 3)
        alive = np.isfinite(local).all(axis=1)
        turn, place = camera.pose[:3, :3], camera.pose[:3, 3]
        directions = local[alive] @ turn.T
        hits = self._tracer.trace(np.broadcast_to(place, directions.shape), directions)
        distance = np.where(hits.triangle < 0, 0, hits.t).astype(np.float64) * -local[alive, 2]
        hit = distance > 0  # rays behind the image plane have no depth
        pixels, triangle = np.flatnonzero(alive)[hit], hits.triangle[hit]
        corners = self.mesh.triangles[triangle]
        a, b, c = (self.mesh.vertices[corners[:, i]] for i in range(3))
        across = np.cross(b - a, c - a)
        length = np.linalg.norm(across, axis=1, keepdims=True)
        facing = across / np.where(length > 0, length, 1) @ turn
        facing *= np.where((facing * local[pixels]).sum(axis=1, keepdims=True) > 0, -1, 1)
        n = len(local)
        depth, normal = np.zeros(n, np.float32), np.zeros((n, 3), np.float32)
        instance, rgb = np.full(n, NOTHING, np.int64), np.zeros((n, 3), np.uint8)
        depth[pixels], normal[pixels] = distance[hit], facing
        instance[pixels] = self.mesh.instances[triangle]
        if self.mesh.colours is not None:
            u, v = hits.u[hit], hits.v[hit]
            weights = np.stack([1 - u - v, u, v], axis=1)[..., None]
            rgb[pixels] = np.clip(np.rint((self.mesh.colours[corners] * weights).sum(axis=1)), 0, 255)
        return ScanFrame(
            depth.reshape(form),
            normal.reshape(*form, 3),
            instance.reshape(form),
            rgb.reshape(*form, 3),
            self.mesh.labels,
        )


def rays(camera: Camera, size: tuple[int, int] | None = None) -> Floats:
    """Return the unit direction of each pixel's centre in the camera frame (x right, y up, viewing direction -z), (H, W, 3).

    Directions are NaN where the distortion has no inverse.

    With :math:`x_d` the point of a pixel on the plane at distance 1, the fisheye (Kannala and Brandt, *A Generic
    Camera Model and Calibration Method*, TPAMI 2006, as OpenCV and COLMAP write it) has
    :math:`|x_d| = \\theta (1 + k_1 \\theta^2 + k_2 \\theta^4 + k_3 \\theta^6 + k_4 \\theta^8)` for a ray at the angle
    :math:`\\theta` to the axis; it is inverted up to its first maximum. OPENCV is
    :math:`x_d = x (1 + k_1 r^2 + k_2 r^4) + (2 p_1 x y + p_2 (r^2 + 2 x^2),\\; p_1 (r^2 + 2 y^2) + 2 p_2 x y)`.

    Args:
        camera: camera, whose pose is ignored.
        size: height and width of the view; None takes the camera's.

    >>> rays(Camera(1, 1, 1.0, 1.0, 0.5, 0.5, np.eye(4))).tolist()
    [[[0.0, -0.0, -1.0]]]
    """
    camera = camera if size is None else camera.sized(size)
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    x, y = (columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy
    if camera.model == "OPENCV_FISHEYE":
        stretch = np.hypot(x, y)
        angle = _fisheye_angle(stretch, camera.distortion)
        across = np.where(stretch > 0, np.sin(angle) / np.where(stretch > 0, stretch, 1), 1.0)
        return np.stack([x * across, -y * across, -np.cos(angle)], axis=-1)
    if camera.model == "OPENCV":
        x, y = _undistorted(x, y, camera.distortion)
    directions = np.stack([x, -y, -np.ones_like(x)], axis=-1)
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def _fisheye_angle(stretch: Floats, k: Sequence[float]) -> Floats:
    """Return the angles to the axis of points at distances from the centre; NaN beyond the largest distance of a ray."""
    power = np.polynomial.Polynomial([0, 1, 0, k[0], 0, k[1], 0, k[2], 0, k[3]])
    turns = np.asarray(power.deriv().roots(), dtype=np.complex128)
    rising = turns.real[(np.abs(turns.imag) < 1e-9) & (turns.real > 0) & (turns.real < np.pi)]
    end = float(rising.min(initial=np.pi))
    grid = np.linspace(0, end, 4096)
    angle = np.interp(stretch, power(grid), grid)
    for _ in range(3):  # Newton's method, starting from the table
        slope = power.deriv()(angle)
        angle = np.clip(angle - (power(angle) - stretch) / np.where(slope > 1e-6, slope, np.inf), 0, end)
    return np.where(stretch <= power(end), angle, np.nan)


def _undistorted(x_d: Floats, y_d: Floats, k: Sequence[float]) -> tuple[Floats, Floats]:
    """Invert the distortion by Newton's method in two dimensions; NaN where it does not converge."""
    k1, k2, p1, p2 = k
    x, y = x_d.copy(), y_d.copy()
    with np.errstate(all="ignore"):
        for _ in range(30):
            r2 = x * x + y * y
            radial, slope = 1 + k1 * r2 + k2 * r2 * r2, 2 * k1 + 4 * k2 * r2
            off_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) - x_d
            off_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y - y_d
            xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
            yy = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
            xy = slope * x * y + 2 * p1 * x + 2 * p2 * y
            determinant = xx * yy - xy * xy
            x, y = x - (yy * off_x - xy * off_y) / determinant, y - (xx * off_y - xy * off_x) / determinant
        found = (np.hypot(off_x, off_y) < 1e-9) & (determinant > 0)
    return np.where(found, x, np.nan), np.where(found, y, np.nan)


def read_replica(scene: str | Path) -> ScanMesh:
    """Read a scene of Replica from ``habitat/mesh_semantic.ply`` and ``habitat/info_semantic.json``.

    The faces are quads with an ``object_id``; each becomes two triangles. An object without a class (``class_id``
    below 0) has no label.

    Args:
        scene: folder of the scene, such as ``room_0``.

    Raises:
        DataError: a file is missing or damaged, or the faces have no objects.
        ImportError: trimesh is not installed.

    Source: Straub et al., *The Replica Dataset: A Digital Replica of Indoor Spaces*, 2019.
    """
    folder = Path(scene) / "habitat" if (Path(scene) / "habitat").is_dir() else Path(scene)
    path = need_file(
        folder / "mesh_semantic.ply", "the mesh of a Replica scene, with an object for each face"
    )
    info = read_json(folder / "info_semantic.json", "the objects of a Replica scene")
    vertices, colours, corners, face = _ply(path)
    if "object_id" not in face:
        raise DataError(
            f"{path}: expected an object_id for each face, found {', '.join(face) or 'no property'}; "
            "give habitat/mesh_semantic.ply, not mesh.ply"
        )
    try:
        names = {int(c["id"]): str(c["name"]) for c in info["classes"]}
        of = {int(o["id"]): int(o["class_id"]) for o in info["objects"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'info_semantic.json'}: expected classes and objects, found none of {error}; {AGAIN}"
        ) from error
    labels = {instance: names[c] for instance, c in of.items() if c in names}
    triangles, source = _triangles(corners)
    instances = face["object_id"].astype(np.int64)[source]
    return ScanMesh(_scene_name(folder), vertices, triangles, instances, labels, colours)


def read_scannetpp(scene: str | Path) -> ScanMesh:
    """Read a scene of ScanNet++ from ``scans/mesh_aligned_0.05_semantic.ply``, ``segments.json``, ``segments_anno.json``.

    A vertex belongs to the object whose group contains its segment, and to the smallest of them if there are several; a
    triangle belongs to the object of most of its corners, or to the one with the smallest number if they all differ.

    Args:
        scene: folder of the scene, ``data/<scene_id>``, or its folder ``scans``.

    Raises:
        DataError: a file is missing, damaged, or of another mesh.
        ImportError: trimesh is not installed.

    Source: Yeshwanth et al., *ScanNet++: A High-Fidelity Dataset of 3D Indoor Scenes*, ICCV 2023.
    """
    folder = Path(scene) / "scans" if (Path(scene) / "scans").is_dir() else Path(scene)
    path = need_file(folder / "mesh_aligned_0.05_semantic.ply", "the mesh of a ScanNet++ scene")
    segments = read_json(folder / "segments.json", "the segment of each vertex")
    groups = read_json(folder / "segments_anno.json", "the objects of a ScanNet++ scene")
    vertices, colours, corners, _ = _ply(path)
    try:
        segment = np.asarray(segments["segIndices"], dtype=np.int64)
        objects = [
            (int(g["objectId"]), str(g["label"]), np.unique(np.asarray(g["segments"], dtype=np.int64)))
            for g in groups["segGroups"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{folder}: expected segIndices and segGroups, found none of {error}; {AGAIN}"
        ) from error
    if segment.shape != (len(vertices),):
        raise DataError(
            f"{folder / 'segments.json'}: expected a segment for each of the {len(vertices)} vertices, "
            f"found {len(segment)}; it is of another mesh"
        )
    there, segment, count = np.unique(segment, return_inverse=True, return_counts=True)
    held = [(np.flatnonzero(np.isin(there, ids)), number) for number, _, ids in objects]
    owner = np.full(len(there), NOTHING, np.int64)
    for parts, number in sorted(
        held, key=lambda h: (-count[h[0]].sum(), h[1])
    ):  # smaller objects overwrite larger ones
        owner[parts] = number
    vertex = owner[segment]
    triangles, _ = _triangles(corners)
    a, b, c = (np.sort(vertex[triangles], axis=1)[:, i] for i in range(3))
    instances = np.where(b == c, b, np.where(a == b, a, np.where(a >= 0, a, b)))
    return ScanMesh(
        _scene_name(folder), vertices, triangles, instances, {n: label for n, label, _ in objects}, colours
    )


def _triangles(corners: Ints) -> tuple[Ints, Ints]:
    """Return the triangles of faces with three or four corners, and the face of each triangle."""
    if corners.shape[1] == 3:
        return corners, np.arange(len(corners))
    halves = np.stack([corners[:, [0, 1, 2]], corners[:, [2, 3, 0]]], axis=1)
    return halves.reshape(-1, 3), np.repeat(np.arange(len(corners)), 2)


def _ply(path: Path) -> tuple[Floats, NDArray[np.uint8] | None, Ints, dict[str, NDArray[Any]]]:
    """Read vertices, their colours, the corners of faces (F, 3 or 4), and other properties of faces."""
    try:
        from trimesh.exchange.ply import load_ply
    except ImportError as error:
        raise missing_extra("trimesh", "scenes") from error
    try:
        _check_ply(path)
        with path.open("rb") as file:
            raw = load_ply(file)["metadata"]["_ply_raw"]
        vertex, face = raw["vertex"]["data"], raw["face"]["data"]
        vertices = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
        names = list(face.dtype.names or ()) if isinstance(face, np.ndarray) else list(face)
        (key,) = (name for name in names if name in ("vertex_indices", "vertex_index"))
        corners = face[key]
        corners = np.asarray(
            corners["f1"] if getattr(corners, "dtype", None) and corners.dtype.names else corners
        )
        if corners.ndim != 2 or corners.shape[1] not in (3, 4) or not np.isfinite(vertices).all():
            raise ValueError(f"faces of the form {corners.shape}")
        rest = {name: np.asarray(face[name]).reshape(-1) for name in names if name != key}
        colours = _colours(vertex)
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        EOFError,
        OverflowError,
        struct.error,
    ) as error:
        raise DataError(
            f"{path}: expected a ply file whose faces have all three or all four corners, found otherwise "
            f"({error}); {AGAIN}"
        ) from error
    return vertices, colours, corners.astype(np.int64), rest


def _check_ply(path: Path) -> None:
    """Compare the number of elements in the header of a ply file with the size of the file.

    Raises:
        ValueError: there is no such header, or the file is too short for it.
    """
    needed = count = 0
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(PLY_LINE), b""):
            words = line.split()
            if words[:1] == [b"element"]:
                count = int(words[2])
                if count < 0:
                    raise ValueError(f"{count} elements")
            elif words[:1] == [b"property"]:
                needed += count  # at least one byte
            elif words == [b"end_header"]:
                left = path.stat().st_size - file.tell()
                if needed > left:
                    raise ValueError(f"its elements need {needed} bytes at least, and {left} are there")
                return
            if file.tell() > PLY_HEADER:
                break
    raise ValueError("its header has no end")


def _colours(vertex: Any) -> NDArray[np.uint8] | None:
    names = list(vertex.dtype.names or ()) if isinstance(vertex, np.ndarray) else list(vertex)
    if not {"red", "green", "blue"} <= set(names):
        return None
    return np.stack([np.asarray(vertex[c]) for c in ("red", "green", "blue")], axis=1).astype(np.uint8)


def _scene_name(folder: Path) -> str:
    return folder.resolve().parent.name if folder.name in ("habitat", "scans") else folder.resolve().name
