"""Dense samples: missing labels are ignored, and labels are resized by nearest neighbour."""

import pytest
import torch

from testtime.data import IGNORE, DenseSet, Sample, collate, sized


class Two(DenseSet):
    name, tasks, classes = "two", ("semseg", "normals"), ("a", "b")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        labels = {"semseg": torch.tensor([[0, 1], [1, 0]])} if index == 0 else {}
        return Sample(torch.full((3, 2, 2), float(index)), labels)


def test_a_missing_label_is_ignored_everywhere():
    x, labels = Two().batch([0, 1])
    assert x.shape == (2, 3, 2, 2)
    assert labels["semseg"].tolist() == [[[0, 1], [1, 0]], [[IGNORE] * 2] * 2]
    assert labels["normals"].shape == (2, 3, 2, 2)
    assert labels["normals"].isnan().all()


def test_a_subset_keeps_order_and_attributes():
    chosen = Two().subset([1, 0, 1])
    assert [s.image[0, 0, 0].item() for s in chosen] == [1.0, 0.0, 1.0]
    assert (chosen.classes, chosen.tasks) == (("a", "b"), ("semseg", "normals"))
    with pytest.raises(IndexError, match="there are 2"):
        Two().subset([2])


def test_labels_are_resized_by_nearest_neighbour():
    label = torch.arange(16).view(4, 4)
    depth = torch.full((1, 4, 4), torch.nan)
    depth[0, 1, 1] = 2.0
    small = sized(Sample(torch.rand(3, 4, 4), {"semseg": label, "depth": depth}), (2, 2))
    assert small.image.shape == (3, 2, 2)
    assert small.labels["semseg"].tolist() == [[5, 7], [13, 15]]  # the pixel under the centre, never a mean
    assert small.labels["depth"][0, 0, 0] == 2.0
    assert small.labels["depth"].isnan().sum() == 3
    large = sized(Sample(torch.rand(3, 4, 4), {"semseg": label}), (8, 8))
    assert large.labels["semseg"][:2, :2].tolist() == [[0, 0], [0, 0]]


def test_mixed_sizes_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"give size="):
        collate([Sample(torch.zeros(3, 2, 2)), Sample(torch.zeros(3, 4, 4))], [])
