"""Axes, scales and colours that the charts share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from testtime.report.drawing import COLOURS, Size, altair, clean

__all__ = ["NAMED", "colour", "log_ticks", "padded", "quoted", "scale", "x_axis", "y_axis"]

NAMED = 400
"""Points of a chart up to which each shows its figures when it is pointed at."""


def colour(number: int) -> str:
    """Return the colour with a number: 0 is the grey of the background.

    Raises:
        ValueError: there is no such colour.
    """
    if not 0 <= number <= 6:
        raise ValueError(f"expected a colour from 0 to 6, got {number}")
    return COLOURS[f"k{number}" if number else "quiet"]


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Return a range around values; it does not leave [0, 100] or the positive numbers where the values do not."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    pad = share * ((high - low) or abs(high) or 1.0)
    below, above = low - pad, high + pad
    return (max(below, 0.0) if low >= 0 else below), (min(above, 100.0) if high <= 100 < above else above)


def quoted(value: object) -> str:
    """Return a value as a literal of Vega's expressions."""
    return json.dumps(clean(value))


def scale(low: float, high: float, logarithmic: bool = False) -> Any:
    """Return a scale of exactly this range."""
    kind = "log" if logarithmic else "linear"
    return altair().Scale(domain=[low, high], nice=False, zero=False, type=kind)


def log_ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten in a range.

    >>> log_ticks(0.8, 30)
    [1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5)]
    return [value for value in found if low <= value <= high]


def y_axis(title: str, height: float) -> Any:
    """Return the y axis, whose title stands above it."""
    options = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleBaseline": "bottom"}
    count = max(3, round(height / 55))
    return altair().Axis(title=title or None, tickCount=count, titleX=-34, titleY=-10, **options)


def x_axis(
    title: str,
    size: Size,
    names: Sequence[tuple[float, str]] = (),
    suffix: str = "",
    values: Sequence[float] = (),
    grid: bool = False,
) -> Any:
    """Return the x axis.

    Args:
        title: title below it; without a title and names the axis has no labels.
        size: size of the drawing.
        names: places that have a name instead of a number.
        suffix: text after each number, such as "×".
        values: places of the numbers; empty leaves them to the scale.
        grid: whether it has lines.
    """
    axis: dict[str, Any] = {"title": title or None, "grid": grid, "titlePadding": 8}
    if names:
        longest = max(len(name) for _, name in names)
        tilted = len(names) > (4 if size.narrow else 8) or longest > 90 / len(names)
        turned = {"labelAngle": -40, "labelAlign": "right", "labelBaseline": "middle"} if tilted else {}
        places = [place for place, _ in names]
        expression = f"{quoted([name for _, name in names])}[indexof({quoted(places)}, datum.value)]"
        axis |= {
            "values": places,
            "labelExpr": expression,
            "labelOverlap": False,
            "labelLimit": 130,
            **turned,
        }
    elif not title:
        axis |= {"labels": False}
    else:
        axis |= {"tickCount": 5 if size.narrow else 9, "labelFlush": False}
        axis |= {"values": list(values)} if values else {}
        axis |= {"labelExpr": f"format(datum.value, '~g') + {quoted(suffix)}"} if suffix or values else {}
    return altair().Axis(**axis)
