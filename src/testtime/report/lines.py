"""Lines over time or over a setting, and shares over a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from testtime.report.axes import NAMED, colour, padded, quoted, scale, x_axis, y_axis
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
        title: subject of the chart.
        y, x: titles of the axes, with the unit; without ``x`` that axis has no numbers.
        description: the figures in words; empty lists the last value of each line.
        marks: stretches of the x axis: where each begins, and its name.
        x_names: names of the places 0, 1, ... of the x axis.
        references: horizontal lines.
        height: height of the plot.
        logarithmic: whether the x axis is logarithmic.
        small: whether it is drawn once, to stand beside others.
    """
    known = [(a, b) for s in series for a, b, _ in _steps(s)]
    if not known:
        return None
    edges = [b + sign * d for s in series if s.colour for _, b, d in _steps(s) for sign in (-1, 1)]
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
        place = {"x": across, "y": altair().Y("y:Q", scale=scale(low, high), axis=y_axis(y, height))}
        layers = Layers()
        dividers = [{"x": at} for at, _ in marks[1:]]
        layers.add("rule", dividers, {"x": across}, color=COLOURS["dim"], opacity=0.5, strokeDash=[3, 4])
        levels = [{"y": r.y, "name": f"{r.name}: {show(r.y, 2)}"} for r in references]
        layers.add(
            "rule", levels, {"y": place["y"]}, color=COLOURS["ink"], strokeDash=[1, 3], strokeWidth=1.5
        )
        _add_lines(layers, series, place, x_names)
        for end in ends:
            weight = "bold" if end.pop("bold") else "normal"
            layers.add("text", [end | {"px": width + 8}], align="left", baseline="middle", fontWeight=weight)
        return layers.specification(size, width, height)

    told = description or "; ".join(f"{s.name}: {show(_last(s), 2)}" for s in series)
    keys = [(s.name, f"k{s.colour}") for s in series if s.colour] + [(r.name, "ink") for r in references]
    return Chart(title, told, drawn(draw, small), () if small or len(series) < 2 else tuple(keys))


def _steps(series: Series) -> list[tuple[float, float, float]]:
    """The points of a line that are there, with their spread (0 for none)."""
    spread = series.spread if len(series.spread) else [0.0] * len(series.y)
    return [step for step in zip(series.x, series.y, spread, strict=True) if all(map(math.isfinite, step))]


def _add_lines(
    layers: Layers, series: Sequence[Series], place: Mapping[str, Any], x_names: Sequence[str]
) -> None:
    """Bands, lines and, where there are few, points: the quiet ones first, the first colour on top."""
    ordered = sorted(series, key=lambda s: -s.colour if s.colour else -math.inf)
    for s in ordered:
        if s.colour and any(d > 0 for _, _, d in _steps(s)):
            there = {a: (b - d, b + d) for a, b, d in _steps(s)}
            band = [dict(zip(("x", "y", "y2"), (a, *there.get(a, (None, None))), strict=True)) for a in s.x]
            layers.add("area", band, place, color=colour(s.colour), opacity=0.14)
    quiet: list[dict[str, object]] = []
    for s in ordered:
        line: list[dict[str, object]] = [
            {"x": a, "y": b if math.isfinite(b) else None, "name": s.name, "series": s.name}
            for a, b in zip(s.x, s.y, strict=True)
        ]
        if not s.colour:
            quiet += line
            continue
        layers.add("line", quiet, place, color=colour(0), strokeWidth=1.2, strokeJoin="round")
        quiet = []
        dash = {"strokeDash": DASHES[s.colour]} if DASHES[s.colour] else {}
        layers.add("line", line, place, color=colour(s.colour), strokeWidth=2.2, strokeJoin="round", **dash)
    layers.add("line", quiet, place, color=colour(0), strokeWidth=1.2, strokeJoin="round")
    if max(len(s.x) for s in series) <= MARKED and sum(len(s.x) for s in series) <= NAMED:
        dots = [
            {"x": a, "y": b, "c": colour(s.colour), "name": f"{s.name}: {show(b, 2)} at {_place(a, x_names)}"}
            for s in ordered
            for a, b, _ in _steps(s)
        ]
        layers.add("circle", dots, place, size=36, opacity=1)


def _ends(
    series: Sequence[Series],
    references: Sequence[Reference],
    values: tuple[float, float],
    height: int,
    size: Size,
) -> list[dict[str, Any]]:
    """The names at the ends of the lines, moved apart."""
    low, high = values
    found = [(s.name, _last(s), colour(s.colour), True) for s in series if s.colour]
    found += [(r.name, r.y, COLOURS["ink"], False) for r in references]
    found = [end for end in found if math.isfinite(end[1])]
    wanted = [height * (high - y) / (high - low) for _, y, _, _ in found]
    places = spread_out(wanted, size.font + 2, 4.0, height - 4.0)
    return [
        {"t": name, "py": py, "c": tint, "bold": bold}
        for (name, _, tint, bold), py in zip(found, places, strict=True)
    ]


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
        title: subject of the chart.
        ends: meaning of the lowest and of the highest bin.
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
        text = f"datum.value ? {quoted(ends[1])} : {quoted(ends[0])}"
        axis = alt.Axis(title=None, grid=False, values=[0, bins], labelFlush=True, labelExpr=text)
        place = {
            "x": alt.X("x:Q", scale=scale(0, bins), axis=axis),
            "y": alt.Y("y:Q", scale=scale(0, top), axis=None),
        }
        for (name, values), number in zip(shares.items(), colours, strict=False):
            steps = [{"x": i, "y": v, "name": name} for i, v in enumerate([*values, values[-1]])]
            layers.add("area", steps, place, color=colour(number), opacity=0.5, interpolate="step-after")
        return layers.specification(size, width, height)

    first, *rest = shares.values()
    common = sum(map(min, first, rest[0])) if rest else 1.0
    told = description or f"{', '.join(shares)}: common area {100 * common:.0f} %"
    return Chart(title, told, drawn(draw, small=True))
