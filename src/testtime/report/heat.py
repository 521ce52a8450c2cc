"""Matrices as colours with their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

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
        title: what the chart shows.
        description: the figures in words; empty lists those of a matrix of at most 400 cells.
        places: decimals; numbers are printed where the cells have room for them.
        low, high: numbers without colour and of the strongest colour; None takes the least and the largest.
        diverging: whether numbers below zero have another colour, the stronger the smaller; ``low`` is not used.
        down, across: what rows and columns are, such as "label" and "prediction".
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
    span = (top - bottom) or 1.0
    cells: list[dict[str, Any]] = [
        {
            "column": j,
            "row": i,
            "opacity": 0.08 + 0.92 * min(1.0, max(0.0, ((abs(v) if diverging else v) - bottom) / span)),
            "c": COLOURS["cold" if diverging and v < 0 else "heat"],
            "name": f"{rows[i]}, {columns[j]}: {show(v, places)}",
        }
        for i, line in enumerate(values)
        for j, v in enumerate(line)
        if math.isfinite(v)
    ]
    numbers = [
        {"column": c["column"], "row": c["row"], "t": show(values[c["row"]][c["column"]], places)}
        for c in cells
    ]

    def draw(size: Size) -> dict[str, Any]:
        alt, font = altair(), size.font - 1
        beside = min(max(text_width(name, font) for name in rows), 0.34 * size.width)
        wide = min((size.width - beside - 30) / len(columns), 60.0)
        high = min(wide, 30.0)
        tilted = max(text_width(name, font) for name in columns) > wide - 4
        turned = {"labelAngle": -50, "labelAlign": "left"} if tilted else {"labelAngle": 0}
        gap = alt.Scale(padding=0.03)
        place = {
            "x": alt.X(
                "column:O", axis=_axis(columns, orient="top", title=across or None, **turned), scale=gap
            ),
            "y": alt.Y(
                "row:O", axis=_axis(rows, title=down or None, labelLimit=beside, minExtent=beside), scale=gap
            ),
        }
        layers = Layers()
        shown = cells if len(cells) <= MANY else [{k: v for k, v in c.items() if k != "name"} for c in cells]
        layers.add("rect", shown, place)
        if max(text_width(str(number["t"]), font) for number in numbers) <= wide - 3 and size.font <= high:
            layers.add("text", numbers, place, color=COLOURS["ink"], fontSize=font)
        return layers.specification(size, wide * len(columns), high * len(rows))

    listed = (
        "; ".join(cell["name"] for cell in cells)
        if len(cells) <= 400
        else f"{len(rows)} x {len(columns)} values"
    )
    return Chart(title, description or listed, drawn(draw, small))


def _axis(names: Sequence[str], **options: Any) -> Any:
    text = f"{json.dumps(list(names))}[datum.value]"
    return altair().Axis(grid=False, labelExpr=text, labelOverlap=False, **options)
