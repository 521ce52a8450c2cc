"""Worker processes that end with their parent, and runs that end in good order when they are interrupted.

A worker never hears an interruption itself: its parent does, and ends it. So nothing writes into the folder of a run that
was stopped, and no worker prints a traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any
from weakref import WeakSet

__all__ = ["Terminated", "interrupts_held", "release_locks", "start_worker", "terminable", "worker_pool"]


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def start_worker() -> None:
    """Make a worker ignore interruptions and end with its parent; to be called first in the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def worker_pool(
    jobs: int,
    start: Callable[..., None] = start_worker,
    arguments: tuple[Any, ...] = (),
    preload: Sequence[str] = (),
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of new processes. When the block raises, they are ended at once and what waits is dropped.

    Args:
        jobs: number of processes.
        start: called first in each process; it calls :func:`start_worker`.
        arguments: those of ``start``.
        preload: modules that a server of processes imports once and its processes share, where the system can fork.
    """
    resource_tracker.ensure_running()  # it would open the signal mask while the first worker is made
    method = "forkserver" if preload and "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(list(preload))
    pool = _Pool(jobs, context, start, arguments)
    try:
        yield pool
    except BaseException as error:
        pool.terminate()
        if isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None  # it came while a lock was taken, which the standard library then misses
        raise
    finally:
        if pool._broken:  # the pool ends its processes itself, but one that was being made at that moment
            pool.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold interruptions and SIGTERM back until the block ends; processes that are made in it get no interruptions."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    came: list[int] = []  # the mask holds for this thread alone, and another one may take the signal
    handlers: dict[signal.Signals, Any] = {}
    for kind in (signal.SIGINT, signal.SIGTERM) if main else ():
        handlers[kind] = signal.signal(kind, lambda number, frame: came.append(number))
    # Processes inherit the mask, and SIGTERM has to end them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for kind, handler in handlers.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def release_locks(futures: Iterable[Future[Any]]) -> None:
    """Release the locks of futures that an interruption of this thread left locked; their pool would wait for them forever."""
    for future in list(futures):
        while future._condition._is_owned():  # type: ignore[attr-defined]
            future._condition.release()
        future._waiters.clear()  # those of concurrent.futures.wait, which was interrupted: theirs may be locked too


@contextmanager
def terminable() -> Iterator[None]:
    """Raise :class:`Terminated` in the block on SIGTERM, so that workers are ended and partial files removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Pool(ProcessPoolExecutor):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._futures: WeakSet[Future[Any]] = WeakSet()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with interrupts_held():  # this is where processes are made
            future = super().submit(fn, *args, **kwargs)
        self._futures.add(future)
        with (
            self._shutdown_lock
        ):  # the pool does not watch a process that was made just now until something happens
            self._executor_manager_thread_wakeup.wakeup()
        return future

    def terminate(self) -> None:
        """End the processes at once."""
        release_locks(self._futures)
        for process in list((self._processes or {}).values()):
            process.terminate()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
