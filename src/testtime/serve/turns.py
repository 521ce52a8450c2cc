"""The streams of a session in memory, and whose turn it is: one at a time uses the network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from testtime.serve.engine import Engine
from testtime.serve.keeping import Keeper
from testtime.serve.streams import Stream, check_stream

__all__ = ["Turns"]


class Turns:
    """The streams that are in memory.

    Whoever holds a lock of a stream may take that of the network, and not the other way round.

    Args:
        engine: the network and its states.
        keeper: snapshots, from which streams are resumed.
        most: largest number of streams.

    Attributes:
        network: lock of the network.
        closed: whether the session is closed.
    """

    def __init__(self, engine: Engine, keeper: Keeper, most: int) -> None:
        self._engine, self._keeper, self._most = engine, keeper, most
        self.network = threading.RLock()
        self.closed = False
        self._registry = threading.Lock()
        self._streams: dict[str, Stream] = {}

    @contextmanager
    def of(self, name: str, *, known: bool = False) -> Iterator[Stream]:
        """The turn of a stream: no other request uses it, or the network, meanwhile. A new one that got no answer is dropped.

        Raises:
            TypeError, ValueError: this is no name of a stream, or with ``known`` there is no stream of this name.
            DataError: it has snapshots, and none can be used.
            RuntimeError: the session is closed, or has as many streams as it may have.
        """
        while True:
            one = self.known(name) if known else self._find(check_stream(name))
            with one.lock, self.network:
                self.check_open()
                if one.gone:
                    continue
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

    def check_known(self, name: str) -> None:
        """Raise ValueError where there is no stream of this name."""
        if check_stream(name) not in self._streams and name not in self._keeper.store.streams():
            raise ValueError(f"there is no stream {name!r}; there are {', '.join(self.names()) or 'none'}")

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

    def drop(self, one: Stream) -> None:
        """Remove a stream from memory; its turn is the caller's."""
        self._engine.drop(one)
        one.gone = True
        with self._registry:
            self._streams.pop(one.name, None)

    def close(self) -> bool:
        """Let no further turns begin; False if that was so before."""
        with self._registry:
            before, self.closed = self.closed, True
        return not before

    def check_open(self) -> None:
        """Raise RuntimeError where the session is closed."""
        if self.closed:
            raise RuntimeError("this session is closed; continue it by Session.resume(model, directory)")

    def _find(self, name: str) -> Stream:
        """The stream of a name: as it is in memory, from its last good snapshot, or new."""
        if (one := self.in_memory(name)) is not None:
            return one
        with self.network:
            self.check_open()
            if (one := self.in_memory(name)) is not None:
                return one
            if len(self._streams) >= self._most:
                raise RuntimeError(
                    f"this session has {self._most} streams, as many as it may have; forget() one, or raise "
                    "SessionOptions.streams"
                )
            one = self._keeper.resumed(name, self._engine) or self._engine.begin(name)
            with self._registry:
                self._streams[name] = one
            return one
