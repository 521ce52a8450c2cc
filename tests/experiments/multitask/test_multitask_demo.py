"""The demo at its smallest: everything it promises is there, and it is not done twice."""

from pathlib import Path

import pytest
from speck import SIZE

from testtime.cli import main
from testtime.experiments import read_run
from testtime.experiments.multitask.planning import PRESETS
from testtime.experiments.multitask.results import Judged


@pytest.mark.slow
def test_the_smallest_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("embreex")
    small = {
        **PRESETS["demo"],
        "recipe": {**PRESETS["demo"]["recipe"], "iterations": 3, "batch": 4},
        "source": {"first": 0, "houses": 1, "frames": 6, "size": SIZE},
        "validation": {"first": 1, "houses": 1, "frames": 8, "size": SIZE, "shift": "fog"},
        "target": {"first": 2, "houses": 1, "frames": 10, "size": SIZE, "style": "other", "shift": "dim"},
    }
    monkeypatch.setitem(PRESETS, "demo", small)
    command = ["multitask", "demo", "--out", str(tmp_path / "demo"), "--jobs", "1"]
    assert main(command) == 0
    html = (tmp_path / "demo" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 6
    run = read_run(tmp_path / "demo")
    assert [row.label for row in run.rows] == ["Unadapted", "BN only", "S4T"]
    assert [row.role for row in run.rows] == ["base", "control", "method"]
    found = {one.row: one.result for one in Judged.read(run).records}
    assert found["Unadapted"].last == 0
    assert found["S4T"].curve.steps == list(range(41))
    assert found["BN only"].gains[0] == found["S4T"].gains[0] == 0  # the same network
    capsys.readouterr()
    assert main(command) == 0
    assert "units are finished already" in capsys.readouterr().err
