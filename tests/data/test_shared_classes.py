"""Shared classes: the ids of S4T's code, by name."""

import pytest
import torch

from testtime.data import IGNORE, NYUD40, TASKONOMY17, VOC21, DenseSet, Sample, relabelled
from testtime.data.shared_classes import (
    TASKONOMY_NYUD,
    TASKONOMY_NYUD_CLASSES,
    TASKONOMY_PASCAL,
    TASKONOMY_PASCAL_CLASSES,
)


class AllIds(DenseSet):
    """One image with every class id once, and IGNORE; another without semantics."""

    def __init__(self, classes):
        self.name, self.tasks, self.classes = "all", ("semseg", "depth"), classes

    def __len__(self):
        return 2

    def __getitem__(self, index):
        ids = torch.tensor([[*range(len(self.classes)), IGNORE]])
        labels = {"depth": torch.ones(1, *ids.shape)} | ({"semseg": ids} if index == 0 else {})
        return Sample(torch.zeros(3, *ids.shape), labels, "x")


# (classes, first stored id, mapping, shared, stored ids in S4T's code)
CASES = [
    (NYUD40, 0, TASKONOMY_NYUD, TASKONOMY_NYUD_CLASSES, [23, 6, 32, 5, 3, 33, 4]),
    (TASKONOMY17, 1, TASKONOMY_NYUD, TASKONOMY_NYUD_CLASSES, [14, 7, 8, 4, 6, 13, 3]),
    (VOC21, 0, TASKONOMY_PASCAL, TASKONOMY_PASCAL_CLASSES, [11, 20, 5, 18, 16, 9]),
    (TASKONOMY17, 1, TASKONOMY_PASCAL, TASKONOMY_PASCAL_CLASSES, [7, 9, 2, 4, 5, 3]),
]


@pytest.mark.parametrize(("classes", "first", "mapping", "shared", "ids"), CASES)
def test_the_lists_are_those_of_the_code(classes, first, mapping, shared, ids):
    found = relabelled(AllIds(classes), mapping, shared)
    assert found.classes == shared
    assert len(found) == 2
    new = found[0].labels["semseg"][0].tolist()
    assert {old + first: k for old, k in enumerate(new) if k != IGNORE} == {
        old: k for k, old in enumerate(ids)
    }
    assert set(found[1].labels) == {"depth"}
    assert found[0].labels["depth"].sum() == len(classes) + 1


def test_an_incomplete_mapping_is_refused():
    with pytest.raises(ValueError, match="no class leads to 'toilet'; its classes are background"):
        relabelled(AllIds(VOC21), TASKONOMY_NYUD, ("sofa", "chair", "toilet", *TASKONOMY_NYUD_CLASSES))
    with pytest.raises(ValueError, match="leads to 'sofa', which is not in classes"):
        relabelled(AllIds(VOC21), {"sofa": "sofa"}, ("chair",))
