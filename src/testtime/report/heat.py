"""Matrices as colours with their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from testtime.report.drawing import COLOURS, Chart, Layers, Size, altair, drawn
from testtime.report.labels import text_width
from testtime.report.words import show

__all__ = ["heat_map"]


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
    cells: list[dict[str, Any]] = [
        {
            "column": j,
            "row": i,
            "share": 0.08
            + 0.92 * min(1.0, max(0.0, ((abs(v) if diverging else v) - bottom) / ((top - bottom) or 1.0))),
            "c": COLOURS["cold" if diverging and v < 0 else "heat"],
            "t": show(v, places),
            "name": f"{rows[i]}, {columns[j]}: {show(v, places)}",
        }
        for i, line in enumerate(values)
        for j, v in enumerate(line)
        if math.isfinite(v)
    ]

    def draw(size: Size) -> dict[str, Any]:
        alt = altair()
        names_wide = min(max(text_width(name, size.font) for name in rows), 0.34 * size.width)
        side = min((size.width - names_wide - 30) / len(columns), 26.0 if len(columns) > 26 else 60.0)
        tall = min(side, 30.0) if len(rows) < 40 else side
        wide = max(text_width(cell["t"], size.font - 1) for cell in cells)
        tilted = max(text_width(name, size.font - 1) for name in columns) > side - 4
        turned = {"labelAngle": -50, "labelAlign": "left"} if tilted else {"labelAngle": 0}
        x = alt.X(
            "column:O",
            axis=_names(columns, orient="top", title=across or None, **turned),
            scale=alt.Scale(padding=0.03),
        )
        y = alt.Y(
            "row:O",
            axis=_names(rows, title=down or None, labelLimit=names_wide + 8),
            scale=alt.Scale(padding=0.03),
        )
        layers = Layers()
        tint = {"color": alt.Color("c:N", scale=None), "opacity": alt.Opacity("share:Q", scale=None)}
        layers.add(
            "rect",
            cells if len(cells) <= 2500 else [{k: v for k, v in c.items() if k != "name"} for c in cells],
            {"x": x, "y": y, **tint},
        )
        if wide <= side - 3 and size.font <= tall:
            texts = [{k: c[k] for k in ("column", "row", "t")} for c in cells]
            layers.add(
                "text", texts, {"x": x, "y": y, "text": "t:N"}, color=COLOURS["ink"], fontSize=size.font - 1
            )
        return layers.specification(size, side * len(columns), tall * len(rows))

    listed = (
        "; ".join(cell["name"] for cell in cells)
        if len(cells) <= 400
        else f"{len(rows)} x {len(columns)} values"
    )
    return Chart(title, description or listed, drawn(draw, small))


def _names(names: Sequence[str], **options: Any) -> Any:
    import json

    return altair().Axis(
        grid=False, labelExpr=f"{json.dumps(list(names))}[datum.value]", labelOverlap=False, **options
    )
