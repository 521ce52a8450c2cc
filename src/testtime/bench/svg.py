"""Charts as inline SVG, written by hand: no library, no script, no network; colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count

__all__ = ["Point", "Series", "dot_chart", "histogram", "line_chart", "scatter", "ticks"]

_ids = count(1)
Box = tuple[float, float, float, float]  # left, top, right, bottom
HIGH = 14.0  # of the line of a label
REACHES = (9.0, 18.0, 30.0, 45.0, 65.0, 90.0)  # distances of a label from its point that are tried
DASHES = ("", "", "7 3", "2 3", "9 3 2 3", "", "5 2")


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        name: for the label at its end.
        x, y: the points; NaN breaks the line.
        colour: number of the colour, 1 to 6; 0 is the grey of the background.
        spread: a standard deviation for each point, drawn as a band where the line has a colour; empty for none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    spread: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot: where, how sure (a standard deviation), and whether it stands out."""

    name: str
    x: float
    y: float
    spread: float = 0.0
    colour: int = 0


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover a range.

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    span = max(high - low, 1e-9)
    raw = span / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(float(i * step), 10) for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    title: str,
    describe: str,
    unit: str,
    marks: Sequence[tuple[float, str]] = (),
    width: int = 980,
    height: int = 330,
    x_unit: str = "",
    x_names: Sequence[str] = (),
    named: bool = True,
) -> str:
    """Lines over time.

    Args:
        series: those with a colour lie on top and are named at their ends.
        title: of the chart, for those who do not see it.
        describe: what it shows, for those who do not see it.
        unit: of the y axis.
        marks: vertical lines: where, and the name of the stretch that begins there.
        width, height: of the drawing.
        x_unit: of the x axis, which then has numbers; empty for an axis without.
        x_names: names of the places 0, 1, ... on the x axis, instead of numbers.
        named: whether the lines have their names at their ends.
    """
    values = [y for s in series for y in s.y if not math.isnan(y)]
    if not values:
        return ""
    shown = [s for s in series if s.colour and s.spread]
    values += [v for s in shown for y, d in zip(s.y, s.spread, strict=True) for v in (y - d, y + d) if v == v]
    low, high = min(values), max(values)
    pad = 0.05 * ((high - low) or 1.0)
    low, high = (
        max(low - pad, 0.0 if low >= 0 else low - pad),
        min(high + pad, 100.0 if high <= 100 else high + pad),
    )
    end = max(x for s in series for x in s.x)
    longest = max((len(s.name) for s in series if s.colour), default=0)
    right = max(92, round(7.4 * longest) + 10) if named else 12
    left, top, bottom = 44, 26, 96 if marks else 46 if x_unit else 30
    begin = min(x for s in series for x in s.x) if x_unit else 0
    fx = _scale(begin, end, left, width - right)
    fy = _scale(low, high, height - bottom, top)
    parts = [_axis(fy, ticks(low, high), left, width - right, unit, top)]
    for at, name in marks:
        x = fx(at)
        if at > 0:
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        middle = fx(at + 0.5)
        parts.append(
            f'<text class="tick" transform="translate({middle:.1f} {height - bottom + 12}) rotate(-40)" '
            f'text-anchor="end">{escape(name)}</text>'
        )
    if x_unit:
        parts.append(_ground(fx, begin, end, x_unit, x_names, (left, width - right, height - bottom)))
    for s in shown:
        parts.append(f'<path class="band c{s.colour}" d="{_band(s, fx, fy)}"/>')
    for s in sorted(series, key=lambda s: s.colour > 0):
        path = _path(s, fx, fy)
        dash = f' stroke-dasharray="{DASHES[s.colour]}"' if DASHES[s.colour] else ""
        style = f"line c{s.colour}" if s.colour else "line quiet"
        parts.append(f'<path class="{style}" d="{path}"{dash}><title>{escape(s.name)}</title></path>')
    ends = [(fy(_last(s.y)), s) for s in series if s.colour and named]
    for y, s in _apart(ends, 14, top + 6, height - bottom):
        parts.append(
            f'<text class="label c{s.colour}" x="{width - right + 6}" y="{y + 4:.1f}">{escape(s.name)}</text>'
        )
    return _svg(parts, title, describe, width, height)


