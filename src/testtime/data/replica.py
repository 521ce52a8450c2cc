"""Replica in the format of the Omnidata annotator: views of 18 scanned rooms with labels and poses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from testtime.data.fileset import FileSet
from testtime.data.omnidata import Views, select_spaces, view_set
from testtime.data.pixels import class_ids, levels

__all__ = ["replica"]


def replica(
    root: str | Path,
    tasks: Sequence[str] | None = None,
    scenes: Iterable[str] | None = None,
    split: str | None = None,
    splits: str | Path | None = None,
    classes: Sequence[str] = (),
    first_class: int = 0,
    partial_labels: bool = True,
) -> FileSet:
    """Return views of Replica in the layout of the Omnidata starter set or of the annotator.

    The first is ``<domain>/replica/<scene>/point_<p>_view_<v>_domain_<domain>.png``, the second ``<scene>/<domain>/...`` beside
    the scene's ``mesh.ply``. Depth is stored with 16 bits of 1/512 m, 65535 is not measured; normals are stored with x right,
    y down, z towards the viewer and returned with y up; edges are those of :func:`~testtime.data.taskonomy`; semantics are ids
    of one channel. ``camera(index)`` returns intrinsics and pose from the view's ``point_info`` (also called
    ``fixatedpose``), in the axes of the mesh.

    Args:
        root: folder of the data set.
        tasks: tasks whose labels are read, among "semseg", "depth", "normals", "edge" (occlusion), "edge_texture" and
            "distance" (along the ray); None reads those of the first four that exist.
        scenes: names of the scenes, such as "room_0"; None takes all.
        split: name of a split of ``splits``: "train", "val" or "test".
        splits: path of a table with the columns id, train, val, test.
        classes: names of the classes, which the files do not contain.
        first_class: stored id of class 0; lower ids, and 255, are ignored.
        partial_labels: whether views that lack some of the labels are kept.

    Raises:
        DataError: images are missing, or an id is not that of a class.
        ImportError: Pillow is not installed.
        ValueError: there is no such split or task, or a split is given without a table.

    Source: Straub et al., *The Replica Dataset*, 2019; Eftekhar et al., *Omnidata*, ICCV 2021.
    """
    views = Views(root, "replica", select_spaces(split, splits, scenes))
    semantics = partial(_semantics, count=len(classes), first=first_class)
    name = "replica" if split is None else f"replica-{split}"
    return view_set(name, views, tasks, partial_labels, semantics, classes)


def _semantics(path: Path, count: int, first: int) -> Tensor:
    return class_ids(levels(path), count, path, first)
