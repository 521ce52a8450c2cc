"""No acknowledged snapshot is lost when a process is killed at any moment, and every answer after it is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killing.py")


def kills(count: int, seed: int, directory: Path) -> dict[str, int]:
    command = [sys.executable, str(SCRIPT), str(count), str(seed), str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    found = json.loads(done.stdout)
    assert found.pop("wrong") == []
    assert found["kills"] >= count
    assert found["resumed"] > count / 4
    assert found["at file"] > 0
    assert found["points"] >= 20  # each kind of call and each moment at least once
    return found


@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forty_kills_lose_nothing(tmp_path: Path) -> None:
    kills(40, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_thousand_kills_lose_nothing(tmp_path: Path) -> None:
    print(kills(1000, 2, tmp_path))
