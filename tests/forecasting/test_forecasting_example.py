"""The example of forecasting runs as it stands, and shows what it says."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "forecasting.py"


def test_the_example_runs_and_the_bias_is_worth_something(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    source, bias, adcsd = (float(line.rpartition(" ")[2]) for line in lines)
    assert [line.split(" MSE")[0].strip() for line in lines] == ["Source", "output bias", "ADCSD"]
    assert source == pytest.approx(0.12**2 + 2 * 0.01, rel=0.15)  # a day of growth, and the noise of two days
    assert bias < 0.8 * source
    assert adcsd < 1.02 * source


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
