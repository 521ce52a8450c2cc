"""The family "local tokens": its units on tiny data with a tiny pair, its tables, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from testtime.errors import DataError
from testtime.experiments import Request, find_experiment, read_run, run_experiment
from testtime.files import write_tensors
from testtime.laws.worlds import TinyTexts
from testtime.metrics import auroc
from testtime.metrics.localisation import mask_iou
from testtime.models.mobilenet import MobileNet
from testtime.models.preprocessed import Preprocessed
from testtime.vision_language import ConSE, ImageText, local_data, local_study

NAMES = ("anomaly-textures", "anomaly-scenes", "walk-segments", "prompted-segmentation")


def tiny_pair(_: str) -> ImageText:
    torch.manual_seed(0)
    network = Preprocessed(MobileNet(0.25, 12), (0.5,) * 3, (0.5,) * 3).eval().requires_grad_(False)
    encoder = ConSE(network, torch.randn(12, 16), top=3, size=64)
    return ImageText(encoder, TinyTexts().requires_grad_(False), 20.0).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with textures, and weights that are not read: the pair is a tiny one."""
    image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
    rng = np.random.default_rng(0)
    for name in ("banded", "bumpy", "dotted", "woven"):
        (tmp_path / "dtd" / "images" / name).mkdir(parents=True)
        for k in range(3):
            pixels = rng.integers(80, 170, (64, 64, 3)).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "dtd" / "images" / name / f"{k}.png")
    (tmp_path / "weights").mkdir()
    (tmp_path / local_study.WEIGHTS).write_bytes(b"none")
    monkeypatch.setattr(local_study, "_pair", tiny_pair)
    return tmp_path


def test_a_run_on_textures_has_controls_and_ceilings(folder: Path, tmp_path: Path) -> None:
    experiment = find_experiment("anomaly-textures")
    rows = ("random map", "distance of features to their mean", "ConSE + AnoVL", "taught")
    asked = Request("anomaly-textures", (0, 1), rows, data=str(folder), settings={"each": 2})
    run_experiment(experiment, asked, tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.missing == []
    table, kinds = experiment.tables(run)
    roles = {row.label: row.role for row in table.rows}
    assert roles == {
        "random map": "control",
        "distance of features to their mean": "control",
        "ConSE": "base",
        "ConSE + AnoVL": "method",
        "taught": "ceiling",
    }
    assert [column.key for column in kinds.columns] == ["scratch", "blob", "swap"]
    whole, pixel = table.column("AUROC of images whole"), table.column("pixels AUROC")
    assert table.value("ConSE", whole) == table.value("ConSE + AnoVL", whole)  # no step changes it
    assert table.value("ConSE", pixel) != table.value("ConSE + AnoVL", pixel)
    assert len(table.values["ConSE + AnoVL", pixel.key]) == 2
    assert len(table.values["taught", pixel.key]) == 1  # nothing is drawn
    assert any("stands in for CLIP" in note for note in table.notes)
    assert experiment.page(run).title


def work(
    tmp_path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, object], **p: object
) -> SimpleNamespace:
    write_tensors(tmp_path / local_data.FILE, tensors)
    made = SimpleNamespace(folder=tmp_path, result=facts)
    return SimpleNamespace(parameters=p, needs={"data": made}, places={"data": "."}, progress=lambda *_: None)


def test_uniform_segments_of_a_known_class_are_measured_as_any_other(tmp_path: Path) -> None:
    inside = torch.zeros(2, 12, dtype=torch.uint8)
    inside[0, :6], inside[1, 3:9] = 1, 1
    tensors = {"test.videos": torch.zeros(2, 12, 3, 8, 8, dtype=torch.uint8), "test.inside": inside}
    facts = {"classes": [0, 0], "segments": [[[0, 6]], [[3, 9]]], "prompts": []}
    found = local_study.localise(
        work(tmp_path, tensors, facts, method="uniform", segments=1, share=0.5, pair="none")
    )
    # The middle half: 3 to 9. It is the second walk's segment, and a third of the union with the first's.
    assert found["map_30"] == 100.0
    assert found["map_50"] == found["map_70"] == pytest.approx(25.0)  # one of two, after a wrong one
    assert found["frame_f"] == pytest.approx(75.0)
    assert (found["classes"], found["videos"]) == (100.0, 2)


def test_points_from_the_true_mask_are_on_the_object_and_masks_are_measured(tmp_path: Path) -> None:
    masks = torch.zeros(3, 32, 32, dtype=torch.uint8)
    masks[:, 8:24, 4:20] = 1
    images = (masks[:, None] * 200).expand(-1, 3, -1, -1).contiguous()
    facts = {"words": ["bed"] * 3, "background": ["wall"]}
    p = {"method": "labels", "points": 3, "seed": 0, "pair": "none"}
    found = local_study.segment_words(
        work(tmp_path, {"test.images": images, "test.masks": masks}, facts, **p)
    )
    assert found["hits"] == 100.0
    centre = local_study.segment_words(
        work(tmp_path, {"test.images": images, "test.masks": masks}, facts, **{**p, "method": "centre"})
    )
    assert centre["hits"] == 100.0
    net = local_study.load_point_segmenter()
    with torch.no_grad():
        logits = net(images / 255, torch.full((3, 1, 2), 0.5), torch.ones(3, 1, dtype=torch.int64))
    expected = mask_iou((logits > 0).numpy(), masks.bool().numpy())
    assert centre["iou"] == pytest.approx(expected.mean())


def test_images_are_scored_by_the_embedding_and_by_the_peak() -> None:
    rng = np.random.default_rng(0)
    maps, whole, masks = rng.random((6, 4, 4)), rng.random(6), np.zeros((6, 4, 4), bool)
    masks[3:, :2] = True
    found = local_study._anomaly_metrics(maps, whole, masks, ["blob", "swap", "blob"])
    assert found["image"] == auroc(whole[:3], whole[3:])
    assert found["peak"] == auroc(maps[:3].max((1, 2)), maps[3:].max((1, 2)))
    assert found["by"]["swap"] == auroc(maps[4][~masks[4]], maps[4][masks[4]])
    assert set(found["by"]) == {"blob", "swap"}


def test_cells_are_covered_as_far_as_the_mask_covers_them() -> None:
    mask = torch.zeros(1, 28, 28, dtype=torch.bool)
    mask[0, :3, :2] = True
    shares = local_data.cells_of(mask)[0]
    assert shares[:2].tolist() == [1.0, 0.0]
    assert shares[14].item() == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_controls_a_base_and_a_ceiling(name: str, folder: Path) -> None:
    plan = find_experiment(name).plan(Request(name, data=str(folder)))
    assert {row.role for row in plan.rows} == {"control", "base", "method", "ceiling"}
    assert len({unit.address for unit in plan.units}) == len(plan.units)


def test_what_is_missing_or_cannot_be_meant_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    experiment = find_experiment("walk-segments")
    with pytest.raises(
        DataError, match="no weights of imagenet-mobilenet-x0.25 there; they are published at"
    ):
        experiment.plan(Request("walk-segments", data=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="videos is a number above 0"):
        experiment.plan(Request("walk-segments", data=str(folder), settings={"videos": 0}))
    with pytest.raises(ValueError, match="own methods are not run here"):
        experiment.plan(Request("walk-segments", data=str(folder), methods=("testtime.methods:Tent",)))
    (folder / "dtd").rename(folder / "other")
    with pytest.raises(DataError, match="Describable Textures"):
        find_experiment("anomaly-textures").plan(Request("anomaly-textures", data=str(folder)))
