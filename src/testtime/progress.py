"""How far a long work is: a bar on a terminal, a line now and then elsewhere, both with rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["progress"]

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
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task, begin = bar.add_task(title, total=total, completed=done, rate=""), time.monotonic()
                for i, item in enumerate(items, 1):
                    yield item
                    bar.update(task, advance=1, rate=_rate(i, time.monotonic() - begin))
            return
    begin = said = time.monotonic()
    for i, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= every:
            left = (total - done - i) * (now - begin) / i
            print(
                f"{title}: {done + i}/{total}, {_rate(i, now - begin)}, {_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )
            said = now


def _rate(count: int, seconds: float) -> str:
    return f"{count / max(seconds, 1e-9):.3g}/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
