"""How far a long work is: a bar on a terminal, a line now and then elsewhere, both with rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

__all__ = ["Meter", "progress", "remaining"]

UNITS, SECONDS = 3, 5.0  # of work, before an estimate is shown: before, it is no estimate of the rest

T = TypeVar("T")


class Meter:
    """Shows on standard error how far a work is; a context.

    Args:
        title: name of the work.
        total: size of the whole work, in units of any kind.
        done: amount that was done before, where the work is resumed.
        every: seconds between two lines where there is no terminal.
    """

    def __init__(self, title: str, total: float, done: float = 0, every: float = 10.0) -> None:
        self.title, self.total, self.before, self.every = title, total, done, every
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._begin = self._shown = time.monotonic()
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TextColumn
            except ImportError:
                return self
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.before, text="")
        return self

    def update(self, done: float, note: str = "", counts: str = "") -> None:
        """Show that so much of the work is done.

        Args:
            done: size of what is done, that of earlier runs not included.
            note: name of the current item.
            counts: text in place of the sizes and their rate, such as "3/20 units".
        """
        now = time.monotonic()
        left = remaining(done, self.total - self.before, now - self._begin)
        if counts:
            left = f", {left.rpartition(', ')[2]}" if left else ""
        counts = counts or f"{_count(self.before + done)}/{_count(self.total)}"
        note = f"  {note}" if note else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.before + done, text=f"{counts}{left}{note}")
        elif now - self._shown >= self.every:
            print(f"{self.title}: {counts}{left}{note}", file=sys.stderr, flush=True)
            self._shown = now

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _count(value: float) -> str:
    """A count of units in full; one of parts of units with one decimal."""
    return f"{value:.6g}" if value == int(value) else f"{value:.1f}"


def progress(items: Iterable[T], total: int, title: str, done: int = 0, every: float = 10.0) -> Iterator[T]:
    """Pass the items on, and show on standard error how far the work is.

    Args:
        items: the rest of the work.
        total: number of items of the whole work.
        title: name of the work.
        done: number that was done before, where the work is resumed.
        every: seconds between two lines where there is no terminal.

    >>> list(progress("abc", 3, "letters"))
    ['a', 'b', 'c']
    """
    with Meter(title, total, done, every) as meter:
        for i, item in enumerate(items, 1):
            yield item
            meter.update(i)


def remaining(done: float, total: float, seconds: float) -> str:
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
