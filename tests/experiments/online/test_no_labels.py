"""Candidates in shadow: the run, that labels stay out of it, the recommendation, and own images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_online import silent

from testtime.cli import main
from testtime.errors import DataError
from testtime.experiments import Request, Run, read_run, run_experiment
from testtime.experiments.online.no_labels import NO_LABELS, advice_table, read_candidates, true_accuracy
from testtime.experiments.online.stream import make_stream
from testtime.models import open_model
from testtime.report import page_html
from testtime.selection import recommend

pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
SETTINGS = {
    "stream": "digits-open",
    "open_sets": ["none"],
    "batch_size": 10,
    "corruptions": ["fog", "contrast"],
}
ASKED = Request("no-labels", (0,), ("TENT",), limit=30, precision="float32", settings=SETTINGS)
HOT = "small_methods:HotTent"


def shadow(folder: Path, request: Request = ASKED, say: Any = silent) -> Run:
    assert run_experiment(NO_LABELS, request, folder, say=say).exit_code == 0
    return read_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shadow(tmp_path_factory.mktemp("shadow") / "run", replace(ASKED, methods=(HOT,)))


def test_a_run_holds_the_diagnostics_of_every_candidate(run: Run) -> None:
    seen, groups = read_candidates(run)
    assert list(seen) == ["Source", "TENT", "HotTent"]
    assert len(groups) == 60
    assert all(len(found) == 6 and sum(one.images for one in found) == 60 for found in seen.values())
    assert all(one.agreement == 1 and not one.updated for one in seen["Source"])
    assert all(one.updated for one in seen["TENT"])


def test_the_truth_is_kept_apart_and_right(run: Run) -> None:
    unit = next(iter(run.results.values()))["unit"]
    places = {"data": "."}
    model = open_model("digits-cnn").model
    parameters = next(
        r["unit"]["parameters"] for r in run.results.values() if "method" in r["unit"]["parameters"]
    )
    right = [float((model(b.x).argmax(1) == b.y).float().sum()) for b in make_stream(parameters, places, 30)]
    assert true_accuracy(run)["Source"] == pytest.approx(100 * sum(right) / 60)
    assert unit["parameters"]["closed"] == "digits"
    for content in run.results.values():
        for one in content["result"].get("diagnostics", []):
            assert "accuracy" not in one


def test_images_are_mirrored_where_the_model_allows_it(run: Run, tmp_path: Path) -> None:
    def mirror(**changes: Any) -> bool:
        request = replace(ASKED, rows=("Source",), **changes)
        return bool(NO_LABELS.plan(request).cells[0].unit.parameters["mirror"])

    assert not mirror()
    assert mirror(settings={**SETTINGS, "mirror": True})
    assert mirror(model="cifar10-resnet20-augmix")
    assert not mirror(model="cifar10-resnet20-augmix", settings={**SETTINGS, "mirror": False})


def test_the_one_that_destroys_itself_is_not_recommended(run: Run) -> None:
    advice = recommend(*read_candidates(run))
    truth = true_accuracy(run)
    assert truth["HotTent"] < 40
    assert advice.name != "HotTent"
    text = advice_table(run, judge=True).text()
    assert f"Take {advice.name}." in text
    assert f"{max(truth.values()) - truth[advice.name]:.1f} points less" in text
    assert "Judged with the labels" not in advice_table(run).text()
    html = page_html(NO_LABELS.page(run))
    assert f"<h1>Take {advice.name}</h1>" in html
    assert all(f'<th scope="row">{name}</th>' in html for name in ("Source", "TENT", "HotTent"))
    assert NO_LABELS.tables(run)[0].title == "Estimated without labels"


def test_a_recommendation_before_all_are_finished_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", str(run.folder)]) == 0
    assert "that are finished" not in capsys.readouterr().out
    part = replace(run, results={a: r for a, r in run.results.items() if r["unit"]["name"] != "HotTent"})
    assert ", of the 2 of 3 candidates that are finished." in advice_table(part).text()
    assert ", of the 2 of 3 candidates that are finished</h1>" in page_html(NO_LABELS.page(part))
    with pytest.raises(ValueError, match="no candidate is finished"):
        read_candidates(replace(run, results={}))
    with pytest.raises(ValueError, match="is not a run without labels: testtime run no-labels makes one"):
        read_candidates(replace(run, about={**run.about, "experiment": "digits-open"}))


def test_a_run_goes_on_and_is_added_to(tmp_path: Path) -> None:
    shadow(tmp_path / "run", replace(ASKED, rows=("Source",)))
    said: list[str] = []
    assert list(read_candidates(shadow(tmp_path / "run", ASKED, said.append))[0]) == ["Source", "TENT"]
    assert said == ["2 of 3 units are finished already"]
    with pytest.raises(ValueError, match="holds a run with limit 30, this one has limit 10"):
        shadow(tmp_path / "run", replace(ASKED, limit=10))


def test_what_cannot_run_is_left_out_and_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "mine", 3)
    settings = {"images": str(folder), "batch_size": 2}
    request = Request("no-labels", (0,), model="digits-cnn", precision="float32", settings=settings)
    plan = NO_LABELS.plan(request)
    assert (
        plan.about["left_out"]["EATA"]
        == "it must see images of the source; give them with the setting source"
    )
    assert plan.about["left_out"]["CoTTA"] == "it takes 34 forwards a batch; name it with --rows"
    assert "CoTTA" in [row.label for row in NO_LABELS.plan(replace(request, rows=("CoTTA",))).rows]
    with_source = {**settings, "source": str(folder)}
    assert "EATA" not in NO_LABELS.plan(replace(request, settings=with_source)).about["left_out"]


def images(folder: Path, count: int) -> Path:
    image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        image.fromarray(one).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_images_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = images(tmp_path / "mine", 7), tmp_path / "run"
    base = ["bench", "--no-labels", "--images", str(folder), "--out", str(out), "--precision", "float32"]
    assert main([*base, "--model", "digits-cnn", "--methods", "source,tent", "--batch-size", "4"]) == 0
    assert main(["recommend", str(out), "--judge"]) == 0
    printed = capsys.readouterr().out
    assert "Take " in printed
    assert "Judged" not in printed  # there were no labels
    assert [one.images for one in read_candidates(read_run(out))[0]["TENT"]] == [4, 3]
    assert "mine" in read_run(out).about["facts"]


def test_damaged_pictures_are_skipped_and_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "mine", 3)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:50])
    settings = {"images": str(folder)}
    request = Request(
        "no-labels", (0,), ("Source",), model="digits-cnn", precision="float32", settings=settings
    )
    with pytest.raises(DataError, match="skip_damaged"):
        shadow_failing(tmp_path / "a", request)
    found = shadow(tmp_path / "b", replace(request, settings={**settings, "skip_damaged": True}))
    assert len(read_candidates(found)[1]) == 2
    assert found.about["facts"]["damaged 1"] == "1.png"


def shadow_failing(folder: Path, request: Request) -> None:
    summary = run_experiment(NO_LABELS, request, folder, say=silent)
    raise DataError(str(summary.failed))


def test_mistakes_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="own images need --model, the network that is in use"):
        NO_LABELS.plan(Request("no-labels", (0,), settings={"images": str(tmp_path)}))
    with pytest.raises(ValueError, match="no such folder; expected the folder of images as they arrive"):
        NO_LABELS.plan(Request("no-labels", (0,), model="digits-cnn", settings={"images": "nowhere"}))


@pytest.mark.parametrize("size", ["0", "-3"])
def test_a_batch_holds_an_image_at_least(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = images(tmp_path / "mine", 2), tmp_path / "run"
    command = ["run", "no-labels", "--model", "digits-cnn", "--out", str(out)]
    assert main([*command, "--set", f"images={folder}", f"batch_size={size}"]) == 2
    assert f"a batch holds at least 1 image, got batch_size {size}" in capsys.readouterr().err
    assert not out.exists()


def test_damaged_results_are_named(run: Run) -> None:
    found = {
        a: {**r, "result": {**r["result"], "diagnostics": [{"predicted": [1]}]}}
        for a, r in run.results.items()
    }
    with pytest.raises(DataError, match=r"results is damaged .*; delete the run"):
        read_candidates(replace(run, results=found))
    assert json.dumps(run.about)
