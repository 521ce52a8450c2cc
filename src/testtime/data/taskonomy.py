"""Taskonomy: rooms of real buildings with a label file for each view and task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from testtime.data.fileset import FileSet
from testtime.data.omnidata import Views, select_spaces, view_set
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
"""Names of the 17 classes of Taskonomy."""
FORBIDDEN_BUILDINGS = frozenset(
    ["mosquito", "tansboro", "tomkins", "darnestown", "brinnon", "rough", "woodbine"]
)
"""Buildings with files that are known to be damaged."""


def taskonomy(
    root: str | Path,
    tasks: Sequence[str] | None = None,
    split: str | None = None,
    splits: str | Path | None = None,
    buildings: Iterable[str] | None = None,
    partial_labels: bool = False,
) -> FileSet:
    """Return Taskonomy in the layout of Omnidata or of the first release, which is determined by its folders.

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

    The buildings of :data:`FORBIDDEN_BUILDINGS` are left out. ``camera`` reads ``point_info``. The semantics are predictions of
    a network (FCIS), not annotations.

    Args:
        root: folder of the data set.
        tasks: tasks whose labels are read; None reads those of semseg, depth, normals and edge that exist.
        split: name of a split of ``splits``: "train", "val" or "test"; None takes all buildings.
        splits: path of the table of the splits, such as ``splits_taskonomy/train_val_test_tiny.csv``.
        buildings: names of the buildings, in this order; with a split, only those in the split are read.
        partial_labels: whether views that lack some of the labels are kept.

    Raises:
        DataError: images are missing, the table is damaged, or no view is left.
        ImportError: Pillow is not installed.
        ValueError: there is no such split or task, or a split is given without a table.

    Source: Zamir et al., *Taskonomy: Disentangling Task Transfer Learning*, CVPR 2018; layout and forbidden buildings of
    Eftekhar et al., *Omnidata*, ICCV 2021; axes of the normals of Armeni et al., *Joint 2D-3D-Semantic Data for Indoor Scene
    Understanding*, 2017, whose encoding both data sets use according to their authors. The scale of the occlusion edges is that
    of S4T.

    Departure: the loader of S4T negates all three axes (255 - p), resizes class ids bilinearly, blurs the edges and uses 65535
    as the largest depth.
    """
    asked = select_spaces(split, splits, buildings)
    views = Views(root, "taskonomy", asked and [name for name in asked if name not in FORBIDDEN_BUILDINGS])
    views.spaces = [space for space in views.spaces if space not in FORBIDDEN_BUILDINGS]
    name = "taskonomy" if split is None else f"taskonomy-{split}"
    return view_set(name, views, tasks, partial_labels, _semantics, TASKONOMY17)


def _semantics(path: Path) -> Tensor:
    return class_ids(levels(path), len(TASKONOMY17), path, first=1)
