"""Snapshots of the streams of a session: captured in the turn of a stream, written by a thread, acknowledged when durable."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from testtime.errors import DataError
from testtime.files import damaged
from testtime.serve.audit import Audit
from testtime.serve.directory import ranges_read
from testtime.serve.engine import Engine
from testtime.serve.snapshots import Snapshot, SnapshotInfo, SnapshotStore, packed, unpacked
from testtime.serve.streams import Counts, Stream

__all__ = ["Captured", "Keeper", "state_of", "stream_of"]

LOGGER = logging.getLogger("testtime.serve")
RECENT = "session/recent"
STATE = "state/"


@dataclass(frozen=True)
class Captured:
    """A snapshot that is not written yet.

    Attributes:
        stream: its stream.
        info: facts of the snapshot, not acknowledged yet.
        tensors: function that names the tensors of a copy of the state.
        facts: description in values of JSON.
        seq: record of the audit log that is on the disk before the snapshot is.
        written: function of the stream that is called when the snapshot is durable, by who wrote it; without any lock.
    """

    stream: Stream
    info: SnapshotInfo
    tensors: Callable[[], dict[str, Tensor]]
    facts: dict[str, Any]
    seq: int
    written: Callable[[Stream], None] | None = None


class Keeper:
    """Takes snapshots of streams and restores them.

    Args:
        store: the snapshots.
        audit: the audit log; it is flushed to the disk before a snapshot is acknowledged.

    Attributes:
        acknowledged: function of stream and number that is called for every acknowledged snapshot.
    """

    def __init__(self, store: SnapshotStore, audit: Audit) -> None:
        self.store, self._audit = store, audit
        self.acknowledged: Callable[[str, int], None] = lambda stream, number: None
        self._numbers: dict[str, int] = {}
        self._changed = threading.Condition()
        self._waiting: dict[
            tuple[str, int], Captured
        ] = {}  # by stream and number; 0: one that was not asked for
        self._busy, self._ending = False, False
        self._failures: list[Exception] = []
        self._thread: threading.Thread | None = None
        self._writing, self._counting = threading.RLock(), threading.Lock()

    def capture(
        self, one: Stream, engine: Engine, written: Callable[[Stream], None] | None = None
    ) -> Captured:
        """Copy what a snapshot of a stream holds; the caller holds the turn of the stream.

        Args:
            one: the stream.
            engine: the network and its states.
            written: see :class:`Captured`.

        Raises:
            DataError: the folder of the stream cannot be used.
        """
        named, recent, head = engine.captured(one), packed(one.recent), self._audit.head
        facts = {**one.facts(), "paused": one.paused, "head": {"seq": head.seq, "hash": head.hash}}
        with self._counting:  # and not the lock of the writer, which waits for the disk
            known = self._numbers.get(one.name)
            number = self.store.next_number(one.name) if known is None else known + 1
            self._numbers[one.name] = number
            one.writing += 1
        info = SnapshotInfo(
            stream=one.name,
            number=number,
            offset=one.offset,
            step=one.step,
            time=self.store.clock(),
            bytes=0,
            checksum="",
            healthy=one.sound,
            state=one.hash,
            configuration=one.configuration,
            acknowledged=False,
        )
        one.saved_step, one.healthy, one.judged, one.fallen = one.step, True, 0, 0

        def tensors() -> dict[str, Tensor]:
            return {**{STATE + name: value for name, value in named().items()}, RECENT: recent}

        return Captured(one, info, tensors, facts, head.seq, written)

    def write(self, captured: Captured) -> SnapshotInfo:
        """Write a snapshot; it is durable, and thereby acknowledged, when this returns.

        Raises:
            OSError: the disk is full or read-only; the earlier snapshots are as before.
            ValueError: the stream was forgotten meanwhile.
        """
        try:
            done = self._write(captured)
        finally:
            self._no_longer(captured)
        self.acknowledged(done.stream, done.number)
        if captured.written is not None:
            captured.written(captured.stream)
        return done

    def _write(self, captured: Captured) -> SnapshotInfo:
        one, info = captured.stream, captured.info
        try:
            if self._audit.durable < captured.seq and not self._audit.flush(durable=True):
                raise OSError("the audit log cannot be written; free some space on the disk")
            with self._writing:
                if one.gone:
                    raise ValueError(f"stream {one.name!r} was forgotten before its snapshot was written")
                done = self.store.write(one.name, info.number, captured.tensors(), captured.facts)
        except Exception as error:
            if not one.gone:
                one.error, one.healthy, one.leaving = str(error), one.healthy and info.healthy, False
                self._audit.add("snapshot failed", stream=one.name, offset=info.offset, error=str(error))
            raise
        one.error = ""
        if info.offset >= one.saved_offset:
            one.saved_offset, one.saved_hash = info.offset, info.state
        self._audit.add(
            "snapshot", stream=one.name, snapshot=info.number, offset=info.offset, state=info.state
        )
        return done

    def _no_longer(self, captured: Captured) -> None:
        with self._counting:
            captured.stream.writing -= 1

    def attempt(self, captured: Captured) -> None:
        """Write a snapshot; a failure is noted in the status of its stream and in the log, and nothing is raised."""
        try:
            self.write(captured)
        except OSError:
            return
        except ValueError:
            if not captured.stream.gone:
                raise

    def later(self, captured: Captured, *, asked: bool = False) -> SnapshotInfo:
        """Let the thread write a snapshot.

        Args:
            captured: the snapshot.
            asked: whether the caller asked for it; otherwise a later one of its stream is written in its place if that comes
                before its turn.
        """
        name = captured.stream.name
        with self._changed:
            before = self._waiting.pop((name, 0), None)
            if before is not None:
                self._no_longer(before)
            if before is not None and not before.info.healthy:
                info = replace(captured.info, healthy=False)
                captured = replace(captured, info=info, facts={**captured.facts, "healthy": False})
            self._waiting[name, captured.info.number if asked else 0] = captured
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="testtime-snapshots", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return captured.info

    def settle(self, timeout: float | None = None) -> None:
        """Wait until every snapshot is written.

        Args:
            timeout: seconds; None: without a limit.

        Raises:
            OSError: one could not be written since the last call. What else went wrong with one is raised as it is.
            TimeoutError: the time is over.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout):
                raise TimeoutError(
                    f"{len(self._waiting) + self._busy} snapshots were not written in {timeout} s"
                )
            failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Write what waits and end the thread."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def forget(self, name: str) -> None:
        """Delete the snapshots of a stream.

        Raises:
            OSError: they cannot be deleted.
        """
        with self._changed:
            self._waiting = {key: one for key, one in self._waiting.items() if key[0] != name}
        with self._writing, self._counting:
            self.store.forget(name)
            self._numbers.pop(name, None)

    def release(self, name: str) -> None:
        """Keep nothing of a stream in memory whose state is on the disk alone."""
        with self._counting:
            self.store.release(name)
            self._numbers.pop(name, None)

    def infos(self, name: str, keep: bool) -> tuple[SnapshotInfo, ...]:
        """The acknowledged snapshots of a stream, oldest first.

        Args:
            name: name of the stream.
            keep: whether they stay in memory, so that they are not read again.
        """
        found = self.store.infos(name)
        if not keep:
            self.store.release(name)
        return found

    def described(self, name: str, engine: Engine) -> Stream | None:
        """A stream that is on the disk alone, without its state; None if no snapshot of it can be read."""
        for number in sorted(self.store.numbers(name), reverse=True):
            try:
                one = stream_of(self.store.read(name, number), engine)
            except (ValueError, FileNotFoundError):
                continue
            one.state = {}
            return one
        return None

    def resumed(self, name: str, engine: Engine) -> Stream | None:
        """The stream of a name from its last good snapshot, in the network; None if it has none.

        Raises:
            DataError: it has snapshots, and none can be used.
        """
        errors: list[Exception] = []
        for number in sorted(self.store.numbers(name), reverse=True):
            try:
                found = self.store.read(name, number)
                one = stream_of(found, engine)
                engine.activate(one)
            except FileNotFoundError:
                continue
            except ValueError as error:  # DataError is one
                errors.append(error)
                self._audit.add("damaged", stream=name, snapshot=number, error=str(error))
                continue
            one.saved_step, one.saved_offset, one.saved_hash = one.step, one.offset, one.hash
            self._audit.add("resume", stream=name, snapshot=number, offset=one.offset, state=one.hash)
            return one
        if errors:
            raise DataError(
                f"stream {name!r} has {len(errors)} snapshots, and none can be used (the last: {errors[0]}); forget() the "
                "stream to begin it again"
            )
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                captured = self._waiting.pop(next(iter(self._waiting)))
                self._busy = True
            name, number = captured.info.stream, captured.info.number
            try:
                self.write(captured)
            except Exception as error:  # noqa: BLE001 - whatever it is, others wait, and settle() raises it
                if not captured.stream.gone:
                    LOGGER.warning("snapshot %d of stream %s failed: %s", number, name, error)
                    with self._changed:
                        self._failures = [*self._failures[-9:], error]


def state_of(found: Snapshot) -> dict[str, Tensor]:
    """The state of an adapter in a snapshot, by name."""
    return {k.removeprefix(STATE): v for k, v in found.tensors.items() if k.startswith(STATE)}


def stream_of(found: Snapshot, engine: Engine) -> Stream:
    """A stream as a snapshot describes it.

    Raises:
        DataError: the description is damaged.
    """
    with damaged(f"snapshot {found.info.number} of stream {found.info.stream!r}", "roll back to another"):
        return _described(found, engine)


def _described(found: Snapshot, engine: Engine) -> Stream:
    one = engine.begin(found.info.stream)
    one.configuration, one.offset, one.step = found.info.configuration, found.info.offset, found.info.step
    one.hash, one.paused = found.info.state, bool(found.facts.get("paused", False))
    one.serving = str(found.facts.get("serving", "adapter"))
    counts = {k: v for k, v in found.facts["counts"].items() if k in Counts.__dataclass_fields__}
    one.counts = Counts(**{k: int(v) for k, v in counts.items()})
    one.recent.extend(unpacked(found.tensors.get(RECENT, torch.zeros(0, 16, dtype=torch.uint8))))
    one.state, one.ranges = state_of(found), ranges_read(found.facts["ranges"])
    return one
