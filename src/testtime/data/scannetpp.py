"""ScanNet++: laser scans of rooms, with images of a fisheye DSLR and of an iPhone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.bounded import read_json
from testtime.data.cameras import DISTORTION, Camera, from_opencv, rotation
from testtime.data.files import AGAIN, need_choice, need_file, need_folder
from testtime.data.fileset import Decode, FileSet
from testtime.data.imageset import resized
from testtime.data.listing import files, inside, natural, read_lines
from testtime.data.pixels import chosen_tasks, class_ids, colour, keys_in, levels, metres
from testtime.errors import DataError
from testtime.files import write_image

__all__ = [
    "DslrFrame",
    "iphone_depth",
    "scannetpp_cameras",
    "scannetpp_dslr",
    "scannetpp_frames",
    "scannetpp_iphone",
    "scannetpp_scenes",
    "unpack_iphone_depth",
]

DEPTH_SIZE = (192, 256)
TASKS = ("depth", "semseg")
COLMAP_PARAMETERS = {
    "SIMPLE_PINHOLE": ("PINHOLE", (0, 0, 1, 2)),
    "PINHOLE": ("PINHOLE", (0, 1, 2, 3)),
    "OPENCV": ("OPENCV", (0, 1, 2, 3)),
    "OPENCV_FISHEYE": ("OPENCV_FISHEYE", (0, 1, 2, 3)),
}
"""Model of :class:`Camera` and indices of fx, fy, cx, cy in the parameters, by COLMAP's model; distortion follows them."""


@final
@dataclass(frozen=True)
class DslrFrame:
    """A frame of the DSLR from ``dslr/nerfstudio/transforms.json``.

    Attributes:
        name: name of the image file, such as "DSC00001.JPG".
        mask: name of the mask file of anonymised pixels, or None.
        is_test: whether the frame is held out for novel views.
        is_bad: whether the frame is blurred or its pose is bad.
        camera: intrinsics and stored pose, in the world frame of nerfstudio, whose axes differ from those of the mesh.
    """

    name: str
    mask: str | None
    is_test: bool
    is_bad: bool
    camera: Camera


def scannetpp_scenes(root: str | Path, split: str) -> list[str]:
    """Return the ids of the scenes in ``splits/<split>.txt``, such as "nvs_sem_train".

    Raises:
        DataError: there is no such list.
    """
    path = Path(root) / "splits" / f"{split}.txt"
    return keys_in(path, "the scenes of the split", Path(root) / "data")


def scannetpp_frames(root: str | Path, scene: str) -> list[DslrFrame]:
    """Return the frames of the DSLR in one scene with their metadata, sorted by name.

    Raises:
        DataError: the scene or its transforms.json is missing or damaged.
    """
    path = _scene(root, scene) / "dslr" / "nerfstudio" / "transforms.json"
    table = read_json(path, "the frames of a scene")
    try:
        model = str(table.get("camera_model", "OPENCV_FISHEYE"))
        distortion = tuple(float(table[f"k{i}"]) for i in range(1, 5)) if model == "OPENCV_FISHEYE" else ()
        if model == "OPENCV":
            distortion = tuple(float(table[key]) for key in ("k1", "k2", "p1", "p2"))
        fx, fy, cx, cy = (float(table[key]) for key in ("fl_x", "fl_y", "cx", "cy"))
        width, height = int(table["w"]), int(table["h"])
        frames = []
        for part in ("frames", "test_frames"):
            for frame in table.get(part, []):
                pose = np.array(frame["transform_matrix"], dtype=np.float64)
                camera = Camera(width, height, fx, fy, cx, cy, pose, model, distortion)
                bad = bool(frame.get("is_bad", False))
                name = Path(frame["file_path"]).name
                frames.append(DslrFrame(name, frame.get("mask_path"), part == "test_frames", bad, camera))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: expected w, h, fl_x, fl_y, cx, cy, k1 to k4 and frames with file_path and transform_matrix, "
            f"found otherwise ({error!r}); {AGAIN}"
        ) from error
    return sorted(frames, key=lambda frame: natural(frame.name))


