"""What is compared without an order: points, dots and bars in rows, and matrices as colours with their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, final

from testtime.report import drawing
from testtime.report.drawing import FONT, Chart, colour, drawn, layer, padded, scaled, x_axis
from testtime.report.words import show

__all__ = ["Point", "heat_map", "row_chart", "scatter"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom end."""
LABELLED = 60
"""Points that may have a label, the most important ones."""
AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
"""Sides of a point where its label may stand, the better first: to the right, to the left, above, ..."""


@final
@dataclass(frozen=True)
class Point:
    """A point of a scatter plot (x, y), or a value (x) in the row ``name`` of a row chart.

    Args:
        name: its name.
        x: place on the x axis; NaN is left out.
        y: place on the y axis; not used by row charts.
        spread: standard deviation: of y in a scatter plot, of x in row charts.
        colour: number of the colour.
        setting: meaning of the colour, in a chart of rows in several settings.
    """

    name: str
    x: float
    y: float = 0.0
    spread: float = 0.0
    colour: int = 0
    setting: str = ""

    @property
    def reach(self) -> float:
        """The length of its whisker in a scatter plot."""
        return self.spread if self.colour else 0.0

    @property
    def tint(self) -> str:
        """The colour of its label."""
        return colour(self.colour) if self.colour else "var(--dim)"

    def described(self, value: float) -> str:
        """The value in figures, with the spread."""
        return show(value, 2) + (f" ±{show(self.spread, 2)}" if self.spread > 0 else "")


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    logarithmic: bool = False,
    suffix: str = "",
    height: int = 360,
    small: bool = False,
) -> Chart | None:
    """Draw named points; a label covers no point, whisker or other label. None if there is no point.

    Args:
        points: points; those with a colour have whiskers and are labelled first. A label that finds no place is left out:
            the figures of every point are in the description, and shown where it is pointed at.
        title: subject of the chart.
        x, y: titles of the axes, with the unit.
        logarithmic: whether the x axis is logarithmic.
        suffix: text after each number of the x axis, such as "×".
        height: height of the plot, in pixels.
        small: whether it is drawn once, in a row with others.
    """
    known = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y) and (p.x > 0 or not logarithmic)]
    if not known:
        return None
    listed = "; ".join(f"{p.name}: {show(p.y, 2)} at {show(p.x, 2)}{suffix}" for p in known)
    known.sort(key=lambda p: p.colour or math.inf)
    low, high = padded([edge for p in known for edge in (p.y - p.reach, p.y + p.reach)], 0.1)
    first, last = padded([p.x for p in known], 0.12)
    if logarithmic:
        first, last = min(p.x for p in known) / 1.25, max(p.x for p in known) * 1.6
    change, back = (math.log, math.exp) if logarithmic else (float, float)
    whiskers = [
        {"x": p.x, "y": p.y - p.reach, "y2": p.y + p.reach, "color": p.tint} for p in known if p.reach
    ]
    dots = [{"x": p.x, "y": p.y, "color": colour(p.colour), "size": 70 if p.colour else 45} for p in known]
    for p, dot in zip(known, dots, strict=True):
        dot["description"] = f"{p.name}: {p.described(p.y)} at {show(p.x, 2)}{suffix}"

    def draw(width: int) -> tuple[list[Any], object]:
        text = f"format(datum.value, '~g') + {json.dumps(drawing.clean(suffix))}"
        axis, kind = {**x_axis(x, width), "grid": True, "labelExpr": text}, {}
        if logarithmic:
            kind = {"type": "log"}
            axis["values"] = [m * 10.0**power for power in range(-9, 10) for m in (1, 2, 5)]
        upwards = scaled("y", (low, high), {"title": None})
        place = {"x": scaled("x", (first, last), axis, **kind), "y": upwards}
        across, up = (width - 60) / (change(last) - change(first)), height / (high - low)
        spots = [(across * (change(p.x) - change(first)), up * (high - p.y), up * p.reach) for p in known]
        taken = [(a - 1, b - reach, a + 1, b + reach) for a, b, reach in spots]
        taken += [(a - 6, b - 6, a + 6, b + 6) for a, b, _ in spots]
        texts = []
        for p, (a, b, _) in zip(known[:LABELLED], spots, strict=False):
            if box := _free(a, b, p.name, taken, (0, -4, width - 60, height)):
                taken.append(box)
                spot = {"x": back(change(first) + box[0] / across), "y": high - (box[1] + box[3]) / 2 / up}
                texts.append({**spot, "text": p.name, "color": p.tint})
        layers = layer("rule", whiskers, place, strokeWidth=1.6)
        layers += layer("circle", dots[::-1], place, opacity=1, stroke="var(--paper)", strokeWidth=1)
        return layers + layer("text", texts, place, align="left", baseline="middle"), height

    described = listed if len(known) <= drawing.NAMED else f"{len(known)} points"
    return Chart(title, described, drawn(draw, small, y))


def _free(x: float, y: float, name: str, taken: Sequence[Box], plot: Box) -> Box | None:
    """The box of a label beside a point, in pixels, inside the plot and apart from what is taken; None without room."""
    wide, high = text_width(name), 1.1 * FONT
    for reach in (8, 18, 30):
        for dx, dy in AROUND:
            left, middle = x + reach * dx + (dx - 1) * wide / 2, y + (reach + high / 2) * dy
            box = (left, middle - high / 2, left + wide, middle + high / 2)
            inside = box[0] >= plot[0] and box[1] >= plot[1] and box[2] <= plot[2] and box[3] <= plot[3]
            if inside and not any(
                box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken
            ):
                return box
    return None