def scatter(
    points: Sequence[Point],
    title: str,
    describe: str,
    x_unit: str,
    y_unit: str,
    width: int = 980,
    height: int = 380,
    logarithmic: bool = True,
) -> str:
    """Points with names, on an x axis that is logarithmic (in multiples) or plain; those with a colour have whiskers."""
    if not points:
        return ""
    xs = [math.log10(max(p.x, 1e-3)) if logarithmic else p.x for p in points]
    ys = [p.y for p in points]
    wide = 1.0 if logarithmic else (max(xs) - min(xs)) or 1.0
    low_x, high_x = min(xs) - 0.08 * wide, max(xs) + 0.2 * wide
    reach = [p.spread if p.colour else 0.0 for p in points]
    low, high = (
        min(y - r for y, r in zip(ys, reach, strict=True)),
        max(y + r for y, r in zip(ys, reach, strict=True)),
    )
    pad = 0.1 * max(high - low, 1.0)
    low, high = low - pad, high + pad
    left, right, top, bottom = 44, 30, 26, 46
    fx = _scale(low_x, high_x, left, width - right)
    fy = _scale(low, high, height - bottom, top)
    parts = [_axis(fy, ticks(low, high), left, width - right, y_unit, top)]
    multiples = [(math.log10(v), f"{v:g}×") for v in (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200)]
    for at, name in multiples if logarithmic else [(v, f"{v:g}") for v in ticks(low_x, high_x)]:
        if low_x <= at <= high_x:
            x = fx(at)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{name}</text>'
            )
    parts.append(
        f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(x_unit)}</text>'
    )
    # A label covers no point, no whisker and no other label; one that finds no place is left out.
    spots = [(fx(at), fy(p.y), p) for p, at in zip(points, xs, strict=True)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in spots]
    taken += [
        (x - 1, fy(p.y + p.spread), x + 1, fy(p.y - p.spread))
        for x, _, p in spots
        if p.spread > 0 and p.colour
    ]
    frame = (left + 2, top - 6, width - 2, height - bottom)
    labels = []
    for x, y, p in sorted(spots, key=lambda spot: spot[2].colour or math.inf):
        style = f"c{p.colour}" if p.colour else "quiet"
        if p.spread > 0 and p.colour:
            up, down = fy(p.y + p.spread), fy(p.y - p.spread)
            parts.append(
                f'<line class="whisker {style}" x1="{x:.1f}" x2="{x:.1f}" y1="{up:.1f}" y2="{down:.1f}"/>'
            )
        parts.append(
            f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if p.colour else 5}">'
            f"<title>{escape(p.name)}: {p.y:.2f} at {p.x:.{1 if logarithmic else 3}f}{'×' * logarithmic}</title></circle>"
        )
        place = _free(x, y, _wide(p.name), REACHES if p.colour else REACHES[:2], taken, frame)
        if place is None:
            continue
        taken.append(place)
        x0, y0, x1, y1 = place
        near = min(max(x, x0), x1), min(max(y, y0), y1)
        if math.dist((x, y), near) > REACHES[1]:
            labels.append(
                f'<line class="leader {style}" x1="{x:.1f}" y1="{y:.1f}" x2="{near[0]:.1f}" y2="{near[1]:.1f}"/>'
            )
        anchor, at = ("start", x0) if x0 >= x else ("end", x1) if x1 <= x else ("middle", (x0 + x1) / 2)
        labels.append(
            f'<text class="label {style}" x="{at:.1f}" y="{y1 - 3:.1f}" text-anchor="{anchor}">{escape(p.name)}</text>'
        )
    parts += labels
    return _svg(parts, title, describe, width, height)


