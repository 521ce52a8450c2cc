"""What is drawn of predictions and of retrieved frames, pixel by pixel."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data.dense import DenseSet, Sample
from testtime.space.pictures import hidden, image_pixels, write_predictions, write_retrieved, write_sheets

Image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
GAP, HEAD = 6, 26


class Frames(DenseSet):
    """One frame."""

    name = "frames"

    def __init__(self, image, labels, classes=()):
        self.sample, self.tasks, self.classes = Sample(image, labels), tuple(labels), classes

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.sample


class Answer(nn.Module):
    """A network with one answer for every picture."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value.expand(len(x), *self.value.shape)


def cells(path, rows, columns, width, height):
    """The pictures of a sheet, by row and column."""
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (HEAD + rows * (height + GAP), GAP + columns * (width + GAP), 3)
    return [
        [
            sheet[HEAD + r * (height + GAP) :, GAP + c * (width + GAP) :][:height, :width]
            for c in range(columns)
        ]
        for r in range(rows)
    ]


def test_hidden_patches_are_grey():
    image = torch.zeros(3, 16, 16)
    pixels = hidden(image, torch.tensor([3]), 8)
    assert (pixels[8:, 8:] == 0).all()
    assert (pixels[:8] == 128).all()


def test_sheets_are_drawn_on_light_and_dark_ground(tmp_path):
    red = np.zeros((4, 8, 3), np.uint8) + np.uint8([255, 0, 0])
    light, dark = write_sheets(tmp_path, [("a", [red, red]), ("b", [red, red])], 16)
    assert [path.name for path in (light, dark)] == ["light.png", "dark.png"]
    for path, paper in ((light, (253, 252, 250)), (dark, (20, 23, 28))):
        assert (np.array(cells(path, 2, 2, 16, 8)) == [255, 0, 0]).all()
        assert tuple(np.asarray(Image.open(path))[-1, -1]) == paper


def test_predicted_depth_is_drawn_on_the_scale_of_the_measured(tmp_path):
    depth = torch.arange(1.0, 17.0).view(1, 4, 4)
    depth[0, 0, 0] = torch.nan
    data = Frames(torch.rand(3, 4, 4), {"depth": depth})
    doubled = Answer(depth.nan_to_num(1.0).log() + 2.0)  # the same depth, on another scale
    flat = Answer(torch.zeros(1, 4, 4))
    networks = {"depth": {"doubled": doubled, "flat": flat}}
    light, _ = write_predictions(tmp_path, networks, data, [0], (4, 4))
    ((_, label, same, constant),) = cells(light, 1, 4, 150, 150)
    corner = np.s_[:37, :37]
    assert (label[corner] == 128).all()  # not known
    other = np.ones((150, 150), bool)
    other[:38, :38] = False
    assert (label[other] == same[other]).all()
    assert len(np.unique(label[other], axis=0)) > 8
    assert len(np.unique(constant.reshape(-1, 3), axis=0)) == 1


def test_classes_and_depth_stand_one_below_the_other(tmp_path):
    labels = {"semseg": torch.tensor([[0, 1], [1, 255]]), "depth": torch.full((1, 2, 2), torch.nan)}
    data = Frames(torch.rand(3, 2, 2), labels, ("wall", "chair"))
    logits = torch.stack([torch.eye(2), 1 - torch.eye(2)])
    networks = {"depth": {"row": Answer(torch.zeros(1, 2, 2))}, "semseg": {"row": Answer(logits)}}
    light, _ = write_predictions(tmp_path, networks, data, [0], (2, 2))
    (_, unknown, _), (_, label, predicted) = cells(light, 2, 3, 150, 150)
    assert (unknown == 128).all()
    assert (predicted[:75] == label[:75]).all()
    assert (predicted[75:, 75:] == label[:75, :75]).all()  # class 0, where the label is not known
    assert (label[75:, 75:] == 128).all()


def test_the_right_one_of_what_was_retrieved_has_a_frame(tmp_path):
    pixels = torch.stack([torch.full((3, 8, 8), v) for v in (0.0, 0.5, 1.0)])
    depth = torch.zeros(3, 1, 4, 4)
    ranks = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    light, _ = write_retrieved(tmp_path, pixels, depth, (ranks, ranks), [0, 2], 2)
    rows = cells(light, 2, 6, 112, 112)
    framed = [[tuple(pixels[0, 0]) == (0, 150, 80) for pixels in row] for row in rows]
    assert framed == [[False, True, False, False, True, False], [False] * 6]
    centres = [[int(pixels[56, 56, 0]) for pixels in (row[0], row[4], row[5])] for row in rows]
    assert centres == [[0, 0, 128], [255, 0, 128]]


def test_image_pixels_round_to_the_nearest_level():
    assert image_pixels(torch.full((1, 3, 1, 1), 0.4999))[0].tolist() == [[[127, 127, 127]]]
