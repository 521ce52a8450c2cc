"""The page and the main table of a run, and what it showed and what its stream was in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from testtime import report
from testtime.experiments import Column, Table
from testtime.experiments.online import listing
from testtime.experiments.online.results import Results, number
from testtime.experiments.pages import run_page, table_blocks, winner
from testtime.report import Block, Details, Figure, Note, Page, Section, listed, mean, show
from testtime.streams.named import ORDERS

__all__ = ["main_table", "online_figures", "online_page"]

Values = Callable[[dict[str, Any]], Sequence[float | None]]
NOTES: dict[str, str] = listing.read("experiments.toml")["notes"]
SMOOTH = 5  # batches in the moving average of the curves
MEASURES = (("accuracy", "ACC"), ("auroc", "AUROC"), ("h_score", "H"))
MORE = (
    ("fpr95", "FPR@95", "%", 1, "lower", "unknown images let in when 95 % of the known are"),
    ("oscr", "OSCR", "%", 1, "higher", "right answers against accepted unknown, area"),
    ("ece", "ECE", "%", 1, "lower", "expected calibration error on the known, 15 bins"),
    ("nll", "NLL", "nats", 2, "lower", "negative log likelihood of the known"),
    ("brier", "Brier", "", 2, "lower", "squared error of the probabilities on the known, 0 to 2"),
)
FILTERS = ("known_maximised", "unknown_minimised")


def online_page(results: Results) -> Page:
    """Return the page of a run."""
    stream, keys = results.stream, _keys(results)
    severity = f", severity {stream['severity']}" if "{severity}" in ORDERS[stream["order"]].about else ""
    facts = [("closed set", results.about["closed"]), ("model", results.about["model"])]
    facts += [("stream", f"{stream['order']}{severity}, {', '.join(stream['corruptions'])}")]
    sections = [
        Section("result", "Result", "The result", table_blocks(main_table(results))),
        Section("time", "Time", "Over time", _over_time(results, keys)),
        Section("filters", "Filters", "What the filters did", _filters(results, keys)),
        Section("scores", "Scores", "Known and unknown, told apart", _scores(results)),
        Section("cost", "Cost", "What it costs", _costs(results, keys)),
        Section("domains", "Domains", "Domain by domain", _domains(results)),
        Section("more", "More", "Calibration, refusal, forgetting", table_blocks(_more_table(results))),
    ]
    made = _arguments(results), Note(NOTES["kept"])
    return run_page(results.run, _lead(results), sections, facts, *made, title=results.title)


def online_figures(results: Results) -> list[report.Chart | None]:
    """Return the charts of a run: for each column the headline over time, and what the filters took wrongly."""
    keys, (measure, name), drawn = _keys(results), results.headline, list[Figure]()
    for column in results.columns:
        over: Values = lambda cell: cell["time"][measure]  # noqa: E731
        drawn.append(_figure(results, column, keys, over, f"{name} over time · {column}", f"{name}, %"))
        drawn += _filter_figures(results, column, keys)
    return [figure.chart for figure in drawn]


def _keys(results: Results) -> dict[str, int]:
    """The colours of the rows that stand out."""
    first = [*results.ranked[:3], *(n for n in ("PAF+KIP", "TENT", "Source") if n in results.rows)]
    return {name: tint for name, tint in report.colours([*first, *results.ranked]).items() if tint}


def _lead(results: Results) -> report.Text:
    run, (measure, name) = results.run, results.headline
    values = {row: results.mean(row, measure) for row in results.rows}
    by_column = [{row: results.mean(row, measure, c) for row in results.rows} for c in results.columns]
    noted = [row for row in results.rows if results.remark(row, NOTES["fewer"])]
    names = {row: report.strong(row) + report.sup("†") for row in noted}
    parts = [winner(values, name, by_column, "Source", names)] if not run.missing else []
    parts.append(f"The stream: {_stream(results)}.")
    if results.changes:
        parts.append(f"Changed from the experiment {run.about['experiment']}: {'; '.join(results.changes)}.")
    if left := results.about["left_out"]:
        parts.append(f"Left out, for want of images of the source (the setting source): {listed(left)}.")
    return report.join(parts)


def _stream(results: Results) -> str:
    """What arrived, from what the results say."""
    stream, kinds, order = results.stream, len(results.stream["corruptions"]), ORDERS[results.stream["order"]]
    words = {
        "corruptions": f"{kinds} corruption{'s' * (kinds != 1)}",
        "severity": stream["severity"],
        "times": f", {stream['rounds']} times over" if stream["rounds"] > 1 else "",
        "target": show(100 * number(stream["target"]), 0),
    }
    parts = [order.about.format(**words) + ", and the clean images at last" * stream["returns"]]
    parts += ["the source model answers the batches that a method is too slow for"] * bool(stream["speed"])
    counts: dict[str, list[str]] = {}
    for row in results.rows:
        counts.setdefault(f"{results.per_domain(row):,.0f}", []).append(row)
    most = max(counts, key=lambda count: len(counts[count]))
    fewer = [f"{count} for {listed(rows)}" for count, rows in counts.items() if count != most]
    whole = "in each" if order.in_turn else "in all"
    parts.append(f"{most} known images {whole}{f' ({listed(fewer)})' if fewer else ''}")
    if opened := [fact for fact in results.facts.values() if fact["open_set"] is not None]:
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
        columns.append(Column("mean H", ("average", "h_score")))
    for name in results.columns:
        for i, (measure, short) in enumerate(MEASURES if results.opened else MEASURES[:1]):
            printed = {row: by[name][i] for row, by in results.about["published"].items() if name in by}
            known = {row: value for row, value in printed.items() if value is not None}
            columns.append(Column(short, ("average", measure), name, name, published=known))
    changed = ", for the experiment without the changes of this run" * bool(results.changes)
    notes = ["Averaged over the domains."] + [NOTES["opened"]] * results.opened
    notes += [f"Published: {about['source']}{changed}."] * any(results.about["published"].values())
    if "source model" not in results.run.stand_ins:  # the note is on the model of the experiment
        notes.append(about["note"])
    notes += [fact["note"] for fact in results.facts.values()]
    return _table(results, results.title, columns, notes)


def _table(results: Results, title: str, columns: Sequence[Column], notes: Sequence[str]) -> Table:
    run, remarks = results.run, {row: results.remark(row, NOTES["fewer"]) for row in results.rows}
    rows = [replace(row, note=remarks.get(row.label) or row.note) for row in run.rows]
    return Table.of(title, rows, columns, run.records(), run.missing, [*filter(None, notes), *run.notes])


def _more_table(results: Results) -> Table:
    columns = [
        Column(name, ("average", key), unit=unit, places=places, better=better, note=note)  # type: ignore[arg-type]
        for key, name, unit, places, better, note in MORE
        if not all(math.isnan(results.mean(row, key)) for row in results.rows)
    ]
    for when in ("before", "after"):
        columns.append(Column(f"clean {when}", ("forgetting", when), better=None))
    return _table(results, "Other measures by method", columns, [NOTES["clean"]])


def _over_time(results: Results, keys: dict[str, int]) -> list[Block]:
    state = "reset at each" if results.stream["reset"] else "never reset"
    shifts = f" {NOTES['shifts'].format(state)}" * ORDERS[results.stream["order"]].in_turn
    drawn = []
    for column in results.columns:
        for measure, name in (("h_score", "H-score"), ("accuracy", "Accuracy"))[not results.opened :]:
            means = [f"{row} {show(results.mean(row, measure, column))}" for row in results.ranked]
            title, described = f"{name} over time · {column}", f"Averages: {', '.join(means)}."
            values: Values = lambda cell, m=measure: cell["time"][m]  # type: ignore[misc]  # noqa: E731
            drawn.append(_figure(results, column, keys, values, title, f"{name}, %", described))
    if not any(figure.chart for figure in drawn):
        return [Note(NOTES["no_curves"])]
    return [Note(NOTES["curves"] + shifts), report.Legend(keys), *drawn]


def _figure(
    results: Results,
    column: str,
    keys: dict[str, int],
    values: Values,
    title: str,
    y: str,
    described: str = "",
) -> Figure:
    """The curves of a column, with its shifts: the mean over seeds at each batch, smoothed within each domain."""
    series, domains = [], _domain_names(results, column)
    for row in results.rows:
        if cells := [cell for cell in results.cells(row, column) if values(cell)]:
            means = [mean(list(map(number, at_once))) for at_once in zip(*map(values, cells), strict=False)]
            series.append(report.Series(row, *_curve(cells[0]["time"]["visit"], means), keys.get(row, 0)))
    marks = [(float(i), name) for i, name in enumerate(domains)]
    chart = (
        report.line_chart(series, title=title, y=y, description=described, marks=marks) if series else None
    )
    return Figure(chart, title)


def _curve(visits: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The points of a curve; a domain has the width 1."""
    visit, half = np.array(visits)[: len(values)], SMOOTH // 2
    x, y = [], []
    for i in range(len(values)):
        inside = np.flatnonzero(visit == visit[i]).tolist()
        x.append(float(visit[i] + (i - inside[0] + 0.5) / len(inside)))
        y.append(mean([values[j] for j in inside if abs(j - i) <= half]))
    return x, y


