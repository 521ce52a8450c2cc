"""The example of image and text runs as it stands, and shows the controls beside prompt tuning."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "image_text.py"


def test_the_example_runs_and_statistics_are_worth_more_than_a_prompt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    found = {line.split(" ")[0]: float(line.split("%")[0].split()[-1]) for line in lines}
    assert list(found) == ["Source", "BN-adapt", "ZERO", "TDA", "TPT"]
    assert found["BN-adapt"] > found["Source"] + 5
    assert abs(found["TPT"] - found["Source"]) < 10
    assert [line.split(", ")[1].split()[0] for line in lines] == ["1", "1", "16", "1", "16"]


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