def scannetpp_cameras(root: str | Path, scene: str, source: str = "dslr") -> dict[str, Camera]:
    """Return the cameras of ``<source>/colmap/{cameras,images}.txt`` by name of the image, in the world frame of the mesh.

    Args:
        root: folder of ``data/``.
        scene: id of the scene.
        source: device: "dslr" or "iphone".

    Raises:
        DataError: the files are missing or damaged, or a camera model is not supported.
        ValueError: there is no such source.
    """
    need_choice(source, ("dslr", "iphone"), "source")
    folder = _scene(root, scene) / source / "colmap"
    lenses = {row[0]: _lens(row, folder / "cameras.txt") for row in _rows(folder / "cameras.txt")}
    cameras = {}
    for row in _rows(folder / "images.txt"):
        if len(row) != 10 or row[8] not in lenses:  # the other line of an image lists its points
            continue
        try:
            numbers = [float(v) for v in row[1:8]]
            turn = rotation(numbers[:4]).T
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = turn, -turn @ np.array(numbers[4:])
            cameras[Path(row[9]).name] = lenses[row[8]](pose=from_opencv(pose))
        except ValueError as error:
            raise DataError(
                f"{folder / 'images.txt'}: expected a quaternion and a position in the line {' '.join(row)!r} "
                f"({error}); {AGAIN}"
            ) from error
    if not cameras:
        raise DataError(f"{folder / 'images.txt'}: expected the poses of images, found none; {AGAIN}")
    return cameras


def scannetpp_dslr(
    root: str | Path,
    scenes: Iterable[str],
    part: str = "train",
    bad: bool = False,
    tasks: Sequence[str] | None = None,
    rendered: str | Path | None = None,
    semantics: str | Path | None = None,
    classes: Sequence[str] = (),
) -> FileSet:
    """Return the frames of the DSLR as stored: fisheye, not undistorted.

    Images are ``data/<scene>/dslr/resized_images/*.JPG``. The release has no labels of images, but the authors' toolkit renders
    some, which are read if they exist: depth ``<scene>/dslr/render_depth/<stem>.png`` in millimetres (0 not measured) and
    semantics ``<scene>/<stem>.png`` or ``<scene>/<name>.png`` of class ids (255 ignored). ``camera(index)`` is that of COLMAP,
    in the world frame of the mesh, with the fisheye parameters; :func:`scannetpp_frames` returns those of nerfstudio, and
    whether a frame is bad or held out.

    Args:
        root: folder of ``data/``, ``splits/`` and ``metadata/``.
        scenes: ids of the scenes (:func:`scannetpp_scenes`).
        part: part of the frames: "train", "test" (held out for novel views) or "all".
        bad: whether frames that are marked as bad are kept.
        tasks: tasks whose labels are read, among "depth" and "semseg"; None reads all that exist.
        rendered: folder of the rendered depth; by default ``data/``.
        semantics: folder of the rasterised class ids; None for no semantics.
        classes: names of the classes; by default those of ``metadata/semantic_benchmark/top100.txt`` if it exists.

    Raises:
        DataError: files are missing or damaged, or no frame is left.
        ImportError: Pillow is not installed.
        ValueError: there is no such part or task.

    Source: Yeshwanth et al., *ScanNet++: A High-Fidelity Dataset of 3D Indoor Scenes*, ICCV 2023.
    """
    need_choice(part, ("train", "test", "all"), "part")
    root, scenes = Path(root), list(scenes)
    frames = {
        f"{scene}/{frame.name}": frame
        for scene in scenes
        for frame in scannetpp_frames(root, scene)
        if (bad or not frame.is_bad) and (part == "all" or frame.is_test == (part == "test"))
    }
    if not frames:
        raise DataError(f"{root}: expected frames of the part {part!r} in {', '.join(scenes)}, found none")
    depth_root = Path(rendered) if rendered is not None else root / "data"

    def locate(key: str, task: str) -> Path:
        scene, name = key.split("/")
        if task == "image":
            return root / "data" / scene / "dslr" / "resized_images" / name
        if task == "depth":
            return depth_root / scene / "dslr" / "render_depth" / f"{Path(name).stem}.png"
        return _semantic_file(semantics, scene, name)

    there = {"depth"} if any((depth_root / s / "dslr" / "render_depth").is_dir() for s in scenes) else set()
    chosen = chosen_tasks(tasks, TASKS, there | ({"semseg"} if semantics else set()), root)
    names = _class_names(root, classes) if "semseg" in chosen else ()
    decode: dict[str, Decode] = {"depth": _millimetres, "semseg": partial(_class_ids, count=len(names))}
    camera = _Cameras(root, "dslr")
    return FileSet("scannetpp-dslr", frames, locate, {t: decode[t] for t in chosen}, names, camera=camera)


