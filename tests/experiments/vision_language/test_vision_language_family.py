"""The family "vision-language": its rows, its checks, and a run on written images with a small pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from testtime.errors import DataError
from testtime.experiments import Request, find_experiment, read_run, run_experiment
from testtime.experiments.vision_language import experiment as family
from testtime.laws.worlds import TinyTexts, ambient, zero_shot
from testtime.vision_language import ZeroShot, study

CLASSES = ("dog", "elephant", "giraffe")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
    rng = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for name in CLASSES:
            folder = tmp_path / "PACS" / domain / name
            folder.mkdir(parents=True)
            for i in range(3):
                image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")

    def pair(data: str, top: int):
        with ambient(top):
            return zero_shot().pair.eval()

    words = (*TinyTexts.vocabulary, *(f"{name}." for name in CLASSES))
    monkeypatch.setattr(TinyTexts, "vocabulary", words)
    monkeypatch.setattr(study, "_pair", pair)
    monkeypatch.setattr(study, "facts_of", lambda given, data: {"images": "a", "texts": "b"})
    monkeypatch.setattr(family, "facts_of", study.facts_of)
    return tmp_path


def request(data: Path, **changes: object) -> Request:
    settings = {"domains": ["photo", "sketch"], "images": 6, "views": 4, "share": 0.5, "batch": 4}
    asked = {"experiment": "vision-language-pacs", "seeds": (0,), "data": str(data), "settings": settings}
    return Request(**{**asked, **changes})  # type: ignore[arg-type]


def test_a_run_has_the_controls_and_names_the_stand_ins(data: Path, tmp_path: Path) -> None:
    experiment = find_experiment("vision-language-pacs")
    run_experiment(experiment, request(data), tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.missing == []
    accuracy, error = experiment.tables(run)
    roles = {row.label: row.role for row in accuracy.rows}
    assert roles["zero-shot"] == "base"
    assert {label for label, role in roles.items() if role == "control"} == {
        "template ensemble",
        "reward model alone",
        "BN-adapt, image encoder",
        "mean of views",
        "ZERO",
        "TDA",
    }
    assert any("stand-in for CLIP" in note for note in accuracy.notes)
    assert error.columns[0].better == "lower"
    results = {(r.row, r.column): r.result for r in run.records()}
    images, names = study.chosen_images(
        {"data": "pacs", "domain": "photo", "images": 6, "classes": 0}, str(data)
    )
    model = ZeroShot(study._pair("", 10), names)
    with torch.no_grad():
        right = model(images.batch(range(6))).argmax(1).numpy() == images.labels
    assert results["zero-shot", "photo"]["accuracy"] == pytest.approx(100 * right.mean())
    passes = {row: (r["forwards"], r["texts"]) for (row, column), r in results.items() if column == "photo"}
    assert passes["TENT, image encoder"] == (1.0, 0.0)
    assert passes["ZERO"] == passes["mean of views"] == (4.0, 0.0)
    assert passes["TPT"] == (4.0, 6.0)  # three prompts to learn, three to answer
    assert passes["RLCF, stand-in reward"] == (4.0, 12.0)
    assert passes["RLCF, image encoder"] == (
        11.0,
        0.0,
    )  # four views, three steps on two of them, and an answer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "views is a whole number from 1, got 0"),
        ({"share": 1.5}, "share is a share of the views"),
        ({"domains": []}, "domains names one domain or more"),
        ({"classes": 1}, "a number of classes from 2"),
        ({"domains": ["photos"]}, "domain of pacs 'photos'.*did you mean 'photo'"),
        ({"data": "cifar"}, "data set 'cifar'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(
    data: Path, settings: dict, message: str
) -> None:
    given = {**request(data).settings, **settings}
    with pytest.raises(ValueError, match=message):
        find_experiment("vision-language-pacs").plan(request(data, settings=given))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MobileNet of ImageNet"):
        find_experiment("vision-language-imagenet").plan(
            request(tmp_path, experiment="vision-language-imagenet")
        )


def test_a_part_of_imagenet_has_evenly_spaced_classes() -> None:
    kept = np.unique(np.linspace(0, 999, 4).round().astype(int))
    assert kept.tolist() == [0, 333, 666, 999]
    labels = np.array([333, 999, 0])

    class Set:
        classes = tuple(map(str, range(1000)))

    Set.labels = labels
    assert study._labels(Set(), (), {"classes": 4}).tolist() == [1, 3, 0]


def test_no_two_classes_of_imagenet_share_a_name() -> None:
    names = [name.lower() for name in study._names_apart()]
    assert len({*names}) == len(names) == 1000
