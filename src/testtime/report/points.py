"""Points, dots and bars: what is compared without an order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from testtime.report.axes import NAMED, colour, log_ticks, padded, scale, x_axis, y_axis
from testtime.report.drawing import COLOURS, Chart, Layers, Size, altair, drawn
from testtime.report.labels import place_labels, text_width
from testtime.report.words import show

__all__ = ["Point", "bar_chart", "dot_chart", "scatter"]

QUIET_REACH = 60.0  # longest distance of the label of a grey point, in pixels


@final
@dataclass(frozen=True)
class Point:
    """A point of a scatter plot (x, y), or a value (x) in the row ``name`` of a dot or bar chart.

    Args:
        name: its name.
        x: place on the x axis; NaN is left out.
        y: place on the y axis; not used by dot and bar charts.
        spread: standard deviation: of y in a scatter plot, of x in dot and bar charts.
        colour: number of the colour.
        setting: what the colour stands for, in dot and bar charts of several settings.
        published: the published value of x, a hollow diamond in dot and bar charts.
    """

    name: str
    x: float
    y: float = 0.0
    spread: float = 0.0
    colour: int = 0
    setting: str = ""
    published: float | None = None


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    description: str = "",
    logarithmic: bool = False,
    suffix: str = "",
    height: int = 360,
    small: bool = False,
) -> Chart | None:
    """Draw named points; a label covers no point, whisker or other label. None if there is no point.

    Args:
        points: points; those with a colour have whiskers and are labelled first. A label that finds no place is left out:
            the figures of every point are in the description, and shown where it is pointed at.
        title: what the chart shows.
        x, y: what the axes show, with the unit.
        description: the figures in words; empty lists them.
        logarithmic: whether the x axis is logarithmic.
        suffix: text after each number of the x axis, such as "×".
        height: height of the plot.
        small: whether it is drawn once, to stand beside others.
    """
    known = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y) and (p.x > 0 or not logarithmic)]
    if not known:
        return None
    reach = [p.spread if p.colour and p.spread > 0 else 0.0 for p in known]
    low, high = padded([e for p, r in zip(known, reach, strict=True) for e in (p.y - r, p.y + r)], 0.1)
    if logarithmic:
        first, last = min(p.x for p in known) / 1.25, max(p.x for p in known) * 1.6
    else:
        first, last = padded([p.x for p in known], 0.12)

    def draw(size: Size) -> dict[str, Any]:
        alt, width = altair(), size.width - 56
        axis = x_axis(x, size, suffix=suffix, values=log_ticks(first, last) if logarithmic else (), grid=True)
        place = {
            "x": alt.X("x:Q", scale=scale(first, last, logarithmic), axis=axis),
            "y": alt.Y("y:Q", scale=scale(low, high), axis=y_axis(y, height)),
        }
        change = math.log if logarithmic else float
        across, up = width / (change(last) - change(first)), height / (high - low)
        spots = [(across * (change(p.x) - change(first)), up * (high - p.y)) for p in known]
        whiskers = [
            (a - 1, b - r * up, a + 1, b + r * up) for (a, b), r in zip(spots, reach, strict=True) if r
        ]
        ranked = sorted(range(len(known)), key=lambda i: known[i].colour or math.inf)
        order = [(i, math.inf if known[i].colour else QUIET_REACH) for i in ranked]
        frame = (-2.0, -6.0, width + 8.0, height - 2.0)
        labels = place_labels(spots, [p.name for p in known], order, whiskers, frame, size.font)
        layers = Layers()
        leaders = [
            dict(zip(("px", "py", "px2", "py2"), (*spots[one.index], *one.leader), strict=True))
            for one in labels
            if one.leader
        ]
        layers.add("rule", leaders, color=COLOURS["dim"], strokeWidth=0.8, opacity=0.7)
        behind = ranked[::-1]
        errors = [
            {
                "x": known[i].x,
                "y": known[i].y - reach[i],
                "y2": known[i].y + reach[i],
                "c": colour(known[i].colour),
            }
            for i in behind
            if reach[i]
        ]
        layers.add("rule", errors, place, strokeWidth=1.6)
        dots = [_dot(known[i], suffix, named=len(known) <= NAMED) for i in behind]
        layers.add("circle", dots, place, opacity=1, stroke=COLOURS["paper"], strokeWidth=1)
        for weight in ("normal", "bold"):
            texts = [
                {"px": one.x, "py": one.y, "t": p.name, "c": colour(p.colour) if p.colour else COLOURS["dim"]}
                for one in labels
                if ("bold" if (p := known[one.index]).colour else "normal") == weight
            ]
            layers.add("text", texts, align="left", baseline="middle", fontWeight=weight)
        return layers.specification(size, width, height)

    told = description or "; ".join(f"{p.name}: {show(p.y, 2)} at {show(p.x, 2)}{suffix}" for p in known)
    return Chart(title, told, drawn(draw, small))


def _dot(point: Point, suffix: str, named: bool) -> dict[str, object]:
    """The mark of a point, with its figures."""
    found = {"x": point.x, "y": point.y, "c": colour(point.colour), "size": 70 if point.colour else 45}
    spread = f" ±{show(point.spread, 2)}" if point.spread > 0 else ""
    name = f"{point.name}: {show(point.y, 2)}{spread} at {show(point.x, 2)}{suffix}"
    return found | ({"name": name} if named else {})


def dot_chart(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    description: str = "",
    reference: float | None = None,
    small: bool = False,
) -> Chart | None:
    """Draw a row for each name and its values as dots with whiskers; None if there is no value.

    Args:
        points: values; those of one name share a row, in the order in which names come.
        title: what the chart shows.
        x: what the axis shows, with the unit.
        description: the figures in words; empty lists them.
        reference: place of a vertical line, such as zero or the model without adaptation.
        small: whether it is drawn once, to stand beside others.
    """
    return _rows(points, title, x, description, reference, small, bars=False)


def bar_chart(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    description: str = "",
    reference: float | None = None,
    small: bool = False,
) -> Chart | None:
    """Draw a row for each name and its values as bars from zero with their spread, see :func:`dot_chart`."""
    return _rows(points, title, x, description, reference, small, bars=True)


def _rows(
    points: Sequence[Point],
    title: str,
    x: str,
    description: str,
    reference: float | None,
    small: bool,
    bars: bool,
) -> Chart | None:
    known = [p for p in points if math.isfinite(p.x)]
    if not known:
        return None
    names = list(dict.fromkeys(p.name for p in points))
    settings = list(dict.fromkeys((p.setting, p.colour) for p in points))
    ends = [e for p in known for e in (p.x - p.spread, p.x + p.spread)]
    ends += [p.published for p in known if p.published is not None] + (
        [] if reference is None else [reference]
    )
    low, high = padded([*ends, 0.0] if bars else ends, 0.05)
    low = 0.0 if bars and min(ends) >= 0 else low
    several = len(settings) > 1
    row = max(26, (15 if bars else 11) * len(settings) + 8)

    def draw(size: Size) -> dict[str, Any]:
        alt = altair()
        longest = max(text_width(name, size.font) for name in names)
        above = size.narrow and longest > 0.36 * size.width
        step = row + (18 if above else 0)
        beside = {"labelAlign": "left", "labelPadding": 0, "labelOffset": -row / 2 - 6} if above else {}
        labels = alt.Axis(
            title=None,
            grid=not bars,
            labelColor=COLOURS["ink"],
            labelFontSize=size.font,
            labelLimit=0,
            **beside,
        )
        inner = 0.25 if not above else 22 / step
        rows = alt.Y(
            "row:N", sort=names, scale=alt.Scale(paddingInner=inner, paddingOuter=inner / 2), axis=labels
        )
        axis = x_axis(x, size, grid=True)
        place = {"x": alt.X("x:Q", scale=scale(low, high), axis=axis), "y": rows}
        if several:
            order = [setting for setting, _ in settings]
            place["yOffset"] = alt.YOffset("setting:N", sort=order, scale=alt.Scale(paddingOuter=0.1))
        layers = Layers()
        if reference is not None:
            layers.add("rule", [{"x": reference}], {"x": place["x"]}, color=COLOURS["ink"], strokeDash=[2, 3])
        marks: list[dict[str, Any]] = [
            {"row": p.name, "setting": p.setting, "x": p.x, "c": colour(p.colour), "name": _told(p)}
            for p in known
        ]
        errors = [
            {**mark, "x": p.x - p.spread, "x2": p.x + p.spread}
            for p, mark in zip(known, marks, strict=True)
            if p.spread > 0
        ]
        if bars:
            layers.add("bar", [{**mark, "x2": 0.0} for mark in marks], place, opacity=0.85)
            errors = [{**error, "c": COLOURS["ink"]} for error in errors]
        layers.add("rule", errors, place, strokeWidth=1.5)
        if not bars:
            layers.add("circle", marks, place, size=64, opacity=1, stroke=COLOURS["paper"], strokeWidth=1)
        printed = [
            {**mark, "x": p.published}
            for p, mark in zip(known, marks, strict=True)
            if p.published is not None
        ]
        layers.add(
            "point",
            printed,
            place,
            shape="diamond",
            size=56,
            fill=COLOURS["paper"],
            strokeWidth=1.4,
            opacity=1,
        )
        width = size.width - (16 if above else longest + 24)
        return layers.specification(size, width, alt.Step(step, **{"for": "position"}))

    told = description or "; ".join(map(_told, known))
    keys = tuple((setting, f"k{number}") for setting, number in settings if setting)
    return Chart(title, told, drawn(draw, small), keys if len(keys) > 1 else (), keyed=True)


def _told(point: Point) -> str:
    """The figures of a value in words."""
    spread = f" ±{show(point.spread, 2)}" if point.spread > 0 else ""
    printed = f", published {show(point.published, 2)}" if point.published is not None else ""
    return f"{', '.join(filter(None, (point.name, point.setting)))}: {show(point.x, 2)}{spread}{printed}"
