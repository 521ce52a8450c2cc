"""Frames of a space: what sensors and pseudo-labellers say, and no label beside."""

import pytest
import torch

from testtime.data import DenseSet, Sample
from testtime.scenes.render import canny_edges
from testtime.space.frames import SpaceFrames
from testtime.space.modalities import DEPTH, EDGES, RGB, features
from testtime.space.sequences import Box


class Rooms(DenseSet):
    """A bright square before a dark wall; the third frame has no depth."""

    name, tasks, classes = "rooms", ("semseg", "depth", "normals"), ("wall", "thing")

    def __init__(self):
        self.reads = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.reads.append(index)
        bright = torch.zeros(24, 32)
        bright[6:18, 4 + 5 * index : 18 + 5 * index] = 1
        labels = {
            "semseg": bright.long(),
            "depth": 3 - bright[None],
            "normals": torch.tensor([0.0, 0, 1]).view(3, 1, 1).repeat(1, 24, 32),
            "edge": torch.full((1, 24, 32), 0.5),
        }
        if index == 2:
            del labels["depth"]
        return Sample((0.2 + 0.6 * bright).repeat(3, 1, 1), labels, f"room {index}")


def middle(pictures):
    """The mean of the picture as a feature map of one place."""
    assert pictures.shape[0] == 1
    assert not torch.is_grad_enabled()
    return pictures.mean((2, 3), keepdim=True)


def found_boxes(pictures):
    return [[Box(0, 0, x.mean().item(), 1, "thing")] for x in pictures]


def test_a_frame_holds_what_was_asked_for_and_no_label():
    data = Rooms()
    frames = SpaceFrames(data, ["depth", "normals"], {"middle": middle, "boxes": found_boxes})
    frame, sample = frames[1], data[1]
    assert list(frame) == ["rgb", "depth", "normals", "middle", "boxes"]
    for name, value in (("rgb", sample.image), ("depth", sample.labels["depth"])):
        assert torch.equal(frame[name], value)
    assert frame["middle"].flatten().tolist() == pytest.approx([sample.image.mean().item()] * 3)
    assert frame["boxes"][0].x1 == pytest.approx(sample.image.mean().item())
    assert list(SpaceFrames(data)[0]) == ["rgb"]
    assert len(frames) == 3


def test_edges_are_those_of_the_picture_not_the_label():
    data = Rooms()
    frame = SpaceFrames(data, ["edge"])[0]
    picture = (data[0].image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert torch.equal(frame["edge"][0], torch.from_numpy(canny_edges(picture)).float())
    assert set(frame["edge"].unique().tolist()) == {0.0, 1.0}
    # The outline of 12 x 14 pixels, and nothing inside or far away.
    assert 30 < frame["edge"].sum() < 120
    assert frame["edge"][0, 9:15, 8:14].sum() == 0
    assert frame["edge"][0, :, 22:].sum() == 0


def test_a_frame_is_made_once_while_it_is_at_hand():
    data = Rooms()
    frames = SpaceFrames(data, ["depth"])
    assert frames[1] is frames[1]
    assert frames[-2] is frames[1]
    assert data.reads == [1]
    with pytest.raises(IndexError):
        frames[3]
    assert [f["depth"].min().item() for f in frames[:2]] == [2, 2]


def test_values_of_one_modality_at_a_size():
    frames = SpaceFrames(Rooms(), ["depth", "edge"], {"middle": middle})
    depth = frames.values(DEPTH, (12, 16))
    assert len(depth) == 3
    assert torch.equal(depth[0], frames[0]["depth"][:, 1::2, 1::2])
    picture = frames.values(RGB, (12, 16))[1]
    assert picture.shape == (3, 12, 16)
    assert picture.mean().item() == pytest.approx(frames[1]["rgb"].mean().item(), abs=1e-3)
    assert frames.values(EDGES, (24, 32))[0] is frames[0]["edge"]
    assert frames.values(features("middle", 3), (4, 4))[0] is frames[0]["middle"]


def test_sensors_that_are_not_there_are_refused():
    for wrong in ("semseg", "thermal"):
        with pytest.raises(ValueError, match=f"rooms has semseg, depth, normals, but no {wrong}"):
            SpaceFrames(Rooms(), ["depth", wrong])
    with pytest.raises(ValueError, match=r"rooms: frame 2 \(room 2\) lacks depth"):
        SpaceFrames(Rooms(), ["depth"])[2]


def test_edges_of_a_large_picture_are_a_pixel_wide_where_tokens_are_made():
    class Large(Rooms):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return Sample(sample.image.repeat_interleave(8, 1).repeat_interleave(8, 2), name=sample.name)

    small = SpaceFrames(Rooms(), ["edge"])[0]["edge"]
    brought = SpaceFrames(Large(), ["edge"], edge_side=24)[0]["edge"]
    assert brought.shape == small.shape == (1, 24, 32)
    assert set(brought.unique().tolist()) == {0.0, 1.0}
    assert 0.7 < brought.sum() / small.sum() < 1.3
    whole = SpaceFrames(Large(), ["edge"])
    assert whole[0]["edge"].shape == (1, 192, 256)
    assert whole.values(EDGES, (24, 24))[0].max() < 0.5 < brought.max()
    assert SpaceFrames(Rooms(), ["edge"], edge_side=100)[0]["edge"].shape == (1, 24, 32)
