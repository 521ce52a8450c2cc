"""Cells of tests measure forgetting on few images, and the baseline for a short time."""

import pytest

from testtime.experiments.online import cell


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "CLEAN_IMAGES", 40)
    monkeypatch.setattr(cell, "SECONDS", 0.01)
