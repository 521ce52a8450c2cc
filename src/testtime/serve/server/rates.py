"""A limit of requests per second for each client."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["RateLimit"]

CLIENTS = 4096  # clients whose buckets are kept; those of the others are full again


class RateLimit:
    """Token buckets, one for each client: ``burst`` requests at once, ``rate`` per second on average.

    Args:
        rate: requests per second; None: no limit.
        burst: capacity of a bucket.
        clock: source of the time in seconds.

    >>> seconds = iter([0.0, 0.0, 0.0, 0.5])
    >>> limit = RateLimit(2.0, 2, lambda: next(seconds))
    >>> [limit.delay("a") for _ in range(4)]
    [0.0, 0.0, 0.5, 0.0]
    """

    def __init__(self, rate: float | None, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, float(burst), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def delay(self, client: str) -> float:
        """Count a request of a client; return 0 if it is within the limit, else the seconds until the next one is."""
        if self.rate is None:
            return 0.0
        now = self._clock()
        left, then = self._buckets.pop(client, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate
