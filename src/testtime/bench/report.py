"""The report of a run: one page of HTML that needs nothing else, for a screen of any size, light or dark."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.bench.cell import read_samples
from testtime.bench.page import (
    definitions,
    deviation,
    document,
    figure,
    legend,
    mean,
    number,
    show,
    table,
    write_page,
)
from testtime.bench.svg import Point, Series, histogram, line_chart, scatter

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
    about = json.loads(path.read_text())
    results = []
    for name in about["cells"]:
        file = folder / "cells" / name / "result.json"
        if file.is_file():
            results.append({**json.loads(file.read_text()), "folder": file.parent})
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
    target = Path(path) if path is not None else run.folder / "report.html"
    return write_page(target, page(run))


def page(run: Run) -> str:
    """The whole page."""
    colours = highlights(run)
    return document(
        run.about["title"],
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


def _lead(run: Run) -> str:
    about, best = run.about, run.ranked
    measure = "H-score" if run.headline == "h_score" else "accuracy"
    value = run.over_columns(best[0], run.headline)
    wins = sum(
        best[0] == max(run.rows, key=lambda row: number(mean(run.values(row, column, run.headline)), -1.0))
        for column in run.columns
    )
    text = f"<strong>{escape(best[0])}</strong> has the highest {measure}, {value:.1f} %"
    if len(run.columns) > 1:
        text += f" on average, and is first in {wins} of {len(run.columns)} settings"
    if len(best) > 1:
        second = run.over_columns(best[1], run.headline)
        text += f"; next is {escape(best[1])} with {second:.1f} %"
    if "Source" in run.rows and "Source" not in best[:2]:
        text += f". The model without adaptation has {run.over_columns('Source', run.headline):.1f} %"
    limit = f"{about['limit']:,} known images" if about["limit"] else "all known images"
    domains = len(about["corruptions"]) * about["rounds"]
    severity = f"of severity {about['severity']}"
    arrival = {
        "continual": f"{severity}, one after the other",
        "gradual": "whose severity rises to 5 and falls again",
        "mixed": f"{severity}, shuffled into one",
        "correlated": f"{severity}, one after the other, with the classes in spells",
        "mixed-correlated": f"{severity}, shuffled into one, with the classes in spells",
        "label-shift": f"{severity}, one after the other, in each of which every class dominates for a time",
    }[about["order"]]
    resets = "a reset before each" if about.get("reset") else "never a reset"
    arrival += ", and the clean images at last" if about.get("returns") else ""
    seeds = f"{len(about['seeds'])} seed{'s' if len(about['seeds']) > 1 else ''}"
    return f"{text}. The stream: {domains} domains {arrival}; {limit} in each, {resets}, {seeds}."


def _main_table(run: Run) -> str:
    measures = [("accuracy", "ACC"), ("auroc", "AUROC"), ("h_score", "H")]
    open_set = run.headline == "h_score"
    if not open_set:
        measures = measures[:1]
    several = len(run.columns) > 1 and open_set
    head = "".join(f'<th colspan="{len(measures)}" scope="colgroup">{escape(c)}</th>' for c in run.columns)
    head += '<th rowspan="2" scope="col">mean H</th>' if several else ""
    sub = "".join(f'<th scope="col">{name}</th>' for _ in run.columns for _, name in measures)
    best = {
        (column, measure): max(
            (number(mean(run.values(row, column, measure)), -1.0) for row in run.rows), default=0.0
        )
        for column in run.columns
        for measure, _ in measures
    }
    top = max((run.over_columns(row, "h_score") for row in run.rows), default=0.0)
    published = run.about["published"]
    body, marked = [], False
    for row in run.rows:
        slow = any(cell["limit"] != run.about["limit"] for c in run.columns for cell in run.cells(row, c))
        marked |= slow
        cells = [f'<th scope="row">{escape(row)}{"<sup>†</sup>" if slow else ""}</th>']
        for column in run.columns:
            figures = published.get(row, {}).get(column, [None] * 3)
            for (measure, _), told in zip(measures, figures, strict=False):
                values = run.values(row, column, measure)
                first = mean(values) >= best[column, measure] - 0.005
                cells.append(_cell(values, told, first, "h" if measure == "h_score" else ""))
        if several:
            value = run.over_columns(row, "h_score")
            style = "h best" if value >= top - 0.005 else "h"
            cells.append(f'<td class="{style}">{show(value)}</td>')
        style = ' class="first"' if row == run.ranked[0] else ""
        body.append(f"<tr{style}>{''.join(cells)}</tr>")
    notes = ["Percent, averaged over the domains; ± is the standard deviation over seeds; bold is the best."]
    if open_set:
        notes.append(
            "ACC: right answers to known images. AUROC: how well the open-set score tells known from unknown. "
            "H: the harmonic mean of the two averages."
        )
    if any(published.values()):
        notes.append(f"The smaller figure below is the published one ({escape(run.about['source'])}).")
    if marked:
        notes.append("† fewer images for each domain, for it costs more than 20 forwards a batch.")
    if run.about["note"]:
        notes.append(escape(run.about["note"]))
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


def _over_time(run: Run, colours: dict[str, int]) -> str:
    parts = [
        '<p class="note">Each line is a moving average over five batches and all seeds. Dashed lines mark the shifts '
        "from one domain to the next; the state is never reset. Press a name to bring its line forward.</p>",
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
            if not cells:
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
    times = {row: _cost(run, row, "relative") for row in run.rows}
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
        if not math.isnan(run.over_columns(row, run.headline))
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
            f"<td>{declared[0]:g} + {declared[1]:g}</td><td>{cost['ms']:.0f}</td><td>{times[row]:.1f}×</td>"
            f"<td>{show(times[row] / tent, 1)}</td>{told}<td>{cost['state_bytes'] / 1024:,.0f}</td>"
            f"<td>{cost['peak_memory'] / 2**20:,.0f}</td></tr>"
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
    jobs = "The times are medians of a run that may have shared its processor; they compare methods, not machines. "
    return (
        figure(chart, f"{name} against time: upper left is better")
        + table("Cost by method", f"<tr>{head}</tr>", rows)
        + f'<p class="note">Forwards and backwards are counted, in batches through the whole network. {jobs}'
        "State is what a checkpoint of the adapter holds. The peak is that of the process.</p>"
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
    return f'<p class="note">{name} in percent, mean over seeds; darker is better.</p>{"".join(parts)}'


def _more(run: Run) -> str:
    keys = [key for key in SHOWN if not all(math.isnan(run.over_columns(row, key)) for row in run.rows)]
    head = "".join(f'<th scope="col"><abbr title="{SHOWN[k][1]}">{SHOWN[k][0]}</abbr></th>' for k in keys)
    head += '<th scope="col">clean before</th><th scope="col">clean after</th>'
    best = {
        key: (max if SHOWN[key][2] else min)(
            value for row in run.rows if not math.isnan(value := run.over_columns(row, key))
        )
        for key in keys
    }
    body = []
    for row in run.rows:
        cells = [cell for column in run.columns for cell in run.cells(row, column)]
        figures = ""
        for key in keys:
            value = run.over_columns(row, key)
            places = 2 if key in ("nll", "brier") else 1
            style = ' class="best"' if abs(value - best[key]) < 0.5 * 10**-places else ""
            figures += f"<td{style}>{show(value, places)}</td>"
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
    items = [
        ("protocol", about["protocol"]),
        ("source of the published figures", about["source"] or "–"),
        ("closed set", about["closed"]),
        ("model", about["model"]),
        ("stream", f"{about['order']}, severity {about['severity']}, {', '.join(about['corruptions'])}"),
        ("seeds", ", ".join(map(str, about["seeds"]))),
        ("command", " ".join(about["command"]) or "–"),
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
    return float(np.median([cell["cost"][key] for column in run.columns for cell in run.cells(row, column)]))


def _seeds(run: Run, row: str) -> range:
    return range(min(len(run.cells(row, column)) for column in run.columns))


def _heat(value: float, low: float, high: float) -> int:
    return 0 if math.isnan(value) else round(100 * (value - low) / max(high - low, 1e-9))
