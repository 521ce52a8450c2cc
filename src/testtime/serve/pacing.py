"""Pacing: whether there is time to adapt before a deadline, from the times that steps and predictions took."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from testtime.adapter import Adapter
from testtime.wrap import Window, Wrapper

__all__ = ["Pacer", "check_deadline", "cost_of", "due"]

KEPT = 32  # times of each kind that count
SIZES = 64  # batch sizes that are known at a time
PROBE = 32  # adaptations shed in a row after which the longest time of a step is dropped


class Pacer:
    """Measures steps and predictions by batch size, and decides whether a step fits before a deadline.

    A step is expected to take as long as the longest of the last 32 of its size. Before the first, it is expected to take as
    many predictions as the method declares (``cost``); before the first prediction there is no estimate, and nothing is
    adapted under a deadline.

    Args:
        cost: time of a step in predictions.
        clock: time in seconds.

    >>> now = [0.0]
    >>> pacer = Pacer(3.0, lambda: now[0])
    >>> pacer.fits(8, 1.0)  # nothing is known yet
    False
    >>> pacer.took(8, 0.1, learning=False)
    >>> pacer.fits(8, 0.31), pacer.fits(8, 0.29), pacer.fits(8, None)
    (True, False, True)
    """

    def __init__(self, cost: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.cost, self.clock = cost, clock
        self._times: dict[tuple[int, bool], deque[float]] = {}
        self._shed = 0

    def took(self, size: int, seconds: float, *, learning: bool) -> None:
        """Note how long a step, or a prediction, of a batch took."""
        times = self._times.pop((size, learning), None) or deque(maxlen=KEPT)
        times.append(seconds)
        self._times[size, learning] = times  # last: the size that was seen last
        while len(self._times) > 2 * SIZES:
            del self._times[next(iter(self._times))]

    def fits(self, size: int, left: float | None, *, learning: bool = True) -> bool:
        """Whether a step is expected to end in time.

        Args:
            size: number of samples.
            left: seconds until the deadline; None: there is none.
            learning: whether the step would learn; a step that only fills a window takes as long as a prediction.
        """
        if left is None:
            return True
        expected = self.expected(size, learning=learning)
        fits = expected is not None and expected <= left
        self._shed = 0 if fits else self._shed + 1
        if self._shed >= PROBE:
            self._shed = 0
            self._forget_longest()
        return fits

    def expected(self, size: int, *, learning: bool) -> float | None:
        """Expected seconds of a step or a prediction; None where nothing is known."""
        known = self._longest(size, learning)
        if known is None and learning:
            known = self._longest(size, False)
            known = None if known is None else known * self.cost
        return known

    def _longest(self, size: int, learning: bool) -> float | None:
        if (size, learning) in self._times:
            return max(self._times[size, learning])
        sizes = sorted(n for n, kind in self._times if kind == learning)
        if not sizes:
            return None
        larger = [n for n in sizes if n > size]
        nearest = larger[0] if larger else sizes[-1]
        return max(self._times[nearest, learning]) * max(1.0, size / nearest)

    def _forget_longest(self) -> None:
        """Drop the longest step of each size, which may have been one of a kind: it would keep all others from being tried."""
        for key, times in list(self._times.items()):
            if key[1]:
                times.remove(max(times))
                if not times:
                    del self._times[key]


def check_deadline(deadline: Any, name: str = "deadline") -> None:
    """Raise TypeError or ValueError where a deadline is neither a number of seconds nor None."""
    if deadline is None:
        return
    if isinstance(deadline, bool) or not isinstance(deadline, int | float):
        raise TypeError(f"{name} is a number of seconds or None, got {deadline!r}")
    if math.isnan(deadline):
        raise ValueError(f"{name} is a number of seconds, got NaN")


def due(adapter: Adapter, size: int) -> bool:
    """Whether a step of a batch would learn, and not only fill the window of :class:`testtime.wrap.Window`.

    Args:
        adapter: any.
        size: number of samples.
    """
    while isinstance(adapter, Wrapper):
        if isinstance(adapter, Window):
            return int(adapter.arrived) + size >= adapter.every
        adapter = adapter.adapter
    return True


def cost_of(adapter: Adapter) -> float:
    """Time of a step in predictions, as the method declares it: its forwards, and two for each backward."""
    forwards, backwards = adapter.cost
    return max(1.0, forwards + 2 * backwards)
