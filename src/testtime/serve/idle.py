"""Streams without requests leave the memory: their state is in a snapshot, from which the next request continues."""

from __future__ import annotations

from testtime.serve.audit import Audit
from testtime.serve.engine import Engine
from testtime.serve.keeping import Captured, Keeper
from testtime.serve.options import SessionOptions
from testtime.serve.streams import Stream
from testtime.serve.turns import Turns

__all__ = ["Idle"]

AT_ONCE = 4  # streams that one request makes leave
BEYOND = 16  # streams above ``resident`` whose snapshots may wait for the thread that writes them


class Idle:
    """Finds the streams that leave the memory, and lets them leave once their state is durable.

    A stream stays whose samples are to be learned later, and one whose snapshot cannot be written.

    Args:
        turns: the streams in memory.
        keeper: snapshots.
        engine: the network and its states.
        audit: the audit log.
        options: settings; ``idle`` and ``resident`` count.
    """

    def __init__(
        self, turns: Turns, keeper: Keeper, engine: Engine, audit: Audit, options: SessionOptions
    ) -> None:
        self._turns, self._keeper, self._engine, self._audit = turns, keeper, engine, audit
        self.options = options

    def captured(self) -> list[Captured]:
        """Snapshots of the streams that leave, to be written now; the caller holds the network.

        A stream whose last snapshot is its present state leaves at once.
        """
        found = []
        for one in self._turns.unused(
            self.options.clock(), self.options.idle, self.options.resident, AT_ONCE
        ):
            if not one.lock.acquire(blocking=False):
                continue
            try:
                if one.gone or one.backlog:
                    one.leaving = True  # until its next request: it is not looked at again
                elif one.saved:
                    self._drop(one)
                else:
                    one.leaving = True
                    found.append(self._keeper.capture(one, self._engine, self._written))
            finally:
                one.lock.release()
        return found

    def write(self, leaving: list[Captured]) -> None:
        """Write the snapshots of streams that leave: by the thread, or now where so many streams wait for it."""
        many = len(self._turns.all()) > self.options.resident + BEYOND
        for captured in leaving:
            write = self._keeper.attempt if many or not self.options.asynchronous else self._keeper.later
            write(captured)

    def _written(self, one: Stream) -> None:
        """A stream leaves whose snapshot is durable now, unless it was used meanwhile."""
        if not one.lock.acquire(blocking=False):
            return
        try:
            with self._turns.network:
                if one.leaving and one.saved and not one.gone and not one.backlog and not self._turns.closed:
                    self._drop(one)
        finally:
            one.lock.release()

    def _drop(self, one: Stream) -> None:
        self._turns.unload(one)
        self._keeper.release(one.name)
        self._audit.add("unload", stream=one.name, offset=one.offset, state=one.hash)
