"""Pictures: known pixels have the expected colours, in the sheet too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from testtime import sgd
from testtime.methods import S4T, Source
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Normals, Segmentation, Synchronizer
from testtime.multitask.pictures import (
    UNKNOWN,
    Strip,
    answer,
    moments,
    picture,
    sheet,
    telling,
    write_pictures,
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


def test_telling_images_have_many_classes() -> None:
    y = torch.zeros(3, 2, 2, dtype=torch.int64)
    y[1] = torch.tensor([[0, 1], [2, 255]])
    y[2] = torch.tensor([[0, 255], [255, 1]])
    assert telling({"semseg": y}, 2) == [1, 2]


def network() -> Assisted:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    heads = {name: nn.Conv2d(8, task.channels, 1) for name, task in TASKS.items()}
    return Assisted(
        MultiTaskNet(encoder, heads, TASKS),
        Synchronizer(TASKS, 8, features=4, size=16, patch=4, width=16, depth=1, decoder_depth=1),
    )


def test_moments_are_the_predictions_after_so_many_steps() -> None:
    x = torch.rand(4, 3, 16, 16)
    adapter = S4T(network(), sgd(0.1))
    kept = moments(adapter, x, steps=3, wanted=(0, 2))
    assert list(kept) == [0, 2, 3]
    adapter.reset()
    torch.testing.assert_close(kept[0]["depth"], adapter.predict(x)["depth"])
    adapter(x)
    adapter(x)
    torch.testing.assert_close(kept[2]["depth"], adapter.predict(x)["depth"])
    assert not torch.equal(kept[2]["depth"], kept[3]["depth"])


def test_pictures_lie_where_a_report_finds_them(tmp_path: Path) -> None:
    x, known = torch.rand(2, 3, 16, 16), labels()
    kept = moments(Source(network()), x, 1)
    written = write_pictures(tmp_path, TASKS, x, known, [Strip("before", kept[0])], "told", count=1)
    assert [p.name for p in written] == ["0-light.png", "0-dark.png"]
    about = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    assert about["about"] == "told"
    assert about["sheets"][0]["caption"] == "Image 1 of the batch"
    with Image.open(written[0]) as one:
        assert one.size == (104 + 3 * 136, 26 + 4 * (128 + 18 + 8))


@pytest.mark.parametrize("missing", ["semseg", "depth"])
def test_a_sample_without_a_label_is_drawn_without_it(missing: str) -> None:
    own = {name: y[0] for name, y in labels().items() if name != missing}
    kept = moments(Source(network()), torch.rand(1, 3, 16, 16), 0)
    assert (
        sheet(TASKS, torch.rand(3, 16, 16), own, [Strip("before", kept[0])], 0, width=32).width
        == 104 + 3 * 40
    )
