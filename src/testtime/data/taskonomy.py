"""Taskonomy: rooms of real buildings with a label file for each view and task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from testtime.data.fileset import FileSet
from testtime.data.omnidata import Views, sampled, spaces_of
from testtime.data.pixels import class_ids, levels

__all__ = ["FORBIDDEN_BUILDINGS", "TASKONOMY17", "taskonomy"]

TASKONOMY17 = (
    "background",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
)
FORBIDDEN_BUILDINGS = frozenset(
    ["mosquito", "tansboro", "tomkins", "darnestown", "brinnon", "rough", "woodbine"]
)
"""Buildings whose files are known to be broken."""


def taskonomy(
    root: str | Path,
    tasks: Sequence[str] | None = None,
    split: str | None = None,
    splits: str | Path | None = None,
    buildings: Iterable[str] | None = None,
    partial_labels: bool = False,
) -> FileSet:
    """Return Taskonomy, in the layout of Omnidata or of the first release; which one, its folders tell.

    The files are ``<domain>/taskonomy/<building>/point_<p>_view_<v>_domain_<domain>.png`` or
    ``<building>/<domain>/...``, matched by (building, point, view):

    ============  ================  ================================================================================
    task          domain            label
    ============  ================  ================================================================================
    semseg        segment_semantic  :data:`TASKONOMY17`: the stored id less 1, the stored 0 (uncertain) ignored
    depth         depth_zbuffer     16 bits, 1/512 m; 65535 is not measured
    normals       normal            2p/255-1, stored as x right, y *down*, z towards the viewer; y is turned here
    edge          edge_occlusion    16 bits, of 0.00625 x 2^16 and cut at 1
    edge_texture  edge_texture      16 bits, of 65535
    distance      depth_euclidean   as depth, but along the ray of the pixel
    ============  ================  ================================================================================

    The buildings of :data:`FORBIDDEN_BUILDINGS` are left out. ``camera`` reads ``point_info``. The semantics are
    those of a network (FCIS), not of people.

    Args:
        root: the folder.
        tasks: which labels to read; None reads semseg, depth, normals and edge where they are there.
        split: "train", "val" or "test" of ``splits``; None takes all buildings.
        splits: the table of the split, such as ``splits_taskonomy/train_val_test_tiny.csv``.
        buildings: only these, in this order; with a split, those of them that are in it.
        partial_labels: whether to keep views that lack some of the labels; else only views with all of them count.

    Raises:
        DataError: images are missing, the table is none, or nothing is left.
        ImportError: Pillow is not installed.
        ValueError: there is no such split or task, or a split without a table.

    Source: Zamir et al., *Taskonomy: Disentangling Task Transfer Learning*, CVPR 2018; layout and forbidden
    buildings of Eftekhar et al., *Omnidata*, ICCV 2021; how normals count, of Armeni et al., *Joint 2D-3D-Semantic
    Data for Indoor Scene Understanding*, 2017, whose encoding the authors say both keep. The scale of the occlusion
    edges is that of S4T.

    Departure: the loader of S4T turns all three axes (255 - p), resizes class ids bilinearly, blurs the edges and
    has 65535 as the largest depth.
    """
    asked = spaces_of(split, splits, buildings)
    views = Views(root, "taskonomy", asked and [name for name in asked if name not in FORBIDDEN_BUILDINGS])
    views.spaces = [space for space in views.spaces if space not in FORBIDDEN_BUILDINGS]
    name = "taskonomy" if split is None else f"taskonomy-{split}"
    return sampled(name, views, tasks, partial_labels, _semantics, TASKONOMY17)


def _semantics(path: Path) -> Tensor:
    return class_ids(levels(path), len(TASKONOMY17), path, first=1)