def scannetpp_iphone(
    root: str | Path,
    scenes: Iterable[str],
    tasks: Sequence[str] | None = None,
    semantics: str | Path | None = None,
    classes: Sequence[str] = (),
) -> FileSet:
    """Return the frames of the iPhone at the resolution of its depth, 192 x 256.

    Images are ``data/<scene>/iphone/rgb/frame_*.jpg``, extracted from ``rgb.mkv``; depth is ``iphone/depth/frame_*.png`` in
    millimetres, 0 not measured, which :func:`unpack_iphone_depth` extracts from ``depth.bin``. Image and intrinsics are resized
    to the depth, so that depth is not interpolated; class ids are those of the nearest pixel. ``camera(index)`` is that of
    ``iphone/colmap``, which contains only some frames. The axes of the poses in ``pose_intrinsic_imu.json`` are not documented,
    so they are not read.

    Args:
        root, scenes, tasks, semantics, classes: arguments of :func:`scannetpp_dslr`.

    Raises:
        DataError: files are missing or damaged.
        ImportError: Pillow is not installed.
        ValueError: there is no such task.
    """
    root, scenes = Path(root), list(scenes)
    keys = []
    for scene in scenes:
        folder = _scene(root, scene) / "iphone"
        found = files(folder / "rgb", [".jpg", ".jpeg"]) if (folder / "rgb").is_dir() else []
        found = [path for path in found if path.name.startswith("frame_")]
        if not found:
            raise DataError(
                f"{folder / 'rgb'}: expected frame_000000.jpg and on, found none; take them out of "
                f"{folder / 'rgb.mkv'} with: ffmpeg -i rgb.mkv -start_number 0 -q:v 1 rgb/frame_%06d.jpg"
            )
        keys += [f"{scene}/{path.name}" for path in found]
        wanted = tasks is None or "depth" in tasks
        if wanted and (folder / "depth.bin").is_file() and not (folder / "depth").is_dir():
            raise DataError(
                f"{folder / 'depth'}: no such folder, but depth.bin is there; unpack it once with "
                f"unpack_iphone_depth(root, {scene!r}), or leave depth out of tasks="
            )

    def locate(key: str, task: str) -> Path:
        scene, name = key.split("/")
        if task == "image":
            return root / "data" / scene / "iphone" / "rgb" / name
        if task == "depth":
            return root / "data" / scene / "iphone" / "depth" / f"{Path(name).stem}.png"
        return _semantic_file(semantics, scene, name)

    there = {"depth"} if any((root / "data" / s / "iphone" / "depth").is_dir() for s in scenes) else set()
    chosen = chosen_tasks(tasks, TASKS, there | ({"semseg"} if semantics else set()), root)
    names = _class_names(root, classes) if "semseg" in chosen else ()
    decode: dict[str, Decode] = {"depth": _millimetres, "semseg": partial(_small_ids, count=len(names))}
    camera = _Cameras(root, "iphone", DEPTH_SIZE)
    picked = {task: decode[task] for task in chosen}
    return FileSet("scannetpp-iphone", keys, locate, picked, names, image=_small_colour, camera=camera)


def iphone_depth(path: str | Path) -> Iterator[NDArray[np.float32]]:
    """Yield the frames of ``depth.bin``, (192, 256) float32 in metres, 0 where depth was not measured.

    Three formats are distinguished by their content: one raw deflate stream of float32 metres, or for each frame its length
    (uint32, little-endian) and then either float32 metres compressed by zlib or uint16 millimetres compressed by lz4.

    Raises:
        DataError: the file is missing, or in none of the formats.
        ImportError: the file is in the last format and lz4 is not installed.
    """
    path = need_file(Path(path), "the depth of an iPhone")
    with path.open("rb") as file:
        try:
            first = next(_deflated(file), None)
        except zlib.error:
            first = None
        file.seek(0)
        frames = _deflated(file) if first is not None else _by_frame(file, path)
        try:
            yield from frames
        except (zlib.error, struct.error, ValueError) as error:
            raise DataError(f"{path}: expected frames of depth, found damage ({error}); {AGAIN}") from error


def unpack_iphone_depth(root: str | Path, scene: str, every: int = 1) -> int:
    """Extract ``iphone/depth/frame_<i>.png``, uint16 millimetres, from ``depth.bin`` and return the number of frames.

    Args:
        root: folder of ``data/``.
        scene: id of the scene.
        every: interval of the frames that are written; the number in the name counts all frames.

    Raises:
        DataError: ``depth.bin`` is missing or damaged.
    """
    from PIL import Image

    folder = _scene(root, scene) / "iphone"
    count = 0
    for i, frame in islice(enumerate(iphone_depth(folder / "depth.bin")), 0, None, every):
        millimetres = np.rint(np.nan_to_num(frame) * 1000).clip(0, 65535).astype(np.uint16)
        write_image(folder / "depth" / f"frame_{i:06d}.png", Image.fromarray(millimetres))
        count += 1
    return count


