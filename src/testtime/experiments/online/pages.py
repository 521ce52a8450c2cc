"""The page and the tables of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.experiments.online.results import Results
from testtime.experiments.online.words import JOINED, lead
from testtime.experiments.pages import provenance_section, table_blocks, unfinished
from testtime.experiments.table import Column, Row, Table
from testtime.report import (
    Block,
    Cell,
    Details,
    Figure,
    Grid,
    Legend,
    Note,
    Page,
    Point,
    Section,
    Series,
    colours,
    deviation,
    figures,
    line_chart,
    listed,
    mean,
    number,
    scatter,
    share_chart,
    show,
)
from testtime.report import Column as Head
from testtime.report import Row as Line
from testtime.report import Table as Grid_of

__all__ = ["main_table", "online_page"]

SMOOTH = 5  # batches in the moving average of the curves
MEASURES = (("accuracy", "ACC"), ("auroc", "AUROC"), ("h_score", "H"))
MORE = (
    ("fpr95", "FPR@95", "%", 1, "lower", "unknown images let in when 95 % of the known are"),
    ("oscr", "OSCR", "%", 1, "higher", "right answers against accepted unknown, area"),
    ("ece", "ECE", "%", 1, "lower", "expected calibration error on the known, 15 bins"),
    ("nll", "NLL", "nats", 2, "lower", "negative log likelihood of the known"),
    ("brier", "Brier", "", 2, "lower", "squared error of the probabilities on the known, 0 to 2"),
)
FILTERS = (
    ("known_maximised", "Known images taken for unknown, and pushed towards doubt"),
    ("unknown_minimised", "Unknown images taken for known, and learned from"),
)
EARLIER = (
    "An earlier version ran cells of this page: the plain forward that their times are divided by was measured in each of "
    "them, and differs between them."
)


def online_page(results: Results) -> Page:
    """Return the page of a run."""
    names = [
        *results.ranked[:3],
        *(n for n in ("PAF+KIP", "TENT", "Source") if n in results.rows),
        *results.ranked,
    ]
    keys = {name: colour for name, colour in colours(names).items() if colour}
    return Page(
        title=results.title,
        kicker=f"testtime · {results.run.about['experiment']}",
        lead=lead(results),
        sections=[
            Section("result", "Result", "The result", table_blocks(main_table(results))),
            Section("time", "Time", "Over time", _over_time(results, keys)),
            Section("filters", "Filters", "What the filters did", _filters(results, keys)),
            Section("scores", "Scores", "Known and unknown, told apart", _scores(results)),
            Section("cost", "Cost", "What it costs", _costs(results, keys)),
            Section("domains", "Domains", "Domain by domain", _domains(results)),
            Section("more", "More", "Calibration, refusal, forgetting", table_blocks(_more_table(results))),
            _made(results),
        ],
        unfinished=unfinished(results.run),
    )


def main_table(results: Results) -> Table:
    """Return accuracy, AUROC and H-score by method and column."""
    columns = []
    if results.opened and len(results.columns) > 1:
        columns.append(Column("mean H", partial(_average, "h_score")))
    for name in results.columns:
        for i, (measure, short) in enumerate(MEASURES if results.opened else MEASURES[:1]):
            told = {row: by[name][i] for row, by in results.about["published"].items() if name in by}
            known = {row: value for row, value in told.items() if value is not None}
            columns.append(Column(short, partial(_average, measure), name, name, published=known))
    notes = ["Averaged over the domains."]
    if results.opened:
        notes.append(
            "ACC: right answers to known images. AUROC: how well the open-set score tells known from unknown. H: the harmonic "
            "mean of the two averages."
        )
    if any(results.about["published"].values()):
        changed = ", for the experiment without the changes of this run" if results.changes else ""
        notes.append(f"Published: {results.run.about['source']}{changed}.")
    remarks = [c["note"] for c in results.about["columns"] if c["name"] in results.columns]
    notes += [note for note in (results.run.about["note"], *remarks) if note]
    return _table(results, results.title, columns, notes)


def _table(results: Results, title: str, columns: Sequence[Column], notes: Sequence[str] = ()) -> Table:
    run = results.run
    rows = [
        Row(
            row.label,
            row.role,
            "Fewer images of each domain, for it costs more than 20 forwards a batch.",
            row.about,
        )
        if row.label in results.rows and results.fewer(row.label)
        else row
        for row in run.rows
    ]
    return Table.of(title, rows, columns, run.records(), run.missing, [*notes, *run.notes])


def _average(measure: str, result: dict[str, Any]) -> float | None:
    value: float | None = result["average"].get(measure)
    return value


def _more_table(results: Results) -> Table:
    columns = [
        Column(name, partial(_average, key), unit=unit, places=places, better=better, note=note)  # type: ignore[arg-type]
        for key, name, unit, places, better, note in MORE
        if not all(math.isnan(results.mean(row, key)) for row in results.rows)
    ]
    for when in ("before", "after"):
        columns.append(Column(f"clean {when}", lambda r, when=when: r["forgetting"][when], better=None))  # type: ignore[misc]
    note = (
        "Clean before and after: accuracy on uncorrupted known images before the stream and after it, without learning; the "
        "difference is what was forgotten."
    )
    return _table(results, "Other measures by method", columns, [note])


def _over_time(results: Results, keys: dict[str, int]) -> list[Block]:
    stream = results.about["stream"]
    shifts = "reset at each." if stream["reset"] else "never reset."
    told = f" Dashed lines mark the shifts from one domain to the next; the state is {shifts}"
    note = f"Each line is a moving average over five batches and all seeds.{'' if stream['order'] in JOINED else told}"
    blocks: list[Block] = [Note(f"{note} Press a name to bring its line forward."), Legend(keys)]
    measures = [("h_score", "H-score")] * results.opened + [("accuracy", "accuracy")]
    for column in results.columns:
        for measure, name in measures:
            series = _curves(results, column, keys, lambda cell, m=measure: cell["time"][m])  # type: ignore[misc]
            means = ", ".join(
                f"{row} {show(mean(results.values(row, column, measure)))}" for row in results.ranked
            )
            chart = line_chart(
                series,
                title=f"{name} over time, {column}",
                y=f"{name}, %",
                description=f"Averages: {means}.",
                marks=_marks(results, column),
            )
            blocks += figures((chart, f"{name[0].upper()}{name[1:]} over time · {column}"))
    return blocks


def _filters(results: Results, keys: dict[str, int]) -> list[Block]:
    drawn: list[Block] = []
    for column in results.columns:
        for key, caption in FILTERS:
            series = _curves(results, column, keys, lambda cell, k=key: cell["filters"]["time"].get(k, []))  # type: ignore[misc]
            chart = line_chart(
                series, title=f"{caption}, {column}", y="% of them", marks=_marks(results, column)
            )
            drawn += figures((chart, f"{caption} · {column}"))
    lines = []
    for row in results.rows:
        took = [cell["filters"]["all"] for cell in results.cells(row)]
        for name in dict.fromkeys(key.partition("_")[2] for key in took[0]):
            pair = [mean([number(t.get(f"{side}_{name}")) for t in took]) for side in ("known", "unknown")]
            lines.append(Line(row, [name, *pair]))
    if not drawn and not lines:
        return [Note("None of these methods chooses among the images of a batch.")]
    heads = [Head("what it did", left=True), Head("of known", "%"), Head("of unknown", "%")]
    note = (
        "Methods that choose which images to learn from can choose wrongly. The worst mistake is to raise the uncertainty of a "
        "known image; the second worst to lower that of an unknown one."
    )
    return [Note(note), *drawn, Grid_of("What the filters took", heads, lines, "method")]


def _scores(results: Results) -> list[Block]:
    if not results.opened:
        return [Note("This run had no unknown images.")]
    blocks: list[Block] = []
    for column in results.columns:
        drawn: list[Block] = []
        for row in results.ranked:
            scores = next((cell.get("scores") for cell in results.cells(row, column)), None)
            area = show(mean(results.values(row, column, "auroc")))
            chart = share_chart(
                scores or {},
                title=f"Scores of {row}, {column}",
                ends=("surely known", "surely unknown"),
                description=f"Known and unknown images; AUROC {area} percent.",
            )
            drawn += figures((chart, f"{row} {area}"))
        if drawn:
            blocks.append(Details(f"{column}, with AUROC", [Grid(drawn)], opened=not blocks))
    note = "The open-set score of every image, all domains together, first seed: the less the two overlap, the better."
    return (
        [Note(note), *blocks]
        if blocks
        else [Note("The scores of the images were not kept with these results.")]
    )


def _costs(results: Results, keys: dict[str, int]) -> list[Block]:
    latency, name = results.about["latency"], "H-score" if results.opened else "accuracy"
    times = {row: mean(results.times(row)) for row in results.rows}
    points = []
    for row in results.rows:
        seeds = range(min(len(results.cells(row, column)) for column in results.columns))
        by_seed = [
            mean([results.values(row, c, results.headline)[i] for c in results.columns]) for i in seeds
        ]
        points.append(
            Point(row, times[row], results.mean(row, results.headline), deviation(by_seed), keys.get(row, 0))
        )
    chart = scatter(
        [point for point in points if not math.isnan(point.y)],
        title=f"{name} against time for each batch",
        x="time for each batch, in plain forwards (logarithmic)",
        y=f"{name}, %",
        logarithmic=True,
    )
    heads = [Head("forwards", places=2), Head("backwards", places=2), Head("declared"), Head("a batch", "ms")]
    heads += [Head("plain forwards", explain="time in plain forwards of the source model"), Head("TENTs")]
    heads += [Head("published", explain="times of the source in units of TENT's")] if latency else []
    heads += [Head("state", "KiB", places=0), Head("peak", "MiB", places=0)]
    lines = []
    for row in results.rows:
        declared = results.cells(row)[0]["cost"]["declared"]
        ms = results.cost(row, "ms")
        printed = [latency[row] / latency["TENT"] if row in latency else None] if latency else []
        lines.append(
            Line(
                row,
                [
                    results.cost(row, "forwards"),
                    results.cost(row, "backwards"),
                    f"{declared[0]:g} + {declared[1]:g}",
                    Cell(ms, text=show(ms, 0 if ms > 20 else 1)),
                    Cell(times[row], text=f"{show(times[row])}×"),
                    times[row] / times.get("TENT", math.nan),
                    *printed,
                    results.cost(row, "state_bytes") / 1024,
                    results.cost(row, "peak_memory") / 2**20,
                ],
            )
        )
    notes = [
        "Forwards and backwards are counted, in batches through the whole network.",
        "The times are medians of a run that may have shared its processor; they compare methods, not machines.",
        *map(_told_baseline, results.baselines),
        "State is what a checkpoint of the adapter holds. The peak is that of the process; – where the system does not tell.",
    ]
    if any("relative" in cell["cost"] for row in results.rows for cell in results.cells(row)):
        notes.append(EARLIER)
    drawn: list[Figure] = figures((chart, f"{name} against time: upper left is better"))
    return [*drawn, Grid_of("Cost by method", heads, lines, "method"), Note(" ".join(notes))]


def _told_baseline(one: dict[str, Any]) -> str:
    times = listed([f"{count} images in {ms:.3g} ms" for count, ms in one["ms"].items()])
    load = "unknown size" if one["load"] is None else one["load"]
    threads = f"{one['threads']} thread{'s' * (one['threads'] != 1)}"
    return (
        f"A plain forward of {times} is the unit: measured once, on {one['processor']}, {threads}, {one['precision']}, under a "
        f"load of {load}."
    )


def _domains(results: Results) -> list[Block]:
    measure, blocks = results.headline, []
    for column in results.columns:
        rows = [row for row in results.rows if results.cells(row, column)]
        names = [entry["domain"] for entry in results.cells(rows[0], column)[0]["domains"]]
        lines = [
            Line(
                row,
                [
                    mean([number(cell["domains"][i][measure]) for cell in results.cells(row, column)])
                    for i in range(len(names))
                ],
            )
            for row in rows
        ]
        heads = [Head(name.replace("_", " "), places=0, shade="heat", tilted=True) for name in names]
        shown = Grid_of(f"By domain, {column}", heads, lines, "method")
        blocks.append(Details(column, [shown], opened=not blocks))
    name = "H-score" if results.opened else "Accuracy"
    return [Note(f"{name} in percent, mean over seeds; the stronger the colour, the better."), *blocks]


def _made(results: Results) -> Section:
    about, stream = results.about, results.about["stream"]
    severity = "" if stream["order"] in ("gradual", "wandering") else f", severity {stream['severity']}"
    items = [
        ("closed set", about["closed"]),
        ("model", about["model"]),
        ("stream", f"{stream['order']}{severity}, {', '.join(stream['corruptions'])}"),
    ]
    lines = []
    for row in results.run.rows:
        arguments = {
            **row.about["arguments"],
            **({"reset every": n} if (n := row.about.get("reset_every")) else {}),
        }
        told = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "defaults"
        lines.append(Line(row.label, [row.about["method"], told]))
    heads = [Head("class", left=True), Head("arguments", left=True)]
    done = len(results.run.about["cells"]) - len(results.run.missing)
    note = (
        f"{done} of {len(results.run.about['cells'])} cells are finished. The prediction of every image lies in the folder of its "
        "unit in the store: samples.safetensors, batches.jsonl."
    )
    return provenance_section(
        results.run, items, Grid_of("Arguments by method", heads, lines, "row"), Note(note)
    )


def _curves(
    results: Results,
    column: str,
    keys: dict[str, int],
    values: Callable[[dict[str, Any]], Sequence[float | None]],
) -> list[Series]:
    series = []
    for row in results.rows:
        cells = [cell for cell in results.cells(row, column) if values(cell)]
        if not cells:
            continue
        length = min(len(values(cell)) for cell in cells)
        found = np.array([[number(v) for v in values(cell)[:length]] for cell in cells])
        visit = np.array(cells[0]["time"]["visit"][:length])
        at = np.empty(length)
        for stretch in np.unique(visit):
            inside = np.flatnonzero(visit == stretch)
            at[inside] = stretch + (np.arange(len(inside)) + 0.5) / len(inside)
        means = np.array([mean(list(at_once)) for at_once in found.T])
        series.append(Series(row, at.tolist(), _smooth(means, visit), keys.get(row, 0)))
    return series


def _smooth(values: NDArray[np.floating], visit: NDArray[np.integer]) -> list[float]:
    """A centred moving average within a domain; it leaves out NaN and is shorter at the ends."""
    half = SMOOTH // 2
    out = []
    for i in range(len(values)):
        near = slice(max(0, i - half), i + half + 1)
        out.append(mean(values[near][visit[near] == visit[i]].tolist()))
    return out


def _marks(results: Results, column: str) -> list[tuple[float, str]]:
    cell = next(results.cells(row, column)[0] for row in results.rows if results.cells(row, column))
    return [(float(i), entry["domain"].replace("_", " ")) for i, entry in enumerate(cell["domains"])]
