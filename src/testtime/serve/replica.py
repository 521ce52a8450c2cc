"""One of several processes that serve the streams of a shared folder: a session, and the leases of its streams."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from testtime.adapter import Adapter
from testtime.errors import TesttimeError
from testtime.serve.directory import Directory
from testtime.serve.engine import Answer
from testtime.serve.gate import InputGate
from testtime.serve.leases import Lease, Leases, StreamLost
from testtime.serve.options import SessionOptions
from testtime.serve.session import Session
from testtime.serve.snapshots import snapshot_file
from testtime.serve.streams import check_stream, folder_of

__all__ = ["Replica", "ReplicaOptions", "Served"]

LOOK = 0.1  # seconds between two looks whether another replica asks for a stream


@dataclass(frozen=True)
class ReplicaOptions:
    """Settings of a replica.

    Attributes:
        session: settings of its session; ``snapshot_every`` is the number of steps of a stream between two acknowledged
            snapshots (0: only when the stream leaves the replica).
        silence: seconds without a sign of life after which a replica on another host is taken for dead.
        patience: seconds that a request waits until another replica gives its stream up, or is taken for dead.
    """

    session: SessionOptions = field(default_factory=SessionOptions)
    silence: float = 10.0
    patience: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.silence <= self.patience:
            raise ValueError(
                f"expected silence above 0 and at most patience, got {self.silence} and {self.patience}"
            )


DEFAULT = ReplicaOptions()


@dataclass(frozen=True)
class Served:
    """The answer to a request, and how it is kept.

    Attributes:
        answer: see :class:`testtime.serve.Answer`.
        acknowledged: number of samples of the stream that its last acknowledged snapshot covers; what came after is lost if the
            replica is killed.
        epoch: number of the ownership of the stream.
        replica: name of the replica.
    """

    answer: Answer
    acknowledged: int
    epoch: int
    replica: str


@dataclass
class _Seat:
    """A stream in a replica."""

    lease: Lease
    step: int = 0
    acknowledged: int = 0


class Replica:
    """A process that serves streams of a folder that it shares with others; safe for threads.

    Each replica holds the weights once and the states of its streams. A stream is owned by one replica at a time
    (:mod:`testtime.serve.leases`): where it arrives, its last acknowledged snapshot is loaded, and before it leaves, one is
    written. Replicas find each other's streams in the folder alone.

    Args:
        adapter: adapter that serves; the same in every replica.
        root: the shared folder; its file system makes hard links. The audit log of a replica stays in ``replicas/NAME``.
        options: settings.

    Attributes:
        name: name of this replica.
        error: the last failure of what runs beside requests; empty if there was none.

    Raises:
        TypeError, ValueError, OSError: those of :class:`testtime.serve.Session`.
    """

    def __init__(self, adapter: Adapter, root: str | Path, options: ReplicaOptions = DEFAULT) -> None:
        self.name, self.options, self.error = secrets.token_hex(8), options, ""
        self._every = options.session.snapshot_every
        home = Path(root) / "replicas" / self.name
        self._session = Session(adapter, home, options=replace(options.session, snapshot_every=0))
        self._streams = Directory(home).streams
        self._leases = Leases(root, self.name, silence=options.silence)
        self._gate = InputGate(options.session.gate)
        self._seats: dict[str, _Seat] = {}
        self._locks: dict[str, threading.RLock] = {}
        self._registry, self._over = threading.Lock(), threading.Event()
        self._leases.beat()
        self._threads = [
            threading.Thread(target=self._repeat, args=pair, name="testtime-replica", daemon=True)
            for pair in ((options.silence / 5, self._leases.beat), (LOOK, self._give_up))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, x: Tensor, stream: str = "default", *, learn: bool = True) -> Served:
        """Answer the next samples of a stream, and learn from them.

        Args:
            x: samples (N, ...), floating point.
            stream: name of the stream.
            learn: whether the stream may learn from them.

        Raises:
            TypeError, ValueError: bad input, refused before any work.
            StreamBusy: another replica owns the stream, is alive and did not give it up in time.
            StreamLost: another replica took the stream over meanwhile; the samples are not learned.
            DataError: the stream has snapshots, and none can be used.
            OSError: the shared folder cannot be used.
            RuntimeError: the replica is closed.
        """
        self.check(x, stream)
        with self._turn(stream) as seat:
            answer = self._session.submit(x, stream, learn=learn)
            if self._every and self._session.status(stream).step - seat.step >= self._every:
                try:
                    self._acknowledge(seat)
                except OSError as error:  # the answer is there all the same, and the next request tries again
                    self.error = str(error)
            return Served(answer, seat.acknowledged, seat.lease.epoch, self.name)

    def check(self, x: Tensor, stream: str) -> None:
        """Refuse what is no request, before its stream is asked for.

        Raises:
            TypeError, ValueError: the batch or the name of the stream is not valid.
        """
        check_stream(stream)
        self._gate.check(x)

    def leave(self, stream: str) -> None:
        """Acknowledge a snapshot of a stream and give it up; without effect if it is not here.

        Raises:
            OSError: the snapshot could not be written; the stream stays here.
        """
        with self._lock(stream):
            seat = self._seats.get(stream)
            if seat is None:
                return
            with suppress(StreamLost):  # then what it learned since is lost, and not written over
                known = stream in self._session
                if known and self._session.status(stream).offset != seat.acknowledged:
                    self._acknowledge(seat)
            self._drop(seat)

    def streams(self) -> tuple[str, ...]:
        """Names of the streams that are here."""
        with self._registry:
            return tuple(sorted(self._seats))

    def close(self) -> None:
        """Give all streams up, and end.

        Raises:
            OSError: a snapshot could not be written; what its stream learned since the one before is lost.
        """
        self._over.set()
        for thread in self._threads:
            thread.join()
        failures: list[OSError] = []
        for stream in self.streams():
            try:
                self.leave(stream)
            except OSError as error:
                failures.append(error)
        self._session.close()
        if failures:
            raise failures[0]

    # Ownership --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self, stream: str) -> Iterator[_Seat]:
        """The turn of a stream, which is owned here meanwhile."""
        with self._lock(stream):
            if self._over.is_set():
                raise RuntimeError("this replica is closed; send the request to another one")
            seat = self._seats.get(stream)
            if seat is not None and not self._leases.holds(seat.lease):
                self._drop(seat)
                seat = None
            seat = seat or self._take(stream)
            try:
                yield seat
            except StreamLost:
                self._drop(seat)
                raise

    def _take(self, stream: str) -> _Seat:
        seat = _Seat(self._leases.acquire(stream, self.options.patience))
        try:
            local = self._streams / folder_of(stream)
            for number, path in self._leases.snapshots(seat.lease):
                local.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.link(path, local / snapshot_file(number))
            if local.exists():
                status = self._session.status(stream)
                seat.step, seat.acknowledged = status.step, status.offset
        except BaseException:
            self._drop(seat)
            raise
        with self._registry:
            self._seats[stream] = seat
        return seat

    def _acknowledge(self, seat: _Seat) -> None:
        stream = seat.lease.stream
        info = self._session.snapshot(stream)
        path = self._streams / folder_of(stream) / snapshot_file(info.number)
        self._leases.publish(seat.lease, path, info.number)
        seat.step, seat.acknowledged = info.step, info.offset

    def _drop(self, seat: _Seat) -> None:
        stream = seat.lease.stream
        with self._registry:
            self._seats.pop(stream, None)
        if stream in self._session:
            self._session.forget(stream)
        self._leases.release(seat.lease)

    def _lock(self, stream: str) -> threading.RLock:
        check_stream(stream)
        with self._registry:
            return self._locks.setdefault(stream, threading.RLock())

    # Beside requests --------------------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        with self._registry:
            seats = list(self._seats.values())
        for seat in seats:
            if self._leases.wanted(seat.lease):
                self.leave(seat.lease.stream)

    def _repeat(self, seconds: float, job: Callable[[], Any]) -> None:
        while not self._over.wait(seconds):
            try:
                job()
            except (OSError, TesttimeError, ValueError) as error:
                self.error = f"{type(error).__name__}: {error}"