def _domain_names(results: Results, column: str) -> list[str]:
    domains = next(cells[0]["domains"] for row in results.rows if (cells := results.cells(row, column)))
    return [entry["domain"].replace("_", " ") for entry in domains]


def _filter_figures(results: Results, column: str, keys: dict[str, int]) -> list[Figure]:
    drawn = []
    for key in FILTERS:
        values: Values = lambda cell, k=key: cell["filters"]["time"].get(k, [])  # type: ignore[misc]  # noqa: E731
        drawn.append(_figure(results, column, keys, values, f"{NOTES[key]} · {column}", "% of them"))
    return drawn


def _filters(results: Results, keys: dict[str, int]) -> list[Block]:
    drawn = [figure for column in results.columns for figure in _filter_figures(results, column, keys)]
    lines = []
    for row in results.rows:
        took = [cell["filters"]["all"] for cell in results.cells(row)]
        for name in dict.fromkeys(key.partition("_")[2] for key in took[0]):
            pair = [mean([number(t.get(f"{side}_{name}")) for t in took]) for side in ("known", "unknown")]
            lines.append(report.Row(row, [name, *pair]))
    if not lines:
        return [Note(NOTES["no_filters"])]
    sides = [report.Column(f"of {side}", "%") for side in ("known", "unknown")]
    heads = [report.Column("what it did", style="left"), *sides]
    return [Note(NOTES["choosing"]), *drawn, report.Table("What the filters took", heads, lines, "method")]


