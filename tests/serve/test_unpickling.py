"""Nothing is unpickled while an adapter is saved, loaded, served, resumed and run in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("unpickling.py")


@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_no_class_is_looked_up_by_pickle(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found.pop("the hook") == [["pathlib", "PosixPath"]]  # it hears of what is unpickled
    assert {stage: names for stage, names in found.items() if names} == {}
