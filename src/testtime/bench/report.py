"""The report of a run: one page of HTML that needs nothing else, for a screen of any size, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.bench.baseline import plain_milliseconds
from testtime.bench.cell import read_samples
from testtime.bench.page import (
    definitions,
    deviation,
    document,
    figure,
    first_of,
    legend,
    listed,
    mean,
    number,
    show,
    table,
    write_page,
)
from testtime.bench.protocols import PROTOCOLS
from testtime.bench.svg import Point, Series, histogram, line_chart, scatter
from testtime.files import check_shape, damaged, read_json

__all__ = ["Run", "read_run", "text_table", "write_report"]

COLOURS = 6
SMOOTH = 5  # batches in the moving average of the curves
SHOWN = {
    "fpr95": ("FPR@95", "unknown images let in when 95 % of the known are, %", False),
    "oscr": ("OSCR", "right answers against accepted unknown, area, %", True),
    "ece": ("ECE", "expected calibration error on the known, 15 bins, %", False),
    "nll": ("NLL", "negative log likelihood of the known, nats", False),
    "brier": ("Brier", "squared error of the probabilities on the known, 0 to 2", False),
}
TEXT, NUMBER = (str, type(None)), (float, type(None))
# What the page needs of run.json and of result.json; what later versions added may be missing.
RUN = {
    **dict.fromkeys(("protocol", "title", "closed", "model", "order", "started"), str),
    **dict.fromkeys(("source", "note"), TEXT),
    **dict.fromkeys(("severity", "rounds"), int),
    **{key: [str] for key in ("command", "corruptions")},
    **dict.fromkeys(("facts", "versions", "machine"), dict),
    "limit": NUMBER,
    "seeds": [int],
    "rows": [{"label": str, "method": str, "arguments": dict}],
    "columns": [{"name": str}],
    "published": dict,
}
RESULT = {
    **dict.fromkeys(("label", "column"), str),
    "seed": int,
    "limit": NUMBER,
    "average": dict.fromkeys(("accuracy", "auroc", "h_score"), NUMBER),
    "domains": [{"domain": str}],
    "time": {**{key: [NUMBER] for key in ("accuracy", "auroc", "h_score")}, "visit": [int]},
    "filters": {"all": dict, "time": dict},
    "forgetting": {"before": NUMBER, "after": NUMBER},
    "cost": {"declared": [float], "forwards": float, "backwards": float, "ms": float},
}
AGAIN = "run the same testtime bench command again"


@dataclass(frozen=True)
class Run:
    """A results folder that was read.

    Attributes:
        folder: where it lies.
        about: ``run.json``.
        results: ``result.json`` of the finished cells, with ``folder`` of each.
    """

    folder: Path
    about: dict[str, Any]
    results: tuple[dict[str, Any], ...]

    def check(self, about: Any, result: Any) -> None:
        """Compare ``run.json`` and every ``result.json`` with shapes, see :func:`testtime.files.check_shape`.

        Raises:
            DataError: one has another shape; the message names the file.
        """
        with damaged(self.folder / "run.json", f"delete it and {AGAIN}"):
            check_shape(self.about, about)
        for found in self.results:
            with damaged(found["folder"] / "result.json", f"delete its folder and {AGAIN}"):
                check_shape(found, result)

    @property
    def rows(self) -> list[str]:
        """Labels of the methods that have results, in the order of the protocol."""
        there = {result["label"] for result in self.results}
        return [row["label"] for row in self.about["rows"] if row["label"] in there]

    @property
    def columns(self) -> list[str]:
        """Names of the settings that have results."""
        there = {result["column"] for result in self.results}
        return [column["name"] for column in self.about["columns"] if column["name"] in there]

    def cells(self, row: str, column: str) -> list[dict[str, Any]]:
        """The results of a method in a setting, one for each seed."""
        return [r for r in self.results if r["label"] == row and r["column"] == column]

    def values(self, row: str, column: str, measure: str) -> list[float]:
        """A measure averaged over domains, one value for each seed; NaN where it is not defined."""
        return [number(cell["average"][measure]) for cell in self.cells(row, column)]

    def over_columns(self, row: str, measure: str) -> float:
        """The mean of a measure over settings and seeds."""
        return mean([v for column in self.columns for v in self.values(row, column, measure)])

    @property
    def ranked(self) -> list[str]:
        """The methods by mean H-score, best first; by accuracy where there is no open set."""
        measure = self.headline
        return sorted(self.rows, key=lambda row: -number(self.over_columns(row, measure), -1.0))

    @property
    def unfinished(self) -> int:
        """How many cells of the run have no result yet."""
        return len(self.about["cells"]) - len(self.results)

    def relative(self, cell: dict[str, Any]) -> float:
        """The time of a batch in plain forwards; NaN if none was measured on the machine of the cell."""
        if "relative" in cell["cost"]:  # an earlier version measured a plain forward in every cell
            return number(cell["cost"]["relative"])
        return number(cell["cost"]["ms"]) / plain_milliseconds(self.about.get("baselines", []), cell)

    def per_domain(self, row: str) -> float:
        """Known images of a domain, the mean over settings and seeds."""
        cells = [cell for column in self.columns for cell in self.cells(row, column)]
        return mean([cell["images"] / len(cell["domains"]) for cell in cells])

    @property
    def changes(self) -> list[str]:
        """In what the run differs from the protocol of its name, as text; nothing where there is no such protocol."""
        known = PROTOCOLS.get(self.about["protocol"])
        if known is None:
            return []
        found = []
        for name in ("order", "severity", "rounds", "limit"):
            here, there = self.about[name], getattr(known, name)
            if here != there:
                found.append(
                    f"{name} {'all' if here is None else here} instead of {'all' if there is None else there}"
                )
        if len(self.about["corruptions"]) < len(known.corruptions):
            found.append(f"{len(self.about['corruptions'])} of {len(known.corruptions)} corruptions")
        here, there = [list(map(str, seeds)) for seeds in (self.about["seeds"], known.seeds)]
        if here != there:
            found.append(f"seeds {', '.join(here)} instead of {', '.join(there)}")
        rows = {row["label"] for row in self.about["rows"]}
        if missing := [row.label for row in known.rows if row.available and row.label not in rows]:
            found.append(
                f"without {listed(missing)}"
                if len(missing) < 6
                else f"{len(rows)} of {len(known.rows)} methods"
            )
        here, there = self.about["columns"], [asdict(column) for column in known.columns]
        for key, form in (
            ("name", "{}"),
            ("batch_size", "batches of {}"),
            ("ratio", "{:g} unknown for each known"),
        ):
            ours, theirs = [
                list(dict.fromkeys(form.format(c[key]) for c in columns)) for columns in (here, there)
            ]
            if ours != theirs:
                found.append(f"{listed(ours)} instead of {listed(theirs)}")
                break
        return found

    @property
    def title(self) -> str:
        """The title of the protocol, if the run is that protocol in all but the number of images and seeds."""
        other = [change for change in self.changes if not change.startswith(("limit ", "seeds "))]
        return f"{self.about['protocol']}, changed" if other else str(self.about["title"])

    @property
    def headline(self) -> str:
        """The measure that ranks: "h_score", or "accuracy" without an open set."""
        whole = [self.over_columns(row, "h_score") for row in self.rows]
        return "accuracy" if all(math.isnan(value) for value in whole) else "h_score"


def read_run(folder: str | Path) -> Run:
    """Read a results folder.

    Raises:
        ValueError: it is none, or no cell is finished.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json; testtime bench makes one")
    about = read_json(path, f"delete it and {AGAIN}", {"cells": [str]})
    results = []
    for name in about["cells"]:
        file = folder / "cells" / name / "result.json"
        if file.is_file():
            found = read_json(file, f"delete its folder and {AGAIN}", {"label": str})
            results.append({**found, "folder": file.parent})
    if not results:
        raise ValueError(
            f"{folder}: no cell is finished yet; run testtime bench again, it goes on from there"
        )
    return Run(folder, about, tuple(results))


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run.

    Args:
        folder: of the run.
        path: of the page; None is ``report.html`` in the folder.

    Returns:
        the path of the page.

    Raises:
        ValueError: the folder is not that of a run, or nothing is finished.
    """
    run = read_run(folder)
    run.check(RUN, RESULT)
    target = Path(path) if path is not None else run.folder / "report.html"
    return write_page(target, page(run))


def page(run: Run) -> str:
    """The whole page."""
    colours = highlights(run)
    return document(
        run.title,
        f"testtime · {run.about['protocol']}",
        _lead(run),
        [
            ("result", "Result", "The result", _main_table(run)),
            ("time", "Time", "Over time", _over_time(run, colours)),
            ("filters", "Filters", "What the filters did", _filters(run, colours)),
            ("scores", "Scores", "Known and unknown, told apart", _histograms(run)),
            ("cost", "Cost", "What it costs", _costs(run, colours)),
            ("domains", "Domains", "Domain by domain", _domains(run)),
            ("more", "More", "Calibration, refusal, forgetting", _more(run)),
            ("made", "Provenance", "How this was made", _provenance(run)),
        ],
    )


def highlights(run: Run) -> dict[str, int]:
    """The colours of the lines that stand out: the best methods, PAF+KIP, TENT and the source; the rest is grey."""
    names = run.ranked[: COLOURS - 3]
    for name in ("PAF+KIP", "TENT", "Source"):
        if name in run.rows and name not in names:
            names.append(name)
    for name in run.ranked:
        if len(names) < COLOURS and name not in names:
            names.append(name)
    return {name: number for number, name in enumerate(names, 1)}


ARRIVAL = {
    "continual": "{corruptions} of severity {severity}{times}, one after the other",
    "gradual": "{corruptions}{times}, one after the other, whose severity rises from 1 to 5 and falls again",
    "mixed": "{corruptions} of severity {severity}{times}, shuffled into one",
    "correlated": "{corruptions} of severity {severity}{times}, one after the other, the images of a class in succession",
    "mixed-correlated": "{corruptions} of severity {severity}{times}, shuffled into one, the images of a class in succession",
    "label-shift": "{corruptions} of severity {severity}{times}, one after the other, in each of which every class "
    "dominates for a time",
    "wandering": "blends of two of {corruptions} whose severities change all the time, such that the source model is "
    "right in about {target} %",
}
JOINED = ("mixed", "mixed-correlated", "wandering")  # orders without one domain after the other


def _lead(run: Run) -> str:
    parts = [_unfinished(run) if run.unfinished else _winner(run), f"The stream: {_stream(run)}."]
    if run.changes:
        parts.append(
            f"Changed from the protocol {escape(run.about['protocol'])}: {escape('; '.join(run.changes))}."
        )
    return " ".join(parts)


def _unfinished(run: Run) -> str:
    command = escape(" ".join(run.about["command"]))
    again = f"; <code>{command}</code> continues it" if command else ""
    return (
        f"<strong>This run is not finished</strong>: {len(run.results)} of {len(run.about['cells'])} cells have a result"
        f"{again}. No method is called the best before all have one."
    )


def _winner(run: Run) -> str:
    measure = "H-score" if run.headline == "h_score" else "accuracy"
    values = {row: run.over_columns(row, run.headline) for row in run.rows}
    best = first_of(values)
    others = {row: value for row, value in values.items() if row not in best}
    value = values[best[0]]
    settings = [
        c
        for c in run.columns
        if any(not math.isnan(v) for r in run.rows for v in run.values(r, c, run.headline))
    ]
    several = len(settings) > 1
    average = " on average" if several else ""
    if not others:
        text = f"{_names(run, best)}: {measure} {show(value)} %{average}"
        return text + (", no difference between them." if len(best) > 1 else ".")
    if len(best) > 1:
        text = f"{_names(run, best)} share the highest {measure}, {show(value)} %{average}"
    else:
        text = f"{_names(run, best)} has the highest {measure}, {show(value)} %{average}"
        firsts = [
            first_of({row: mean(run.values(row, column, run.headline)) for row in run.rows})
            for column in settings
        ]
        alone, shared = (
            sum(best[0] in first and (len(first) > 1) == tie for first in firsts) for tie in (False, True)
        )
        if several:
            text += f", and is first in {alone} of {len(settings)} settings"
            text += f" and one of the first in {shared}" if shared else ""
    second = first_of(others)
    text += (
        f"; next {'are' if len(second) > 1 else 'is'} {_names(run, second)} with {show(others[second[0]])} %"
    )
    if "Source" in others and "Source" not in second:
        text += f". The model without adaptation has {show(others['Source'])} %"
    return f"{text}."


def _names(run: Run, rows: Sequence[str]) -> str:
    return listed(
        [f"<strong>{escape(row)}</strong>{'<sup>†</sup>' if _fewer(run, row) else ''}" for row in rows]
    )


def _fewer(run: Run, row: str) -> bool:
    """Whether a method saw fewer images of a domain than another."""
    return run.per_domain(row) < max(run.per_domain(other) for other in run.rows)


def _stream(run: Run) -> str:
    """What arrived, from what the results say."""
    about = run.about
    kinds, rounds = len(about["corruptions"]), about.get("rounds") or 1
    words = {
        "corruptions": f"{kinds} corruption{'s' * (kinds != 1)}",
        "severity": about["severity"],
        "times": f", {rounds} times over" if rounds > 1 else "",
        "target": show(100 * number(about.get("target")), 0),
    }
    parts = [ARRIVAL[about["order"]].format(**words)]
    if about.get("returns"):
        parts[0] += ", and the clean images at last"
    if about.get("speed"):
        parts.append("the source model answers the batches that a method is too slow for")
    whole = "in all" if about["order"] in JOINED else "in each"
    counts: dict[str, list[str]] = {}
    for row in run.rows:
        counts.setdefault(f"{run.per_domain(row):,.0f}", []).append(row)
    most = max(counts, key=lambda count: len(counts[count]))
    fewer = [f"{count} for {escape(listed(rows))}" for count, rows in counts.items() if count != most]
    parts.append(f"{most} known images {whole}{f' ({listed(fewer)})' if fewer else ''}")
    shown = [column for column in about["columns"] if column["name"] in run.columns]
    opened = [column for column in shown if column["open_set"] is not None]
    if opened:
        ratios = sorted({column["ratio"] for column in opened})
        where = f" in {escape(listed([c['name'] for c in opened]))}" if len(opened) < len(shown) else ""
        parts.append(f"{listed([f'{ratio:g}' for ratio in ratios])} unknown for each known one{where}")
    sizes = {column["batch_size"] for column in shown}
    parts.append(f"batches of {min(sizes)}" + (f" to {max(sizes)}" if len(sizes) > 1 else ""))
    parts.append("a reset before each domain" if about.get("reset") else "never a reset")
    parts.append(f"{len(about['seeds'])} seed{'s' * (len(about['seeds']) != 1)}")
    return "; ".join(parts)


def _main_table(run: Run) -> str:
    measures = [("accuracy", "ACC"), ("auroc", "AUROC"), ("h_score", "H")]
    open_set = run.headline == "h_score"
    if not open_set:
        measures = measures[:1]
    several = len(run.columns) > 1 and open_set
    head = '<th rowspan="2" scope="col">mean H</th>' if several else ""
    head += "".join(f'<th colspan="{len(measures)}" scope="colgroup">{escape(c)}</th>' for c in run.columns)
    sub = "".join(f'<th scope="col">{name}</th>' for _ in run.columns for _, name in measures)
    best = {
        (column, measure): _best(run, {row: mean(run.values(row, column, measure)) for row in run.rows})
        for column in run.columns
        for measure, _ in measures
    }
    top = _best(run, {row: run.over_columns(row, "h_score") for row in run.rows})
    leading = _best(run, {row: run.over_columns(row, run.headline) for row in run.rows})
    published = run.about["published"]
    body = []
    for row in run.rows:
        cells = [f'<th scope="row">{escape(row)}{"<sup>†</sup>" if _fewer(run, row) else ""}</th>']
        if several:
            style = "h best" if row in top else "h"
            cells.append(f'<td class="{style}">{show(run.over_columns(row, "h_score"))}</td>')
        for column in run.columns:
            figures = published.get(row, {}).get(column, [None] * 3)
            for (measure, _), told in zip(measures, figures, strict=False):
                values = run.values(row, column, measure)
                first = row in best[column, measure]
                cells.append(_cell(values, told, first, "h" if measure == "h_score" else ""))
        style = ' class="first"' if row in leading else ""
        body.append(f"<tr{style}>{''.join(cells)}</tr>")
    notes = ["Percent, averaged over the domains; ± is the standard deviation over seeds."]
    if not run.unfinished:
        notes.append("Bold is the best, or what is equal to it in print.")
    if open_set:
        notes.append(
            "ACC: right answers to known images. AUROC: how well the open-set score tells known from unknown. "
            "H: the harmonic mean of the two averages."
        )
    if any(published.values()):
        changed = ", for the protocol without the changes of this run" if run.changes else ""
        notes.append(
            f"The smaller figure below is the published one ({escape(run.about['source'])}){changed}."
        )
    if any(_fewer(run, row) for row in run.rows):
        notes.append("† fewer images for each domain, for it costs more than 20 forwards a batch.")
    shown = [column.get("note") for column in run.about["columns"] if column["name"] in run.columns]
    notes += [escape(note) for note in (run.about["note"], *shown) if note]
    absent = [row["label"] for row in run.about["rows"] if row["label"] not in run.rows]
    if absent:
        notes.append(f"Not finished: {escape(', '.join(absent))}.")
    return (
        table(
            "Accuracy, AUROC and H-score by method",
            f'<tr><th rowspan="2" scope="col">method</th>{head}</tr><tr>{sub}</tr>',
            body,
        )
        + f'<p class="note">{" ".join(notes)}</p>'
    )


def _best(run: Run, values: Mapping[str, float], higher: bool = True, places: int = 1) -> list[str]:
    """The rows to be set in bold: none before the run is finished, none where all are equal."""
    best = first_of(values, higher, places)
    return [] if run.unfinished or len(best) == len(values) > 1 else best


def _over_time(run: Run, colours: dict[str, int]) -> str:
    shifts = (
        ""
        if run.about["order"] in JOINED
        else " Dashed lines mark the shifts from one domain to the next; the state is "
        + ("reset at each." if run.about.get("reset") else "never reset.")
    )
    parts = [
        f'<p class="note">Each line is a moving average over five batches and all seeds.{shifts} Press a name to bring its '
        "line forward.</p>",
        legend(run.ranked, colours),
    ]
    names = (
        [("h_score", "H-score"), ("accuracy", "accuracy")]
        if run.headline == "h_score"
        else [("accuracy", "accuracy")]
    )
    for column in run.columns:
        for measure, name in names:
            series = _curves(run, column, colours, lambda cell, m=measure: cell["time"][m])  # type: ignore[misc]
            chart = line_chart(
                series,
                f"{name} over time, {column}",
                _describe(run, column, measure, name),
                f"{name}, %",
                _marks(run, column),
            )
            parts.append(figure(chart, f"{name.capitalize()} over time · {escape(column)}"))
    return "".join(parts)


def _filters(run: Run, colours: dict[str, int]) -> str:
    parts = [
        '<p class="note">Methods that choose whom to learn from can choose wrongly. The worst mistake is to raise the '
        "uncertainty of a known image; the second worst to lower that of an unknown one.</p>"
    ]
    wanted = [
        (
            "known_maximised",
            "known images wrongly maximised",
            "Known images taken for unknown, and pushed towards doubt",
        ),
        (
            "unknown_minimised",
            "unknown images wrongly minimised",
            "Unknown images taken for known, and learned from",
        ),
    ]
    drawn = False
    for column in run.columns:
        for key, name, caption in wanted:
            series = _curves(run, column, colours, lambda cell, k=key: cell["filters"]["time"].get(k, []))  # type: ignore[misc]
            if series:
                drawn = True
                best = min(series, key=lambda s: float(np.nanmean(s.y)))
                chart = line_chart(
                    series,
                    f"{name}, {column}",
                    f"Share in percent over time; lowest on average: {best.name}.",
                    "% of them",
                    _marks(run, column),
                )
                parts.append(figure(chart, f"{caption} · {escape(column)}"))
    rows = []
    for row in run.rows:
        cells = [cell for column in run.columns for cell in run.cells(row, column)]
        shares = cells[0]["filters"]["all"] if cells else {}
        for name in dict.fromkeys(key.partition("_")[2] for key in shares):
            known = mean([number(c["filters"]["all"].get(f"known_{name}")) for c in cells])
            other = mean([number(c["filters"]["all"].get(f"unknown_{name}")) for c in cells])
            rows.append(
                f'<tr><th scope="row">{escape(row)}</th><td class="left">{escape(name)}</td>'
                f"<td>{show(known)}</td><td>{show(other)}</td></tr>"
            )
    if rows:
        parts.append(
            table(
                "What the filters took",
                '<tr><th scope="col">method</th><th scope="col" class="left">what it did</th>'
                '<th scope="col">% of known</th><th scope="col">% of unknown</th></tr>',
                rows,
            )
        )
    if not drawn and not rows:
        return '<p class="note">None of these methods chooses among the images of a batch.</p>'
    return "".join(parts)


def _histograms(run: Run) -> str:
    if run.headline != "h_score":
        return '<p class="note">This run had no unknown images.</p>'
    parts = [
        '<p class="note">The open-set score of every image, all domains together, first seed. The less the two overlap, '
        'the better. <span class="key known">known</span> <span class="key unknown">unknown</span></p>'
    ]
    for place, column in enumerate(run.columns):
        figures = []
        for row in run.ranked:
            cells = run.cells(row, column)
            if not cells or not (cells[0]["folder"] / "samples").is_dir():
                continue
            samples = read_samples(cells[0]["folder"] / "samples")
            known, unknown = shares(samples.score[samples.known], samples.score[~samples.known])
            area = mean(run.values(row, column, "auroc"))
            drawing = histogram(
                known,
                unknown,
                f"Scores of {row}, {column}",
                f"Known and unknown images; AUROC {area:.1f} percent.",
            )
            figures.append(
                f'<figure class="small"><figcaption>{escape(row)} <span class="dim">{area:.1f}</span></figcaption>'
                f"{drawing}</figure>"
            )
        grid = f'<div class="grid-of">{"".join(figures)}</div>'
        is_open = " open" if place == 0 else ""
        parts.append(f"<details{is_open}><summary>{escape(column)}, with AUROC</summary>{grid}</details>")
    if "<svg" not in "".join(parts):
        return '<p class="note">The scores of the images (<code>samples</code>) do not lie beside these results.</p>'
    return "".join(parts)


def shares(
    known: NDArray[np.floating], unknown: NDArray[np.floating], bins: int = 40
) -> tuple[list[float], list[float]]:
    """Shares of two samples in common bins between the 1st and the 99th percentile of both; the rest at the edges."""
    both = np.concatenate([known, unknown])
    both = both[np.isfinite(both)]
    if not len(both):
        return [], []
    low, high = np.percentile(both, [1, 99])
    edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
    found = []
    for part in (known, unknown):
        seen = np.clip(part[np.isfinite(part)], edges[0], edges[-1])
        counts = np.histogram(seen, edges)[0]
        found.append((counts / max(counts.sum(), 1)).round(5).tolist())
    return found[0], found[1]


def _costs(run: Run, colours: dict[str, int]) -> str:
    latency = run.about.get("latency", {})
    times = {
        row: mean([run.relative(cell) for column in run.columns for cell in run.cells(row, column)])
        for row in run.rows
    }
    tent = times.get("TENT", float("nan"))
    points = [
        Point(
            row,
            times[row],
            run.over_columns(row, run.headline),
            deviation(
                [mean([run.values(row, c, run.headline)[i] for c in run.columns]) for i in _seeds(run, row)]
            ),
            colours.get(row, 0),
        )
        for row in run.rows
        if not math.isnan(run.over_columns(row, run.headline)) and not math.isnan(times[row])
    ]
    name = "H-score" if run.headline == "h_score" else "accuracy"
    chart = scatter(
        points,
        f"{name} against time for each batch",
        "; ".join(f"{p.name} {p.y:.1f} at {p.x:.1f} times a plain forward" for p in points),
        "time for each batch, in plain forwards (logarithmic)",
        f"{name}, %",
    )
    base = latency.get("TENT", 0.0)
    rows = []
    for row in run.rows:
        cells = [cell for column in run.columns for cell in run.cells(row, column)]
        cost = {
            key: _cost(run, row, key) for key in ("forwards", "backwards", "ms", "state_bytes", "peak_memory")
        }
        told = f"<td>{latency[row] / base:.1f}</td>" if row in latency else "<td>–</td>" if latency else ""
        declared = cells[0]["cost"]["declared"]
        rows.append(
            f'<tr><th scope="row">{escape(row)}</th><td>{cost["forwards"]:.2f}</td><td>{cost["backwards"]:.2f}</td>'
            f"<td>{declared[0]:g} + {declared[1]:g}</td><td>{show(cost['ms'], 0 if cost['ms'] > 20 else 1)}</td>"
            f"<td>{show(times[row])}×</td>"
            f"<td>{show(times[row] / tent, 1)}</td>{told}<td>{cost['state_bytes'] / 1024:,.0f}</td>"
            f"<td>{show(cost['peak_memory'] / 2**20, 0)}</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in (
            "method",
            "forwards",
            "backwards",
            "declared",
            "ms a batch",
            "plain forwards",
            "TENTs",
            *(["published"] if latency else []),
            "state, KiB",
            "peak, MiB",
        )
    )
    notes = [
        "Forwards and backwards are counted, in batches through the whole network.",
        "The times are medians of a run that may have shared its processor; they compare methods, not machines.",
        *(
            f"A plain forward of {listed([f'{count} images in {ms:.3g} ms' for count, ms in one['ms'].items()])} is the unit: "
            f"measured once, on {escape(one['processor'])}, {one['threads']} thread{'s' * (one['threads'] != 1)}, "
            f"{one['precision']}, under a load of {'unknown size' if one['load'] is None else one['load']}."
            for one in run.about.get("baselines", [])
        ),
        "State is what a checkpoint of the adapter holds. The peak is that of the process; – where the system does not tell.",
    ]
    if any("relative" in cell["cost"] for cell in run.results):
        notes.append(
            "An earlier version ran cells of this page: the plain forward that their times are divided by was measured in "
            "each of them, and differs between them."
        )
    return (
        figure(chart, f"{name} against time: upper left is better")
        + table("Cost by method", f"<tr>{head}</tr>", rows)
        + f'<p class="note">{" ".join(notes)}</p>'
    )


def _domains(run: Run) -> str:
    parts = []
    measure = run.headline
    for place, column in enumerate(run.columns):
        first = next((run.cells(row, column)[0] for row in run.rows if run.cells(row, column)), None)
        if first is None:
            continue
        names = [entry["domain"] for entry in first["domains"]]
        head = "".join(
            f'<th scope="col" class="tilt"><span>{escape(name.replace("_", " "))}</span></th>'
            for name in names
        )
        by_row = {
            row: [
                mean([number(cell["domains"][i][measure]) for cell in run.cells(row, column)])
                for i in range(len(names))
            ]
            for row in run.rows
            if run.cells(row, column)
        }
        whole = [value for values in by_row.values() for value in values if not math.isnan(value)]
        low, high = (min(whole), max(whole)) if whole else (0.0, 1.0)
        body = []
        for row, values in by_row.items():
            cells = "".join(
                f'<td class="heat" style="--heat:{_heat(value, low, high)}%">{show(value, 0)}</td>'
                for value in values
            )
            body.append(f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>')
        shown = table(f"By domain, {column}", f'<tr><th scope="col">method</th>{head}</tr>', body)
        is_open = " open" if place == 0 else ""
        parts.append(f"<details{is_open}><summary>{escape(column)}</summary>{shown}</details>")
    name = "H-score" if measure == "h_score" else "Accuracy"
    return f'<p class="note">{name} in percent, mean over seeds; the stronger the colour, the better.</p>{"".join(parts)}'


def _more(run: Run) -> str:
    keys = [key for key in SHOWN if not all(math.isnan(run.over_columns(row, key)) for row in run.rows)]
    head = "".join(f'<th scope="col"><abbr title="{SHOWN[k][1]}">{SHOWN[k][0]}</abbr></th>' for k in keys)
    head += '<th scope="col">clean before</th><th scope="col">clean after</th>'
    places = {key: 2 if key in ("nll", "brier") else 1 for key in keys}
    best = {
        key: _best(run, {r: run.over_columns(r, key) for r in run.rows}, SHOWN[key][2], places[key])
        for key in keys
    }
    body = []
    for row in run.rows:
        cells = [cell for column in run.columns for cell in run.cells(row, column)]
        figures = ""
        for key in keys:
            value = run.over_columns(row, key)
            style = ' class="best"' if row in best[key] else ""
            figures += f"<td{style}>{show(value, places[key])}</td>"
        for when in ("before", "after"):
            figures += f"<td>{show(mean([number(cell['forgetting'][when]) for cell in cells]))}</td>"
        body.append(f'<tr><th scope="row">{escape(row)}</th>{figures}</tr>')
    explained = "; ".join(f"{SHOWN[k][0]}: {SHOWN[k][1]}" for k in keys)
    return (
        table("Other measures by method", f'<tr><th scope="col">method</th>{head}</tr>', body)
        + f'<p class="note">Means over settings and seeds. {explained}. Clean before and after: accuracy on uncorrupted '
        "known images before the stream and after it, looking only; the difference is what was forgotten.</p>"
    )


def _provenance(run: Run) -> str:
    about = run.about
    severity = "" if about["order"] in ("gradual", "wandering") else f", severity {about['severity']}"
    items = [
        ("protocol", about["protocol"]),
        ("source of the published figures", about["source"] or "–"),
        ("closed set", about["closed"]),
        ("model", about["model"]),
        ("stream", f"{about['order']}{severity}, {', '.join(about['corruptions'])}"),
        ("seeds", ", ".join(map(str, about["seeds"]))),
        ("command", " ".join(about["command"]) or "–"),
        ("precision", about.get("precision") or run.results[0]["config"]["precision"]),
        ("started", about["started"]),
        ("versions", ", ".join(f"{name} {value}" for name, value in about["versions"].items())),
        ("machine", ", ".join(f"{name} {value}" for name, value in about["machine"].items())),
        *((f"digest of {name}", value) for name, value in about["facts"].items()),
    ]
    arguments = "".join(
        f'<tr><th scope="row">{escape(row["label"])}</th><td class="left">{escape(row["method"])}</td>'
        f'<td class="left">{escape(", ".join(f"{k}={v}" for k, v in row["arguments"].items()) or "defaults")}</td></tr>'
        for row in about["rows"]
    )
    head = '<tr><th scope="col">row</th><th scope="col" class="left">class</th><th scope="col" class="left">arguments</th></tr>'
    done = f"{len(run.results)} of {len(about['cells'])} cells are finished."
    return (
        f"{definitions(items)}{table('Arguments by method', head, [arguments])}"
        f'<p class="note">{done} Every answer to every image lies beside this page: '
        "<code>cells/*/samples/*.npy</code>, <code>batches.jsonl</code>, <code>result.json</code>.</p>"
    )


def text_table(run: Run) -> str:
    """The main table for a terminal: accuracy, AUROC and H-score by method and setting."""
    width = max(len(row) for row in run.rows) + 2
    lines = [" " * width + "".join(f"{column[:22]:>24}" for column in run.columns)]
    lines.append(" " * width + "".join(f"{'ACC':>10}{'AUROC':>7}{'H':>7}" for _ in run.columns))
    for row in run.rows:
        line = f"{row:<{width}}"
        for column in run.columns:
            acc, auc, both = (mean(run.values(row, column, m)) for m in ("accuracy", "auroc", "h_score"))
            line += f"{show(acc):>10}{show(auc):>7}{show(both):>7}"
        lines.append(line)
    if run.unfinished:
        lines.append(f"Not finished: {len(run.results)} of {len(run.about['cells'])} cells have a result.")
    return "\n".join(lines)


def _curves(
    run: Run, column: str, colours: dict[str, int], values: Callable[[dict[str, Any]], Sequence[float | None]]
) -> list[Series]:
    series = []
    for row in run.rows:
        cells = [cell for cell in run.cells(row, column) if values(cell)]
        if not cells:
            continue
        length = min(len(values(cell)) for cell in cells)
        found = np.array([[number(v) for v in values(cell)[:length]] for cell in cells])
        visit = np.array(cells[0]["time"]["visit"][:length])
        at = np.empty(length)
        for stretch in np.unique(visit):
            inside = np.flatnonzero(visit == stretch)
            at[inside] = stretch + (np.arange(len(inside)) + 0.5) / len(inside)
        mean = np.where(
            np.isnan(found).all(0), np.nan, np.nansum(found, 0) / np.maximum((~np.isnan(found)).sum(0), 1)
        )
        series.append(Series(row, at.tolist(), _smooth(mean, visit), colours.get(row, 0)))
    return series


def _smooth(values: NDArray[np.floating], visit: NDArray[np.integer]) -> list[float]:
    """A centred moving average within a domain; it leaves out NaN and is shorter at the ends."""
    half = SMOOTH // 2
    out = []
    for i in range(len(values)):
        near = slice(max(0, i - half), i + half + 1)
        seen = values[near][visit[near] == visit[i]]
        seen = seen[~np.isnan(seen)]
        out.append(float(seen.mean()) if len(seen) else float("nan"))
    return out


def _marks(run: Run, column: str) -> list[tuple[float, str]]:
    cell = next(run.cells(row, column)[0] for row in run.rows if run.cells(row, column))
    return [(float(i), entry["domain"].replace("_", " ")) for i, entry in enumerate(cell["domains"])]


def _describe(run: Run, column: str, measure: str, name: str) -> str:
    told = [f"{row} {mean(run.values(row, column, measure)):.1f}" for row in run.ranked]
    return f"{name} in percent over the stream. Averages: {', '.join(told)}."


def _cell(values: Sequence[float], published: float | None, best: bool, style: str) -> str:
    spread = deviation(values)
    text = show(mean(values)) + (f'<span class="dim"> ±{spread:.1f}</span>' if spread > 0 else "")
    if published is not None:
        text += f'<br><span class="published">{published:.2f}</span>'
    names = " ".join(name for name in (style, "best" if best else "") if name)
    return f'<td class="{names}">{text}</td>' if names else f"<td>{text}</td>"


def _cost(run: Run, row: str, key: str) -> float:
    cells = [cell for column in run.columns for cell in run.cells(row, column)]
    return float(np.median([number(cell["cost"][key]) for cell in cells]))


def _seeds(run: Run, row: str) -> range:
    return range(min(len(run.cells(row, column)) for column in run.columns))


def _heat(value: float, low: float, high: float) -> int:
    return 0 if math.isnan(value) else round(100 * (value - low) / max(high - low, 1e-9))
