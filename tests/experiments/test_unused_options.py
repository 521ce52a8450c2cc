"""A request that an experiment would not obey is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testtime.cli import main
from testtime.experiments import Request, find_experiment

UNUSED = [
    ("digits", "model", "mine.pt"),
    ("digits", "device", "cuda"),
    ("forecasting-csv", "model", "mine.pt"),
    ("segmentation-scenes", "device", "cuda"),
    ("labels-camvid", "model", "mine.pt"),
    ("anomaly-textures", "limit", 5),
    ("vision-language-pacs", "model", "mine.pt"),
    ("vision-language-retrieval", "device", "cuda"),
]


@pytest.mark.parametrize(("name", "field", "value"), UNUSED)
def test_options_without_effect_are_refused(name: str, field: str, value: object) -> None:
    asked = replace(Request(name), **{field: value})
    with pytest.raises(ValueError, match=f"{name} has no use for --{field} \\({value}\\); leave it out"):
        find_experiment(name).check_settings(asked)
    find_experiment(name).check_settings(Request(name))


def test_own_images_without_labels_are_all_used_as_they_were_recorded() -> None:
    for changed, message in (
        ({"limit": 5}, "own images are all used; leave --limit out"),
        ({"settings": {"order": "mixed"}}, "leave out the setting order"),
    ):
        asked = replace(Request("no-labels", data=".", model="digits-cnn"), **changed)
        with pytest.raises(ValueError, match=message):
            find_experiment("no-labels").plan(asked)


def test_a_list_that_names_a_thing_twice_is_refused_and_axes_are_not() -> None:
    asked = Request("digits", settings={"corruptions": ["fog", "contrast", "fog"]})
    with pytest.raises(ValueError, match="digits: the setting corruptions has 'fog' twice; give it once"):
        find_experiment("digits").check_settings(asked)
    asked = Request("multitask-taskonomy-pascal", settings={"axes": [1, -1, -1]})
    find_experiment("multitask-taskonomy-pascal").check_settings(asked)


def test_a_report_of_a_run_without_results_leaves_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
    asked = ["--limit", "4", "--rows", "Source", "--seeds", "0", "--set", "epochs=1", 'corruptions=["fog"]']
    assert main(["run", "digits", *asked, "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_bytes()
    for path in (tmp_path / "run" / "results").iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "run has no result yet; run the command that began it again" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").read_bytes() == page
