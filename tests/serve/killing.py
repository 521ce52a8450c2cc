"""Sessions that are killed and resumed, in children of one process: ``python killing.py KILLS SEED DIRECTORY``.

Every trial serves two streams from a new directory in a child. The child is killed (SIGKILL) at a random moment, or kills
itself before, after or in the midst of a call of the operating system that writes, each kind of call and moment in turn;
another child resumes and ends. Every tenth trial has two kills. Trials go on until so many children were killed. Prints a
JSON object with counts of what was checked and of what was wrong.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from small_session import images, network, tent

from testtime.adapter import state_hash
from testtime.serve import Session, SessionOptions
from testtime.serve.recording import digest_of
from testtime.serve.replaying import replay, verify_session

REQUESTS = {"a": 5, "b": 3}
SIZE = 4
WRITE = os.write
ADAPTER = tent()  # every child has its own copy of the process
USED: Counter[str] = Counter()
MOMENTS = ("before", "midst", "after")
CALLS = ("write", "fsync", "replace", "open", "unlink", "ftruncate", "dup", "mkdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(call: str, number: int, moment: str) -> None:
    """Kill this process before, after or in the midst of a call: the ``number``-th from now on."""
    if call == "file":
        _kill_in_file(number, moment)
        return
    real, left = getattr(os, call), [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        USED[call] += 1
        if left[0] == 0 and moment == "before":
            die()
        if left[0] == 0 and moment == "midst" and call == "write":
            real(args[0], args[1][: len(args[1]) // 2])
            die()
        found = real(*args, **kwargs)
        if left[0] == 0:
            die()
        return found

    setattr(os, call, counted)


def _kill_in_file(number: int, moment: str) -> None:
    """Kill this process while the ``number``-th file is written through ``os.fdopen``."""
    real, left = os.fdopen, [number]

    class Wrapped:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Wrapped:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            left[0] -= 1
            USED["file"] += 1
            if left[0] == 0:
                self.file.write(
                    data if moment == "after" else data[: len(data) // 2] if moment == "midst" else b""
                )
                self.file.flush()
                die()
            return self.file.write(data)

    def opened(*args: Any, **kwargs: Any) -> Any:
        file = real(*args, **kwargs)
        return Wrapped(file) if "w" in str(args[1:]) else file

    os.fdopen = opened  # type: ignore[assignment]


def serve(directory: Path, report: int, points: list[tuple[str, int, str]], asynchronous: bool) -> None:
    """Serve both streams to their end, and report every answer and every acknowledged snapshot."""

    def tell(*words: object) -> None:
        WRITE(report, (" ".join(map(str, words)) + "\n").encode())

    for one in points:
        kill_at(*one)
    options = SessionOptions(snapshot_every=2, asynchronous=asynchronous)
    session = Session(ADAPTER, directory, options=options)
    left = dict(REQUESTS)
    for name in left:
        if name in session.streams():
            status = session.status(name)
            tell("resumed", name, status.offset, status.state, status.snapshot)
            left[name] -= status.offset // SIZE
    while any(left.values()):
        for name, count in left.items():
            if count:
                number = REQUESTS[name] - count
                answer = session.submit(images(1000 * ord(name) + number, SIZE), name)
                tell("answer", name, answer.offset, digest_of(answer.logits), answer.state)
                left[name] -= 1
                if number % 3 == 2:
                    info = session.snapshot(name)
                    tell("kept", name, info.offset, info.state, info.number)
    session.close()
    for call, count in USED.items():
        tell("used", call, count)
    for name in REQUESTS:
        tell("done", name)


def child(
    directory: Path, points: list[tuple[str, int, str]], asynchronous: bool, delay: float | None
) -> tuple[list[list[str]], bool]:
    """What a child reported, and whether it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            serve(directory, writing, points, asynchronous)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - reported by the parent
            WRITE(writing, f"error {type(error).__name__}: {error}\n".encode())
            os._exit(1)
    os.close(writing)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading) as file:
        lines = file.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return [line.split(" ") for line in lines if line], os.WIFSIGNALED(status)


