"""A run that is killed leaves no process behind, and goes on from where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testtime.experiments import read_run

PROC = Path("/proc/self/task")


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(
    not PROC.is_dir(), reason="reads the processes from /proc, which this system does not have"
)
@pytest.mark.parametrize(
    ("ending", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_killed_workers_end_and_the_run_goes_on(ending: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "testtime", "run", "digits-open", "--rows", "TENT", "PAF+KIP"]
    command += ["--limit", "100", "--seeds", "0", "--jobs", "2", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not any(p.stat().st_size for p in tmp_path.glob("store/units/*/*/batches.jsonl")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no batch was finished in four minutes"
        time.sleep(0.05)
    children = [int(c) for c in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.send_signal(ending)
    assert process.wait(timeout=60) == code
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    assert "Traceback" not in errors
    assert ("interrupted; the same command goes on from here" in errors) == (code > 0)
    deadline = time.monotonic() + 20
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, f"processes outlived the run: {[c for c in children if alive(c)]}"
        time.sleep(0.1)
    finished = len(read_run(tmp_path / "run").records())
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    records = read_run(tmp_path / "run").records()
    assert finished < len(records) == 3
    assert {record.result["images"] for record in records} == {1500}
