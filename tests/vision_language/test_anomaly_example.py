"""The example of anomalies runs as it stands, and adaptation does not lose to none."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "find_anomalies.py"


def test_the_example_runs_and_finds_the_stains(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    without, adapted = (float(line.split()[-2]) for line in lines)
    assert 90 < without <= adapted


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
