"""``testtime run`` and ``testtime list`` as a user calls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from testtime.cli import main
from testtime.experiments import read_run

pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
SMALL = [
    "--set",
    "epochs=1",
    'corruptions=["contrast"]',
    "--limit",
    "64",
    "--seeds",
    "0",
    "--precision",
    "float32",
]


def test_a_run_prints_its_table_writes_its_page_and_goes_on_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "digits"
    assert main(["run", "digits", "--rows", "BN-adapt", *SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Error on corrupted digits" in printed
    assert "BN-adapt" in printed
    assert printed.splitlines()[-1] == str(out / "report.html")
    assert "BN-adapt" in (out / "report.html").read_text()
    request = tomllib.loads((out / "run.toml").read_text())
    assert request["settings"] == {"epochs": 1, "corruptions": ["contrast"]}
    assert (request["rows"], request["seeds"], request["limit"]) == (["BN-adapt"], [0], 64)
    again = ["run", str(out / "run.toml"), "--methods", "testtime.methods.tent:Tent", "--jobs", "1"]
    assert main(again) == 0
    run = read_run(out)
    assert [row.label for row in run.rows] == ["Source", "BN-adapt", "TENT (testtime.methods.tent:Tent)"]
    assert run.missing == []
    assert [session["command"][1] for session in run.about["sessions"]] == ["run", "run"]
    assert run.about["sessions"][1]["command"] == ["testtime", *again]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "no experiment 'digit' (did you mean 'digits'?); testtime list shows all"),
        (["digits", "--set", "epoch=3"], "no setting of digits 'epoch' (did you mean 'epochs'?)"),
        (["digits", "--set", "epochs"], "expected a setting as KEY=VALUE, got 'epochs'"),
        (
            ["digits", "--rows", "TNET"],
            "digits has no row 'TNET' (did you mean 'TENT'?); its rows are Source",
        ),
        (
            ["digits", "--methods", "nowhere:Mine"],
            "nowhere:Mine: No module named 'nowhere'; install its package, or",
        ),
        (["digits", "digits", "--out", "x"], "--out is the folder of one run"),
        (["none.toml"], "none.toml: no such file; expected a request, such as the run.toml of a run"),
        (
            ["digits", "--set", "epochs=many"],
            "digits: expected the setting epochs in the form of 12, got 'many'",
        ),
        (["digits", "--set", "corruptions=fog"], "digits: expected the setting corruptions in the form of ["),
        (["digits", "digit"], "no experiment 'digit' (did you mean 'digits'?)"),
        (["digits", "--data", "nowhere"], "--data nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.rglob("*.json")) == []


def test_lines_of_the_list_fit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80
    assert any(line.endswith("...") for line in lines)


def test_the_list_has_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "demo\n  digits  Handwritten digits under corruption" in capsys.readouterr().out
    assert main(["list", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["demo"][0]["name"] == "digits"
    assert main(["list", "demos"]) == 2
    assert "no family 'demos' (did you mean 'demo'?)" in capsys.readouterr().err


OWN = """
from testtime import Adapter

class Mine(Adapter):
    cost = (1, 0)

    def step(self, x):
        return self.model(x)
"""


def test_an_own_method_in_the_folder_of_the_call_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_adapter.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    command = ["run", "digits", "--rows", "source", "--method", "own_adapter:Mine", *SMALL, "--out", "run"]
    assert main(command) == 0
    assert [row.label for row in read_run("run").rows] == ["Source", "Mine"]
    errors = [record.result["error"] for record in read_run("run").records()]
    assert errors[0] == errors[1]
    assert str(tmp_path) in sys.path


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals to a group of processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", [[], ["--jobs", "2"]])
def test_an_interrupted_run_says_so_in_one_line_and_goes_on(
    tmp_path: Path, number: int, jobs: list[str]
) -> None:
    out = tmp_path / "digits"
    command = [
        sys.executable,
        "-m",
        "testtime",
        "run",
        "digits",
        "--rows",
        "TENT",
        *SMALL,
        *jobs,
        "--out",
        str(out),
    ]
    command[command.index("epochs=1")] = "epochs=4"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("store/units/*/*/source.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.terminate()
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130 if number == signal.SIGINT else 143, "")
    lines = [line for line in errors.splitlines() if not line.startswith("digits: ")]  # those are progress
    assert lines == ["interrupted; the same command goes on from here"]
    assert list(out.glob("results/*")) == []
    assert main(command[3:]) == 0
    assert read_run(out).missing == []