class Trials:
    def __init__(self, seed: int, root: Path) -> None:
        self.rng, self.root = random.Random(seed), root
        self.count: Counter[str] = Counter()
        self.wrong: list[str] = []
        began = time.perf_counter()
        lines, _ = child(root / "whole", [(call, 0, "") for call in (*CALLS, "file")], False, None)
        self.length = time.perf_counter() - began
        self.answers = {(w[1], int(w[2])): (w[3], w[4]) for w in lines if w[0] == "answer"}
        self.states = {(name, 0): state_hash(ADAPTER)[:16] for name in REQUESTS}
        self.states |= {(name, offset + SIZE): state for (name, offset), (_, state) in self.answers.items()}
        self.used = {w[1]: int(w[2]) for w in lines if w[0] == "used"}
        assert [w[0] for w in lines[-2:]] == ["done", "done"], lines
        calls = sorted({*self.used, "file"})
        moments = {"write": MOMENTS, "file": MOMENTS}  # of other calls there is no midst
        self.points = [(call, m) for call in calls for m in moments.get(call, ("before", "after"))]
        self.rng.shuffle(self.points)

    def run(self, number: int) -> None:
        directory = self.root / str(number)
        known: dict[str, int] = dict.fromkeys(REQUESTS, 0)
        asynchronous = number % 2 == 1
        for attempt in range(2 + (number % 10 == 9)):
            points: list[tuple[str, int, str]] = []
            delay = None
            if attempt < 1 + (number % 10 == 9):
                if number % 4:
                    call, moment = self.points[self.count["points"] % len(self.points)]  # each in turn
                    self.count["points"] += 1
                    points = [(call, self.rng.randint(1, self.used[call]), moment)]
                else:
                    delay = self.rng.uniform(0, self.length)
            lines, killed = child(directory, points, asynchronous, delay)
            self.count["kills"] += killed
            self.count[
                f"at {points[0][0]}" if points and killed else "at a moment" if killed else "ended"
            ] += 1
            for words in lines:
                self.check(number, words, known)
            if not killed:
                break
        self.finish(number, directory, lines)
        shutil.rmtree(directory)

    def check(self, number: int, words: list[str], known: dict[str, int]) -> None:
        kind, name = words[:2]
        self.count[kind] += 1
        if kind == "error":
            self.wrong.append(f"trial {number}: {' '.join(words)}")
        elif kind == "answer":
            if self.answers[name, int(words[2])] != (words[3], words[4]):
                self.wrong.append(f"trial {number}: the answer of {name} at {words[2]} is another")
        elif kind in ("resumed", "kept"):
            offset = int(words[2])
            if kind == "resumed" and offset < known[name]:
                self.wrong.append(
                    f"trial {number}: {name} resumed at {offset}, acknowledged at {known[name]}"
                )
            if self.states[name, offset] != words[3]:
                self.wrong.append(f"trial {number}: {name} {kind} another state at {offset}")
            known[name] = max(known[name], offset)

    def finish(self, number: int, directory: Path, lines: list[list[str]]) -> None:
        if [w[0] for w in lines[-2:]] != ["done", "done"]:
            self.wrong.append(f"trial {number} did not end: {lines[-1:]}")
        found = verify_session(directory)
        self.wrong += [f"trial {number}: {fault}" for fault in found.faults]
        if not found.closed:
            self.wrong.append(f"trial {number}: the log is not closed")
        if number % 10 == 0:
            inputs = {
                n: torch.cat([images(1000 * ord(n) + i, SIZE) for i in range(k)]) for n, k in REQUESTS.items()
            }
            again = replay(directory, network(), inputs)
            self.count["replayed"] += again.answers
            self.wrong += [f"trial {number}: {what}" for what in again.differences]
            if again.left_out:
                self.wrong.append(f"trial {number}: {again.left_out}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    trials, trial = Trials(seed, Path(sys.argv[3])), 0
    while trials.count["kills"] < count and trial < 3 * count:
        trials.run(trial)
        trial += 1
    print(json.dumps({"wrong": trials.wrong, **trials.count}))
