"""Numbers in words, what is best in print, which colour a name has, and the mean and deviation that are printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

__all__ = ["colours", "deviation", "first_of", "mean", "show", "signed", "unrounded"]

Name = TypeVar("Name", bound=Hashable)


def show(value: float | None, places: int | None = 1) -> str:
    """Print a number with some decimals, None for all it has; a dash where there is none, and no minus before a zero.

    >>> show(-0.04), show(-0.06), show(None), show(12345.6, 0), show(0.25, None)
    ('0.0', '-0.1', '–', '12,346', '0.25')
    """
    if value is None or math.isnan(value):
        return "–"
    if places is None or math.isinf(value):
        return f"{value:g}"
    value = round(value, places) + 0.0
    return f"{value:{',' if abs(value) >= 10_000 else ''}.{places}f}"


def signed(value: float | None, places: int | None = 1) -> str:
    """Print a number with its sign, zero without one.

    >>> signed(1.25, 2), signed(-1.0), signed(0.04), signed(float("nan"))
    ('+1.25', '-1.0', '0.0', '–')
    """
    text = show(value, places)
    return f"+{text}" if value is not None and value > 0 and float(text.replace(",", "")) > 0 else text


def unrounded(value: float, places: int | None = 1) -> str:
    """Print a number that was printed elsewhere: with all its decimals, and at least some.

    >>> unrounded(81.73), unrounded(82.6), unrounded(3.0, 2)
    ('81.73', '82.6', '3.00')
    """
    return max(show(value, places), f"{value:g}", key=len)


def first_of(values: Mapping[Name, float], higher: bool = True, places: int | None = 1) -> list[Name]:
    """Return the names whose value is the best as it is printed: several where they are equal in print, NaN never.

    >>> first_of({"a": 78.24, "b": 78.16, "c": 70.0}), first_of({"a": 1.0, "b": 2.0}, higher=False)
    (['a', 'b'], ['a'])
    """
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    printed = {name: value if places is None else round(value, places) for name, value in known.items()}
    best = (max if higher else min)(printed.values(), default=None)
    return [name for name, value in printed.items() if value == best]


def colours(names: Sequence[str], others: Sequence[str] = ()) -> dict[str, int]:
    """Return the colours of names: 1 to 6 for the first six that stand out, 0 (grey) for the rest and for others."""
    chosen = {name: number for number, name in enumerate(list(dict.fromkeys(names))[:6], 1)}
    return chosen | {name: 0 for name in (*names, *others) if name not in chosen}


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN.

    >>> mean([1.0, 3.0, float("nan")])
    2.0
    """
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1) of the values that are not NaN; 0 for a single one."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.stdev(known) if len(known) > 1 else 0.0
