"""The threads in which the model and its session work, behind a queue of bounded length.

The event loop never waits for the model: health is answered while a batch is adapted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from testtime.serve.server.problems import Refusal

__all__ = ["Worker"]

T = TypeVar("T")


class Worker:
    """A pool of threads with a bounded queue.

    Args:
        name: name of its threads.
        threads: number of threads.
        queue: largest number of jobs that wait.
        wait: longest time that a job waits, in seconds.

    Attributes:
        waiting: number of jobs that wait.
        running: number of jobs that run.
    """

    def __init__(self, name: str, threads: int, queue: int, wait: float) -> None:
        self.queue, self.wait, self.threads = queue, wait, threads
        self.waiting = self.running = 0
        self._seconds = 0.0  # moving mean of the time of a job
        self._open = True
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, job: Callable[[float], T]) -> T:
        """Run a job in a thread and return its result.

        Args:
            job: function of the time that it waited, in seconds.

        Raises:
            Refusal: 503: the queue is full, the job waited too long, or the server is shutting down.
        """
        if not self._open:
            raise Refusal(
                503,
                "shutting-down",
                "the server is shutting down",
                "send it to another one, or wait",
                retry_after=5,
            )
        if self.waiting + self.running >= self.queue + self.threads:
            raise self._busy(f"{self.queue} requests wait, which is the limit")
        loop, entered = asyncio.get_running_loop(), time.monotonic()
        self.waiting += 1
        begun = False

        def start() -> None:
            nonlocal begun
            if not begun:
                begun = True
                self.waiting -= 1
                self.running += 1

        def work() -> T:
            waited = time.monotonic() - entered
            loop.call_soon_threadsafe(start)
            if waited > self.wait:
                raise self._busy(f"the request waited {waited:.1f} s for the model, which is too long")
            return job(waited)

        future = loop.run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.cancel()  # of no effect once it runs
            raise
        finally:
            start()
            self.running -= 1
            self._seconds += 0.1 * (time.monotonic() - entered - self._seconds)

    async def close(self) -> None:
        """Refuse further jobs, and wait for those that were accepted."""
        self._open = False
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def _busy(self, found: str) -> Refusal:
        """The refusal of a job; the time after which to come back is that of the queue at its present pace."""
        return Refusal(
            503,
            "busy",
            found,
            "wait as long as Retry-After says; send fewer requests at once, or larger batches",
            retry_after=min(30.0, max(1.0, self._seconds)),
        )
