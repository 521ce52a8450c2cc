"""Matrices as colours with their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from testtime.report.axes import quoted
from testtime.report.drawing import COLOURS, Chart, Layers, Size, altair, drawn
from testtime.report.labels import text_width
from testtime.report.words import show

__all__ = ["heat_map"]

MANY = 2500  # cells up to which each shows its number when it is pointed at


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    title: str,
    description: str = "",
    places: int = 1,
    low: float | None = None,
    high: float | None = None,
    diverging: bool = False,
    down: str = "",
    across: str = "",
    small: bool = False,
) -> Chart | None:
    """Draw a matrix; the larger a number, the stronger its colour on light and on dark ground. None for an empty one.

    Args:
        rows, columns: names; values has a row for each row name.
        values: numbers; NaN leaves a cell empty.
        title: subject of the chart.
        description: the figures in words; empty lists those of a matrix of at most 400 cells.
        places: decimals; numbers are printed where the cells have room for them.
        low, high: numbers without colour and of the strongest colour; None takes the least and the largest.
        diverging: whether numbers below zero have another colour, the stronger the smaller; ``low`` is not used.
        down, across: meaning of rows and columns, such as "label" and "prediction".
        small: whether it is drawn once, to stand beside others.

    Raises:
        ValueError: the matrix has another shape than the names.
    """
    if len(values) != len(rows) or any(len(line) != len(columns) for line in values):
        raise ValueError(f"expected {len(rows)} rows of {len(columns)} values for the heat map {title!r}")
    known = [value for line in values for value in line if math.isfinite(value)]
    if not known:
        return None
    top = high if high is not None else max(map(abs, known)) if diverging else max(known)
    bottom = 0.0 if diverging else min(known) if low is None else low
    cells = [(i, j, v) for i, line in enumerate(values) for j, v in enumerate(line) if math.isfinite(v)]
    printed = [show(v, places) for _, _, v in cells]
    told = [f"{rows[i]}, {columns[j]}: {text}" for (i, j, _), text in zip(cells, printed, strict=True)]

    def mark(index: int) -> dict[str, object]:
        i, j, v = cells[index]
        share = min(1.0, max(0.0, ((abs(v) if diverging else v) - bottom) / ((top - bottom) or 1.0)))
        tint = COLOURS["cold" if diverging and v < 0 else "heat"]
        found = {"column": j, "row": i, "opacity": 0.08 + 0.92 * share, "c": tint}
        return found | ({"name": told[index]} if len(cells) <= MANY else {})

    def draw(size: Size) -> dict[str, Any]:
        alt, font = altair(), size.font - 1
        beside = min(max(text_width(name, font) for name in rows), 0.34 * size.width)
        wide = min((size.width - beside - 30) / len(columns), 60.0)
        high = min(wide, 30.0)
        tilted = max(text_width(name, font) for name in columns) > wide - 4
        turned = {"labelAngle": -50, "labelAlign": "left"} if tilted else {"labelAngle": 0}
        gap = alt.Scale(padding=0.03)
        x_axis = _axis(columns, orient="top", title=across or None, **turned)
        y_axis = _axis(rows, title=down or None, labelLimit=beside, minExtent=beside)
        place = {"x": alt.X("column:O", axis=x_axis, scale=gap), "y": alt.Y("row:O", axis=y_axis, scale=gap)}
        layers = Layers()
        layers.add("rect", [mark(index) for index in range(len(cells))], place)
        if max(text_width(text, font) for text in printed) <= wide - 3 and size.font <= high:
            numbers = [{"column": j, "row": i, "t": t} for (i, j, _), t in zip(cells, printed, strict=True)]
            layers.add("text", numbers, place, color=COLOURS["ink"], fontSize=font)
        return layers.specification(size, wide * len(columns), high * len(rows))

    listed = "; ".join(told) if len(cells) <= 400 else f"{len(rows)} x {len(columns)} values"
    return Chart(title, description or listed, drawn(draw, small))


def _axis(names: Sequence[str], **options: Any) -> Any:
    text = f"{quoted(list(names))}[datum.value]"
    return altair().Axis(grid=False, labelExpr=text, labelOverlap=False, **options)
