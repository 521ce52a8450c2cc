"""Snapshots: what is kept, what is refused, and what happens to damaged files and full disks."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_session import images, network, tent

from testtime.errors import DataError
from testtime.serve import Retention, Session, SessionOptions, verify_session
from testtime.serve.audit import records
from testtime.serve.snapshots import SnapshotStore
from testtime.wrap import Wrapper

FACTS = {
    "offset": 12,
    "step": 3,
    "healthy": True,
    "state": "abc",
    "configuration": "c",
    "ranges": {"": [0.0, 1.0]},
    "counts": {"learned": 12},
}
SYNC = SessionOptions(snapshot_every=0, asynchronous=False)


def store(folder: Path, **retention: Any) -> SnapshotStore:
    return SnapshotStore(folder, Retention(**retention), lambda: 1.5)


def tensors() -> dict[str, torch.Tensor]:
    return {"state/a": torch.arange(6.0), "state/b": torch.tensor(3), "state/c": torch.empty(0)}


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = store(tmp_path).write("Cam.1", 1, tensors(), FACTS)
    found = store(tmp_path).read("Cam.1", 1)
    assert found.info == written
    assert {k: found.facts[k] for k in FACTS} == FACTS
    assert all(torch.equal(found.tensors[k], v) for k, v in tensors().items())
    path = tmp_path / "+cam.1" / "000000001.safetensors"
    assert (written.bytes, written.offset, written.time) == (path.stat().st_size, 12, 1.5)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    assert store(tmp_path).streams() == ["Cam.1"]


def test_what_is_kept_is_kept_from_its_first_day() -> None:
    """Nothing is needed later that was deleted before, and every power of two has a snapshot of that age."""
    retention, there = Retention(last=3, healthy=2), set()
    for n in range(1, 400):
        there.add(n)
        kept = retention.kept(there, {m for m in there if m % 50 == 0})
        assert kept <= there
        there = kept
        assert {n, n - 1, n - 2} - {0, -1} <= there
        assert {m for m in (n // 50 * 50, n // 50 * 50 - 50) if m > 0} <= there
        for j in range(n.bit_length() - 1):
            assert any(2**j <= n - m < 2 ** (j + 1) for m in there | {0})
        assert len(there) <= 3 + 2 + 2 * n.bit_length()


def test_the_ring_on_the_disk(tmp_path: Path) -> None:
    kept = store(tmp_path, last=2, healthy=1)
    for n in range(1, 41):
        kept.write("a", n, tensors(), {**FACTS, "healthy": n == 5})
    names = sorted(int(path.stem) for path in (tmp_path / "a").iterdir())
    assert names == [5, 16, 32, 36, 38, 39, 40]
    assert [info.number for info in store(tmp_path).infos("a")] == names
    again = store(tmp_path, last=2, healthy=1)  # it does not know yet which are healthy
    again.write("a", 41, tensors(), {**FACTS, "healthy": False})
    assert 5 in again.numbers("a")


def test_a_snapshot_elsewhere_is_refused(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.write("a", 1, tensors(), FACTS)
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "000000001.safetensors", tmp_path / "b" / "000000001.safetensors")
    with pytest.raises(DataError, match="it is snapshot 1 of stream 'a'"):
        one.read("b", 1)
    (tmp_path / "a" / "000000002.safetensors").symlink_to(tmp_path / "a" / "000000001.safetensors")
    with pytest.raises(DataError, match="symbolic link"):
        store(tmp_path).read("a", 2)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert store(tmp_path).streams() == ["a", "b"]
    with pytest.raises(DataError, match="symbolic link"):
        store(tmp_path).read("c", 1)
    with pytest.raises(ValueError, match="expected the name of a stream"):
        one.read("../a", 1)


def test_a_snapshot_that_was_deleted_by_hand_is_gone(tmp_path: Path) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        for seed in range(3):
            session.submit(images(seed))
            session.snapshot()
        state = session.status().state
        (tmp_path / "streams" / "default" / "000000002.safetensors").unlink()
        assert [info.number for info in session.snapshots()] == [1, 3]
        with pytest.raises(DataError, match="^snapshot 2 of stream 'default' is gone; there are 1, 3$"):
            session.rollback(to=2)
        with pytest.raises(ValueError, match="has no snapshot 7; there are 1, 3$"):
            session.rollback(to=7)
        assert session.status().state == state
        assert session.snapshot().number == 4
        with pytest.raises(ValueError, match="has no snapshot 2; there are 1, 3, 4$"):
            session.rollback(to=2)


def test_a_deleted_snapshot_takes_no_place_of_another(tmp_path: Path) -> None:
    kept = store(tmp_path, last=2, healthy=0, powers=False)
    for n in (1, 2):
        kept.write("a", n, tensors(), FACTS)
    (tmp_path / "a" / "000000002.safetensors").unlink()
    kept.write("a", 3, tensors(), FACTS)
    assert [info.number for info in kept.infos("a")] == kept.numbers("a") == [1, 3]


@pytest.mark.parametrize("number", ["1", 1.0, True, None])
def test_what_is_no_number_is_no_snapshot(tmp_path: Path, number: Any) -> None:
    kept = store(tmp_path)
    kept.write("a", 1, tensors(), FACTS)
    with pytest.raises(TypeError, match=f"^expected the number of a snapshot, got {number!r}$"):
        kept.read("a", number)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    from testtime.files import write_tensors

    store(tmp_path).write("a", 1, tensors(), FACTS)
    facts = {**FACTS, "stream": "a", "number": 1, "time": 0.0, "format": 99}
    path = tmp_path / "a" / "000000001.safetensors"
    write_tensors(path, tensors(), {"testtime.snapshot": json.dumps(facts)})
    with pytest.raises(DataError, match="format 99, this version reads up to"):
        store(tmp_path).read("a", 1)


# Damaged files ----------------------------------------------------------------------------------------------------------


def mutations(whole: bytes, rng: random.Random) -> Iterator[bytes]:
    """Bit flips, truncations, exchanged, doubled and removed blocks, other lengths of the header, other values in it."""
    size = struct.unpack("<Q", whole[:8])[0]
    while True:
        data = bytearray(whole)
        kind = rng.randrange(8)
        if kind == 0:
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:
            at, n = rng.randrange(len(data)), rng.randrange(1, 64)
            data[at : at + n] = bytes(n)
        elif kind == 3:
            at, n = rng.randrange(len(data)), rng.randrange(1, 64)
            data[at:at] = data[at : at + n]
        elif kind == 4:
            at, n = rng.randrange(len(data)), rng.randrange(1, 64)
            del data[at : at + n]
        elif kind == 5:
            data[:8] = struct.pack(
                "<Q", rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, rng.randrange(2**64)))
            )
        elif kind == 6:
            digits = [i for i in range(8, 8 + size) if chr(data[i]).isdigit()]
            for _ in range(rng.choice((1, 1, 3))):
                data[rng.choice(digits)] = ord(rng.choice("0123456789"))
        else:
            words = [
                b'"F32"',
                b'"I64"',
                b'"shape"',
                b'"data_offsets"',
                b"sha256",
                b"testtime.snapshot",
                b"[",
                b"}",
            ]
            found = [w for w in words if w in data]
            word = rng.choice(found)
            at = data.find(word)
            data[at : at + len(word)] = rng.choice(
                (b'"F64"', b'"BOOL"', b'"U8"', b"sha257", b"[[[[", b"", b"null", b'""')
            )
        if bytes(data) != whole:
            yield bytes(data)


def mutate(folder: Path, count: int, seed: int) -> int:
    """Read so many mutations of a snapshot; return how many were read, which must hold what was written."""
    one = store(folder)
    one.write("a", 1, tensors(), FACTS)
    path = folder / "a" / "000000001.safetensors"
    want, same = one.read("a", 1), 0
    for _, data in zip(range(count), mutations(path.read_bytes(), random.Random(seed)), strict=False):
        path.write_bytes(data)
        try:
            found = one.read("a", 1)
        except DataError:
            continue
        same += 1
        assert found.facts == want.facts
        assert found.tensors.keys() == want.tensors.keys()
        assert all(torch.equal(found.tensors[k], v) for k, v in want.tensors.items())
    return same


def test_damaged_snapshots_are_refused(tmp_path: Path) -> None:
    assert mutate(tmp_path, 2000, 0) < 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_snapshots_are_refused(tmp_path: Path) -> None:
    print(mutate(tmp_path, 100_000, 1))


def test_a_snapshot_whose_checksum_was_forged_is_still_checked(tmp_path: Path) -> None:
    """Who writes the file can also write its checksum: what it holds must not break the session."""
    from testtime.files import read_tensors, write_tensors

    with Session(tent(), tmp_path, options=SYNC) as session:
        good = session.submit(images(0)).state
        session.snapshot()
        session.submit(images(1))
    first, last = sorted((tmp_path / "streams" / "default").iterdir())
    whole, metadata = read_tensors(last)
    facts = json.loads(metadata["testtime.snapshot"])
    forged: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"counts": {"learned": "many"}}, {}),
        ({"counts": {"learned": None}}, {}),
        ({"ranges": {"": [1, 0]}}, {}),
        ({"ranges": {"": "all"}}, {}),
        ({"offset": -4}, {}),
        ({"step": 1.5}, {}),
        ({"number": True}, {}),
        ({}, {"session/recent": torch.rand(3, 5)}),
        ({}, {"state/clock": torch.tensor(-1)}),
        ({}, {"state/clock": torch.tensor([1, 2])}),
        ({}, {"state/model.network.1.weight": torch.full((4,), torch.nan)}),
        ({}, {"state/other": torch.zeros(1)}),
    ]
    for words, more in forged:
        write_tensors(last, {**whole, **more}, {"testtime.snapshot": json.dumps({**facts, **words})})
        with Session.resume(network(), tmp_path, options=SYNC) as session:
            assert session.status().state == good, (words, more)
            assert session.status().offset == 4
    assert first.exists()


# Disks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_keeps_the_last_good_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        good = session.submit(images(0))
        session.snapshot()

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, call, full)
        answer = session.submit(images(1))
        with pytest.raises(OSError, match="No space left|audit log cannot be written"):
            session.snapshot()
        assert session.status().error
        assert [s.offset for s in session.snapshots()] == [4]
        before = session.status().state
        with pytest.raises(OSError, match="No space left|audit log cannot be written"):
            session.rollback(to=1)
        assert session.status().state == before == answer.state
        if call == "write":  # what cannot be recorded is not learned
            assert session.submit(images(2)).skipped == "audit"
            assert session.status().state == before
        monkeypatch.undo()
        assert session.submit(images(3)).learned
        assert session.snapshot().number > 1
        assert session.status().error == ""
        assert session.rollback(to=1) is not None
        assert session.status().state == good.state
    names = [path.name for path in (tmp_path / "streams" / "default").iterdir()]
    assert not [name for name in names if not name.endswith(".safetensors")]


def test_a_limit_of_the_system_in_the_midst_of_a_file(tmp_path: Path) -> None:
    """A real short write: the system lets no file grow beyond a size."""
    with Session(tent(), tmp_path, options=SYNC) as session:
        session.submit(images(0))
        session.snapshot()
        size = (tmp_path / "streams" / "default" / "000000001.safetensors").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                session.snapshot()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert session.snapshot().number == 3
        assert [s.number for s in session.snapshots()] == [1, 3]
        assert "snapshot failed" in [r["event"] for r in records(tmp_path / "audit")]


def test_snapshots_while_serving_fail_without_failing_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asynchronous in (False, True):
        options = SessionOptions(snapshot_every=1, asynchronous=asynchronous)
        with Session(tent(), tmp_path / str(asynchronous), options=options) as session:
            session.submit(images(0))
            session.settle()
            assert len(session.snapshots()) == 1

            def broken(*_: object, **__: object) -> None:
                raise OSError(errno.EROFS, "Read-only file system")

            monkeypatch.setattr(os, "replace", broken)
            session.submit(images(1))
            if asynchronous:
                with pytest.raises(OSError, match="Read-only"):
                    session.settle()
            assert "Read-only" in session.status().error
            monkeypatch.undo()
            session.submit(images(2))
            session.settle()
            assert [s.offset for s in session.snapshots()] == [4, 12]
            assert session.status().error == ""


def test_snapshots_of_a_thread_are_those_of_their_moment(tmp_path: Path) -> None:
    options = SessionOptions(snapshot_every=0)
    with Session(tent(), tmp_path, options=options) as session:
        states = {}
        for i in range(6):
            answer = session.submit(images(i))
            info = session.snapshot(wait=False)
            states[info.number] = answer.state
            assert (info.acknowledged, info.state) == (False, answer.state)
        session.settle(60)
        there = session.snapshots()
        assert [s.number for s in there] == [1, 2, 3, 4, 5, 6]
        assert all(s.acknowledged and s.state == states[s.number] for s in there)
        for s in there:
            restored = session.rollback(to=s.number)
            assert restored is not None
            assert session.status().state == states[s.number]


def test_a_request_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk takes its time, streams are answered and captured, and nothing counts as acknowledged."""
    free, real = threading.Event(), os.fsync
    with Session(tent(), tmp_path, options=SessionOptions(snapshot_every=1)) as session:
        names = "abcde"
        session.submit(images(99), "first")
        session.settle(60)

        def slow(file: int) -> None:
            assert free.wait(60)
            real(file)

        monkeypatch.setattr(os, "fsync", slow)
        states = {name: [session.submit(images(i), name).state for i in range(3)] for name in names}
        assert [session.snapshots(name) for name in names] == [()] * 5
        with pytest.raises(TimeoutError):
            session.settle(0)
        free.set()
        session.settle(60)
        for name in names:
            assert session.snapshots(name)[-1].state == states[name][-1]
            assert session.status(name).snapshot_offset == 12


