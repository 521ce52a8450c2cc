"""Worker processes that end with their parent, so that nothing writes into the folder of a run that was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

__all__ = ["start_worker"]


def start_worker() -> None:
    """To be called first in a worker: an interruption is the parent's to hear, and its end is the worker's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
