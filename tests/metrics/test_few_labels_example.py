"""The example of accuracy from few labels runs, stays short, and its interval holds the accuracy of the whole stream."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "few_labels.py"


def test_example_of_few_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    mean, low, high, whole = map(float, re.findall(r"(\d+\.\d)(?= | %)", capsys.readouterr().out))
    assert low < whole < high
    assert low < mean < high
    assert high - low < 35