def test_the_thread_outlives_a_snapshot_that_fails_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no memory for the tensors")

    with Session(tent(), tmp_path, options=SessionOptions(snapshot_every=1)) as session:
        with monkeypatch.context() as patch:
            patch.setattr("testtime.serve.snapshots.write_tensors", broken)
            session.submit(images(0))
            with pytest.raises(MemoryError, match="no memory for the tensors"):
                session.settle(60)
        assert session.status().error == "no memory for the tensors"
        session.submit(images(1))
        session.settle(60)
        assert session.status().error == ""
        assert [(s.number, s.offset) for s in session.snapshots()] == [(2, 8)]
    failed = [r for r in records(tmp_path / "audit") if r["event"] == "snapshot failed"]
    assert [(r["offset"], r["error"]) for r in failed] == [(4, "no memory for the tensors")]


def test_only_snapshots_that_nobody_asked_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, real = threading.Event(), os.fsync
    guard = Moody(tent())
    guard.script = (*((("adapter",)),) * 3, ("restore", "adapter"), *((("adapter",)),) * 4)
    with Session(guard, tmp_path, options=SessionOptions(snapshot_every=1)) as session:
        session.submit(images(0))
        session.settle(60)

        def slow(file: int) -> None:
            assert free.wait(60)
            real(file)

        monkeypatch.setattr(os, "fsync", slow)
        asked = []
        session.submit(images(1))  # snapshot 2, which the thread writes at once
        for i in range(2, 6):
            session.submit(images(i))
            if i in (2, 4):
                asked += [session.snapshot(wait=False), session.snapshot(wait=False)]
        session.submit(images(6))
        with pytest.raises(TimeoutError):
            session.settle(0)
        free.set()
        session.settle(60)
        assert session._keeper._waiting == {}
        there = {s.number: s for s in session.snapshots()}
        assert [s.number for s in asked] == [4, 5, 8, 9]
        assert list(there)[-5:] == [4, 5, 8, 9, 11]  # the last one is automatic, as those left out
        assert [there[s.number].state for s in asked] == [s.state for s in asked]
        assert [there[n].healthy for n in (4, 5, 8, 9, 11)] == [True, True, False, True, True]


