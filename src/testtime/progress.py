"""How far a long work is: a bar on a terminal, a line now and then elsewhere, both with rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["progress", "remaining"]

UNITS, SECONDS = 3, 5.0  # of work, before an estimate is shown: until then it says nothing about the rest

T = TypeVar("T")


def progress(items: Iterable[T], total: int, title: str, done: int = 0, every: float = 10.0) -> Iterator[T]:
    """Pass the items on, and say on standard error how far the work is.

    Args:
        items: the rest of the work.
        total: how many items the whole work has.
        title: what is worked on.
        done: how many of them were done before (a resumed work).
        every: seconds between two lines where there is no terminal.

    >>> list(progress("abc", 3, "letters"))
    ['a', 'b', 'c']
    """
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
            )
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task, begin = bar.add_task(title, total=total, completed=done, left=""), time.monotonic()
                for i, item in enumerate(items, 1):
                    yield item
                    left = remaining(i, total - done, time.monotonic() - begin)
                    bar.update(task, advance=1, left=left.removeprefix(", "))
            return
    begin = said = time.monotonic()
    for i, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= every:
            left = remaining(i, total - done, now - begin)
            print(f"{title}: {done + i}/{total}{left}", file=sys.stderr, flush=True)
            said = now


def remaining(done: int, total: int, seconds: float) -> str:
    """Return the rate and the remaining time as text; nothing before three units or five seconds of work.

    Args:
        done: units of work that are done.
        total: units of the whole work.
        seconds: duration of the work so far.

    >>> remaining(1, 100, 0.1), remaining(10, 100, 20.0), remaining(1, 721, 10.0)
    ('', ', 0.5/s, 3:00 left', ', 0.1/s, 2:00:00 left')
    """
    if not done or (done < UNITS and seconds < SECONDS):
        return ""
    rate = done / max(seconds, 1e-9)
    minutes, rest = divmod(round(max(total - done, 0) / rate), 60)
    clock = f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
    return f", {rate:.0f}/s, {clock} left" if rate >= 100 else f", {rate:.3g}/s, {clock} left"
