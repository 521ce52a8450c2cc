"""The experiment "vision-language-retrieval": its controls and checks, and a run on rendered rooms with a small pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from testtime.errors import DataError
from testtime.experiments import Request, find_experiment, read_run, run_experiment
from testtime.experiments.vision_language import retrieval as family
from testtime.laws.worlds import TinyTexts, ambient, zero_shot
from testtime.vision_language import retrieval_study, study


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def pair(data: str, top: int):
        with ambient(top):
            return zero_shot().pair.eval()

    def rooms(count: int, side: int):
        images = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
        return images.byte(), [f"a photo of a {word} thing" for word in TinyTexts.vocabulary[-count:]]

    monkeypatch.setattr(study, "_pair", pair)
    monkeypatch.setattr(retrieval_study, "_rooms", rooms)
    monkeypatch.setattr(family, "facts_of", lambda given, data: {"images": "a", "texts": "b"})
    return tmp_path


def request(data: Path, **changes: object) -> Request:
    settings = {"domains": ["rooms"], "images": 4, "side": 8, "samples": 3, **changes}
    return Request(experiment="vision-language-retrieval", seeds=(0, 1), data=str(data), settings=settings)


def test_a_run_has_both_ways_and_the_controls(data: Path, tmp_path: Path) -> None:
    experiment = find_experiment("vision-language-retrieval")
    run_experiment(experiment, request(data), tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.missing == []
    (table,) = experiment.tables(run)
    assert {row.label: row.role for row in table.rows} == {
        "random choice": "control",
        "zero-shot similarity": "base",
        "reward model alone": "control",
        "RLCF, encoder of the query": "method",
    }
    results = {(r.row, r.seed): r.result for r in run.records()}
    assert ("random choice", 1) in results
    assert ("zero-shot similarity", 1) not in results  # nothing is drawn
    pairs, captions = retrieval_study._rooms(4, 8)
    model = study._pair("", study.TOP)
    with torch.no_grad():
        near = model(pairs.float() / 255) @ model.encode_texts(captions).T
    for way, scores in (("images", near), ("texts", near.T)):
        right = (scores > scores.diagonal()[:, None]).sum(1) == 0
        assert results["zero-shot similarity", 0][way]["1"] == pytest.approx(
            100 * float(right.double().mean())
        )
    assert results["RLCF, encoder of the query", 0]["texts"]["5"] == 100.0
    assert any("stand-in for CLIP" in note for note in table.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domains": []}, "one domain or more"),
        ({"domains": ["rooms", "rooms"]}, "one domain or more, each once"),
        ({"domains": ["room"]}, "domain of retrieval 'room'.*did you mean 'rooms'"),
        ({"images": 1}, "two images and samples or more"),
        ({"severity": 6}, "a severity from 1 to 5"),
        ({"side": 0}, "a side of 8 pixels or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(data: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_experiment("vision-language-retrieval").plan(request(data, **changes))


def test_the_images_are_looked_for_before_any_work(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = find_experiment("vision-language-retrieval")
    with pytest.raises(DataError, match="imagenet"):
        experiment.plan(request(data, domains=["clean"]))
    monkeypatch.setattr(family, "chosen_images", lambda asked, data: ([0] * 3, ()))
    with pytest.raises(ValueError, match=r"images is at most 3, the images in .*, got 4"):
        experiment.plan(request(data, domains=["clean", "rooms"]))
    assert experiment.plan(replace(request(data, domains=["clean"]), limit=3)).about["images"] == 3


def test_views_of_rooms_have_captions_of_their_own() -> None:
    images, captions = retrieval_study._rooms(3, 16)
    assert images.shape == (3, 3, 16, 16)
    assert len({*captions}) == 3
    assert all("room" in text or "kitchen" in text or "study" in text for text in captions)