def dot_chart(
    points: Sequence[Point], title: str, describe: str, unit: str, width: int = 980, row: int = 28
) -> str:
    """A line for each name, its values on it as dots: what has no order, to be compared.

    Args:
        points: ``x`` is the value and ``spread`` its deviation, ``y`` is not looked at; those of one name share a line, in
            the order in which names come; NaN is left out.
        title, describe: for those who do not see it.
        unit: of the x axis.
        width, row: of the drawing, and the height of a line.
    """
    there = [p for p in points if not math.isnan(p.x)]
    if not there:
        return ""
    names = list(dict.fromkeys(p.name for p in points))
    left, right, top, bottom = 12 + 7 * min(40, max(map(len, names))), 24, 8, 42
    low, high = min(p.x - p.spread for p in there), max(p.x + p.spread for p in there)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    fx, height = _scale(low - pad, high + pad, left, width - right), top + row * len(names) + bottom
    parts = []
    for value in ticks(low - pad, high + pad, 8):
        x = fx(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(unit)}</text>'
    )
    for number, name in enumerate(names):
        y = top + row * (number + 0.5)
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        own = [p for p in there if p.name == name]
        for place, p in enumerate(own):
            style = f"c{p.colour}" if p.colour else "quiet"
            y = top + row * (number + 0.5 + 0.6 * ((place + 0.5) / len(own) - 0.5))
            if p.spread > 0:
                a, b = fx(p.x - p.spread), fx(p.x + p.spread)
                parts.append(
                    f'<line class="whisker {style}" x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                )
            parts.append(
                f'<circle class="dot {style}" cx="{fx(p.x):.1f}" cy="{y:.1f}" r="6">'
                f"<title>{escape(p.name)}: {p.x:.2f}</title></circle>"
            )
    return _svg(parts, title, describe, width, height)


def histogram(
    known: Sequence[float],
    unknown: Sequence[float],
    title: str,
    describe: str,
    width: int = 300,
    height: int = 130,
) -> str:
    """Two histograms on one axis, each of area one.

    Args:
        known, unknown: shares by bin, over the same bins.
        title, describe: for those who do not see it.
        width, height: of the drawing.
    """
    top, bottom = 8, 18
    highest = max([*known, *unknown, 1e-9])
    fy = _scale(0, highest, height - bottom, top)
    step = width / max(len(known), 1)
    parts = []
    for values, name in ((known, "known"), (unknown, "unknown")):
        corners = [f"M0 {height - bottom}"]
        for i, value in enumerate(values):
            corners.append(f"L{i * step:.1f} {fy(value):.1f}L{(i + 1) * step:.1f} {fy(value):.1f}")
        corners.append(f"L{width} {height - bottom}Z")
        parts.append(f'<path class="area {name}" d="{"".join(corners)}"><title>{name}</title></path>')
    parts.append(f'<line class="base" x1="0" x2="{width}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(f'<text class="tick" x="0" y="{height - 4}">surely known</text>')
    parts.append(f'<text class="tick" x="{width}" y="{height - 4}" text-anchor="end">surely unknown</text>')
    return _svg(parts, title, describe, width, height)


def _svg(parts: Sequence[str], title: str, describe: str, width: int, height: int) -> str:
    name = f"chart{next(_ids)}"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}t {name}d">'
        f'<title id="{name}t">{escape(title)}</title><desc id="{name}d">{escape(describe)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _axis(
    fy: Callable[[float], float], values: Sequence[float], left: float, right: float, unit: str, top: float
) -> str:
    parts = []
    for value in values:
        y = fy(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts.append(f'<text class="tick" x="{left - 30}" y="{top - 10}">{escape(unit)}</text>')
    return "".join(parts)


def _ground(
    fx: Callable[[float], float],
    begin: float,
    end: float,
    unit: str,
    names: Sequence[str],
    box: tuple[float, float, float],
) -> str:
    """The x axis: its numbers or names, and its unit below."""
    left, right, y = box
    places = [(float(i), name) for i, name in enumerate(names)] or [
        (v, f"{v:g}") for v in ticks(begin, end, 8)
    ]
    told = [
        f'<text class="tick" x="{fx(at):.1f}" y="{y + 16}" text-anchor="middle">{escape(name)}</text>'
        for at, name in places
    ]
    told.append(
        f'<text class="tick" x="{(left + right) / 2}" y="{y + 34}" text-anchor="middle">{escape(unit)}</text>'
    )
    return "".join(told)


def _band(s: Series, fx: Callable[[float], float], fy: Callable[[float], float]) -> str:
    points = [p for p in zip(s.x, s.y, s.spread, strict=True) if not any(map(math.isnan, p))]
    upper = [f"{fx(x):.1f} {fy(y + d):.1f}" for x, y, d in points]
    lower = [f"{fx(x):.1f} {fy(y - d):.1f}" for x, y, d in reversed(points)]
    return f"M{'L'.join(upper + lower)}Z" if points else ""


def _path(s: Series, fx: Callable[[float], float], fy: Callable[[float], float]) -> str:
    out, pen = [], False
    for x, y in zip(s.x, s.y, strict=True):
        if math.isnan(y):
            pen = False
            continue
        out.append(f"{'L' if pen else 'M'}{fx(x):.1f} {fy(y):.1f}")
        pen = True
    return "".join(out)


def _last(values: Sequence[float]) -> float:
    return next((v for v in reversed(values) if not math.isnan(v)), 0.0)


def _apart(
    ends: list[tuple[float, Series]], gap: float, low: float, high: float
) -> list[tuple[float, Series]]:
    """Labels moved up or down until none covers another."""
    placed: list[tuple[float, Series]] = []
    floor = low
    for y, s in sorted(ends, key=lambda pair: pair[0]):
        floor = max(y, floor)
        placed.append((floor, s))
        floor += gap
    over = placed[-1][0] - high if placed else 0
    if over > 0:
        ceiling = high
        moved = []
        for y, s in reversed(placed):
            ceiling = min(y, ceiling)
            moved.append((ceiling, s))
            ceiling -= gap
        placed = moved[::-1]
    return placed


def _wide(text: str) -> float:
    """The width of a label: that of its letters in a wide bold font of this size."""
    return sum(9.2 if c.isupper() or c in "+=%mw" else 4.5 if c in " '.,-il" else 7.8 for c in text)


def _free(
    x: float, y: float, length: float, reaches: Sequence[float], taken: Sequence[Box], frame: Box
) -> Box | None:
    """The nearest place around a point for a label, inside the frame and over nothing that is taken; None if there is none."""
    for reach in reaches:
        across = 0.7 * reach
        for dx, dy in (
            (reach, 0.0),
            (-reach, 0.0),
            (across, across),
            (across, -across),
            (-across, across),
            (-across, -across),
            (0.0, reach + HIGH / 2),
            (0.0, -reach - HIGH / 2),
        ):
            start = x + dx if dx > 0 else x + dx - length if dx < 0 else x - length / 2
            box = (start, y + dy - HIGH / 2, start + length, y + dy + HIGH / 2)
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if inside and not any(_meet(box, other) for other in taken):
                return box
    return None


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
