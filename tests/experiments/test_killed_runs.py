"""Two processes on one folder, and processes that are killed: every unit is done exactly once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from toy_family import Toy, events

from testtime.experiments import Request, read_run, run_experiment

COMMAND = Path(__file__).parent / "toy_command.py"
UNITS = 10
proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")


def start(folder: Path, sleep: float, kind: str = "here") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(COMMAND), str(folder), str(sleep), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def counts(store: Path) -> Counter[str]:
    return Counter(event["event"] for event in events(store))


def go_on(folder: Path, sleep: float) -> None:
    request = Request("toy", precision="float32", settings={"sleep": sleep, "steps": 3})
    assert run_experiment(Toy(), request, folder, say=lambda line: None).exit_code == 0


def check_values(folder: Path) -> None:
    (table,) = Toy().tables(read_run(folder))
    assert {key[0]: dict(values) for key, values in table.values.items()} == {
        "base": {0: 0.5, 1: 20.5},
        "one": {0: 1.5, 1: 21.5},
        "two": {0: 2.5, 1: 22.5},
    }


@proc
def test_two_processes_on_one_folder_do_every_unit_once_also_when_one_is_killed(tmp_path: Path) -> None:
    first, second = start(tmp_path / "run", 0.3), start(tmp_path / "run", 0.3)
    store = tmp_path / "store"

    def begun(process: subprocess.Popen[str]) -> bool:
        """Whether it has begun with a unit, and will not be done with it soon."""
        own = [event for event in events(store) if event["pid"] == process.pid]
        return bool(own) and own[-1]["event"] == "started" and time.time() - own[-1]["time"] < 0.15

    wait_for(lambda: len({event["pid"] for event in events(store)}) == 2 and begun(first))
    first.kill()
    assert first.wait() == -signal.SIGKILL
    interrupted = [e["address"] for e in events(store) if e["pid"] == first.pid]
    interrupted = [a for a in interrupted if interrupted.count(a) == 1]  # begun, not finished
    assert len(interrupted) == 1
    out, errors = second.communicate(timeout=60)
    assert (second.returncode, errors, "failed" in out) == (0, "", False)
    found = events(store)
    finished = Counter(event["address"] for event in found if event["event"] == "finished")
    assert len(finished) == UNITS
    assert set(finished.values()) == {1}
    taken = [event for event in found if "took_over" in event]
    assert [(event["address"], event["took_over"], event["pid"]) for event in taken] == [
        (interrupted[0], first.pid, second.pid)
    ]
    assert counts(store) == {"started": UNITS + 1, "finished": UNITS}
    check_values(tmp_path / "run")
    assert not list(store.glob("units/*/*/claim-*"))


@proc
def test_a_killed_unit_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path / "run", 0.1)
    wait_for(lambda: any(path.read_text() for path in tmp_path.glob("store/units/*/*/steps.txt")))
    process.kill()
    process.wait()
    go_on(tmp_path / "run", 0.1)
    steps = [
        line.split()
        for path in tmp_path.glob("store/units/*/*/steps.txt")
        for line in path.read_text().splitlines()
    ]
    assert sorted(int(step) for step, _ in steps) == [0, 0, 1, 1, 2, 2]
    assert {int(pid) for _, pid in steps} == {process.pid, os.getpid()}
    check_values(tmp_path / "run")


@proc
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_an_ended_command_ends_its_workers_and_says_nothing(tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path / "run", 0.1, "processes")
    wait_for(lambda: counts(tmp_path / "store")["started"] >= 2)
    workers = {event["pid"] for event in events(tmp_path / "store")}
    assert process.pid not in workers
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    said = [
        line for line in errors.splitlines() if not line.startswith("toy: ")
    ]  # progress, where it is slow
    assert said == [] or (number == signal.SIGKILL and "Traceback" not in errors)
    wait_for(lambda: not any(alive(pid) for pid in workers))
    before = counts(tmp_path / "store")["finished"]
    assert before < UNITS
    go_on(tmp_path / "run", 0.1)
    assert counts(tmp_path / "store")["finished"] == UNITS
    check_values(tmp_path / "run")
