"""The commands of the family: what they print and write, and that mistakes get a line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from speck import SPECK
from written_study import write_study

from testtime.cli import main
from testtime.experiments import read_run
from testtime.experiments.multitask.listing import LISTED
from testtime.experiments.multitask.planning import PRESETS


def test_list_names_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "multitask"]) == 0
    out = capsys.readouterr().out
    for one in LISTED:
        assert f"  {one.name} " in out
    assert "(figure 7)" in out


def test_report_prints_the_table_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "table1")
    assert main(["multitask", "report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "+14.9 ±0.5" in out
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report nowhere", "nowhere is not the folder of a run"),
        ("run multitask-tabel1", "no experiment 'multitask-tabel1' (did you mean 'multitask-table1'?)"),
        ("run multitask-table1 --set preset=huge", "no preset 'huge'; there are tiny, paper"),
        ("run multitask-table1 --rows nonsense", "has no row 'nonsense'; its rows are Base"),
        ("multitask bench table1 --rows s4", "has no row 's4' (did you mean 'S4T'?)"),
        ("multitask bench table1 --seeds 0,0", "--seeds: 0 stands twice"),
        ("multitask analyse affinty", "(did you mean 'multitask-affinity'?)"),
        ("multitask demo --seed -1", "--seeds: expected numbers from 0"),
        ("multitask trian", "no choice 'trian' (did you mean 'train'?)"),
        ("multitask train --out x --preset huge", "no preset 'huge'"),
        ("multitask train --out x --data nowhere", "--data nowhere: no such folder"),
        ("multitask train --out x --iterations 0", "--iterations: expected a whole number from 1"),
        ("multitask train --out x --device gpu", "--device: no device 'gpu' here"),
    ],
)
def test_mistakes(
    command: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(command.split())
    except SystemExit as left:
        code = int(str(left.code))
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.usefixtures("undrawn")
def test_a_former_spelling_runs_an_experiment_draws_it_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("embreex")
    monkeypatch.setitem(PRESETS, "small", SPECK)
    command = ["multitask", "bench", "online", "--out", str(tmp_path / "mt"), "--seeds", "0"]
    assert main([*command, "--preset", "small", "--rows", "s4t's network, bn only"]) == 0
    folder = tmp_path / "mt" / "online"
    assert [row.label for row in read_run(folder).rows] == ["Base", "S4T's network, BN only"]
    captured = capsys.readouterr()
    assert captured.out.strip().endswith(str(folder / "report.html"))
    assert "S4T's network, BN only" in captured.out
    run = read_run(folder)
    assert run.missing == []
    assert run.about["sessions"][0]["command"][:3] == ["testtime", "run", "multitask-online"]
    assert (folder / "report.html").is_file()
    assert main(command) == 2
    assert "holds a run with preset small" in capsys.readouterr().err
