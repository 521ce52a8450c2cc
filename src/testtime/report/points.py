"""Points, dots and bars: what is compared without an order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from testtime.report.axes import NAMED, colour, log_ticks, padded, scale, x_axis, y_axis
from testtime.report.drawing import COLOURS, Chart, Layers, Size, altair, drawn
from testtime.report.labels import Label, place_labels, text_width
from testtime.report.words import show

__all__ = ["Point", "row_chart", "scatter"]

LABELLED = 60  # points that may have a label, the most important ones
QUIET_REACH = 60.0  # longest distance of the label of a grey point, in pixels


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
        published: the published value of x, a hollow diamond in row charts.
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
        title: subject of the chart.
        x, y: titles of the axes, with the unit.
        description: the figures in words; empty lists them.
        logarithmic: whether the x axis is logarithmic.
        suffix: text after each number of the x axis, such as "×".
        height: height of the plot.
        small: whether it is drawn once, to stand beside others.
    """
    known = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y) and (p.x > 0 or not logarithmic)]
    if not known:
        return None
    listed = [f"{p.name}: {show(p.y, 2)} at {show(p.x, 2)}{suffix}" for p in known]
    told = description or ("; ".join(listed) if len(known) <= NAMED else f"{len(known)} points")
    known.sort(key=lambda p: p.colour or math.inf)
    low, high = padded([e for p in known for e in (p.y - _reach(p), p.y + _reach(p))], 0.1)
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
        change = math.log if logarithmic else float
        across, up = width / (change(last) - change(first)), height / (high - low)
        spots = [(across * (change(p.x) - change(first)), up * (high - p.y)) for p in known]
        pairs = list(zip(known, spots, strict=True))
        whiskers = [(a - 1, b - r * up, a + 1, b + r * up) for p, (a, b) in pairs if (r := _reach(p))]
        farthest = [math.inf if p.colour else QUIET_REACH for p in known[:LABELLED]]
        frame = (-2.0, -6.0, width + 8.0, height - 2.0)
        labels = place_labels(spots, [p.name for p in known[:LABELLED]], farthest, whiskers, frame, size.font)
        layers = Layers()
        _add_leaders(layers, labels, spots)
        bounds = [(p, p.y - _reach(p), p.y + _reach(p)) for p in known if _reach(p)]
        errors = [{"x": p.x, "y": down, "y2": above, "c": colour(p.colour)} for p, down, above in bounds]
        layers.add("rule", errors, place, strokeWidth=1.6)
        dots = [_dot(p, suffix, len(known) <= NAMED) for p in known[::-1]]
        layers.add("circle", dots, place, opacity=1, stroke=COLOURS["paper"], strokeWidth=1)
        for weight, tint in (("normal", lambda _: COLOURS["dim"]), ("bold", colour)):
            chosen = [
                (one, p) for one in labels if bool((p := known[one.index]).colour) == (weight == "bold")
            ]
            texts = [{"px": one.x, "py": one.y, "t": p.name, "c": tint(p.colour)} for one, p in chosen]
            layers.add("text", texts, align="left", baseline="middle", fontWeight=weight)
        return layers.specification(size, width, height)

    return Chart(title, told, drawn(draw, small))


def _add_leaders(layers: Layers, labels: Sequence[Label], spots: Sequence[tuple[float, float]]) -> None:
    """Lines between points and labels that are not beside them."""
    ends = [(*spots[one.index], *one.leader) for one in labels if one.leader]
    lines = [dict(zip(("px", "py", "px2", "py2"), end, strict=True)) for end in ends]
    layers.add("rule", lines, color=COLOURS["dim"], strokeWidth=0.8, opacity=0.7)


def _reach(point: Point) -> float:
    """The length of a whisker of a scatter plot."""
    return point.spread if point.colour and point.spread > 0 else 0.0


def _dot(point: Point, suffix: str, named: bool) -> dict[str, object]:
    """The mark of a point, with its figures."""
    found = {"x": point.x, "y": point.y, "c": colour(point.colour), "size": 70 if point.colour else 45}
    name = f"{point.name}: {_spread(point.y, point.spread)} at {show(point.x, 2)}{suffix}"
    return found | ({"name": name} if named else {})


def _spread(value: float, spread: float) -> str:
    return show(value, 2) + (f" ±{show(spread, 2)}" if spread > 0 else "")


