"""Replica, as the Omnidata annotator samples it: views of 18 scanned rooms with labels and poses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from testtime.data.fileset import FileSet
from testtime.data.omnidata import Views, sampled, spaces_of
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
    """Return views of Replica, in the layout of the Omnidata starter set or of the annotator.

    The first is ``<domain>/replica/<scene>/point_<p>_view_<v>_domain_<domain>.png``, the second
    ``<scene>/<domain>/...`` beside the scene's ``mesh.ply``. Depth is 16 bits of 1/512 m with 65535 not measured,
    normals are stored x right, y down, z towards the viewer and come with y up, edges are those of
    :func:`~testtime.data.taskonomy`, semantics ids of one channel. ``camera(index)`` gives intrinsics and pose of
    the view's ``point_info`` (also called ``fixatedpose``), in the axes of the mesh.

    Args:
        root: the folder.
        tasks: of "semseg", "depth", "normals", "edge" (occlusion), "edge_texture" and "distance" (along the ray);
            None reads the first four where they are there.
        scenes: only these, such as "room_0"; None takes all that are there.
        split: "train", "val" or "test" of ``splits``.
        splits: a table with the columns id, train, val, test.
        classes: the names of the classes, which the files do not hold.
        first_class: the stored id of class 0; ids below it are ignored, and 255.
        partial_labels: whether to keep views that lack some of the labels.

    Raises:
        DataError: images are missing, or an id is that of no class.
        ImportError: Pillow is not installed.
        ValueError: there is no such split or task, or a split without a table.

    Source: Straub et al., *The Replica Dataset*, 2019; Eftekhar et al., *Omnidata*, ICCV 2021.
    """
    views = Views(root, "replica", spaces_of(split, splits, scenes))
    semantics = partial(_semantics, count=len(classes), first=first_class)
    name = "replica" if split is None else f"replica-{split}"
    return sampled(name, views, tasks, partial_labels, semantics, classes)


def _semantics(path: Path, count: int, first: int) -> Tensor:
    return class_ids(levels(path), count, path, first)
