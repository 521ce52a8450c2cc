"""Points, dots and bars: what is compared without an order."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, final

from testtime.report.drawing import (
    FONT,
    NAMED,
    NARROW,
    Chart,
    altair,
    clean,
    colour,
    drawn,
    label_of,
    layer,
    padded,
    scaled,
    x_axis,
)
from testtime.report.words import show

__all__ = ["Point", "row_chart", "scatter"]

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
        small: whether it is drawn once, to stand beside others.
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
        dot["description"] = f"{p.name}: {_figures(p.y, p.spread)} at {show(p.x, 2)}{suffix}"

    def draw(width: int) -> tuple[list[Any], object]:
        text = f"format(datum.value, '~g') + {json.dumps(clean(suffix))}"
        axis = {**x_axis(x, width), "grid": True, "labelExpr": text}
        kind = {"type": "log"} if logarithmic else {}
        if logarithmic:
            axis["values"] = [m * 10.0**power for power in range(-9, 10) for m in (1, 2, 5)]
        place = {
            "x": scaled("x", (first, last), axis, **kind),
            "y": scaled("y", (low, high), {"title": None}),
        }
        across, up = (width - 60) / (change(last) - change(first)), height / (high - low)
        spots = [(across * (change(p.x) - change(first)), up * (high - p.y)) for p in known]
        taken = [
            (a - 1, b - p.reach * up, a + 1, b + p.reach * up) for p, (a, b) in zip(known, spots, strict=True)
        ]
        found = _labels(spots, [p.name for p in known[:LABELLED]], taken, width - 60, height)
        texts = [
            {"x": back(change(first) + a / across), "y": high - b / up, "text": p.name, "color": p.tint}
            for p, (a, b) in ((known[i], at) for i, at in found.items())
        ]
        layers = layer("rule", whiskers, place, strokeWidth=1.6)
        layers += layer("circle", dots[::-1], place, opacity=1, stroke="var(--paper)", strokeWidth=1)
        return layers + layer("text", texts, place, align="left", baseline="middle"), height

    return Chart(title, listed if len(known) <= NAMED else f"{len(known)} points", drawn(draw, small, y))


def _labels(
    spots: Sequence[tuple[float, float]],
    names: Sequence[str],
    taken: Sequence[Box],
    width: float,
    height: float,
) -> dict[int, tuple[float, float]]:
    """Find free places beside points for their labels: by index, the left end of the middle line.

    Args:
        spots: places of the points, in pixels, the most important first.
        names: labels of the first points; one that finds no place is left out.
        taken: boxes that no label may cover, beside the points themselves.
        width, height: size of the plot.
    """
    boxes, found = [*taken, *((x - 6, y - 6, x + 6, y + 6) for x, y in spots)], {}
    high, sides = 1.1 * FONT, [(reach, *side) for reach in (8, 18, 30) for side in AROUND]
    for index, (name, (x, y)) in enumerate(zip(names, spots, strict=False)):
        wide = text_width(name)
        for reach, dx, dy in sides:
            left, middle = x + reach * dx + (dx - 1) * wide / 2, y + (reach + high / 2) * dy
            box = (left, middle - high / 2, left + wide, middle + high / 2)
            inside = box[0] >= 0 and box[1] >= -4 and box[2] <= width and box[3] <= height
            if inside and not any(_meet(box, other) for other in boxes):
                boxes.append(box)
                found[index] = left, middle
                break
    return found


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def text_width(text: str) -> float:
    """Estimate the width of a text in a wide sans-serif font, in pixels."""
    narrow, wide = set(" '.,:;ilj|()/"), set("+=<>%@mwMW×±")
    return FONT * sum(0.36 if c in narrow else 0.86 if c in wide else 0.68 for c in text)


def _figures(value: float, spread: float) -> str:
    return show(value, 2) + (f" ±{show(spread, 2)}" if spread > 0 else "")


def row_chart(
    points: Sequence[Point], *, title: str, x: str, bars: bool = False, small: bool = False
) -> Chart | None:
    """Draw a row for each name, its values as dots with whiskers or as bars from zero; None if there is no value.

    Args:
        points: values; those of one name share a row, in the order in which names come.
        title: subject of the chart.
        x: title of the axis, with the unit.
        bars: whether the values are bars from zero.
        small: whether it is drawn once, to stand beside others.
    """
    known = [p for p in points if math.isfinite(p.x)]
    if not known:
        return None
    names = list(dict.fromkeys(p.name for p in points))
    settings = {p.setting: p.colour for p in points}
    ends = [edge for p in known for edge in (p.x - p.spread, p.x + p.spread)] + [0.0] * bars
    low, high = padded(ends, 0.05)
    low = 0.0 if bars and min(ends) >= 0 else low
    marks: list[dict[str, object]] = [{"y": p.name, "x": p.x, "color": colour(p.colour)} for p in known]
    for p, mark in zip(known, marks, strict=True):
        mark["description"] = f"{', '.join(filter(None, (p.name, p.setting)))}: {_figures(p.x, p.spread)}"
        mark |= {"yOffset": p.setting} if len(settings) > 1 else {}
    errors = [
        {**mark, "x": p.x - p.spread, "x2": p.x + p.spread, **({"color": "var(--ink)"} if bars else {})}
        for p, mark in zip(known, marks, strict=True)
        if p.spread > 0
    ]

    def draw(width: int) -> tuple[list[Any], object]:
        alt, words = altair(), [wrap(name, 16) if width == NARROW else [name] for name in names]
        axis = {"title": None, "grid": not bars, "labelColor": "var(--ink)", "labelFontSize": FONT}
        beside = alt.Axis(labelExpr=label_of(names, words), labelLimit=width / 2, **axis)
        rows = alt.Y("y:N", sort=names, scale=alt.Scale(padding=0.15), axis=beside)
        place = {"x": scaled("x", (low, high), {**x_axis(x, width), "grid": True}), "y": rows}
        if len(settings) > 1:
            place["yOffset"] = alt.YOffset(
                "yOffset:N", sort=list(settings), scale=alt.Scale(paddingOuter=0.1)
            )
        layers = layer("bar", [{**mark, "x2": 0.0} for mark in marks] if bars else [], place, opacity=0.85)
        layers += layer("rule", errors, place, strokeWidth=1.5)
        around = {"stroke": "var(--paper)", "strokeWidth": 1}
        layers += layer("circle", [] if bars else marks, place, size=64, opacity=1, **around)
        step = max((15 if bars else 11) * len(settings) + 8, (FONT + 2) * max(map(len, words)) + 6, 26)
        return layers, alt.Step(step, **{"for": "position"})

    told = "; ".join(str(mark["description"]) for mark in marks)
    keys = tuple((name, f"k{number}") for name, number in settings.items()) if len(settings) > 1 else ()
    return Chart(title, told, drawn(draw, small), keys, keyed=True)
