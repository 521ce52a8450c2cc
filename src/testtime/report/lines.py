"""Lines over time or over a setting, and shares over a range."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from testtime.report.axes import NAMED, colour, padded, scale, x_axis, y_axis
from testtime.report.drawing import COLOURS, Chart, Layers, Size, altair, drawn
from testtime.report.labels import spread_out, text_width
from testtime.report.words import show

__all__ = ["Reference", "Series", "line_chart", "share_chart"]

DASHES: tuple[list[int], ...] = ([], [], [7, 3], [2, 3], [9, 3, 2, 3], [], [5, 2])
MARKED = 25  # points of a line up to which they are marked


@final
@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        name: its name.
        x, y: the points; NaN breaks the line.
        colour: number of the colour.
        spread: standard deviation of each point, drawn as a band where the line has a colour; empty for none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    spread: Sequence[float] = ()


@final
@dataclass(frozen=True)
class Reference:
    """A horizontal line of a line chart, such as a published value or the model without adaptation."""

    name: str
    y: float


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    y: str,
    x: str = "",
    description: str = "",
    marks: Sequence[tuple[float, str]] = (),
    x_names: Sequence[str] = (),
    references: Sequence[Reference] = (),
    height: int = 300,
    logarithmic: bool = False,
    small: bool = False,
) -> Chart | None:
    """Draw lines: those with a colour on top, with their names at their ends; None if there is no point.

    Args:
        series: lines.
        title: what the chart shows.
        y, x: what the axes show, with the unit; without ``x`` that axis has no numbers.
        description: the figures in words; empty lists the last value of each line.
        marks: stretches of the x axis: where each begins, and its name.
        x_names: names of the places 0, 1, ... of the x axis.
        references: horizontal lines.
        height: height of the plot.
        logarithmic: whether the x axis is logarithmic.
        small: whether it is drawn once, to stand beside others.
    """
    known = [(a, b) for s in series for a, b in zip(s.x, s.y, strict=True) if math.isfinite(b)]
    if not known:
        return None
    edges = [
        e
        for s in series
        if s.colour and len(s.spread)
        for b, d in zip(s.y, s.spread, strict=True)
        for e in (b - d, b + d)
    ]
    low, high = padded([*(b for _, b in known), *edges, *(r.y for r in references)])
    first, last = min(a for a, _ in known), max(a for a, _ in known)
    if marks:
        first, last = marks[0][0], max(last, marks[-1][0] + 1)
    names = [(at + 0.5, name) for at, name in marks] or [(float(i), name) for i, name in enumerate(x_names)]

    def draw(size: Size) -> dict[str, Any]:
        ends = [] if size.narrow else _ends(series, references, (low, high), height, size)
        room = max((text_width(end["t"], size.font, bold=True) + 12 for end in ends), default=10)
        width = size.width - 46 - room
        across = altair().X("x:Q", scale=scale(first, last, logarithmic), axis=x_axis(x, size, names))
        up = altair().Y("y:Q", scale=scale(low, high), axis=y_axis(y, height))
        layers = Layers()
        dividers = [{"x": at} for at, _ in marks[1:]]
        layers.add("rule", dividers, {"x": across}, color=COLOURS["dim"], opacity=0.5, strokeDash=[3, 4])
        levels = [{"y": r.y, "name": f"{r.name}: {show(r.y, 2)}"} for r in references]
        layers.add("rule", levels, {"y": up}, color=COLOURS["ink"], strokeDash=[1, 3], strokeWidth=1.5)
        _add_lines(layers, series, {"x": across, "y": up}, x_names)
        for weight, bold in (("normal", False), ("bold", True)):
            own = [end for end in ends if end["bold"] is bold]
            spot = {"x": altair().value(width + 8), "y": altair().Y("py:Q", scale=None)}
            layers.add(
                "text",
                own,
                {**spot, "text": "t:N", "color": altair().Color("c:N", scale=None)},
                align="left",
                baseline="middle",
                fontWeight=weight,
            )
        return layers.specification(size, width, height)

    told = description or "; ".join(f"{s.name}: {show(_last(s), 2)}" for s in series)
    keys = tuple((s.name, s.colour) for s in series if s.colour)
    return Chart(title, told, drawn(draw, small), () if small or len(keys) < 2 else keys)


def _add_lines(
    layers: Layers, series: Sequence[Series], place: Mapping[str, Any], x_names: Sequence[str]
) -> None:
    alt = altair()
    tint = alt.Color("c:N", scale=None)
    for s in series:
        if s.colour and len(s.spread):
            steps = zip(s.x, s.y, s.spread, strict=True)
            band = [
                {"x": a, "y": b - d, "y2": b + d}
                for a, b, d in steps
                if math.isfinite(b) and math.isfinite(d)
            ]
            layers.add("area", band, {**place, "y2": "y2:Q"}, color=colour(s.colour), opacity=0.14)
    lines = [
        [
            {"x": a, "y": b if math.isfinite(b) else None, "name": s.name}
            for a, b in zip(s.x, s.y, strict=True)
        ]
        for s in series
    ]
    quiet = [row for s, line in zip(series, lines, strict=True) if not s.colour for row in line]
    layers.add(
        "line", quiet, {**place, "detail": "name:N"}, color=colour(0), strokeWidth=1.2, strokeJoin="round"
    )
    for s, line in sorted(zip(series, lines, strict=True), key=lambda pair: -pair[0].colour):
        if s.colour:
            style = {"strokeDash": DASHES[s.colour]} if DASHES[s.colour] else {}
            layers.add(
                "line", line, place, color=colour(s.colour), strokeWidth=2.2, strokeJoin="round", **style
            )
    if max(map(len, lines)) <= MARKED and sum(map(len, lines)) <= NAMED:
        dots = [
            {"x": a, "y": b, "c": colour(s.colour), "name": f"{s.name}: {show(b, 2)} at {_place(a, x_names)}"}
            for s in sorted(series, key=lambda s: (s.colour > 0, -s.colour))
            for a, b in zip(s.x, s.y, strict=True)
            if math.isfinite(b)
        ]
        layers.add("circle", dots, {**place, "color": tint}, size=36, opacity=1)


def _ends(
    series: Sequence[Series],
    references: Sequence[Reference],
    values: tuple[float, float],
    height: int,
    size: Size,
) -> list[dict[str, Any]]:
    """The names at the ends of the lines, moved apart."""
    low, high = values
    found: list[dict[str, Any]] = [
        {"t": s.name, "y": _last(s), "c": colour(s.colour), "bold": True} for s in series if s.colour
    ]
    found += [{"t": r.name, "y": r.y, "c": COLOURS["ink"], "bold": False} for r in references]
    found = [end for end in found if math.isfinite(end["y"])]
    wanted = [height * (high - end["y"]) / (high - low) for end in found]
    places = spread_out(wanted, size.font + 2, 4.0, height - 4.0)
    return [{**end, "py": py} for end, py in zip(found, places, strict=True)]


def _last(series: Series) -> float:
    return next((value for value in reversed(series.y) if math.isfinite(value)), math.nan)


def _place(x: float, names: Sequence[str]) -> str:
    return names[int(x)] if 0 <= x < len(names) and x == int(x) else f"{x:g}"


def share_chart(
    shares: Mapping[str, Sequence[float]],
    *,
    title: str,
    ends: tuple[str, str],
    description: str = "",
    colours: Sequence[int] = (1, 2),
    height: int = 110,
) -> Chart | None:
    """Draw histograms over common bins, one behind the other, to stand beside others; None without bins.

    Args:
        shares: shares by bin, by the name of the sample.
        title: what the chart shows.
        ends: what the lowest and the highest bin stand for.
        description: the figures in words; empty gives the common area of the first two samples.
        colours: numbers of the colours of the samples.
        height: height of the plot.
    """
    bins = max((len(values) for values in shares.values()), default=0)
    if not bins:
        return None

    def draw(size: Size) -> dict[str, Any]:
        alt, width = altair(), 300
        layers = Layers()
        top = max([1e-9, *(value for values in shares.values() for value in values)])
        text = f"datum.value ? {json.dumps(ends[1])} : {json.dumps(ends[0])}"
        axis = alt.Axis(title=None, grid=False, values=[0, bins], labelFlush=True, labelExpr=text)
        across = alt.X("x:Q", scale=scale(0, bins), axis=axis)
        up = alt.Y("y:Q", scale=scale(0, top), axis=None)
        for (name, values), number in zip(shares.items(), colours, strict=False):
            steps = [{"x": i, "y": v, "name": name} for i, v in enumerate([*values, values[-1]])]
            layers.add(
                "area",
                steps,
                {"x": across, "y": up},
                color=colour(number),
                opacity=0.5,
                interpolate="step-after",
            )
        return layers.specification(size, width, height)

    first, *rest = shares.values()
    common = sum(map(min, first, rest[0])) if rest else 1.0
    told = description or f"{', '.join(shares)}: common area {100 * common:.0f} %"
    return Chart(title, told, drawn(draw, small=True))
