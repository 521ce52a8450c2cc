"""Claims: one holder at a time, whoever is killed, on this host and on others."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testtime import claims
from testtime.claims import STALE, claimed, holder, machine, start_time

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")


def write(path: Path, **facts: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "token": "t",
        **facts,
    }
    path.write_text(json.dumps(content))
    return path


def test_a_second_claim_is_refused_while_the_first_is_held_and_nothing_is_left(tmp_path: Path) -> None:
    with claimed(tmp_path / "unit") as (own, before):
        assert own is not None
        assert before is None
        assert own.held()
        with claimed(tmp_path / "unit") as (second, other):
            assert second is None
            assert other == own
    assert list((tmp_path / "unit").iterdir()) == []


@needs_proc
def test_the_claim_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = start_time(process.pid)
    path = write(tmp_path / "claim-3", pid=process.pid, started=started)
    with claimed(tmp_path) as (own, before):
        assert own is None
    process.kill()
    while start_time(process.pid) is not None:  # a zombie is gone too: nobody has waited for it yet
        pass
    with claimed(tmp_path) as (own, before):
        assert own is not None
        assert before is not None
        assert (own.path.name, before.pid) == ("claim-4", process.pid)
    process.wait()
    assert not path.exists()


@needs_proc
def test_a_process_that_got_the_number_of_a_dead_one_does_not_hold_its_claim(tmp_path: Path) -> None:
    write(tmp_path / "claim-1", started=1)
    found = holder(tmp_path)
    assert found is not None
    assert found.dead()


@needs_proc
def test_a_claim_that_this_process_lost_track_of_is_dead(tmp_path: Path) -> None:
    write(tmp_path / "claim-1", token="unknown")
    found = holder(tmp_path)
    assert found is not None
    assert found.dead()


@pytest.mark.parametrize(
    "content", ['{"machine": "elsewhere", "pid": 1, "started": 1, "token": "t"}', "", '{"machine":']
)
def test_a_claim_of_another_host_or_one_that_cannot_be_read_is_held_until_its_heartbeat_is_stale(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "claim-1"
    path.write_text(content)
    with claimed(tmp_path) as (own, _):
        assert own is None
    stale = path.stat().st_mtime - STALE - 5
    os.utime(path, (stale, stale))
    with claimed(tmp_path) as (own, before):
        assert own is not None
        assert before is not None
        assert before.path == path
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_renews_the_time_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with claimed(tmp_path) as (own, _):
        assert own is not None
        os.utime(own.path, (0, 0))
        for _ in range(500):
            if own.path.stat().st_mtime > 0:
                break
            claims.threading.Event().wait(0.01)
        assert own.path.stat().st_mtime > 0


def test_a_claim_that_was_taken_over_is_no_longer_held(tmp_path: Path) -> None:
    with claimed(tmp_path) as (own, _):
        assert own is not None
        later = write(tmp_path / "claim-2", machine="elsewhere", token="other")
        assert not own.held()
    assert later.exists()  # it is not the own claim's to remove


@needs_proc
def test_a_claim_made_after_another_process_began_anew_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = write(tmp_path / "claim-1", started=1)
    made = claims._make

    def late(path: Path) -> claims.Claim | None:
        dead.unlink()  # between the reading of the dead claim and the new one, all this happened
        write(tmp_path / "claim-1", pid=os.getppid(), started=start_time(os.getppid()))
        return made(path)

    monkeypatch.setattr(claims, "_make", late)
    with claimed(tmp_path) as (own, other):
        assert own is None
        assert other is not None
        assert other.pid == os.getppid()
    assert [path.name for path in tmp_path.iterdir()] == ["claim-1"]


def test_of_many_threads_that_take_over_a_dead_claim_one_succeeds(tmp_path: Path) -> None:
    for turn in range(20):
        folder = tmp_path / str(turn)
        write(folder / "claim-1", started=1)
        barrier, found = claims.threading.Barrier(8), []

        def take(folder: Path = folder, barrier: object = barrier, found: list[bool] = found) -> None:
            barrier.wait()  # type: ignore[attr-defined]
            with claimed(folder) as (own, _):
                found.append(own is not None)
                barrier.wait()  # type: ignore[attr-defined]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, take=take: take(), range(8)))
        assert sum(found) == 1


def race(folder: str, turns: int, out: str) -> None:
    """Claim one folder again and again, and note when the block began and ended."""
    for _ in range(turns):
        with claimed(Path(folder)) as (own, _before):
            if own is not None:
                with open(out, "a") as file:
                    file.write("in\n")
                    file.flush()
                    file.write("out\n")


def test_two_processes_never_hold_one_claim_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "unit"), 300, str(tmp_path / "log"))
    processes = [context.Process(target=race, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (tmp_path / "log").read_text().split()
    assert len(lines) > 100
    assert lines == ["in", "out"] * (len(lines) // 2)
