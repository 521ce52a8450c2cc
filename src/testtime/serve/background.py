"""Work beside the requests of a server: a thread of low priority behind a short queue."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Generic, Self, TypeVar

__all__ = ["Background"]

LOGGER = logging.getLogger("testtime.serve")
T = TypeVar("T")
POLITE = 10  # niceness of the thread, where threads have one
PAUSE = 0.02  # seconds between looks at whether the server is busy


class Background(Generic[T]):
    """A thread that processes what fits into its queue, and pauses while the server is busy.

    An item whose processing fails is left out, with a line in the log; the thread goes on with the next one.

    Args:
        name: name of the thread.
        process: function that processes an item.
        waiting: number of items that may wait; further ones are left out.

    Attributes:
        busy: function that says whether requests wait for the model.
        error: the last failure; empty if there was none.

    >>> found = []
    >>> with Background("doubling", lambda n: found.append(2 * n), 8) as thread:
    ...     offered = [thread.offer(n) for n in (1, 2)]
    ...     thread.settle()
    >>> found, offered
    ([2, 4], [True, True])
    """

    def __init__(self, name: str, process: Callable[[T], None], waiting: int) -> None:
        self.busy: Callable[[], bool] = lambda: False
        self.error = ""
        self._process = process
        self._taken: queue.Queue[T] = queue.Queue(waiting)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def offer(self, item: T) -> bool:
        """Add an item to the queue; return False, and leave it out, where the queue is full."""
        try:
            self._taken.put_nowait(item)
        except queue.Full:
            return False
        return True

    def settle(self) -> None:
        """Wait until the items of the queue are processed."""
        self._taken.join()

    def pause(self) -> None:
        """Wait, in the thread, while the server is busy."""
        while self.busy() and not self._over.wait(PAUSE):
            pass

    def _run(self) -> None:
        if sys.platform == "linux":  # there, threads have a niceness of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), POLITE)
        while not self._over.is_set():
            try:
                item = self._taken.get(timeout=10 * PAUSE)
            except queue.Empty:
                continue
            try:
                self.pause()
                self._process(item)
            except Exception as error:  # what is processed may fail in any way
                self.error = f"{type(error).__name__}: {error}"[:500]
                LOGGER.exception("%s left out what failed", self._thread.name)
            finally:
                self._taken.task_done()
