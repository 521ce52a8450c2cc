"""The family "segmentation": what is measured, what is stored of each frame, and a small run on rendered rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from testtime.experiments import Request, find_experiment, read_run, run_experiment
from testtime.experiments.segmentation.units import Learned, measured, road_frames
from testtime.files import read_tensors
from testtime.models.small_segmenter import SmallSegmenter, source_roads
from testtime.parts import adam

CLASSES = 13
DATA = Path(__file__).parents[3] / ".data"


def small(**changes: object) -> Request:
    settings = {
        "size": [24, 32],
        "houses": 1,
        "frames": 4,
        "test_houses": 1,
        "test_frames": 4,
        "epochs": 1,
        "shifts": ["fog"],
        "batch": 2,
        "source_frames": 4,
    }
    asked = {"experiment": "segmentation-scenes", "seeds": (0,), "settings": settings}
    return Request(**{**asked, **changes})  # type: ignore[arg-type]


def test_what_is_measured_is_the_count_of_numpy() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 6, 8)), rng.integers(0, 4, (3, 6, 8))
    labels[0, :2] = 255
    parts = [(torch.from_numpy(logits[:2]), torch.from_numpy(labels[:2]))]
    parts += [(torch.from_numpy(logits[2:]), torch.from_numpy(labels[2:]))]
    found = measured(parts, 4, 1.0)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    known, answer = labels != 255, logits.argmax(1)
    overlap = []
    for c in range(4):
        both = ((answer == c) & (labels == c) & known).sum()
        overlap.append(100 * both / (((answer == c) | (labels == c)) & known).sum())
    right, confidence = (answer == labels)[known], p.max(1)[known]
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(1, 16)]
    assert found["miou"] == pytest.approx(np.mean(overlap))
    assert found["accuracy"] == pytest.approx(100 * right.mean())
    assert found["ece"] == pytest.approx(100 * sum(gaps) / known.sum(), abs=1e-4)


def test_the_ceiling_learns_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = SmallSegmenter(3).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    learner = Learned(model, adam(3e-2))
    first = learner.step(x, y)
    for _ in range(8):
        last = learner.step(x, y)
    assert last.softmax(1)[:, 0].mean() > first.softmax(1)[:, 0].mean() + 0.02
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert learner.predict(x).shape == (2, 3, 16, 16)


def test_a_run_on_rooms_has_its_controls_and_keeps_what_frames_give(tmp_path: Path) -> None:
    experiment = find_experiment("segmentation-scenes")
    rows = ("BN-adapt", "TENT", "labels")
    run_experiment(experiment, small(rows=rows), tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.missing == []
    table, by_shift = experiment.tables(run)
    assert [row.label for row in table.rows] == ["Source", *rows]
    roles = {row.label: row.role for row in table.rows}
    assert roles == {"Source": "base", "BN-adapt": "control", "TENT": "method", "labels": "ceiling"}
    assert [c.name for c in by_shift.columns] == ["other house", "fog"]
    assert table.value("Source", table.column("forgetting")) == 0
    assert table.value("BN-adapt", table.column("forgetting")) == 0  # it keeps no state
    assert experiment.page(run).title
    stored = [read_tensors(p)[0] for p in (tmp_path / "store").rglob("frames.safetensors")]
    answered = [s for s in stored if "accuracy" in s]
    assert len(answered) == 8
    for s in answered:
        assert s["accuracy"].shape == (4,)
        assert s["shares"].shape == (4, CLASSES)
        torch.testing.assert_close(s["shares"].sum(1), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("setting", ["batch", "held", "source_frames"])
def test_settings_are_checked_before_any_work(setting: str) -> None:
    request = small(settings={setting: 0})
    with pytest.raises(ValueError, match=f"{setting} is a whole number from 1, got 0"):
        find_experiment("segmentation-scenes").plan(request)


def test_camvid_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="CamVid"):
        find_experiment("segmentation-camvid").plan(
            Request(experiment="segmentation-camvid", data=str(tmp_path), seeds=(0,))
        )


def test_the_packaged_segmenter_is_small_and_takes_any_size() -> None:
    model = source_roads()
    assert sum(v.numel() for v in model.state_dict().values()) * 4 < 5_000_000
    with torch.no_grad():
        assert model(torch.rand(2, 3, 50, 71)).shape == (2, 11, 50, 71)


@pytest.mark.skipif(not (DATA / "CamVid").is_dir(), reason="CamVid is not in .data")
def test_the_packaged_segmenter_knows_frames_of_another_day() -> None:
    x, y = (part[::20] for part in road_frames(str(DATA), "held"))
    with torch.no_grad():
        found = measured([(source_roads()(x), y)], 11, 2.0)
    counts = np.bincount(y[y != 255].numpy(), minlength=11)
    by_frequency = (
        100 * counts.max() / counts.sum() / (counts > 0).sum()
    )  # mIoU of the most frequent class everywhere
    assert found["miou"] > 40 > 10 * by_frequency
    assert found["accuracy"] > 80
