"""The page and the main table of a run, and what it showed and what its stream was in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from testtime import report
from testtime.experiments.online.results import Results, number
from testtime.experiments.pages import provenance_section, table_blocks, unfinished, winner
from testtime.experiments.table import Column, Row, Table
from testtime.report import Block, Details, Figure, Grid, Note, Page, Section, listed, mean, show

__all__ = ["main_table", "online_page"]

Values = Callable[[dict[str, Any]], Sequence[float | None]]
SMOOTH = 5  # batches in the moving average of the curves
MEASURES = (("accuracy", "ACC"), ("auroc", "AUROC"), ("h_score", "H"))
MORE = (
    ("fpr95", "FPR@95", "%", 1, "lower", "unknown images let in when 95 % of the known are"),
    ("oscr", "OSCR", "%", 1, "higher", "right answers against accepted unknown, area"),
    ("ece", "ECE", "%", 1, "lower", "expected calibration error on the known, 15 bins"),
    ("nll", "NLL", "nats", 2, "lower", "negative log likelihood of the known"),
    ("brier", "Brier", "", 2, "lower", "squared error of the probabilities on the known, 0 to 2"),
)
FILTERS = {
    "known_maximised": "Known images taken for unknown, and pushed towards doubt",
    "unknown_minimised": "Unknown images taken for known, and learned from",
}
AFTER = "{corruptions} of severity {severity}{times}, one after the other"
JOINED = "{corruptions} of severity {severity}{times}, shuffled into one"
ARRIVAL = {
    "continual": AFTER,
    "gradual": "{corruptions}{times}, one after the other, whose severity rises from 1 to 5 and falls again",
    "mixed": JOINED,
    "correlated": f"{AFTER}, the images of a class in succession",
    "mixed-correlated": f"{JOINED}, the images of a class in succession",
    "label-shift": f"{AFTER}, in each of which every class dominates for a time",
    "wandering": "blends of two of {corruptions} whose severities change all the time, such that the source model is right in "
    "about {target} %",
}
WITHOUT_DOMAINS = ("mixed", "mixed-correlated", "wandering")
FEWER = "Fewer images of each domain, for it costs more than 20 forwards a batch."
OPENED = (
    "ACC: right answers to known images. AUROC: how well the open-set score tells known from unknown. H: the harmonic mean of "
    "the two averages."
)
CLEAN = (
    "Clean before and after: accuracy on uncorrupted known images before the stream and after it, without learning; the "
    "difference is what was forgotten."
)
CHOOSING = (
    "Methods that choose which images to learn from can choose wrongly. The worst mistake is to raise the uncertainty of a "
    "known image; the second worst to lower that of an unknown one."
)
TIMES = (
    "Forwards and backwards are counted, in batches through the whole network. The times are medians of a run that may have "
    "shared its processor; they compare methods, not machines. State is what a checkpoint of the adapter holds. The peak is "
    "that of the process; – where the system does not tell."
)
EARLIER = (
    "An earlier version ran cells of this page: the plain forward that their times are divided by was measured in each of "
    "them, and differs between them."
)


def online_page(results: Results) -> Page:
    """Return the page of a run."""
    first = [*results.ranked[:3], *(n for n in ("PAF+KIP", "TENT", "Source") if n in results.rows)]
    keys = {name: tint for name, tint in report.colours([*first, *results.ranked]).items() if tint}
    return Page(
        title=results.title,
        kicker=f"testtime · {results.run.about['experiment']}",
        lead=_lead(results),
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


def _lead(results: Results) -> report.Text:
    measure, name = results.headline
    values = {row: results.mean(row, measure) for row in results.rows}
    by_column = [{row: results.mean(row, measure, c) for row in results.rows} for c in results.columns]
    names = {row: report.strong(row) + report.sup("†") for row in results.rows if results.fewer(row)}
    best = [winner(values, name, by_column, "Source", names)] if not results.run.missing else []
    parts: list[report.Text] = [*best, f"The stream: {_stream(results)}."]
    if results.changes:
        parts.append(
            f"Changed from the experiment {results.run.about['experiment']}: {'; '.join(results.changes)}."
        )
    parts += [f"{used} stands in for {prefers}." for used, prefers in results.run.stand_ins.values()]
    if left := results.about["left_out"]:
        parts.append(f"Left out, for want of images of the source (the setting source): {listed(left)}.")
    return report.join(parts)


def _stream(results: Results) -> str:
    """What arrived, from what the results say."""
    stream, kinds = results.stream, len(results.stream["corruptions"])
    words = {
        "corruptions": f"{kinds} corruption{'s' * (kinds != 1)}",
        "severity": stream["severity"],
        "times": f", {stream['rounds']} times over" if stream["rounds"] > 1 else "",
        "target": show(100 * number(stream["target"]), 0),
    }
    parts = [ARRIVAL[stream["order"]].format(**words) + ", and the clean images at last" * stream["returns"]]
    if stream["speed"]:
        parts.append("the source model answers the batches that a method is too slow for")
    counts: dict[str, list[str]] = {}
    for row in results.rows:
        counts.setdefault(f"{results.per_domain(row):,.0f}", []).append(row)
    most = max(counts, key=lambda count: len(counts[count]))
    fewer = [f"{count} for {listed(rows)}" for count, rows in counts.items() if count != most]
    whole = "in all" if stream["order"] in WITHOUT_DOMAINS else "in each"
    parts.append(f"{most} known images {whole}{f' ({listed(fewer)})' if fewer else ''}")
    opened = [fact for fact in results.facts.values() if fact["open_set"] is not None]
    if opened:
        ratios = [f"{ratio:g}" for ratio in sorted({fact["ratio"] for fact in opened})]
        where = f" in {listed([fact['name'] for fact in opened])}" if len(opened) < len(results.facts) else ""
        parts.append(f"{listed(ratios)} unknown for each known one{where}")
    sizes = sorted({fact["batch_size"] for fact in results.facts.values()})
    parts.append(f"batches of {sizes[0]}" + f" to {sizes[-1]}" * (len(sizes) > 1))
    parts.append("a reset before each domain" if stream["reset"] else "never a reset")
    seeds = len(results.run.request.seeds or ())
    return "; ".join([*parts, f"{seeds} seed{'s' * (seeds != 1)}"])


def main_table(results: Results) -> Table:
    """Return accuracy, AUROC and H-score by method and column."""
    about, columns = results.run.about, []
    if results.opened and len(results.columns) > 1:
        columns.append(Column("mean H", partial(_average, "h_score")))
    for name in results.columns:
        for i, (measure, short) in enumerate(MEASURES if results.opened else MEASURES[:1]):
            told = {row: by[name][i] for row, by in results.about["published"].items() if name in by}
            known = {row: value for row, value in told.items() if value is not None}
            columns.append(Column(short, partial(_average, measure), name, name, published=known))
    changed = ", for the experiment without the changes of this run" * bool(results.changes)
    notes = ["Averaged over the domains."] + [OPENED] * results.opened
    notes += [f"Published: {about['source']}{changed}."] * any(results.about["published"].values())
    if not results.run.stand_ins:  # the note is about the data and weights that it names
        notes.append(about["note"])
    return _table(results, results.title, columns, [*notes, *(f["note"] for f in results.facts.values())])


def _table(results: Results, title: str, columns: Sequence[Column], notes: Sequence[str]) -> Table:
    run = results.run
    fewer = [row for row in results.rows if results.fewer(row)]
    rows = [
        Row(row.label, row.role, FEWER if row.label in fewer else row.note, row.about) for row in run.rows
    ]
    return Table.of(title, rows, columns, run.records(), run.missing, [*filter(None, notes), *run.notes])


def _average(measure: str, result: dict[str, Any]) -> float:
    return number(result["average"].get(measure))


def _more_table(results: Results) -> Table:
    columns = [
        Column(name, partial(_average, key), unit=unit, places=places, better=better, note=note)  # type: ignore[arg-type]
        for key, name, unit, places, better, note in MORE
        if not all(math.isnan(results.mean(row, key)) for row in results.rows)
    ]
    columns.append(Column("clean before", lambda result: result["forgetting"]["before"], better=None))
    columns.append(Column("clean after", lambda result: result["forgetting"]["after"], better=None))
    return _table(results, "Other measures by method", columns, [CLEAN])


def _over_time(results: Results, keys: dict[str, int]) -> list[Block]:
    note = "Each line is a moving average over five batches and all seeds. Press a name to bring its line forward."
    if results.stream["order"] not in WITHOUT_DOMAINS:
        state = "reset at each" if results.stream["reset"] else "never reset"
        note += f" Dashed lines mark the shifts from one domain to the next; the state is {state}."
    blocks: list[Block] = [Note(note), report.Legend(keys)]
    for column in results.columns:
        for measure, name in (("h_score", "H-score"), ("accuracy", "Accuracy"))[not results.opened :]:
            means = [f"{row} {show(results.mean(row, measure, column))}" for row in results.ranked]
            curves = _curves(results, column, keys, lambda cell, m=measure: cell["time"][m])  # type: ignore[misc]
            title, told = f"{name} over time · {column}", f"Averages: {', '.join(means)}."
            blocks.append(Figure(_lines(results, column, curves, title, f"{name}, %", told), title))
    return blocks


def _lines(
    results: Results, column: str, curves: Sequence[report.Series], title: str, y: str, told: str = ""
) -> report.Chart | None:
    cell = next(results.cells(row, column)[0] for row in results.rows if results.cells(row, column))
    marks = [(float(i), entry["domain"].replace("_", " ")) for i, entry in enumerate(cell["domains"])]
    return report.line_chart(curves, title=title, y=y, description=told, marks=marks)


def _filters(results: Results, keys: dict[str, int]) -> list[Block]:
    drawn: list[Block] = []
    for column in results.columns:
        for key, caption in FILTERS.items():
            curves = _curves(results, column, keys, lambda cell, k=key: cell["filters"]["time"].get(k, []))  # type: ignore[misc]
            title = f"{caption} · {column}"
            drawn += [Figure(_lines(results, column, curves, title, "% of them"), title)] if curves else []
    lines = []
    for row in results.rows:
        took = [cell["filters"]["all"] for cell in results.cells(row)]
        for name in dict.fromkeys(key.partition("_")[2] for key in took[0]):
            pair = [mean([number(t.get(f"{side}_{name}")) for t in took]) for side in ("known", "unknown")]
            lines.append(report.Row(row, [name, *pair]))
    if not drawn and not lines:
        return [Note("None of these methods chooses among the images of a batch.")]
    heads = [
        report.Column("what it did", style="left"),
        report.Column("of known", "%"),
        report.Column("of unknown", "%"),
    ]
    return [Note(CHOOSING), *drawn, report.Table("What the filters took", heads, lines, "method")]


def _scores(results: Results) -> list[Block]:
    if not results.opened:
        return [Note("This run had no unknown images.")]
    blocks: list[Block] = []
    for column in results.columns:
        drawn: list[Block] = []
        for row in results.ranked:
            scores = next((cell.get("scores") for cell in results.cells(row, column)), None) or {}
            title, area = f"Scores of {row}, {column}", show(results.mean(row, "auroc", column))
            told = f"Known and unknown images; AUROC {area} percent."
            chart = report.share_chart(
                scores, title=title, ends=("surely known", "surely unknown"), description=told
            )
            drawn += [Figure(chart, f"{row} {area}")] if chart else []
        blocks += [Details(f"{column}, with AUROC", [Grid(drawn)], opened=not blocks)] if drawn else []
    note = "The open-set score of every image, all domains together, first seed: the less the two overlap, the better."
    return (
        [Note(note), *blocks]
        if blocks
        else [Note("The scores of the images were not kept with these results.")]
    )


def _costs(results: Results, keys: dict[str, int]) -> list[Block]:
    (measure, name), latency = results.headline, results.about["latency"]
    times = {row: mean(results.times(row)) for row in results.rows}
    points, lines = [], []
    for row in results.rows:
        by_seed = zip(*(results.values(row, column, measure) for column in results.columns), strict=False)
        spread = report.deviation([mean(values) for values in by_seed])
        points.append(report.Point(row, times[row], results.mean(row, measure), spread, keys.get(row, 0)))
        declared, ms = results.cells(row)[0]["cost"]["declared"], results.cost(row, "ms")
        cells = [
            results.cost(row, "forwards"),
            results.cost(row, "backwards"),
            f"{declared[0]:g} + {declared[1]:g}",
            report.Cell(ms, text=show(ms, 0 if ms > 20 else 1)),
            report.Cell(times[row], text=f"{show(times[row])}×"),
            times[row] / times.get("TENT", math.nan),
            *([latency[row] / latency["TENT"] if row in latency else None] if latency else []),
            results.cost(row, "state_bytes") / 1024,
            results.cost(row, "peak_memory") / 2**20,
        ]
        lines.append(report.Row(row, cells))
    heads = [
        report.Column("forwards", places=2),
        report.Column("backwards", places=2),
        report.Column("declared"),
    ]
    heads += [report.Column("a batch", "ms"), report.Column("plain forwards"), report.Column("TENTs")]
    heads += [report.Column("published", explain="times of the source, in units of TENT's")] * bool(latency)
    heads += [report.Column("state", "KiB", places=0), report.Column("peak", "MiB", places=0)]
    earlier = any("relative" in cell["cost"] for row in results.rows for cell in results.cells(row))
    notes = [TIMES, *map(_told_baseline, results.baselines), *[EARLIER] * earlier]
    x = "time for each batch, in plain forwards (logarithmic)"
    chart = report.scatter(
        points, title=f"{name} against time for each batch", x=x, y=f"{name}, %", logarithmic=True, suffix="×"
    )
    table = report.Table("Cost by method", heads, lines, "method")
    return [Figure(chart, f"{name} against time: upper left is better"), table, *map(Note, notes)]


def _told_baseline(one: dict[str, Any]) -> str:
    times = listed([f"{count} images in {ms:.3g} ms" for count, ms in one["ms"].items()])
    load = "unknown size" if one["load"] is None else one["load"]
    where = f"{one['processor']}, {one['threads']} thread{'s' * (one['threads'] != 1)}, {one['precision']}"
    return f"A plain forward of {times} is the unit: measured once, on {where}, under a load of {load}."


def _domains(results: Results) -> list[Block]:
    (measure, name), drawn = results.headline, list[Block]()
    for column in results.columns:
        by_row = {row: results.cells(row, column) for row in results.rows if results.cells(row, column)}
        names = [entry["domain"].replace("_", " ") for entry in next(iter(by_row.values()))[0]["domains"]]
        lines = [
            report.Row(
                row, [mean([number(c["domains"][i][measure]) for c in cells]) for i in range(len(names))]
            )
            for row, cells in by_row.items()
        ]
        heads = [report.Column(domain, places=0, shade="heat", style="tilted") for domain in names]
        table = report.Table(f"By domain, {column}", heads, lines, "method")
        drawn.append(Details(column, [table], opened=not drawn))
    return [Note(f"{name} in percent, mean over seeds; the stronger the colour, the better."), *drawn]


def _made(results: Results) -> Section:
    about, stream, lines = results.about, results.stream, []
    severity = "" if stream["order"] in ("gradual", "wandering") else f", severity {stream['severity']}"
    told = f"{stream['order']}{severity}, {', '.join(stream['corruptions'])}"
    for row in results.run.rows:
        resets = {"reset every": row.about["reset_every"]} if "reset_every" in row.about else {}
        arguments = {**row.about.get("arguments", {}), **resets}
        words = ", ".join(f"{name}={value}" for name, value in arguments.items())
        lines.append(report.Row(row.label, [row.about["method"], words or "defaults"]))
    heads = [report.Column("class", style="left"), report.Column("arguments", style="left")]
    cells = len(results.run.about["cells"])
    note = (
        f"{cells - len(results.run.missing)} of {cells} cells are finished. The prediction of every image lies in the folder "
        "of its unit in the store: samples.safetensors, batches.jsonl."
    )
    items = [("closed set", about["closed"]), ("model", about["model"]), ("stream", told)]
    return provenance_section(
        results.run, items, report.Table("Arguments by method", heads, lines, "row"), Note(note)
    )


def _curves(results: Results, column: str, keys: dict[str, int], values: Values) -> list[report.Series]:
    """The mean over seeds at each batch, smoothed within each domain; a domain has the width 1."""
    series, half = [], SMOOTH // 2
    for row in results.rows:
        cells = [cell for cell in results.cells(row, column) if values(cell)]
        if not cells:
            continue
        visit = np.array(cells[0]["time"]["visit"])
        means = [mean([number(v) for v in at_once]) for at_once in zip(*map(values, cells), strict=False)]
        x, y = [], []
        for i in range(len(means)):
            inside = np.flatnonzero(visit[: len(means)] == visit[i])
            x.append(float(visit[i] + (i - inside[0] + 0.5) / len(inside)))
            y.append(mean([means[j] for j in inside if abs(j - i) <= half]))
        series.append(report.Series(row, x, y, keys.get(row, 0)))
    return series
