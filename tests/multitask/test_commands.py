"""testtime multitask: what it prints, what it writes, and that mistakes get a sentence."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from written_study import write_study

from testtime.cli import main
from testtime.multitask.presets import PRESETS, Domain
from testtime.multitask.results import read_results
from testtime.multitask.studies import STUDIES


def test_list_names_presets_and_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["multitask", "list"]) == 0
    out = capsys.readouterr().out
    for name in (*PRESETS, *STUDIES):
        assert f"  {name} " in out
    assert "S4T" in out


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
        (["report", "nowhere"], "not the folder of a finished study"),
        (["bench", "no-such"], "no study 'no-such'; there are table1"),
        (["bench", "table1", "--preset", "huge"], "no preset 'huge'; there are tiny"),
        (["bench", "table1", "--rows", "S4T", "nonsense"], "table1 has no row nonsense; its rows are Base"),
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


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from testtime.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"
    assert "multitask" in done.stdout


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


def test_bench_runs_a_study_draws_it_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("embreex")
    size = (32, 32)
    tiny, table1 = PRESETS["tiny"], STUDIES["table1"]
    preset = replace(
        tiny,
        name="small",
        recipe=replace(tiny.recipe, iterations=2, batch=4),
        domains={
            "source": Domain(0, 1, 6, size),
            "validation": Domain(1, 1, 8, size),
            "target": Domain(2, 1, 9, size),
        },
    )
    names = ("Base", "S4T's network, BN only", "S4T")
    rows = {row.name: replace(row, rates=row.rates[:1]) for row in table1.rows}
    study = replace(
        table1,
        name="short",
        rows=tuple(rows[name] for name in names),
        seeds=(0,),
        protocol=replace(table1.protocol, steps=2),
    )
    monkeypatch.setitem(PRESETS, "small", preset)
    monkeypatch.setitem(STUDIES, "short", study)
    command = [
        "multitask",
        "bench",
        "short",
        "--preset",
        "small",
        "--out",
        str(tmp_path / "mt"),
        "--jobs",
        "1",
    ]
    assert main([*command, "--rows", "s4t"]) == 0
    folder = tmp_path / "mt" / "short"
    assert read_results(folder).rows == ["Base", "S4T"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.strip().endswith(str(folder / "report.html"))
    results = read_results(folder)
    assert results.rows == list(names)
    assert results.controls == ["S4T's network, BN only"]
    assert results.command["command"] == ["testtime", *command]
    about = json.loads((folder / "pictures" / "pictures.json").read_text())["about"]
    assert "that S4T adapted to, seed 0" in about
    assert "the control (S4T's network, BN only)" in about
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 6
    assert main([*command[:4], "tiny", *command[5:]]) == 2
    assert "holds results of the preset 'small'" in capsys.readouterr().err