def test_snapshots_that_wait_share_a_flush_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot flushes its file and its folder; the log is flushed once for all that wait."""
    flushed: list[str] = []
    with Session(tent(), tmp_path, options=SessionOptions(snapshot_every=0)) as session:
        for i in range(8):
            session.submit(images(i), f"s{i}")
            session.snapshot(f"s{i}")  # the folder of the stream is made
            session.submit(images(10 + i), f"s{i}")
        held, real = threading.Event(), os.fsync

        def counted(file: int) -> None:
            assert held.wait(60)
            flushed.append(os.readlink(f"/proc/self/fd/{file}"))
            real(file)

        monkeypatch.setattr(os, "fsync", counted)
        for i in range(8):
            session.snapshot(f"s{i}", wait=False)
        held.set()
        session.settle(60)
        logs = [name for name in flushed if name.endswith(".jsonl")]
        assert (len(logs), len(flushed)) == (1, 1 + 2 * 8)
        session.snapshot("s0")  # nothing was recorded since but the snapshots themselves
        assert len(flushed) == 4 + 2 * 8
        assert verify_session(tmp_path).faults == ()


def test_the_folder_of_a_new_stream_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, real = [], os.fsync

    def noted(file: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{file}")))
        real(file)

    with Session(tent(), tmp_path, options=SYNC) as session:
        session.submit(images(0), "a")
        monkeypatch.setattr(os, "fsync", noted)
        session.snapshot("a")
        assert tmp_path in flushed
        assert tmp_path / "streams" in flushed
        assert flushed[-1] == tmp_path / "streams" / "a"


class Moody(Wrapper):
    """A guard whose events and whose answers are those of a script."""

    script: tuple[tuple[str, ...], ...] = ()

    def step(self, x: torch.Tensor) -> Any:
        *events, self.serving = self.script[int(self.clock) % len(self.script)]
        self.events = [SimpleNamespace(kind=kind, reason="", step=int(self.clock)) for kind in events]
        return self.adapter(x)


@pytest.mark.parametrize(
    ("script", "healthy"),
    [
        (((["adapter"]),) * 4, True),
        ((["fallback", "source"], ["recover", "adapter"]) * 2, True),  # a batch now and then
        ((["fallback", "source"], ["source"], ["source"], ["recover", "adapter"]), False),
        ((["restore", "adapter"], *(["adapter"],) * 3), False),
        ((["partial_reset", "adapter"], *(["adapter"],) * 3), False),
        ((["alarm", "source"], *(["adapter"],) * 3), False),
        ((["skip", "bn"], *(["bn"],) * 3), True),
    ],
)
def test_what_makes_a_snapshot_unhealthy(tmp_path: Path, script: Any, healthy: bool) -> None:
    guard = Moody(tent())
    guard.script = script
    with Session(guard, tmp_path, options=SYNC) as session:
        for i in range(4):
            session.submit(images(i))
        assert session.snapshot().healthy is healthy
        guard.script = (("adapter",),)
        session.submit(images(5))
        assert session.snapshot().healthy  # it is judged by what happened since the one before
        assert [s.healthy for s in session.snapshots()] == [healthy, True]
