"""Matrices as colours with their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from testtime.report.drawing import FONT, Chart, altair, drawn, layer
from testtime.report.words import show

__all__ = ["heat_map"]


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    title: str,
    places: int = 1,
    low: float | None = None,
    high: float | None = None,
    diverging: bool = False,
    small: bool = False,
) -> Chart | None:
    """Draw a matrix; the larger a number, the stronger its colour on light and on dark ground. None for an empty one.

    Args:
        rows, columns: names, which differ; values has a row for each row name.
        values: numbers; NaN leaves a cell empty.
        title: subject of the chart.
        places: decimals; numbers are printed where the cells have room for them.
        low, high: numbers without colour and of the strongest colour; None takes the least and the largest.
        diverging: whether numbers below zero have another colour, the stronger the smaller; ``low`` is not used.
        small: whether it is drawn once, to stand beside others.

    Raises:
        ValueError: the matrix has another shape than the names.
    """
    if len(values) != len(rows) or any(len(line) != len(columns) for line in values):
        raise ValueError(f"expected {len(rows)} rows of {len(columns)} values for the heat map {title!r}")
    cells = [
        (r, c, v) for r, line in zip(rows, values, strict=True) for c, v in zip(columns, line, strict=True)
    ]
    cells = [cell for cell in cells if math.isfinite(cell[2])]
    if not cells:
        return None
    known = [value for _, _, value in cells]
    top = high if high is not None else max(map(abs, known)) if diverging else max(known)
    bottom = 0.0 if diverging else min(known) if low is None else low
    marks, told = [], []
    for row, column, value in cells:
        share = min(1.0, max(0.0, ((abs(value) if diverging else value) - bottom) / ((top - bottom) or 1.0)))
        tint = "var(--cold)" if diverging and value < 0 else "var(--heat)"
        told.append(f"{row}, {column}: {show(value, places)}")
        marks.append(
            {"y": row, "x": column, "color": tint, "opacity": 0.08 + 0.92 * share, "description": told[-1]}
        )
    texts = [{"y": row, "x": column, "text": show(value, places)} for row, column, value in cells]

    def draw(width: int) -> tuple[list[Any], object]:
        alt, letter = altair(), 0.6 * FONT
        beside = min(letter * max(map(len, rows)), 0.34 * width)
        wide = (width - beside - 30) / len(columns)
        tilted = letter * max(map(len, columns)) > wide
        turned = {"labelAngle": -50, "labelAlign": "left"} if tilted else {"labelAngle": 0}
        common = {"title": None, "grid": False, "labelOverlap": False}
        across = alt.Axis(orient="top", **common, **turned)
        bands = alt.Scale(padding=0.03)
        place = {
            "x": alt.X("x:N", sort=list(columns), axis=across, scale=bands),
            "y": alt.Y("y:N", sort=list(rows), axis=alt.Axis(labelLimit=0.34 * width, **common), scale=bands),
        }
        fits = letter * max(len(one["text"]) for one in texts) < wide and min(wide, 30) >= FONT
        layers = layer("rect", marks, place) + layer("text", texts if fits else [], place, fontSize=FONT - 1)
        return layers, min(wide, 30.0) * len(rows)

    listed = "; ".join(told) if len(cells) <= 400 else f"{len(rows)} x {len(columns)} values"
    return Chart(title, listed, drawn(draw, small))
