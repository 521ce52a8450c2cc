"""ProcTHOR: procedural houses, and files of the frames that AI2-THOR renders of them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.bounded import parsed_json, read_json
from testtime.data.cameras import Camera
from testtime.data.dense import IGNORE
from testtime.data.files import AGAIN, need_file, need_folder
from testtime.data.fileset import Decode, FileSet
from testtime.data.listing import folders, inside, natural, read_lines
from testtime.data.pixels import chosen_tasks, class_ids, levels, metres
from testtime.errors import DataError, need_pillow
from testtime.files import write_image, write_json

__all__ = ["AgentEvent", "dump_event", "procthor", "procthor_houses", "procthor_records"]

TASKS = ("semseg", "depth")
LINE = 2**26
"""Largest size of a house in bytes; the largest of ProcTHOR-10k has less than a hundredth of it."""
FOLDERS = {"image": "rgb", "semseg": "semantic", "depth": "depth"}


class AgentEvent(Protocol):
    """The part of an event of AI2-THOR that :func:`dump_event` uses; a controller's ``step`` returns an event.

    Attributes:
        frame: image, (H, W, 3) uint8.
        depth_frame: depth along the optical axis in metres, (H, W) float32, or None.
        instance_segmentation_frame: image with a colour for each object, (H, W, 3) uint8, or None.
        color_to_object_id: ids of the objects, such as "Chair|1|2", by colour.
        instance_detections2D: boxes (x1, y1, x2, y2) in pixels, by id of the object, or None.
        metadata: metadata with at least agent.rotation.y, agent.cameraHorizon (degrees, down is positive), cameraPosition
            (x, y, z), fov (vertical, degrees), and objects with objectId and objectType.
    """

    frame: NDArray[np.uint8]
    depth_frame: NDArray[np.float32] | None
    instance_segmentation_frame: NDArray[np.uint8] | None
    color_to_object_id: Mapping[tuple[int, int, int], str]
    instance_detections2D: Mapping[str, Sequence[float]] | None
    metadata: Mapping[str, Any]


def procthor_houses(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the houses of ``{train,val,test}.jsonl.gz`` of ProcTHOR-10k, one at a time.

    Args:
        path: path of the file, gzipped or plain, with a house on each line.

    Raises:
        DataError: the file is missing or damaged, or a line lacks rooms, walls or objects.

    Source: Deitke et al., *ProcTHOR: Large-Scale Embodied AI Using Procedural Generation*, NeurIPS 2022.
    """
    path = need_file(Path(path), "a house on each line")
    count = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            while line := lines.readline(LINE + 1):
                if len(line) > LINE:
                    raise ValueError(f"a line of more than {LINE} bytes")
                if line.strip():
                    yield _house(parsed_json(line, path, "a house"))
                    count += 1
    except DataError:
        raise
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path}: expected houses of ProcTHOR as JSON, found otherwise after {count} of them ({error}); {AGAIN}"
        ) from error


def dump_event(
    root: str | Path, house: str, frame: str, event: AgentEvent, classes: Sequence[str]
) -> dict[str, Any]:
    """Write the images and labels of an event of AI2-THOR to files, and return its line of ``frames.jsonl``.

    The format is specific to this library: ``<root>/<house>/<domain>/<frame>.png`` with the domains rgb (8 bits), depth (uint16
    millimetres, 0 beyond 65 m), instance (uint16: 0 for none, otherwise as in ``boxes``) and semantic (uint8: the index in
    ``<root>/classes.json``, 255 for other classes), and ``<root>/<house>/frames.jsonl`` with fx, fy, cx, cy, width, height, the
    pose and ``boxes`` of instance, object, class and box for each frame.

    Unity's axes are left-handed (z forward). The pose is written right-handed: the world's z is negated, and the viewing
    direction of the camera is its -z. The class of an object is its objectType; that of a structure is the prefix of its id.

    Args:
        root: folder of the houses.
        house: name of the house.
        frame: name of the frame.
        event: event to write; depth and instances are not written if they are None.
        classes: names of the classes, equal in every call.

    Raises:
        DataError: the folder contains another list of classes, or the event lacks an attribute.
        ImportError: Pillow is not installed.
        ValueError: there are more classes than fit 8 bits, or a name is a path.
    """
    Image = need_pillow()
    if len(classes) > IGNORE:
        raise ValueError(f"at most {IGNORE} classes fit 8 bits, got {len(classes)}")
    if "/" in house or "/" in frame:
        raise ValueError(f"a house and a frame are names, not paths; got {house!r} and {frame!r}")
    place = Path(root) / house
    place.mkdir(parents=True, exist_ok=True)
    listing = Path(root) / "classes.json"
    if not listing.is_file():
        write_json(listing, list(classes), indent=None)
    elif read_json(listing, "the names of the classes", list) != list(classes):
        raise DataError(
            f"{listing}: expected the classes of this call, found others; write to an empty folder"
        )
    try:
        record = {"frame": frame, **_seen_from(event), "boxes": []}
        planes: dict[str, NDArray[Any]] = {"rgb": np.asarray(event.frame, np.uint8)}
        if event.depth_frame is not None:
            depth = np.nan_to_num(np.asarray(event.depth_frame, np.float64) * 1000)
            planes["depth"] = np.where(depth > 65535, 0, depth.round()).astype(np.uint16)
        if event.instance_segmentation_frame is not None:
            planes["instance"], planes["semantic"], record["boxes"] = _instances(event, classes)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"expected an event of AI2-THOR, found one that lacks {error}; see AgentEvent"
        ) from error
    for domain, plane in planes.items():
        write_image(place / domain / f"{frame}.png", Image.fromarray(plane))
    with (place / "frames.jsonl").open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    return record


