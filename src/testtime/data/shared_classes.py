"""Classes that two data sets share, so that a model of one can be evaluated on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch

from testtime.data.dense import IGNORE, DenseSet, Sample

__all__ = [
    "TASKONOMY_NYUD",
    "TASKONOMY_NYUD_CLASSES",
    "TASKONOMY_PASCAL",
    "TASKONOMY_PASCAL_CLASSES",
    "relabelled",
]

TASKONOMY_NYUD_CLASSES = ("refrigerator", "table", "toilet", "sofa", "bed", "sink", "chair")
"""Classes that Taskonomy and NYUD-v2 share, in the order of S4T's code."""

TASKONOMY_NYUD = {
    "refrigerator": "refrigerator",
    "dining table": "table",
    "table": "table",
    "toilet": "toilet",
    "couch": "sofa",
    "sofa": "sofa",
    "bed": "bed",
    "sink": "sink",
    "chair": "chair",
}
"""Shared class by class of either data set, for :func:`relabelled` on both."""

TASKONOMY_PASCAL_CLASSES = ("table", "tv", "bottle", "sofa", "plant", "chair")
"""Classes that Taskonomy and PASCAL-Context share, in the order of S4T's code."""

TASKONOMY_PASCAL = {
    "dining table": "table",
    "diningtable": "table",
    "tv": "tv",
    "tvmonitor": "tv",
    "bottle": "bottle",
    "couch": "sofa",
    "sofa": "sofa",
    "potted plant": "plant",
    "pottedplant": "plant",
    "chair": "chair",
}
"""Shared class by class of either data set.

The paper of S4T swaps the two lists (it prints six classes for NYUD-v2 and seven for PASCAL-Context) and names "toilet" for
the ids of "bottle" in its code; these are the lists of the code.
"""


def relabelled(dense_set: DenseSet, mapping: Mapping[str, str], classes: Sequence[str]) -> DenseSet:
    """Return a data set with its "semseg" mapped to other classes; pixels of unmapped classes are ignored.

    >>> from testtime.data import DenseSet, Sample
    >>> class One(DenseSet):
    ...     name, tasks, classes = "one", ("semseg",), ("wall", "couch", "chair")
    ...     def __len__(self): return 1
    ...     def __getitem__(self, i): return Sample(torch.zeros(3, 1, 4), {"semseg": torch.tensor([[0, 1, 2, 255]])})
    >>> relabelled(One(), {"couch": "sofa", "sofa": "sofa", "chair": "chair"}, ["chair", "sofa"])[0].labels["semseg"]
    tensor([[255,   1,   0, 255]])

    Args:
        dense_set: data set with names of ``classes``.
        mapping: names of the new classes, by name of the old class; names that the set does not have are ignored, so that one
            mapping can be used for two sets.
        classes: names of the new classes, in order.

    Raises:
        ValueError: no class of the set maps to one of the new classes, or the mapping names a class that is not in
            ``classes``.
    """
    strange = sorted(set(mapping.values()) - set(classes))
    if strange:
        raise ValueError(
            f"the mapping leads to {strange[0]!r}, which is not in classes ({', '.join(classes)})"
        )
    reached = {mapping[name] for name in dense_set.classes if name in mapping}
    missing = [name for name in classes if name not in reached]
    if missing:
        raise ValueError(
            f"{dense_set.name}: no class leads to {missing[0]!r}; its classes are {', '.join(dense_set.classes)}"
        )
    return _Relabelled(dense_set, mapping, classes)


@final
class _Relabelled(DenseSet):
    def __init__(self, whole: DenseSet, mapping: Mapping[str, str], classes: Sequence[str]) -> None:
        self.whole, self.name, self.tasks, self.classes = whole, whole.name, whole.tasks, tuple(classes)
        self._table = torch.full((IGNORE + 1,), IGNORE)
        for old, name in enumerate(whole.classes):
            if name in mapping:
                self._table[old] = self.classes.index(mapping[name])

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        sample = self.whole[index]
        if "semseg" not in sample.labels:
            return sample
        return Sample(
            sample.image, {**sample.labels, "semseg": self._table[sample.labels["semseg"]]}, sample.name
        )