def row_chart(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    bars: bool = False,
    description: str = "",
    reference: float | None = None,
    small: bool = False,
) -> Chart | None:
    """Draw a row for each name, its values as dots with whiskers or as bars from zero; None if there is no value.

    Args:
        points: values; those of one name share a row, in the order in which names come.
        title: subject of the chart.
        x: title of the axis, with the unit.
        bars: whether the values are bars from zero.
        description: the figures in words; empty lists them.
        reference: place of a vertical line, such as zero or the model without adaptation.
        small: whether it is drawn once, to stand beside others.
    """
    known = [p for p in points if math.isfinite(p.x)]
    if not known:
        return None
    names = list(dict.fromkeys(p.name for p in points))
    settings = {p.setting: p.colour for p in reversed(points)}
    ends = [e for p in known for e in (p.x - p.spread, p.x + p.spread, p.published) if e is not None]
    ends += [reference] if reference is not None else []
    low, high = padded([*ends, 0.0] if bars else ends, 0.05)
    low = 0.0 if bars and min(ends) >= 0 else low
    row = max(26, (15 if bars else 11) * len(settings) + 8)

    def draw(size: Size) -> dict[str, Any]:
        alt = altair()
        longest = max(text_width(name, size.font) for name in names)
        above = size.narrow and longest > 0.36 * size.width
        step = row + 18 if above else row
        axis = x_axis(x, size, grid=True)
        place = {
            "x": alt.X("x:Q", scale=scale(low, high), axis=axis),
            "y": _names(names, size, row, above, not bars),
        }
        layers = Layers()
        if reference is not None:
            layers.add("rule", [{"x": reference}], {"x": place["x"]}, color=COLOURS["ink"], strokeDash=[2, 3])
        if len(settings) > 1:
            order = list(dict.fromkeys(p.setting for p in points))
            place["yOffset"] = alt.YOffset("setting:N", sort=order, scale=alt.Scale(paddingOuter=0.1))
        common = [
            (p, {"row": p.name, "setting": p.setting, "x": p.x, "c": colour(p.colour), "name": _told(p)})
            for p in known
        ]
        tint = {"c": COLOURS["ink"]} if bars else {}
        errors = [{**m, "x": p.x - p.spread, "x2": p.x + p.spread, **tint} for p, m in common if p.spread > 0]
        printed = [{**m, "x": p.published} for p, m in common if p.published is not None]
        if bars:
            layers.add("bar", [{**m, "x2": 0.0} for _, m in common], place, opacity=0.85)
        layers.add("rule", errors, place, strokeWidth=1.5)
        if not bars:
            white = {"stroke": COLOURS["paper"], "strokeWidth": 1}
            layers.add("circle", [m for _, m in common], place, size=64, opacity=1, **white)
        hollow = {"shape": "diamond", "fill": COLOURS["paper"], "strokeWidth": 1.4}
        layers.add("point", printed, place, size=56, opacity=1, **hollow)
        width = size.width - (16 if above else longest + 24)
        return layers.specification(size, width, alt.Step(step, **{"for": "position"}))

    keys = tuple((name, f"k{settings[name]}") for name in dict.fromkeys(p.setting for p in points))
    told = description or "; ".join(map(_told, known))
    return Chart(title, told, drawn(draw, small), keys if len(keys) > 1 else (), keyed=True)


def _names(names: Sequence[str], size: Size, row: float, above: bool, grid: bool) -> Any:
    """The axis of the rows' names, which stand beside the rows, or above them where there is no room."""
    alt = altair()
    longest = max(text_width(name, size.font) for name in names)
    place = (
        {"labelAlign": "left", "labelPadding": 0, "labelOffset": -row / 2 - 6}
        if above
        else {"minExtent": longest + 8}
    )
    style = {"labelColor": COLOURS["ink"], "labelFontSize": size.font, "labelLimit": 0}
    gap = 22 / (row + 18) if above else 0.25
    bands = alt.Scale(paddingInner=gap, paddingOuter=gap / 2)
    return alt.Y(
        "row:N", sort=list(names), scale=bands, axis=alt.Axis(title=None, grid=grid, **style, **place)
    )


def _told(point: Point) -> str:
    """The figures of a value in words."""
    printed = f", published {show(point.published, 2)}" if point.published is not None else ""
    return (
        f"{', '.join(filter(None, (point.name, point.setting)))}: {_spread(point.x, point.spread)}{printed}"
    )
