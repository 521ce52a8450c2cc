"""testtime multitask, the former spelling of the family's commands: what it prints and writes, and that mistakes get a line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from speck import SPECK
from written_study import write_study

from testtime.cli import main
from testtime.experiments import read_run
from testtime.experiments.multitask.listing import LISTED
from testtime.experiments.multitask.planning import PRESETS


def test_list_names_presets_and_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["multitask", "list"]) == 0
    out = capsys.readouterr().out
    for name in (*PRESETS, *(one.name.removeprefix("multitask-") for one in LISTED)):
        assert f"  {name} " in out
    assert "figure 7 of the paper" in out


def test_report_prints_the_table_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "table1")
    assert main(["multitask", "report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "+14.9 ±0.5" in out
    assert out.strip().endswith(str(folder / "report.html"))
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere is not the folder of a run"),
        (["bench", "no-such"], "no study 'no-such'; there are table1"),
        (["bench", "table1", "--preset", "huge"], "no preset 'huge'; there are tiny"),
        (["bench", "table1", "--rows", "S4T", "nonsense"], "table1 has no row 'nonsense'; its rows are Base"),
        (["train", "--preset", "huge"], "no preset 'huge'"),
        (["train", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extra = ["--out", str(tmp_path / "out")] if arguments[0] != "report" else []
    assert main(["multitask", *arguments, *extra]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_train_on_spaces_goes_on_and_is_repeatable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("embreex")
    from testtime.scenes.disk import Recipe, make

    make(tmp_path / "spaces", [Recipe(seed, frames=3, size=(32, 32)) for seed in range(2)])
    sums = []
    for out in ("one", "two"):
        arguments = ["--data", str(tmp_path / "spaces"), "--out", str(tmp_path / out), "--iterations", "2"]
        assert main(["multitask", "train", *arguments, "--model", "plain", "--seed", "3"]) == 0
        printed = capsys.readouterr().out.strip()
        assert printed == str(tmp_path / out / "model.safetensors")
        with safe_open(printed, framework="pt") as file:
            described = json.loads(file.metadata()["described"])
            sums.append(sum(file.get_tensor(k).double().sum() for k in file.keys()))  # noqa: SIM118 - not a dict
        assert described["recipe"]["iterations"] == 2
        assert described["seed"] == 3
        assert described["samples"] == 6
    assert torch.equal(sums[0], sums[1])


def test_bench_runs_an_experiment_draws_it_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("embreex")
    monkeypatch.setitem(PRESETS, "small", SPECK)
    out: Any = ["--preset", "small", "--out", str(tmp_path / "mt"), "--jobs", "1"]
    command = ["multitask", "bench", "online", *out, "--seeds", "0"]
    assert main([*command, "--rows", "s4t's network, bn only"]) == 0
    folder = tmp_path / "mt" / "online"
    assert [row.label for row in read_run(folder).rows] == ["Base", "S4T's network, BN only"]
    captured = capsys.readouterr()
    assert captured.out.strip().endswith(str(folder / "report.html"))
    assert "S4T's network, BN only" in captured.out
    run = read_run(folder)
    assert run.missing == []
    assert run.about["sessions"][0]["command"][:4] == ["testtime", "multitask", "bench", "online"]
    assert (folder / "report.html").is_file()
    assert main(["multitask", "bench", "online", "--out", str(tmp_path / "mt"), "--jobs", "1"]) == 2
    assert "holds a run with preset small" in capsys.readouterr().err
