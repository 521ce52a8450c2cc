"""``testtime demo``, ``report`` and ``recommend`` as a user calls them, on the embedded digits."""

import json
from pathlib import Path

import numpy as np
import pytest

from testtime import processor
from testtime.cli import main
from testtime.experiments import read_run

pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
SMALL = ["--limit", "4", "--set", "batch_size=8", 'corruptions=["fog"]']


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        main(
            ["run", "digits-open", "--rows", "bn-adapt", *SMALL, "--precision", "float32", "--out", str(out)]
        )
        == 0
    )
    return out


def test_a_report_prints_the_tables_and_writes_page_and_figures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    assert main(["report", str(run), "--out", str(page), "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "BN-adapt" in printed
    assert printed.splitlines()[-1] == str(page)
    assert "BN-adapt" in page.read_text()
    rows = json.loads(figures.read_text())[0]["rows"]
    assert [row["label"] for row in rows] == ["Source", "BN-adapt"]
    before = (run / "report.html").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before


@pytest.mark.usefixtures("undrawn")
def test_several_runs_are_compared_and_those_of_two_families_are_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other, toy = tmp_path / "other", tmp_path / "digits"
    again = ["--rows", "source", *SMALL, "order=mixed", "--precision", "float32"]
    assert (
        main(["run", "digits-open", *again, "--store", str(run.parent / "store"), "--out", str(other)]) == 0
    )
    capsys.readouterr()
    assert main(["report", str(run), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "| BN-adapt" in printed
    assert printed.splitlines()[-1] == "comparison.html"
    assert "Methods and streams" in (tmp_path / "comparison.html").read_text()
    tiny = ["--set", "epochs=1", 'corruptions=["fog"]', "--limit", "8", "--seeds", "0"]
    assert main(["run", "digits", "--rows", "source", *tiny, "--out", str(toy)]) == 0
    capsys.readouterr()
    assert main(["report", str(run), str(toy)]) == 2
    assert f"{toy} (demo); make a page for each family" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_float32_goes_on_where_auto_would_take_bfloat16(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = read_run(run).about["cells"]
    monkeypatch.setattr(processor, "_features", lambda: {"avx512_bf16"})
    assert main(["run", "digits-open", "--rows", "bn-adapt", *SMALL, "--out", str(run)]) == 0
    assert "units are finished already" in capsys.readouterr().err
    found = read_run(run)
    assert (found.request.precision, found.about["cells"]) == ("float32", cells)


@pytest.mark.usefixtures("undrawn")
def test_own_images_without_labels_get_a_recommendation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image")
    folder, out = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    for number, one in enumerate(np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), dtype=np.uint8)):
        image.fromarray(one).save(folder / f"{number}.png")
    command = ["run", "no-labels", "--model", "digits-cnn", "--rows", "source", "tent", "--out", str(out)]
    assert main([*command, "--set", f"images={folder}", "batch_size=4"]) == 0
    capsys.readouterr()
    assert main(["recommend", str(out), "--judge"]) == 0
    printed = capsys.readouterr().out
    assert "Take " in printed
    assert "Judged" not in printed  # there are no labels
    assert printed.splitlines()[-1] == f"The page: {out / 'report.html'}"
    assert "Take " in (out / "report.html").read_text()


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert (
        main(["demo", "--out", str(out), "--jobs", "1", "--limit", "4", "--rows", "source", "bn-adapt"]) == 0
    )
    printed = capsys.readouterr().out
    assert "BN-adapt" in printed
    assert printed.splitlines()[-1] == str(out / "report.html")
    assert read_run(out).request.precision == "float32"
