"""Streams without requests leave the memory, and go on from their snapshot as if they had stayed."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from small_session import images, network, tent

from testtime.adapter import state_hash
from testtime.serve import Session, SessionOptions, replay, verify_session
from testtime.serve.audit import records
from testtime.serve.idle import BEYOND
from testtime.serve.keeping import Captured
from testtime.serve.snapshots import SnapshotInfo

NAMES = [f"camera-{i}" for i in range(6)]


def x(name: str, number: int) -> torch.Tensor:
    return images(1000 * NAMES.index(name) + number)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_streams_that_leave_go_on_bit_for_bit(tmp_path: Path, asynchronous: bool) -> None:
    """Six streams take turns where two may stay: each answer is that of an adapter alone, and of a replay."""
    options = SessionOptions(snapshot_every=0, resident=2, asynchronous=asynchronous)
    alone = {name: tent() for name in NAMES}
    with Session(tent(), tmp_path, options=options) as session:
        for i in range(4):
            for name in NAMES:
                answer, want = session.submit(x(name, i), name), alone[name](x(name, i))
                session.settle(60)
                assert torch.equal(answer.logits, want.logits)
                assert answer.state == state_hash(alone[name])[:16]
                assert answer.offset == 4 * i
                assert len(session._turns.all()) <= 2 + (i == 0 and asynchronous)
    events = [record["event"] for record in records(tmp_path / "audit")]
    assert events.count("unload") >= 4 * 6 - 3
    again = replay(tmp_path, network(), {name: torch.cat([x(name, i) for i in range(4)]) for name in NAMES})
    assert (again.answers, again.differences, again.left_out) == (24, [], {})
    assert verify_session(tmp_path).faults == ()


def test_an_idle_stream_costs_its_disk_alone(tmp_path: Path) -> None:
    options = SessionOptions(snapshot_every=0, resident=1, asynchronous=False)
    with Session(tent(), tmp_path, options=options) as session:
        session.submit(x(NAMES[0], 0), NAMES[0])
        one = weakref.ref(session._turns.all()[0])
        counts = session.status(NAMES[0]).counts
        for name in NAMES[1:]:
            session.submit(x(name, 0), name)
        gc.collect()
        assert one() is None
        (last,) = session._turns.all()
        keeper = session._keeper
        assert {*keeper._numbers, *keeper.store._known} <= {last.name}
        status = session.status(NAMES[0])
        assert (status.bytes, status.offset, status.step, status.counts) == (0, 4, 1, counts)
        assert session.status(last.name).bytes > 0
        assert session.history(NAMES[0]) == ()
        assert [s.offset for s in session.snapshots(NAMES[0])] == [4]
        assert session._turns.all() == [last]  # looking at a stream does not load it
        assert session.streams() == tuple(NAMES)


def test_a_slow_disk_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the thread that writes does not keep up, requests write the snapshots of the streams that leave."""
    parked: list[object] = []
    options = SessionOptions(snapshot_every=0, resident=2)
    with Session(tent(), tmp_path, options=options) as session:
        monkeypatch.setattr(session._keeper, "later", parked.append)
        counts = []
        for i in range(40):
            session.submit(images(i), f"s{i}")
            counts.append(len(session._turns.all()))
        assert max(counts) == counts[-1] == 2 + BEYOND
        assert len(parked) == BEYOND
        assert session.streams() == tuple(sorted(f"s{i}" for i in range(40)))


def test_a_stream_that_is_forgotten_while_it_leaves_fails_no_other_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SessionOptions(snapshot_every=0, resident=1, asynchronous=False)
    with Session(tent(), tmp_path, options=options) as session:
        session.submit(images(0), "a")
        real = session._keeper.write

        def write(captured: Captured) -> SnapshotInfo:
            session.forget("a")
            return real(captured)

        monkeypatch.setattr(session._keeper, "write", write)
        assert session.submit(images(1), "b").adapted
        assert session.streams() == ("b",)
        monkeypatch.undo()


def test_streams_leave_after_a_time(tmp_path: Path) -> None:
    now = [0.0]
    options = SessionOptions(snapshot_every=0, idle=10.0, asynchronous=False, clock=lambda: now[0])
    with Session(tent(), tmp_path, options=options) as session:
        for time, name in ((0, "a"), (5, "b"), (9, "c"), (9.5, "a"), (15.5, "c"), (19, "c")):
            now[0] = time
            session.submit(images(int(10 * time)), name)
            want = {"a", "b", "c"}.intersection("ab" if time < 9 else "abc") if time < 15 else {"a", "c"}
            assert {one.name for one in session._turns.all()} == ({"a"} if time == 0 else want)
        now[0] = 40.0
        session.submit(images(7), "c")
        assert [one.name for one in session._turns.all()] == ["c"]


def test_a_stream_stays_whose_state_is_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SessionOptions(snapshot_every=0, resident=1, backlog=64, asynchronous=False)
    with Session(tent(), tmp_path, options=options) as session:
        session.submit(images(0), "late", deadline=-1.0)
        session.submit(images(1), "b")
        assert {one.name for one in session._turns.all()} == {"late", "b"}  # its samples are to be learned
        assert session.catch_up("late") == 4

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        state = session.submit(images(2), "b").state
        assert {one.name for one in session._turns.all()} == {"late", "b"}
        monkeypatch.undo()
        session.submit(images(3), "c")
        assert [one.name for one in session._turns.all()] == ["c"]
        assert session.status("b").state == state


def test_what_was_caught_up_is_in_the_last_snapshot(tmp_path: Path) -> None:
    options = SessionOptions(snapshot_every=0, backlog=64)
    with Session(tent(), tmp_path, options=options) as session:
        session.submit(images(0), deadline=-1.0)
        session.snapshot()
        session.catch_up()
        state = session.status().state
    with Session.resume(network(), tmp_path) as session:
        assert session.status().state == state


def test_streams_on_the_disk_count_too(tmp_path: Path) -> None:
    options = SessionOptions(snapshot_every=0, resident=1, streams=3, asynchronous=False)
    with Session(tent(), tmp_path, options=options) as session:
        for name in "abc":
            session.submit(images(0), name)
        session.submit(images(1), "a")
        with pytest.raises(RuntimeError, match="has 3 streams, as many as it may have"):
            session.submit(images(0), "d")
        session.forget("b")
        assert session.submit(images(0), "d").offset == 0


def test_the_last_records_cost_their_number(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        for i in range(5):
            session.submit(images(i))
        whole = session.history()
        assert session.history(last=2) == whole[-2:]
        assert session.history(last=9) == whole
        assert session.history(last=0) == ()


def test_many_threads_and_few_places(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    options = SessionOptions(snapshot_every=3, resident=2)
    with Session(tent(), tmp_path, options=options) as session:

        def serve(name: str) -> list[str]:
            return [session.submit(x(name, i), name).state for i in range(8)]

        with ThreadPoolExecutor(6) as pool:
            states = dict(zip(NAMES, pool.map(serve, NAMES), strict=True))
        session.settle(60)
    for name, found in states.items():
        alone = tent()
        for i, state in enumerate(found):
            alone(x(name, i))
            assert state_hash(alone)[:16] == state
    assert verify_session(tmp_path).faults == ()
