"""Estimates from few labelled frames: the signals of a frame, and a repetition on written frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from testtime.experiments import Request, find_experiment
from testtime.experiments.segmentation.labels import frame_signals, repeat_frames
from testtime.experiments.segmentation.units import FRAMES
from testtime.files import write_tensors


def written(folder: Path, seed: int, n: int = 60) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    hard = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 0.02 * torch.rand(n, generator=rng, dtype=torch.float64)
    tensors = {
        "accuracy": 0.9 - 0.4 * hard + noise,
        "confidence": 0.95 - 0.3 * hard,
        "entropy": 0.2 + hard,
        "score": noise.clone(),
        "shares": torch.full((n, 3), 1 / 3, dtype=torch.float64),
        "predicted": torch.randint(0, 3, (n, 4, 5), generator=rng).byte(),
    }
    folder.mkdir()
    write_tensors(folder / FRAMES, tensors)
    return tensors


def test_agreement_is_the_share_of_equal_pixels(tmp_path: Path) -> None:
    own, other = written(tmp_path / "a", 1), written(tmp_path / "b", 2)
    found = frame_signals(own, {"other": other})
    assert found.shape == (60, 3 + 3 + 1)
    expected = [(own["predicted"][i].numpy() == other["predicted"][i].numpy()).mean() for i in range(60)]
    np.testing.assert_allclose(found[:, -1], expected)
    np.testing.assert_array_equal(found[:, 0], own["confidence"].numpy())


@pytest.mark.parametrize(("design", "low", "high"), [("none", 0.6, 1.5), ("sparse", 0.0, 0.7)])
def test_signals_that_explain_the_accuracy_lower_the_variance(
    tmp_path: Path, design: str, low: float, high: float
) -> None:
    own = written(tmp_path / "TENT", 1)
    written(tmp_path / "Source", 2)
    parameters = {"deployed": "TENT", "labels": [12], "draws": 150, "seed": 0, "design": design}
    needs = {name: SimpleNamespace(folder=tmp_path / name) for name in ("TENT", "Source")}
    work = SimpleNamespace(parameters=parameters, needs=needs, progress=lambda done, total: None)
    found = repeat_frames(work)  # type: ignore[arg-type]
    assert found["accuracy"] == pytest.approx(100 * own["accuracy"].mean().item())
    assert found["samples"] == 60
    assert low < found["labels"]["12"]["ratio"] < high
    assert found["labels"]["12"]["coverage"] > 80


def test_labels_of_a_single_frame_are_refused() -> None:
    experiment = find_experiment("labels-camvid")
    with pytest.raises(ValueError, match="whole numbers from 2"):
        experiment.plan(Request(experiment="labels-camvid", seeds=(0,), settings={"labels": [1]}))


def test_more_labels_than_frames_are_refused_before_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = (torch.zeros(30, 3, 4, 4), torch.zeros(30, 4, 4))
    for module in ("units", "labels"):
        monkeypatch.setattr(f"testtime.experiments.segmentation.{module}.road_frames", lambda *at: frames)
    experiment = find_experiment("labels-camvid")
    asked = Request(experiment="labels-camvid", seeds=(0,), settings={"labels": [10, 31]})
    with pytest.raises(ValueError, match="at most 30 labels, as many as the stream has samples, got 31"):
        experiment.plan(asked)
    with pytest.raises(ValueError, match="at most 24 labels"):
        experiment.plan(replace(asked, limit=24, settings={"labels": [25]}))
    assert len(experiment.plan(replace(asked, settings={"labels": [30]})).cells) == 4
