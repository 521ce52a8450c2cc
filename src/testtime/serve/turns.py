"""The streams of a session in memory, and whose turn it is: one at a time uses the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testtime.errors import TesttimeError
from testtime.serve.engine import Engine
from testtime.serve.keeping import Keeper
from testtime.serve.snapshots import SnapshotInfo
from testtime.serve.streams import Stream, check_stream

__all__ = ["SessionClosed", "TooManyStreams", "Turns"]

NAMED = 20  # streams that a message names


class SessionClosed(TesttimeError, RuntimeError):
    """The session is closed."""


class TooManyStreams(TesttimeError, RuntimeError):
    """The session has as many streams as it may have."""


class Turns:
    """The streams that are in memory.

    Whoever holds a lock of a stream may take that of the network, and not the other way round.

    Args:
        engine: the network and its states.
        keeper: snapshots, from which streams are resumed.
        most: largest number of streams.
        clock: monotonic time in seconds.

    Attributes:
        network: lock of the network.
        closed: whether the session is closed.
    """

    def __init__(
        self, engine: Engine, keeper: Keeper, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._keeper, self._most, self._clock = engine, keeper, most, clock
        self.network = threading.RLock()
        self.closed = False
        self._registry = threading.Lock()
        self._streams: dict[str, Stream] = {}  # the one that was used last comes last
        self._left: set[str] = set()  # names of streams that left the memory as they are on the disk
        self._counted = set(keeper.store.streams())  # names as far as this session knows; the folder decides

    @contextmanager
    def of(self, name: str, *, known: bool = False) -> Iterator[Stream]:
        """The turn of a stream: no other request uses it, or the network, meanwhile. A new one that got no answer is dropped.

        Raises:
            TypeError, ValueError: this is no name of a stream, or with ``known`` there is no stream of this name.
            DataError: it has snapshots, and none can be used.
            SessionClosed: the session is closed.
            TooManyStreams: it has as many streams as it may have.
        """
        while True:
            one = self.known(name) if known else self._find(check_stream(name))
            with one.lock, self.network:
                self.check_open()
                if one.gone:
                    continue
                self._use(one)
                try:
                    yield one
                finally:
                    if not one.counts.requests and one.saved_offset < 0 and not one.paused:
                        self.drop(one)
                return

    def known(self, name: str) -> Stream:
        """The stream of a name that exists.

        Raises:
            TypeError, ValueError: there is none; the message names those that there are.
            DataError: it has snapshots, and none can be used.
        """
        self.check_known(name)
        return self._find(name)

    def peek(self, name: str) -> Stream:
        """The stream of a name, for reading: one that left the memory stays on the disk, and comes without its state.

        Raises:
            TypeError, ValueError: there is none; the message names those that there are.
            DataError: it has snapshots, and none can be used.
        """
        self.check_known(name)
        left = name in self._left and self.in_memory(name) is None
        return (self._keeper.described(name, self._engine) if left else None) or self._find(name)

    def infos(self, name: str) -> tuple[SnapshotInfo, ...]:
        """The acknowledged snapshots of a stream, oldest first; those of one that left the memory are not kept in it.

        Raises:
            TypeError, ValueError: there is no such stream.
        """
        self.check_known(name)
        return self._keeper.infos(name, self.in_memory(name) is not None)

    def unused(self, now: float, seconds: float, most: int, count: int) -> list[Stream]:
        """Streams that had no request for longest, first those of the longest time.

        Args:
            now: monotonic time.
            seconds: time after which a stream counts as unused; 0: never.
            most: number of streams above which the first ones count as unused.
            count: largest number of streams that are returned; those that leave already are not.
        """
        found: list[Stream] = []
        with self._registry:
            above = len(self._streams) - most
            for place, one in enumerate(self._streams.values()):
                late = seconds > 0 and now - one.used >= seconds
                if len(found) == count or not (late or place < above):
                    break
                if not one.leaving:
                    found.append(one)
        return found

    def check_known(self, name: str) -> None:
        """Raise ValueError where there is no stream of this name."""
        if self.has(name):
            return
        names = self.names()
        more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        raise ValueError(
            f"there is no stream {name!r}; there are {', '.join([*names[:NAMED], *more]) or 'none'}"
        )

    def has(self, name: str) -> bool:
        """Whether there is a stream of this name, in memory or on the disk."""
        return check_stream(name) in self._streams or self._keeper.store.has(name)

    def in_memory(self, name: str) -> Stream | None:
        """The stream of a name if it is in memory."""
        with self._registry:
            return self._streams.get(name)

    def names(self) -> tuple[str, ...]:
        """Names of all streams, those that are only on the disk too."""
        return tuple(sorted({one.name for one in self.all()}.union(self._keeper.store.streams())))

    def all(self) -> list[Stream]:
        """The streams in memory."""
        with self._registry:
            return list(self._streams.values())

    def unload(self, one: Stream) -> None:
        """Remove a stream from memory that is on the disk; its turn is the caller's."""
        self._left.add(one.name)
        self.drop(one)

    def drop(self, one: Stream) -> None:
        """Remove a stream from memory; its turn is the caller's."""
        self._engine.drop(one)
        one.gone = True
        with self._registry:
            self._streams.pop(one.name, None)
            if one.saved_offset < 0:
                self._counted.discard(one.name)

    def close(self) -> bool:
        """Let no further turns begin; False if that was so before."""
        with self._registry:
            before, self.closed = self.closed, True
        return not before

    def check_open(self) -> None:
        """Raise SessionClosed where the session is closed."""
        if self.closed:
            raise SessionClosed("this session is closed; continue it by Session.resume(model, directory)")

    def _find(self, name: str) -> Stream:
        """The stream of a name: as it is in memory, from its last good snapshot, or new."""
        if (one := self.in_memory(name)) is not None:
            return one
        with self.network:
            self.check_open()
            if (one := self.in_memory(name)) is not None:
                return one
            resumed = self._keeper.resumed(name, self._engine)
            if resumed is None and self._full():
                raise TooManyStreams(
                    f"this session has {self._most} streams, as many as it may have; forget() one, or raise "
                    "SessionOptions.streams"
                )
            one = resumed or self._engine.begin(name)
            one.used = self._clock()
            with self._registry:
                self._streams[name] = one
                self._left.discard(name)
                self._counted.add(name)
            return one

    def _full(self) -> bool:
        """Whether there are as many streams as there may be; the folder is read where it seems so."""
        if len(self._counted) >= self._most:
            self._counted = set(self.names())
        return len(self._counted) >= self._most

    def _use(self, one: Stream) -> None:
        one.used, one.leaving = self._clock(), False
        with self._registry:
            self._streams[one.name] = self._streams.pop(one.name)
