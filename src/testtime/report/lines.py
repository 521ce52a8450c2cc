"""Lines over time or over a setting, and shares over a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, final

from testtime.report.drawing import (
    FONT,
    NARROW,
    Chart,
    colour,
    drawn,
    label_of,
    layer,
    padded,
    scaled,
    x_axis,
)
from testtime.report.words import show

__all__ = ["Series", "line_chart", "share_chart"]

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

    @property
    def points(self) -> list[tuple[float, float, float]]:
        """The points that are there, with their spread (0 for none)."""
        spread = self.spread if len(self.spread) else [0.0] * len(self.y)
        return [p for p in zip(self.x, self.y, spread, strict=True) if all(map(math.isfinite, p))]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    y: str,
    x: str = "",
    description: str = "",
    marks: Sequence[tuple[float, str]] = (),
    x_names: Sequence[str] = (),
    height: int = 300,
    small: bool = False,
) -> Chart | None:
    """Draw lines: those with a colour on top, with their names at their ends, then the grey ones; None if there is no point.

    Args:
        series: lines.
        title: subject of the chart.
        y, x: titles of the axes, with the unit; without ``x`` that axis has no numbers.
        description: the figures in words; empty lists the last value of each line.
        marks: stretches of the x axis: where each begins, and its name.
        x_names: names of the places 0, 1, ... of the x axis.
        height: height of the plot, in pixels.
        small: whether it is drawn once, in a row with others.
    """
    points = [(a, b, d if s.colour else 0.0) for s in series for a, b, d in s.points]
    if not points:
        return None
    low, high = padded([edge for _, b, d in points for edge in (b - d, b + d)])
    first, last = min(a for a, _, _ in points), max(a for a, _, _ in points)
    if marks:
        first, last = marks[0][0], max(last, marks[-1][0] + 1)
    names = [(at + 0.5, name) for at, name in marks] or [(float(i), name) for i, name in enumerate(x_names)]
    named, others = _named(series)
    heights = apart([s.points[-1][1] for s in named], (FONT + 2) * (high - low) / height, low, high)
    pairs = zip(named, heights, strict=True)
    ends = [{"x": last, "y": at, "text": s.name, "color": colour(s.colour)} for s, at in pairs]

    def draw(width: int) -> tuple[list[Any], object]:
        across = scaled("x", (first, last), x_axis(x, width, names))
        place = {"x": across, "y": scaled("y", (low, high), {"title": None})}
        dashed = {"color": "var(--dim)", "opacity": 0.5, "strokeDash": [3, 4]}
        layers = layer("rule", [{"x": at} for at, _ in marks[1:]], {"x": across}, **dashed)
        layers += _lines(series, place, x_names)
        beside = {"align": "left", "baseline": "middle", "dx": 8, "fontWeight": "bold"}
        return layers + layer("text", ends if width > NARROW else [], place, **beside), height

    described = description or "; ".join(
        f"{s.name}: {show(s.points[-1][1] if s.points else math.nan, 2)}" for s in series
    )
    keys = (*((s.name, f"k{s.colour}") for s in named), *others)
    return Chart(title, described, drawn(draw, small, y), () if small or len(series) < 2 else keys)


def _named(series: Sequence[Series]) -> tuple[list[Series], list[tuple[str, str]]]:
    """Return the lines with a name at their end, and the key of the others: a single grey line has a name too."""
    there = [s for s in series if s.points]
    grey = [s for s in there if not s.colour]
    if len(grey) > 1:
        return [s for s in there if s.colour], [(f"{len(grey)} others", "k0")]
    return [s for s in there if s.colour] + grey, []


def _lines(series: Sequence[Series], place: Mapping[str, Any], x_names: Sequence[str]) -> list[Any]:
    """Bands, lines and, where there are few, points: the quiet ones first, the first colour on top."""
    ordered = sorted(series, key=lambda s: -s.colour if s.colour else -math.inf)
    layers, dots = [], []
    for s in ordered:
        there = {a: {"y": b - d, "y2": b + d} for a, b, d in s.points if s.colour and any(s.spread)}
        band = [{"x": a, **there.get(a, {"y": None, "y2": None})} for a in s.x if there]
        layers += layer("area", band, place, color=colour(s.colour), opacity=0.14)
    for s in ordered:
        line = [{"x": a, "y": b, "description": s.name} for a, b in zip(s.x, s.y, strict=True)]
        look = {"strokeWidth": 2.2, "strokeDash": DASHES[s.colour]} if s.colour else {"strokeWidth": 1.2}
        layers += layer("line", line, place, color=colour(s.colour), strokeJoin="round", **look)
        for a, b, _ in s.points if len(s.x) <= MARKED else ():
            at = x_names[int(a)] if 0 <= a < len(x_names) and a == int(a) else f"{a:g}"
            described = f"{s.name}: {show(b, 2)} at {at}"
            dots.append({"x": a, "y": b, "color": colour(s.colour), "description": described})
    return layers + layer("circle", dots, place, size=36, opacity=1)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places as little as possible until they are a gap apart, inside a range where there is room.

    >>> apart([10.0, 12.0, 50.0], 10.0, 0.0, 55.0), apart([5.0, 5.0], 2.0, 0.0, 5.0)
    ([6.0, 16.0, 50.0], [3.0, 5.0])
    """
    order, groups, found = sorted(range(len(wanted)), key=lambda i: wanted[i]), [], list(wanted)
    for k, i in enumerate(order):  # least squares: places less k gaps, pooled where they would not ascend
        groups.append([wanted[i] - k * gap])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    least, most = low, high - (len(order) - 1) * gap
    starts = (min(max(fmean(group), least), most) for group in groups for _ in group)
    for k, (i, start) in enumerate(zip(order, starts, strict=True)):
        found[i] = start + k * gap
    return found


def share_chart(
    shares: Mapping[str, Sequence[float]],
    *,
    title: str,
    ends: tuple[str, str],
    description: str = "",
    height: int = 110,
) -> Chart | None:
    """Draw histograms over common bins, one behind the other, for a row with others; None without bins.

    Args:
        shares: shares by bin, by the name of the sample.
        title: subject of the chart.
        ends: meaning of the lowest and of the highest bin.
        description: the figures in words; empty gives the common area of the first two samples.
        height: height of the plot, in pixels.
    """
    bins = max(map(len, shares.values()), default=0)
    if not bins:
        return None

    def draw(width: int) -> tuple[list[Any], object]:
        axis: dict[str, Any] = {"title": None, "grid": False, "values": [0, bins], "labelFlush": True}
        axis["labelExpr"] = label_of([0, bins], ends)
        top = max([1e-9, *(value for values in shares.values() for value in values)])
        place = {"x": scaled("x", (0, bins), axis), "y": scaled("y", (0, top), None)}
        layers = []
        for number, (name, values) in enumerate(shares.items(), 1):
            steps = [{"x": i, "y": v, "description": name} for i, v in enumerate([*values, values[-1]])]
            layers += layer("area", steps, place, color=colour(number), opacity=0.5, interpolate="step-after")
        return layers, height

    first, *rest = shares.values()
    common = sum(map(min, first, rest[0])) if rest else 1.0
    described = description or f"{', '.join(shares)}: common area {100 * common:.0f} %"
    return Chart(title, described, drawn(draw, small=True))
