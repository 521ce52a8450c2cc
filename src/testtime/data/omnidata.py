"""The layout of Taskonomy and of the Omnidata annotator: a file for each point, view and domain."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.bounded import read_json
from testtime.data.cameras import Camera, rotation
from testtime.data.files import AGAIN, need_folder
from testtime.data.fileset import Decode, FileSet
from testtime.data.listing import files, folders, read_lines
from testtime.data.pixels import Axes, chosen_tasks, colour, levels, metres, normals_image
from testtime.errors import DataError
from testtime.moved import renamed

__all__ = ["Views", "read_split", "select_spaces", "view_set"]

__getattr__ = renamed(
    __name__, {"sampled": "view_set", "spaces_of": "select_spaces", "split_of": "read_split"}
)

NAME = re.compile(r"point_(\d+)_view_(\d+)_domain_(\w+)\.(?:png|json|npy)")
FOLDERS = {
    "image": ("rgb",),
    "semseg": ("segment_semantic", "semantic"),
    "depth": ("depth_zbuffer",),
    "normals": ("normal",),
    "edge": ("edge_occlusion",),
    "edge_texture": ("edge_texture",),
    "distance": ("depth_euclidean",),
    "pose": ("point_info", "points", "fixatedpose"),
}
"""Names of the folders in different releases, by task."""
EXTRA = ("edge_texture", "distance")
"""Tasks that are read only if they are requested."""
AXES: Axes = (1, -1, 1)
UNIT = 1 / 512
UNKNOWN = 2**16 - 1
OCCLUSION_FULL = 0.00625 * 2**16

View = tuple[str, int, int]
"""Space (a building or a scene), point, view."""


def read_split(path: str | Path, split: str) -> list[str]:
    """Return the spaces of one split from a table with the columns id, train, val, test of 0 and 1.

    All line endings are supported; those of the published tiny split are carriage returns.

    Args:
        path: path of the table.
        split: name of the split, a column of the table.

    Raises:
        DataError: the file is missing, or not such a table.
        ValueError: there is no such split.
    """
    path = Path(path)
    try:
        columns, *rows = (
            [cell.strip() for cell in row] for row in csv.reader(read_lines(path, "a table of the splits"))
        )
    except csv.Error as error:
        raise DataError(
            f"{path}: expected a table of the splits, found otherwise ({error}); {AGAIN}"
        ) from error
    if "id" not in columns or len(columns) < 2:
        raise DataError(f"{path}: expected the columns id, train, val, test, found {columns}; {AGAIN}")
    if split not in columns or split == "id":
        raise ValueError(f"split must be one of {', '.join(c for c in columns if c != 'id')}; got {split!r}")
    wrong = next((row for row in rows if len(row) != len(columns)), None)
    if wrong is not None:
        raise DataError(
            f"{path}: expected {len(columns)} columns ({', '.join(columns)}), found the line {','.join(wrong)!r}; {AGAIN}"
        )
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    strange = next((row for row in table if row[split] not in ("0", "1")), None)
    if strange is not None:
        raise DataError(
            f"{path}: expected 0 or 1 in the column {split}, found {strange[split]!r} of {strange['id']}; {AGAIN}"
        )
    return [row["id"] for row in table if row[split] == "1"]


def select_spaces(
    split: str | None, splits: str | Path | None, spaces: Iterable[str] | None
) -> list[str] | None:
    """Return the spaces selected by name, by split, or by both; None for all.

    Args:
        split: name of a split, or None.
        splits: path of the table of the split, or None.
        spaces: names of spaces, or None.

        Raises:
            ValueError: a split is given without its table, or a table without a split.
    """
    asked = None if spaces is None else list(spaces)
    if split is None and splits is None:
        return asked
    if split is None or splits is None:
        raise ValueError("split= and splits= go together: the name of a split, and the table of the splits")
    inside = read_split(splits, split)
    return inside if asked is None else [name for name in asked if name in set(inside)]


class Views:
    """The views of a data set and the paths of their files.

    Args:
        root: folder in either layout: ``<domain>/<component>/<space>/`` of the Omnidata starter set, or ``<space>/<domain>/``
            of the annotator and of the first release of Taskonomy.
        component: name of the component in the first layout: "taskonomy" or "replica".
        spaces: names of the spaces; None takes all.

    Raises:
        DataError: there are no images in either layout, or a requested space has none.
    """

    def __init__(self, root: str | Path, component: str, spaces: Iterable[str] | None = None) -> None:
        self.root, self.component = Path(root), component
        image = FOLDERS["image"][0]
        self.by_domain = (self.root / image / component).is_dir()
        if self.by_domain:
            there = [path.name for path in folders(self.root / image / component)]
        else:
            place = need_folder([self.root], "folders of Omnidata")
            there = [path.name for path in folders(place) if (path / image).is_dir()]
        if not there:
            raise DataError(
                f"{self.root}: expected {image}/{component}/<name>/ or <name>/{image}/ with images, found neither; "
                "check the path"
            )
        asked = there if spaces is None else list(spaces)
        absent = [space for space in asked if space not in there]
        if absent:
            raise DataError(
                f"{self.root}: expected images of {', '.join(absent[:5])} ({len(absent)} of {len(asked)} are not "
                f"here), found {', '.join(there[:5])}; fetch them, or leave them out"
            )
        self._files: dict[tuple[str, str], tuple[Path, str, str, set[tuple[int, int]]]] = {}
        for space in asked:
            for task, names in FOLDERS.items():
                self._scan(space, task, names)
        self.spaces = asked

    def _scan(self, space: str, task: str, names: Sequence[str]) -> None:
        folder = next((f for f in (self._folder(space, n) for n in names) if f.is_dir()), None)
        if folder is None:
            return
        found: set[tuple[int, int]] = set()
        tail = ("", "")
        for path in files(folder):
            match = NAME.fullmatch(path.name)
            if match:
                found.add((int(match[1]), int(match[2])))
                tail = match[3], path.suffix
        if found:
            self._files[space, task] = folder, *tail, found

    def _folder(self, space: str, name: str) -> Path:
        return self.root / name / self.component / space if self.by_domain else self.root / space / name

    def tasks(self) -> set[str]:
        """Return the tasks that have a file."""
        return {task for _, task in self._files}

    def keys(self, tasks: Iterable[str]) -> list[str]:
        """Return the keys of the views that have a file for each task, in the order of space, point and view."""
        wanted = ("image", *tasks)
        found: list[View] = []
        for space in self.spaces:
            views = [
                self._files[space, task][3] if (space, task) in self._files else set() for task in wanted
            ]
            found += [(space, point, view) for point, view in sorted(set.intersection(*views))]
        return [f"{space}/point_{point}_view_{view}" for space, point, view in found]

    def locate(self, key: str, task: str) -> Path:
        """Return the path of a view's file for a task, which need not exist."""
        space, _, stem = key.rpartition("/")
        entry = self._files.get((space, task))
        if entry is None:
            return self.root / space / task / f"{stem}_domain_{task}.png"
        folder, domain, suffix, _ = entry
        return folder / f"{stem}_domain_{domain}{suffix}"

    def camera(self, key: str) -> Camera:
        """Return the camera of a view from its ``point_info`` (also called ``fixatedpose``).

        Raises:
            DataError: the file is missing, or lacks position, rotation or field of view.
        """
        path = self.locate(key, "pose")
        info = read_json(path, "the camera of a view")
        try:
            size = (
                int(info["resolution"])
                if "resolution" in info
                else colour(self.locate(key, "image")).shape[-1]
            )
            focal = size / 2 / math.tan(float(info["field_of_view_rads"]) / 2)
            pose = np.eye(4)
            pose[:3, :3] = _turned(info)
            x, y, z = info["camera_location"]
            pose[:3, 3] = x, y, z
            return Camera(size, size, focal, focal, size / 2, size / 2, pose)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise DataError(
                f"{path}: expected camera_location, camera_rotation_final_quaternion and field_of_view_rads, "
                f"found otherwise ({error!r}); {AGAIN}"
            ) from error


