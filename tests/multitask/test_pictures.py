"""Pictures: known pixels have the expected colours, in the sheet too."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime.multitask import Depth, Edges, Normals, Segmentation
from testtime.multitask.pictures import (
    UNKNOWN,
    Strip,
    answer,
    picture,
    sheet,
    varied,
)
from testtime.scenes.sheet import palette

NAN = float("nan")
TASKS = {t.name: t for t in (Segmentation(("wall", "floor", "bed")), Depth(), Normals(), Edges())}


def labels(n: int = 2, side: int = 16) -> dict[str, torch.Tensor]:
    semseg = torch.zeros(n, side, side, dtype=torch.int64)
    semseg[0, :, : side // 2] = 2
    semseg[0, 0] = 255
    depth = torch.linspace(1, 3, side).expand(n, 1, side, side).clone()
    depth[:, :, 0, 0] = NAN
    normals = torch.zeros(n, 3, side, side)
    normals[:, 2] = 1
    edge = torch.zeros(n, 1, side, side)
    edge[..., 5] = 1
    return {"semseg": semseg, "depth": depth, "normals": normals, "edge": edge}


def test_colours_of_labels() -> None:
    known = labels()
    colours = [tuple(c) for c in palette(3).tolist()]
    seg = picture(TASKS["semseg"], known["semseg"][0])
    assert tuple(seg[0, 0]) == UNKNOWN
    assert tuple(seg[3, 0]) == colours[2]
    assert tuple(seg[3, 15]) == colours[0]
    depth = picture(TASKS["depth"], known["depth"][0], (1.0, 3.0))
    assert tuple(depth[0, 0]) == UNKNOWN
    assert tuple(depth[1, 0]) == (68, 1, 84)  # near is dark
    assert tuple(depth[1, 15]) == (253, 231, 37)  # far is light
    assert tuple(picture(TASKS["normals"], known["normals"][0])[0, 0]) == (128, 128, 255)
    edge = picture(TASKS["edge"], known["edge"][0])
    assert tuple(edge[0, 5]) == (255, 255, 255)
    assert tuple(edge[0, 4]) == (0, 0, 0)


def test_answers_have_the_form_of_labels() -> None:
    logits = torch.tensor([[[0.0, 5.0]], [[1.0, 0.0]], [[0.5, 9.0]]])
    assert answer(TASKS["semseg"], logits).tolist() == [[1, 2]]
    assert answer(TASKS["edge"], torch.zeros(1, 1, 1)).item() == 0.5
    torch.testing.assert_close(
        answer(TASKS["normals"], torch.tensor([3.0, 0.0, 4.0]).view(3, 1, 1)).flatten(),
        torch.tensor([0.6, 0.0, 0.8]),
    )
    assert answer(TASKS["depth"], torch.full((1, 1, 1), 2.5)).item() == 2.5


def test_a_depth_beyond_the_scale_is_its_end() -> None:
    colours = picture(TASKS["depth"], torch.tensor([[[-1.0, 9.0]]]), (1.0, 3.0))
    assert colours[0].tolist() == [[68, 1, 84], [253, 231, 37]]


def test_the_sheet_holds_input_labels_and_answers() -> None:
    known = labels()
    right = {
        "semseg": nn.functional.one_hot(known["semseg"].clamp(max=2), 3).permute(0, 3, 1, 2) * 9.0,
        "depth": known["depth"].nan_to_num(1.0),
        "normals": known["normals"],
        "edge": known["edge"] * 18 - 9,
    }
    image = torch.zeros(3, 16, 16)
    image[0] = 1
    own = {name: y[0] for name, y in known.items()}
    for dark, paper in ((False, (253, 252, 250)), (True, (20, 23, 28))):
        drawn = np.asarray(sheet(TASKS, image, own, [Strip("before", right)], 0, width=64, dark=dark))
        assert tuple(drawn[-1, -1]) == paper
        row, column, left, top = 64 + 18 + 8, 64 + 8, 104, 26
        at = [
            [tuple(drawn[top + r * row + 60, left + c * column + 40]) for c in (1, 2)]
            for r in range(len(TASKS))
        ]
        assert tuple(drawn[top + 30, left + 30]) == (255, 0, 0)
        assert at[0] == [tuple(palette(3)[0])] * 2
        assert at[1][0] == at[1][1]
        assert at[2] == [(128, 128, 255)] * 2
        assert at[3] == [(0, 0, 0)] * 2


def test_varied_images_have_many_classes() -> None:
    y = torch.zeros(3, 2, 2, dtype=torch.int64)
    y[1] = torch.tensor([[0, 1], [2, 255]])
    y[2] = torch.tensor([[0, 255], [255, 1]])
    assert varied({"semseg": y}, 2) == [1, 2]


@pytest.mark.parametrize("missing", ["semseg", "depth"])
def test_a_sample_without_a_label_is_drawn_without_it(missing: str) -> None:
    own = {name: y[0] for name, y in labels().items() if name != missing}
    outputs = {name: torch.rand(1, task.channels, 16, 16) for name, task in TASKS.items()}
    drawn = sheet(TASKS, torch.rand(3, 16, 16), own, [Strip("before", outputs)], 0, width=32)
    assert drawn.size == (104 + 3 * 40, 26 + 4 * (32 + 18 + 8))