def text_width(text: str) -> float:
    """Estimate the width of a text in a wide sans-serif font, in pixels."""
    narrow, wide = set(" '.,:;ilj|()/"), set("+=<>%@mwMW×±")
    return FONT * sum(0.36 if c in narrow else 0.86 if c in wide else 0.68 for c in text)


def row_chart(
    points: Sequence[Point], *, title: str, x: str, bars: bool = False, small: bool = False
) -> Chart | None:
    """Draw a row for each name, its values as dots with whiskers or as bars from zero; None if there is no value.

    Args:
        points: values; those of one name share a row, in the order in which names come.
        title: subject of the chart.
        x: title of the axis, with the unit.
        bars: whether the values are bars from zero.
        small: whether it is drawn once, in a row with others.
    """
    known = [p for p in points if math.isfinite(p.x)]
    if not known:
        return None
    names, settings = list(dict.fromkeys(p.name for p in points)), {p.setting: p.colour for p in points}
    ends = [edge for p in known for edge in (p.x - p.spread, p.x + p.spread)] + [0.0] * bars
    low, high = padded(ends, 0.05)
    low = 0.0 if bars and min(ends) >= 0 else low
    marks: list[dict[str, object]] = [{"y": p.name, "x": p.x, "color": colour(p.colour)} for p in known]
    for p, mark in zip(known, marks, strict=True):
        mark["description"] = f"{', '.join(filter(None, (p.name, p.setting)))}: {p.described(p.x)}"
        mark |= {"yOffset": p.setting} if len(settings) > 1 else {}
    ink = {"color": "var(--ink)"} if bars else {}
    pairs = zip(known, marks, strict=True)
    errors = [{**mark, "x": p.x - p.spread, "x2": p.x + p.spread, **ink} for p, mark in pairs if p.spread > 0]

    def draw(width: int) -> tuple[list[Any], object]:
        alt = drawing.altair()
        words = [wrap(name, 16) if width == drawing.NARROW else [name] for name in names]
        axis = {"title": None, "grid": not bars, "labelColor": "var(--ink)", "labelFontSize": FONT}
        beside = alt.Axis(labelExpr=drawing.label_of(names, words), labelLimit=width / 2, **axis)
        rows = alt.Y("y:N", sort=names, scale=alt.Scale(padding=0.15), axis=beside)
        place = {"x": scaled("x", (low, high), {**x_axis(x, width), "grid": True}), "y": rows}
        if len(settings) > 1:
            apart = alt.Scale(paddingOuter=0.1)
            place["yOffset"] = alt.YOffset("yOffset:N", sort=list(settings), scale=apart)
        layers = layer("bar", [{**mark, "x2": 0.0} for mark in marks] if bars else [], place, opacity=0.85)
        layers += layer("rule", errors, place, strokeWidth=1.5)
        around = {"stroke": "var(--paper)", "strokeWidth": 1}
        layers += layer("circle", [] if bars else marks, place, size=64, opacity=1, **around)
        step = max((15 if bars else 11) * len(settings) + 8, (FONT + 2) * max(map(len, words)) + 6, 26)
        return layers, {"step": step, "for": "position"}

    described = "; ".join(str(mark["description"]) for mark in marks)
    keys = tuple((name, f"k{number}") for name, number in settings.items()) if len(settings) > 1 else ()
    return Chart(title, described, drawn(draw, small), keys, keyed=True)


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
        small: whether it is drawn once, in a row with others.

    Raises:
        ValueError: the matrix has another shape than the names.
    """
    if len(values) != len(rows) or any(len(line) != len(columns) for line in values):
        raise ValueError(f"expected {len(rows)} rows of {len(columns)} values for the heat map {title!r}")
    lines = zip(rows, values, strict=True)
    cells = [(r, c, v) for r, line in lines for c, v in zip(columns, line, strict=True) if math.isfinite(v)]
    if not cells:
        return None
    known = [value for _, _, value in cells]
    top = high if high is not None else max(map(abs, known)) if diverging else max(known)
    bottom = 0.0 if diverging else min(known) if low is None else low
    marks, texts = [], []
    for row, column, value in cells:
        share = min(1.0, max(0.0, ((abs(value) if diverging else value) - bottom) / ((top - bottom) or 1.0)))
        place, text = {"y": row, "x": column}, show(value, places)
        tint = "var(--cold)" if diverging and value < 0 else "var(--heat)"
        described = f"{row}, {column}: {text}"
        marks.append({**place, "color": tint, "opacity": 0.08 + 0.92 * share, "description": described})
        texts.append({**place, "text": text})

    def draw(width: int) -> tuple[list[Any], object]:
        alt, letter = drawing.altair(), 0.6 * FONT
        beside = min(letter * max(map(len, rows)), 0.34 * width)
        wide = (width - beside - 30) / len(columns)
        tilted = letter * max(map(len, columns)) > wide
        turned = {"labelAngle": -50, "labelAlign": "left"} if tilted else {"labelAngle": 0}
        common, bands = {"title": None, "grid": False, "labelOverlap": False}, alt.Scale(padding=0.03)
        across, down = alt.Axis(orient="top", **common, **turned), alt.Axis(labelLimit=0.34 * width, **common)
        place = {
            "x": alt.X("x:N", sort=list(columns), axis=across, scale=bands),
            "y": alt.Y("y:N", sort=list(rows), axis=down, scale=bands),
        }
        fits = letter * max(len(one["text"]) for one in texts) < wide and min(wide, 30) >= FONT
        layers = layer("rect", marks, place) + layer("text", texts if fits else [], place, fontSize=FONT - 1)
        return layers, min(wide, 30.0) * len(rows)

    listed = "; ".join(str(mark["description"]) for mark in marks)
    described = listed if len(cells) <= 400 else f"{len(rows)} x {len(columns)} values"
    return Chart(title, described, drawn(draw, small))