def procthor_records(root: str | Path, house: str) -> dict[str, dict[str, Any]]:
    """Return the records of ``frames.jsonl`` of a house (intrinsics, pose and boxes) by frame; see :func:`dump_event`.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = Path(root) / house / "frames.jsonl"
    records = {}
    for line in read_lines(path, "a frame on each line"):
        record = parsed_json(line, path, "a frame on each line", advice="dump it again")
        name = record.get("frame")
        if not isinstance(name, str) or "/" in name:
            raise DataError(f"{path}: expected the name of each frame, found {name!r}; dump it again")
        inside(path.parent, name)
        records[name] = record
    return records


def procthor(
    root: str | Path, houses: Iterable[str] | None = None, tasks: Sequence[str] | None = None
) -> FileSet:
    """Return the frames of houses written by :func:`dump_event`.

    ``camera(index)`` returns intrinsics and pose; :func:`procthor_records` returns the boxes.

    Args:
        root: folder of the houses and of ``classes.json``.
        houses: names of the houses; None takes all.
        tasks: tasks whose labels are read, among "semseg" and "depth"; None reads all that exist.

    Raises:
        DataError: files are missing or damaged.
        ImportError: Pillow is not installed.
        ValueError: there is no such task.
    """
    root = need_folder([Path(root)], "a dump of ProcTHOR")
    classes = read_json(root / "classes.json", "the names of the classes", list)
    if not all(isinstance(name, str) for name in classes):
        raise DataError(f"{root / 'classes.json'}: expected a list of names, found {classes[:5]}")
    there = [path.name for path in folders(root) if (path / "frames.jsonl").is_file()]
    names = there if houses is None else list(houses)
    records = {house: procthor_records(root, house) for house in names}
    keys = [f"{house}/{frame}" for house in names for frame in sorted(records[house], key=natural)]
    if not keys:
        raise DataError(f"{root}: expected houses with frames.jsonl, found none; write them with dump_event")
    found = {task for task in TASKS if any((root / house / FOLDERS[task]).is_dir() for house in names)}
    chosen = chosen_tasks(tasks, TASKS, found, root)

    def locate(key: str, task: str) -> Path:
        house, frame = key.split("/")
        return root / house / FOLDERS[task] / f"{frame}.png"

    def camera(key: str) -> Camera:
        house, frame = key.split("/")
        record = records[house][frame]
        try:
            fx, fy, cx, cy = (float(record[name]) for name in ("fx", "fy", "cx", "cy"))
            pose = np.array(record["pose"], dtype=np.float64)
            return Camera(int(record["width"]), int(record["height"]), fx, fy, cx, cy, pose)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{root / house / 'frames.jsonl'}: expected pose and fx of {frame}, found {error!r}"
            ) from error

    decode: dict[str, Decode] = {"semseg": partial(_semantics, count=len(classes)), "depth": _depth}
    return FileSet("procthor", keys, locate, {t: decode[t] for t in chosen}, classes, camera=camera)


def _house(table: Any) -> dict[str, Any]:
    lacking = [
        key for key in ("rooms", "walls", "objects") if not isinstance(table, dict) or key not in table
    ]
    if lacking:
        raise ValueError(f"a house has {lacking[0]}, this line has none")
    return table


def _seen_from(event: AgentEvent) -> dict[str, Any]:
    height, width = np.asarray(event.frame).shape[:2]
    data, agent = event.metadata, event.metadata["agent"]
    yaw, down = math.radians(agent["rotation"]["y"]), math.radians(agent["cameraHorizon"])
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, math.cos(down), -math.sin(down)], [0, math.sin(down), math.cos(down)]])
    mirror = np.diag([1.0, 1.0, -1.0])  # of the world, and of the camera's axis
    pose = np.eye(4)
    pose[:3, :3] = mirror @ turn @ tilt @ mirror
    pose[:3, 3] = mirror @ [data["cameraPosition"][axis] for axis in "xyz"]
    focal = height / 2 / math.tan(math.radians(data["fov"]) / 2)
    lens = {"fx": focal, "fy": focal, "cx": width / 2, "cy": height / 2}
    return {"width": width, "height": height, **lens, "pose": pose.tolist()}


def _instances(
    event: AgentEvent, classes: Sequence[str]
) -> tuple[NDArray[np.uint16], NDArray[np.uint8], list[dict[str, Any]]]:
    """Return the images of instances and classes, and a record for each visible object."""
    kinds = {thing["objectId"]: thing["objectType"] for thing in event.metadata["objects"]}
    colours = np.asarray(event.instance_segmentation_frame, np.int64)
    codes = colours @ np.array([65536, 256, 1])
    instance = np.zeros(codes.shape, np.uint16)
    semantic = np.full(codes.shape, IGNORE, np.uint8)
    boxes = []
    by_code = {r * 65536 + g * 256 + b: name for (r, g, b), name in event.color_to_object_id.items()}
    seen = sorted((by_code[code], code) for code in np.unique(codes).tolist() if code in by_code)
    detections = event.instance_detections2D or {}
    for number, (name, code) in enumerate(seen, 1):
        here = codes == code
        kind = kinds.get(name, name.split("|")[0])
        instance[here] = number
        if kind in classes:
            semantic[here] = classes.index(kind)
        rows, columns = np.nonzero(here)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        box = [float(v) for v in detections.get(name, tight)]
        boxes.append({"instance": number, "object": name, "class": kind, "box": box})
    return instance, semantic, boxes


def _semantics(path: Path, count: int) -> Tensor:
    return class_ids(levels(path), count, path)


def _depth(path: Path) -> Tensor:
    return metres(levels(path, bits=16), 1e-3)