def _scores(results: Results) -> list[Block]:
    if not results.opened:
        return [Note(NOTES["closed"])]
    blocks: list[Block] = []
    for column in results.columns:
        drawn: list[Block] = []
        for row in results.ranked:
            scores = next((cell.get("scores") for cell in results.cells(row, column)), None) or {}
            area, ends = show(results.mean(row, "auroc", column)), ("surely known", "surely unknown")
            title, described = (
                f"Scores of {row}, {column}",
                f"Known and unknown images; AUROC {area} percent.",
            )
            chart = report.share_chart(scores, title=title, ends=ends, description=described)
            drawn += [Figure(chart, f"{row} {area}")] if chart else []
        if drawn:
            blocks.append(Details(f"{column}, with AUROC", [report.Grid(drawn)], opened=not blocks))
    return [Note(NOTES["scores"]), *blocks] if blocks else [Note(NOTES["no_scores"])]


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
            *(results.cost(row, key) for key in ("forwards", "backwards")),
            f"{declared[0]:g} + {declared[1]:g}",
            report.Cell(ms, text=show(ms, 0 if ms > 20 else 1)),
            report.Cell(times[row], text=f"{show(times[row])}×"),
            times[row] / times.get("TENT", math.nan),
            *([latency[row] / latency["TENT"] if row in latency else None] if latency else []),
            results.cost(row, "state_bytes") / 1024,
            results.cost(row, "peak_memory") / 2**20,
        ]
        lines.append(report.Row(row, cells))
    heads = [report.Column(key, places=2) for key in ("forwards", "backwards")] + [report.Column("declared")]
    heads += [report.Column("a batch", "ms"), report.Column("plain forwards"), report.Column("TENTs")]
    heads += [report.Column("published", explain="times of the source, in units of TENT's")] * bool(latency)
    heads += [report.Column("state", "KiB", places=0), report.Column("peak", "MiB", places=0)]
    earlier = any("relative" in cell["cost"] for row in results.rows for cell in results.cells(row))
    notes = [NOTES["times"], *map(_told_baseline, results.baselines), *[NOTES["earlier"]] * earlier]
    title, x = f"{name} against time for each batch", "time for each batch, in plain forwards (logarithmic)"
    chart = report.scatter(points, title=title, x=x, y=f"{name}, %", logarithmic=True, suffix="×")
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
        heads = [
            report.Column(d, places=0, shade="heat", style="tilted") for d in _domain_names(results, column)
        ]
        values = {}
        for row in results.rows:
            if cells := results.cells(row, column):
                by_domain = zip(*(cell["domains"] for cell in cells), strict=True)
                values[row] = [mean([number(d[measure]) for d in one]) for one in by_domain]
        if not all(math.isnan(value) for of_row in values.values() for value in of_row):
            lines = [report.Row(row, of_row) for row, of_row in values.items()]
            table = report.Table(f"By domain, {column}", heads, lines, "method")
            drawn.append(Details(column, [table], opened=not drawn))
    return [Note(NOTES["domains"].format(name)), *drawn] if drawn else []


def _arguments(results: Results) -> report.Table:
    lines = []
    for row in results.run.rows:
        resets = {"reset every": row.about["reset_every"]} if "reset_every" in row.about else {}
        words = [f"{name}={value}" for name, value in {**row.about.get("arguments", {}), **resets}.items()]
        lines.append(report.Row(row.label, [row.about["method"], ", ".join(words) or "defaults"]))
    heads = [report.Column(head, style="left") for head in ("class", "arguments")]
    return report.Table("Arguments by method", heads, lines, "row")