def _deflated(file: BinaryIO) -> Iterator[NDArray[np.float32]]:
    size = DEPTH_SIZE[0] * DEPTH_SIZE[1] * 4
    stream, held = zlib.decompressobj(-zlib.MAX_WBITS), b""
    while chunk := stream.unconsumed_tail or file.read(1 << 16):
        held += stream.decompress(chunk, size)
        while len(held) >= size:
            yield np.frombuffer(held[:size], "<f4").reshape(DEPTH_SIZE)
            held = held[size:]
        if stream.eof:
            break
    if held or not stream.eof:
        raise zlib.error(f"the stream ends within a frame of {size} bytes")


def _by_frame(file: BinaryIO, path: Path) -> Iterator[NDArray[np.float32]]:
    pixels, size = DEPTH_SIZE[0] * DEPTH_SIZE[1], path.stat().st_size
    while head := file.read(4):
        (length,) = struct.unpack("<I", head)
        if length > size - file.tell():
            raise ValueError(f"a frame of {length} bytes ends after {size - file.tell()}")
        payload = file.read(length)
        try:
            unpacked = zlib.decompressobj().decompress(payload, 4 * pixels + 1)
            values = np.frombuffer(unpacked, "<f4")
        except zlib.error:
            values = np.frombuffer(_lz4(payload, 2 * pixels, path), "<u2").astype(np.float32) / 1000
        yield values.reshape(DEPTH_SIZE)


def _lz4(payload: bytes, size: int, path: Path) -> bytes:
    try:
        block = import_module("lz4.block")
    except ImportError as error:
        raise ImportError(
            f"{path}: its frames are not under zlib, so under lz4, which is not installed; install it with: "
            "pip install lz4"
        ) from error
    try:
        return block.decompress(payload, uncompressed_size=size)
    except block.LZ4BlockError as error:
        raise ValueError(f"a frame is neither under zlib nor under lz4: {error}") from error


@final
class _Cameras:
    """The cameras of frames, read once for each scene on demand."""

    def __init__(self, root: Path, source: str, size: tuple[int, int] | None = None) -> None:
        self.root, self.source, self.size = root, source, size
        self._scenes: dict[str, Mapping[str, Camera]] = {}

    def __call__(self, key: str) -> Camera:
        scene, name = key.split("/")
        if scene not in self._scenes:
            self._scenes[scene] = scannetpp_cameras(self.root, scene, self.source)
        camera = self._scenes[scene].get(name)
        if camera is None:
            raise DataError(f"{key}: {self.source}/colmap/images.txt of the scene has no pose of this frame")
        return camera if self.size is None else camera.sized(self.size)


def _scene(root: str | Path, scene: str) -> Path:
    return need_folder([inside(Path(root) / "data", scene)], f"the scene {scene} of ScanNet++")


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in read_lines(path, "COLMAP's text model") if not line.startswith("#")]


def _lens(row: Sequence[str], path: Path) -> Callable[..., Camera]:
    """Parse a line of COLMAP's cameras into a function that creates a camera from a pose."""
    if len(row) < 5 or row[1] not in COLMAP_PARAMETERS:
        raise DataError(f"{path}: expected a model of {', '.join(COLMAP_PARAMETERS)}, found {list(row[:2])}")
    model, order = COLMAP_PARAMETERS[row[1]]
    try:
        values = [float(v) for v in row[4:]]
        fx, fy, cx, cy = (values[i] for i in order)
        width, height = int(row[2]), int(row[3])
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{path}: expected a size and the numbers of {row[1]}, found otherwise ({error}); {AGAIN}"
        ) from error
    distortion = tuple(values[4 : 4 + DISTORTION[model]])
    return partial(Camera, width, height, fx, fy, cx, cy, model=model, distortion=distortion)


def _semantic_file(folder: str | Path | None, scene: str, name: str) -> Path:
    place = Path(folder or ".") / scene
    full = place / f"{name}.png"
    return full if full.is_file() else place / f"{Path(name).stem}.png"


def _class_names(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    listing = root / "metadata" / "semantic_benchmark" / "top100.txt"
    if classes or not listing.is_file():
        return tuple(classes)
    return tuple(read_lines(listing, "the names of the classes"))


def _millimetres(path: Path) -> Tensor:
    return metres(levels(path, bits=16), 1e-3)


def _class_ids(path: Path, count: int) -> Tensor:
    return class_ids(levels(path), count, path)


def _small_colour(path: Path) -> Tensor:
    return resized(colour(path)[None], DEPTH_SIZE)[0].clamp(0, 1)


def _small_ids(path: Path, count: int) -> Tensor:
    ids = _class_ids(path, count)
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for new, old in zip(DEPTH_SIZE, ids.shape, strict=True)
    )
    return ids[rows][:, columns]
