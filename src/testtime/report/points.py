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
        values = log_ticks(first, last) if logarithmic else ()
        axis = x_axis(x, size, suffix=suffix, values=values, grid=True)
        place = {
            "x": alt.X("x:Q", scale=scale(first, last, logarithmic), axis=axis),
            "y": alt.Y("y:Q", scale=scale(low, high), axis=y_axis(y, height)),
        }
        tint = {"color": alt.Color("c:N", scale=None)}
        change = math.log if logarithmic else float
        spots = [
            (
                width * (change(p.x) - change(first)) / (change(last) - change(first)),
                height * (high - p.y) / (high - low),
            )
            for p in known
        ]
        per_unit = height / (high - low)
        whiskers = [
            (a - 1, b - r * per_unit, a + 1, b + r * per_unit)
            for (a, b), r in zip(spots, reach, strict=True)
            if r
        ]
        ranked = sorted(range(len(known)), key=lambda i: known[i].colour or math.inf)
        order = [(i, math.inf if known[i].colour else QUIET_REACH) for i in ranked]
        frame = (-2.0, -6.0, width + 8.0, height - 2.0)
        labels = place_labels(spots, [p.name for p in known], order, whiskers, frame, size.font)
        rows: list[dict[str, Any]] = [
            {
                "x": p.x,
                "y": p.y,
                "lo": p.y - r,
                "hi": p.y + r,
                "c": colour(p.colour),
                "r": 70 if p.colour else 45,
                "name": _figures(p, suffix),
            }
            for p, r in zip(known, reach, strict=True)
        ]
        layers = Layers()
        lines = [
            {"px": spots[one.index][0], "py": spots[one.index][1], "qx": one.leader[0], "qy": one.leader[1]}
            for one in labels
            if one.leader
        ]
        pixels = {"x": alt.X("px:Q", scale=None), "y": alt.Y("py:Q", scale=None)}
        other = {"x2": alt.X2("qx:Q"), "y2": alt.Y2("qy:Q")}
        layers.add("rule", lines, {**pixels, **other}, color=COLOURS["dim"], strokeWidth=0.8, opacity=0.7)
        error = [{"x": r["x"], "y": r["lo"], "y2": r["hi"], "c": r["c"]} for r in rows if r["lo"] < r["hi"]]
        layers.add("rule", error, {**place, **tint, "y2": "y2:Q"}, strokeWidth=1.6)
        rows.sort(key=lambda r: r["c"] != colour(0))
        if len(rows) > NAMED:
            rows = [{key: value for key, value in row.items() if key != "name"} for row in rows]
        sized = {"size": alt.Size("r:Q", scale=None)}
        layers.add(
            "circle", rows, {**place, **tint, **sized}, opacity=1, stroke=COLOURS["paper"], strokeWidth=1
        )
        for bold in (False, True):
            texts = [
                {"px": one.x, "py": one.y, "t": p.name, "c": colour(p.colour) if p.colour else COLOURS["dim"]}
                for one in labels
                if bool((p := known[one.index]).colour) is bold
            ]
            style = {"align": "left", "baseline": "middle", "fontWeight": "bold" if bold else "normal"}
            layers.add("text", texts, {**pixels, **tint, "text": "t:N"}, **style)
        return layers.specification(size, width, height)

    told = description or "; ".join(f"{p.name}: {show(p.y, 2)} at {show(p.x, 2)}{suffix}" for p in known)
    return Chart(title, told, drawn(draw, small))


def _figures(point: Point, suffix: str) -> str:
    spread = f" ±{show(point.spread, 2)}" if point.spread > 0 else ""
    return f"{point.name}: {show(point.y, 2)}{spread} at {show(point.x, 2)}{suffix}"


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
    row = max(24, (13 if bars else 9) * len(settings) + 8)

    def draw(size: Size) -> dict[str, Any]:
        alt = altair()
        longest = max(text_width(name, size.font) for name in names)
        above = size.narrow and longest > 0.36 * size.width
        high_row = row + (16 if above else 0)
        width, height = size.width - (16 if above else longest + 22), high_row * len(names)
        layers = Layers()
        across = alt.X("x:Q", scale=scale(low, high), axis=x_axis(x, size, grid=True))
        up = alt.Y("y:Q", scale=scale(height, 0), axis=None)
        place, tint = {"x": across, "y": up}, {"color": alt.Color("c:N", scale=None)}
        lanes = {setting: (i + 0.5) / len(settings) - 0.5 for i, setting in enumerate(settings)}
        usable = row - 8 if len(settings) > 1 else 0
        rows: list[dict[str, Any]] = []
        for p in known:
            middle = names.index(p.name) * high_row + high_row - row / 2
            at = middle + usable * lanes[p.setting, p.colour]
            told = ", ".join(filter(None, (p.name, p.setting)))
            spread = f" ±{show(p.spread, 2)}" if p.spread > 0 else ""
            printed = f", published {show(p.published, 2)}" if p.published is not None else ""
            thick = (usable / len(settings) - 1 if len(settings) > 1 else row - 10) / 2
            rows.append(
                {
                    "x": p.x,
                    "y": at,
                    "lo": p.x - p.spread,
                    "hi": p.x + p.spread,
                    "c": colour(p.colour),
                    "top": at - thick,
                    "low": at + thick,
                    "zero": 0.0,
                    "p": p.published,
                    "name": f"{told}: {show(p.x, 2)}{spread}{printed}",
                }
            )
        if reference is not None:
            layers.add("rule", [{"x": reference}], {"x": across}, color=COLOURS["ink"], strokeDash=[2, 3])
        error = [{"x": r["lo"], "x2": r["hi"], "y": r["y"], "c": r["c"]} for r in rows if r["lo"] < r["hi"]]
        if bars:
            box = {
                "x": alt.X("zero:Q", scale=scale(low, high), axis=x_axis(x, size, grid=True)),
                "x2": "x:Q",
                "y": alt.Y("top:Q", scale=scale(height, 0), axis=None),
                "y2": "low:Q",
            }
            layers.add("rect", rows, {**box, **tint}, opacity=0.85)
            layers.add("rule", error, {**place, "x2": "x2:Q"}, color=COLOURS["ink"], strokeWidth=1.2)
        else:
            layers.add("rule", error, {**place, **tint, "x2": "x2:Q"}, strokeWidth=1.6)
            layers.add(
                "circle", rows, {**place, **tint}, size=64, opacity=1, stroke=COLOURS["paper"], strokeWidth=1
            )
        printed_rows = [
            {"x": r["p"], "y": r["y"], "c": r["c"] if not bars else COLOURS["ink"]}
            for r in rows
            if r["p"] is not None
        ]
        layers.add(
            "point",
            printed_rows,
            {**place, "stroke": alt.Stroke("c:N", scale=None)},
            shape="diamond",
            size=60,
            fill=COLOURS["paper"],
            strokeWidth=1.4,
            opacity=1,
        )
        texts = [
            {"py": i * high_row + (10 if above else high_row / 2), "t": name} for i, name in enumerate(names)
        ]
        spot = {"x": alt.value(0 if above else -10), "y": alt.Y("py:Q", scale=None), "text": "t:N"}
        layers.add(
            "text", texts, spot, align="left" if above else "right", baseline="middle", color=COLOURS["ink"]
        )
        return layers.specification(size, width, height)

    told = description or "; ".join(
        f"{', '.join(filter(None, (p.name, p.setting)))}: {show(p.x, 2)}" for p in known
    )
    keys = tuple((setting, number) for setting, number in settings if setting)
    return Chart(title, told, drawn(draw, small), keys if len(keys) > 1 else (), keyed=True)
