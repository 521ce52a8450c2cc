"""The example of segmentation runs as it stands, and shows what it says."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "segmentation.py"


def test_the_example_runs_and_adapters_recover_the_segments(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" mIoU")[0].strip() for line in lines] == ["Source", "BN-adapt", "TENT", "CoTTA"]
    overlap = [float(line.split()[2]) for line in lines]
    boundary = [float(line.split()[-1]) for line in lines]
    assert overlap[0] < 60
    assert min(overlap[1:]) > 90
    assert boundary[0] < 75
    assert min(boundary[1:]) > 95


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