def view_set(
    name: str,
    views: Views,
    tasks: Sequence[str] | None,
    partial_labels: bool,
    semantics: Decode,
    classes: Sequence[str],
) -> FileSet:
    """Return the data set of views, with depth in metres, normals with y up, and edges in [0, 1].

    Args:
        name: name of the data set, for reports.
        views: views of the data set.
        tasks: tasks whose labels are read; None reads all that exist but :data:`EXTRA`.
        partial_labels: whether views that lack some of the labels are kept.
        semantics: function that reads a label of "semseg".
        classes: names of the classes of "semseg".

    Raises:
        DataError: no view has the requested labels.
        ValueError: there is no such task.
    """
    known = [task for task in FOLDERS if task not in ("image", "pose")]
    there = [task for task in known if task in views.tasks() and (tasks is not None or task not in EXTRA)]
    chosen = chosen_tasks(tasks, known, there, views.root)
    keys = views.keys(() if partial_labels else chosen)
    if not keys:
        raise DataError(
            f"{views.root}: expected views with all of {', '.join(('rgb', *chosen))}, found none in "
            f"{len(views.spaces)} spaces; partial_labels=True keeps views that lack labels"
        )
    decode: dict[str, Decode] = {
        "semseg": semantics,
        "depth": _depth,
        "distance": _depth,
        "normals": partial(normals_image, axes=AXES),
        "edge": partial(_edges, full=OCCLUSION_FULL),
        "edge_texture": partial(_edges, full=UNKNOWN),
    }
    return FileSet(name, keys, views.locate, {t: decode[t] for t in chosen}, classes, camera=views.camera)


def _depth(path: Path) -> Tensor:
    return metres(levels(path, bits=16), UNIT, (UNKNOWN,))


def _edges(path: Path, full: float) -> Tensor:
    return (torch.from_numpy(levels(path, bits=16)).float() / full).clamp(0, 1)[None]


def _turned(info: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """Return the camera-to-world rotation from the quaternion (w, x, y, z), or else from Blender's XYZ Euler angles."""
    if "camera_rotation_final_quaternion" in info:
        return rotation(info["camera_rotation_final_quaternion"])
    x, y, z = (float(angle) / 2 for angle in info["camera_rotation_final"])
    about_x = rotation([math.cos(x), math.sin(x), 0, 0])
    about_y = rotation([math.cos(y), 0, math.sin(y), 0])
    return rotation([math.cos(z), 0, 0, math.sin(z)]) @ about_y @ about_x
