"""The page of an analysis: its table, its figure, and how it was made."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from testtime.bench.page import (
    definitions,
    deviation,
    document,
    figure,
    first_of,
    listed,
    mean,
    show,
    table,
    write_page,
)
from testtime.bench.svg import Point as Dot
from testtime.bench.svg import Series, dot_chart, line_chart
from testtime.files import damaged, read_json
from testtime.space.analyses import ANALYSES, Analysis

__all__ = ["cells", "text_table", "write_report"]

STYLE = """
.sheet{width:100%;max-width:72rem;min-width:52rem;height:auto;display:block}
.bar{background:linear-gradient(to right,color-mix(in srgb,var(--c1) 22%,transparent) var(--w),transparent var(--w))}
"""
BETWEEN = "between floor and ceiling"
AGAIN = "delete it and run the same testtime space command again"
RESULTS = {
    **dict.fromkeys(("analysis", "preset"), str),
    "command": [str],
    "machine": dict,
    "results": [{"row": str, "column": str, "value": (float, type(None)), "seed": int}],
}
Cells = Mapping[tuple[str, str], Sequence[float]]


def cells(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """The values by row and column: of each seed the mean over the points that share the cell."""
    by_seed: dict[tuple[str, str], dict[int, list[float]]] = {}
    for result in results:
        place = by_seed.setdefault((result["row"], result["column"]), {})
        place.setdefault(result["seed"], []).append(result["value"])
    return {place: [mean(values) for _, values in sorted(seeds.items())] for place, seeds in by_seed.items()}


def text_table(analysis: Analysis, results: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal."""
    found = cells(results)
    rows, columns = _names(found)
    placed = _between(analysis, found, rows, columns)
    lines = [["", *columns], *([row, *(_text(found.get((row, c), ())) for c in columns)] for row in rows)]
    if placed:
        more = [BETWEEN, *(f"{placed[row]:.2f}" for row in rows)]
        lines = [[*line, last] for line, last in zip(lines, more, strict=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = "\n".join(
        "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    return f"{analysis.title} {analysis.shows}, {_seeds(results)}\n{shown}"


def write_report(folder: str | Path) -> Path:
    """Write the page of an analysis from its ``results.json``.

    Raises:
        ValueError: the folder holds none.
    """
    folder = Path(folder)
    if not (folder / "results.json").is_file():
        raise ValueError(
            f"{folder} holds no results.json; testtime space bench makes one, and goes on where it was left"
        )
    about = read_json(folder / "results.json", AGAIN, RESULTS)
    with damaged(folder / "results.json", AGAIN):
        analysis = ANALYSES[about["analysis"]]
    return write_page(folder / "report.html", page(analysis, about, _pictures(folder / "pictures")))


def page(analysis: Analysis, about: Mapping[str, Any], pictures: str = "") -> str:
    """The whole page; ``pictures`` is HTML."""
    results = about["results"]
    found = cells(results)
    rows, columns = _names(found)
    best = first_of({place: mean(values) for place, values in found.items()})
    finished = len(results) >= about.get("planned", len(results))
    lead = "There is no result yet."
    if best:
        names = listed([f"<strong>{escape(_name(place))}</strong>" for place in best])
        value = f"{_text(found[best[0]])} ({analysis.shows}, {_seeds(results)})"
        lead = f"Highest {'is' if len(best) == 1 else 'are'} {names} with {value}."
    if not finished:
        lead = (
            f"<strong>This analysis is not finished</strong>: {len(results)} of {about['planned']} points have a result. None "
            "is called the best before all have one; the same command continues."
        )
    elif {row for row, _ in found} == {f"trained in {h}" for h in range(len(rows))}:
        own, other = _diagonal(found)
        lead = (
            f"A model is worth {show(mean(own))} % mIoU in the house it was pre-trained in and {show(mean(other))} % in "
            f"another ({_seeds(results)}): a difference of {mean(own) - mean(other):+.1f} points."
        )
    made = [
        ("in the paper", analysis.published or "not there"),
        ("preset", about["preset"]),
        ("command", " ".join(about["command"])),
        *((k, v) for k, v in about["machine"].items()),
    ]
    shown = _table(analysis, found, rows, columns, finished) + _drawn(analysis, found, rows, columns)
    return document(
        analysis.title,
        f"testtime space · {analysis.name} · {about['preset']}",
        lead,
        [
            ("result", "Result", escape(analysis.shows), shown),
            ("pictures", "Pictures", "What it looks like", pictures),
            ("classes", "Classes", "Class by class", _classes(results)),
            ("made", "Provenance", "How this was made", definitions(made)),
        ],
        STYLE,
    )


def _table(
    analysis: Analysis, found: Cells, rows: Sequence[str], columns: Sequence[str], finished: bool = True
) -> str:
    several = not analysis.shows.endswith("%")  # columns that cannot be compared
    tops = {
        column: max((mean(v) for (_, c), v in found.items() if c == column or not several), default=1.0)
        or 1.0
        for column in columns
    }
    placed = _between(analysis, found, rows, columns)
    body = []
    for row in rows:
        inside = []
        for column in columns:
            values = found.get((row, column), ())
            width = 0.0 if not values else 100 * mean(values) / tops[column]
            first = finished and bool(values) and show(mean(values)) == show(tops[column])
            inside.append(
                f'<td class="bar{" best" if first else ""}" style="--w:{width:.0f}%">{_text(values)}</td>'
            )
        inside += [f"<td>{placed[row]:.2f}</td>"] if placed else []
        body.append(f'<tr><th scope="row">{escape(row)}</th>{"".join(inside)}</tr>')
    names = [*columns, *([BETWEEN] if placed else [])]
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in names)
    note = (
        '<p class="note">Mean over seeds ± their standard deviation; the bar is the share of the highest.</p>'
    )
    return table(analysis.shows, f'<tr><th scope="col"></th>{head}</tr>', body) + note


def _between(
    analysis: Analysis, found: Cells, rows: Sequence[str], columns: Sequence[str]
) -> dict[str, float]:
    """Where each row lies between floor (0) and ceiling (1); empty where there are none, or they do not differ."""
    if not analysis.ends or not {*analysis.ends} <= {*rows}:
        return {}
    low, high = (mean(found[end, columns[0]]) for end in analysis.ends)
    return {row: (mean(found[row, columns[0]]) - low) / (high - low) for row in rows} if high != low else {}


def _drawn(analysis: Analysis, found: Cells, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A line where the columns are numbers, else a dot for each cell; columns of measures of their own apart."""
    numbers = {c: float(c) for c in columns if c.replace(".", "", 1).isdigit()}
    if analysis.unit and len(numbers) > 1:
        return _lines(analysis, found, rows, numbers)
    if analysis.shows.endswith("%"):
        shades = {column: min(colour, 6) for colour, column in enumerate(columns, 1)}
        keys = "".join(f'<span class="c{shades[c]}">● {escape(c)}</span> ' for c in columns)
        named = f'<div class="legend">{keys}</div>' if len(columns) > 1 else ""
        return named + _dots(analysis, found, rows, shades, analysis.shows)
    return "".join(_dots(analysis, found, rows, {column: 1}, column) for column in columns)


def _lines(analysis: Analysis, found: Cells, rows: Sequence[str], numbers: Mapping[str, float]) -> str:
    series = []
    for colour, row in enumerate(rows, 1):
        there = [c for c in numbers if (row, c) in found]
        values = [found[row, c] for c in there]
        xs = [numbers[c] for c in there]
        if len(xs) == 1:
            xs, values = [min(numbers.values()), max(numbers.values())], values * 2
        spread = [deviation(v) for v in values]
        series.append(Series(row, xs, [mean(v) for v in values], min(colour, 6), spread))
    told = "; ".join(f"{s.name}: {', '.join(f'{y:.1f}' for y in s.y)}" for s in series)
    return figure(
        line_chart(series, analysis.title, told, analysis.shows, x_unit=analysis.unit, height=320),
        escape(analysis.title),
    )


def _dots(
    analysis: Analysis, found: Cells, rows: Sequence[str], colours: Mapping[str, int], unit: str
) -> str:
    points = [
        Dot(row, mean(found[row, column]), 0.0, deviation(found[row, column]), colour)
        for row in rows
        for column, colour in colours.items()
        if (row, column) in found
    ]
    told = "; ".join(f"{p.name}: {p.x:.1f}" for p in points)
    return figure(dot_chart(points, analysis.title, told, unit), escape(unit))


def _classes(results: Sequence[Mapping[str, Any]]) -> str:
    """IoU by class of every row, where there are few."""
    rows = list(dict.fromkeys(r["row"] for r in results))
    if len(rows) > 8 or len({r["column"] for r in results}) > 1 or any("IoU" not in r for r in results):
        return ""
    names = list(results[0]["IoU"])
    body = []
    for name in names:
        inside = []
        for row in rows:
            known = [r["IoU"][name] for r in results if r["row"] == row and r["IoU"][name] is not None]
            inside.append(f"<td>{show(mean(known))}</td>")
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(inside)}</tr>')
    head = "".join(f'<th scope="col">{escape(row)}</th>' for row in rows)
    return table("IoU by class", f'<tr><th scope="col">class</th>{head}</tr>', body)


def _pictures(folder: Path) -> str:
    if not (folder / "pictures.json").is_file():
        return ""
    about = read_json(folder / "pictures.json", AGAIN, {"about": str})["about"]
    light, dark = (
        f"data:image/png;base64,{base64.b64encode((folder / f'{tone}.png').read_bytes()).decode()}"
        for tone in ("light", "dark")
    )
    return (
        f'<p class="note">{escape(about)}</p><div class="scroll" tabindex="0"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}"><img class="sheet" alt="{escape(about)}" src="{light}">'
        "</picture></div>"
    )


def _diagonal(found: Cells) -> tuple[list[float], list[float]]:
    own: list[float] = []
    other: list[float] = []
    for (row, column), values in found.items():
        same = row.removeprefix("trained in ") == column.removeprefix("judged in ")
        (own if same else other).append(mean(values))
    return own, other


def _names(found: Cells) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(r for r, _ in found)), list(dict.fromkeys(c for _, c in found))


def _name(place: tuple[str, str]) -> str:
    row, column = place
    return row if column in ("mIoU", "–") else f"{row}, {column}"


def _text(values: Sequence[float]) -> str:
    spread = deviation(list(values))
    return show(mean(list(values))) + (f" ±{spread:.1f}" if spread else "")


def _seeds(results: Sequence[Mapping[str, Any]]) -> str:
    count = len({r["seed"] for r in results})
    return f"{count} seed{'s' * (count != 1)}"
