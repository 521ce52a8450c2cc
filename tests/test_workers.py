"""Pools that end at once and quietly, whenever the interruption comes."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from testtime.workers import Terminated, interrupts_held, release_locks, terminable, worker_pool

SCRIPT = """
import os, sys, time
from testtime.workers import Terminated, terminable, worker_pool

def main():
    try:
        with terminable(), worker_pool(2) as pool:
            futures = [pool.submit(os.getpid), *(pool.submit(time.sleep, 60) for _ in range(4))]
            print("begun", flush=True)
            print(futures[0].result(), flush=True)
            for future in futures:
                future.result()
    except KeyboardInterrupt as stop:
        sys.exit(143 if isinstance(stop, Terminated) else 130)

if __name__ == "__main__":
    main()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="sends signals to a group of processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, None])
def test_an_interrupted_pool_ends_at_once_and_says_nothing(
    tmp_path: Path, number: int, code: int, delay: float | None
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    worker = int(process.stdout.readline()) if delay is None else None
    time.sleep(delay or 0)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (code, "")
    assert worker is None or not alive(worker)


INTERRUPTED_IN_A_LOCK = """
import concurrent.futures, threading, time
from testtime.workers import worker_pool

locked, lock = [], threading.Condition.__enter__

def interrupted(condition):
    found = lock(condition)
    if condition in locked:
        locked.remove(condition)
        ACTION
    return found

if __name__ == "__main__":
    threading.Condition.__enter__ = interrupted
    try:
        with worker_pool(1) as pool:
            future = pool.submit(time.sleep, 60)
            locked.append(future._condition)
            future.result()
    except KeyboardInterrupt:
        print("ended")
"""
RELEASED = """
        try:
            raise KeyboardInterrupt
        finally:
            condition.release()
            condition.release()
"""


@pytest.mark.parametrize("action", ["raise KeyboardInterrupt", RELEASED.strip()], ids=["taken", "released"])
def test_an_interruption_while_a_lock_is_taken_ends_the_pool(tmp_path: Path, action: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED_IN_A_LOCK.replace("ACTION", action))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_released_futures_get_their_results() -> None:
    futures: list[Future[int]] = [Future(), Future()]
    for _ in range(2):
        futures[0]._condition.acquire()  # type: ignore[attr-defined]
    futures[0]._waiters.append(None)  # calling it would raise
    release_locks(futures)
    thread = threading.Thread(target=futures[0].set_result, args=(1,), daemon=True)
    thread.start()
    thread.join(10)
    assert futures[0].done()


def test_work_is_done_and_errors_come_through() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(pow, 2, 10).result() == 1024
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()


def test_interruptions_wait_for_the_end_of_the_block() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)
        done.append(2)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]


def test_a_request_to_end_waits_while_processes_are_made() -> None:
    """A process that was being made would find the semaphores of its parent gone, and print a traceback."""
    done = []

    def ended() -> None:
        with terminable(), interrupts_held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(1)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        ended()
    assert done == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_termination_is_an_interruption_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    found = []

    def elsewhere() -> None:
        with terminable():
            found.append("ran")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == ["ran"]


PRELOADING = """
import os, sys
from testtime.workers import worker_pool

def found(number):
    return os.getppid(), "colorsys" in sys.modules

if __name__ == "__main__":
    with worker_pool(2, preload=("colorsys",)) as pool:
        (parent, imported), other = pool.map(found, range(2))
    with worker_pool(1) as pool:
        print(imported, other == (parent, True), parent != os.getpid(), pool.submit(found, 0).result() == (os.getpid(), False))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a server of processes that forks")
def test_modules_are_imported_once_for_all_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PRELOADING)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True True True\n", "")


def test_a_pool_that_breaks_while_a_process_is_made_ends_that_process_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late: dict[int, Any] = {}
    known = threading.Event()
    manager = process._ExecutorManagerThread
    terminate, join = manager.terminate_broken, manager.join_executor_internals

    def terminate_all_but_one(thread: Any, cause: object) -> None:
        wait([one.sentinel for one in thread.processes.values()])
        for one in thread.processes.values():
            one.join(1)  # the end of a process is seen a little after that of its pipe
        (number,) = (n for n, one in thread.processes.items() if one.is_alive())
        late[number] = thread.processes.pop(number)
        terminate(thread, cause)

    def join_all(thread: Any) -> None:
        thread.processes.update(late)
        known.set()
        join(thread)

    monkeypatch.setattr(manager, "terminate_broken", terminate_all_but_one)
    monkeypatch.setattr(manager, "join_executor_internals", join_all)
    with worker_pool(2) as pool:
        futures = [pool.submit(time.sleep, 60), pool.submit(os._exit, 1)]
        for future in futures:
            with pytest.raises(process.BrokenProcessPool):
                future.result()
        assert known.wait(30)
    assert [one.exitcode for one in late.values()] == [-signal.SIGTERM]
