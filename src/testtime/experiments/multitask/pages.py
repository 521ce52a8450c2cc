"""The page of a table: what was found, step by step, whether the tasks move together, costs, pictures, learning rates."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from testtime import report
from testtime.experiments.multitask.listing import read_constants
from testtime.experiments.multitask.results import METRICS, Judged, Outcome
from testtime.experiments.pages import provenance_section, table_blocks, unfinished
from testtime.experiments.run import Run
from testtime.experiments.table import Table
from testtime.report import (
    Block,
    Details,
    Figure,
    Grid,
    Note,
    Page,
    Section,
    Series,
    Text,
    first_of,
    listed,
    phrase,
    signed,
    strong,
)

__all__ = ["LEADS", "NOTES", "family_page", "highlights", "study_page"]

NOTES: dict[str, str] = read_constants("experiments")["notes"]
LEADS: dict[str, str] = read_constants("experiments")["leads"]
DELTA = "Δ" + report.sub("TTT")
SYNCHRONY = {
    "SV": ("Step variance", "deviation of the tasks' best steps, in steps", "upper left is better"),
    "DTW": ("Dynamic time warping", "distance of the tasks' gains, in %", "upper left is better"),
    "CS": ("Cosine similarity", "of the tasks' increments of gain", "upper right is better"),
}


def family_page(run: Run, lead: Text, sections: Sequence[Section]) -> Page:
    """Return the page of a run of this family: its lead and sections, what is missing, and how it was made."""
    about, kicker = run.about["about"], f"testtime · {run.about['family']} · {run.about['experiment']}"
    facts = {"protocol": about["protocol"], **about.get("domains", {"houses": about.get("houses", {})})}
    items = [
        (name, ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in one.items())) for name, one in facts.items()
    ]
    made = provenance_section(run, [("preset", about["preset"]), *items])
    return Page(run.about["title"], kicker, "" if run.missing else lead, [*sections, made], unfinished(run))


def study_page(run: Run) -> Page:
    """Return the page of a table."""
    found = Judged.read(run)
    if not found.records:
        return family_page(run, "The base row has no result yet, against which the others are measured.", [])
    table = found.table()
    colours = highlights(table)
    heads = ["Δ last", "Δ beyond", *(title for title, _ in METRICS.values()), "Δ oracle", "Δ own"]
    result = _each(found, lambda domain: table_blocks(found.table(domain, heads)))
    steps = _each(found, lambda domain: _curves(found, domain, colours))
    blocks: dict[tuple[str, str], list[Block]] = {
        ("Result", "The result"): [*result, *_published(found, table)],
        ("Steps", "Step by step"): [Note(NOTES["steps"]), report.Legend(colours), *steps],
        ("Synchrony", "Do the tasks move together?"): _synchrony(found, table, colours),
        ("Cost", "What it costs"): [_costs(table), Note(NOTES["cost"])],
        ("Domains", "Over the domains"): _over_domains(found, colours),
        ("Sweep", "Over the settings"): _sweep(run, table),
        ("Pictures", "What it looks like"): _pictures(run, found.domains[0]),
        ("Rates", "How the learning rates were chosen"): _rates(run),
    }
    sections = [Section(short.lower(), short, heading, inner) for (short, heading), inner in blocks.items()]
    return family_page(run, _lead(found, table), sections)


def highlights(table: Table) -> dict[str, int]:
    """Return the colours of rows: the best that learn, S4T and its control, TENT and the base have one, the rest is grey."""
    ranked = {row.label: row.role for row in table.sorted_by("Δ last").rows}
    learn = [label for label, role in ranked.items() if role == "method"]
    first = [row.label for row in table.rows if row.role == "control"][:1]
    wanted = [*learn[:2], "S4T", "S4T's network, BN only", *first, "TENT", table.rows[0].label, *ranked]
    return report.colours([label for label in wanted if label in ranked])


def _lead(found: Judged, table: Table) -> Text:
    learn = [row.label for row in table.sorted_by("Δ last").rows if row.role == "method"]
    if not learn:
        return "No row that learns is there so far."
    last, beyond, oracle = (
        {row: table.value(row, table.column(f"Δ {k}")) for row in learn} for k in ("last", "beyond", "oracle")
    )
    first = first_of(last)
    second = first_of({row: gain for row, gain in last.items() if row not in first})
    best, most, chosen = first[0], first_of(beyond), first_of(oracle)
    seeds, domains = len(found.run.request.seeds or ()), len(found.domains)
    over = f"{seeds} seed{'s' * (seeds > 1)}" + f", {domains} domains" * (domains > 1)
    step, names = str(found.run.about["about"]["protocol"]["steps"]), listed([strong(row) for row in first])
    said: list[Text] = [
        phrase(LEADS["first"], names, _verb(first, "has", "share"), DELTA, step, _gain(table, best), over)
        + (
            LEADS["second"].format(_verb(second, "is", "are"), listed(second), _gain(table, second[0]))
            if second
            else ""
        )
    ]
    if not math.isnan(control := last[best] - beyond[best]):
        part = max(control, 0.0)
        explains = (
            LEADS["explains"].format(100 * part / last[best]) if last[best] > part else LEADS["nothing"]
        )
        said.append(LEADS["control"].format(signed(control)) + explains)
    if most and not {*most} & {*first} and round(beyond[most[0]], 1) > 0:
        said.append(
            LEADS["beyond"].format(listed(most), _verb(most, "gains", "gain"), signed(beyond[most[0]]))
        )
    if chosen and not {*chosen} & {*first}:
        said.append(LEADS["oracle"].format(listed(chosen), signed(oracle[chosen[0]])))
    return report.join(said, ". ") + "."


def _published(found: Judged, table: Table) -> list[Block]:
    """What the paper prints, beside ours where the names of rows, or of domains, agree."""
    printed = [read_constants("published")[name] for name in found.run.about["about"]["published"]]
    shifts = {shift: rows for one in printed for shift, rows in one.items()}
    over, oracle, rows = found.by_domain("Δ oracle"), table.column("Δ oracle"), []
    for name in dict.fromkeys(row for shift in shifts.values() for row in shift):
        ours = over.value("S4T", over.column(name)) if name in found.domains else table.value(name, oracle)
        rows.append(
            report.Row(name, [*(shift.get(name, {}).get("delta_ttt") for shift in shifts.values()), ours])
        )
    heads = [report.Column(head.replace("->", "→"), "%", signed=True) for head in (*shifts, "here, oracle")]
    blocks: list[Block] = [report.Table("Published gains", heads, rows), Note(NOTES["published"])]
    return [Details(f"What the paper prints ({found.run.about['source']})", blocks)] * bool(rows)


def _curves(found: Judged, domain: str, colours: Mapping[str, int]) -> list[Block]:
    def lines(values: Callable[[Outcome], Sequence[float]]) -> list[Series]:
        drawn = []
        for row in found.run.rows:
            of = [one.result for one in found.records if (one.row, one.column) == (row.label, domain)]
            if of:
                many = np.array([values(outcome) for outcome in of], dtype=float)
                spread = many.std(0, ddof=1).tolist() if len(of) > 1 else ()
                drawn.append(
                    Series(row.label, of[0].curve.steps, many.mean(0).tolist(), colours[row.label], spread)
                )
        return drawn

    title, small = f"over the steps, {domain}", []
    whole = report.line_chart(lines(lambda o: o.gains), title=f"Delta_TTT {title}", y="Δ, %", x="step")
    for name, (task, kind) in METRICS.items():
        better = f"{kind.metric}, {'higher' if kind.higher_is_better else 'lower'} is better"
        drawn = lines(lambda o, name=name: o.curve.values[name])  # type: ignore[misc]
        chart = report.line_chart(
            drawn, title=f"{task} {title}", y=kind.metric, x="step", height=220, small=True
        )
        small.append(Figure(chart, phrase("{} {}", task.capitalize(), report.dim(better))))
    return [Figure(whole, DELTA + f" over the steps · {domain}"), Grid(small, 26.0)]


def _synchrony(found: Judged, table: Table, colours: Mapping[str, int]) -> list[Block]:
    last, charts = table.column("Δ last"), []
    for name, (title, axis, better) in SYNCHRONY.items():
        x, y, spread = (
            [of(row, column) for row in colours]
            for of, column in ((table.value, table.column(name)), (table.value, last), (table.spread, last))
        )
        points = list(map(report.Point, colours, x, y, spread, colours.values()))
        chart = report.scatter(points, title=f"{title} against Delta_TTT", x=axis, y="Δ, %", small=True)
        charts.append(Figure(chart, phrase("{} {}", title, report.dim(better))))
    shown = table_blocks(found.table("all domains", list(SYNCHRONY)))
    return [Note(NOTES["synchrony"]), Grid(charts), *shown] if any(one.chart for one in charts) else []


def _costs(table: Table) -> Block:
    (size, time), rows = (table.column("size"), table.column("time")), []
    first, begin = (table.value(table.rows[0].label, column) for column in (size, time))
    for row in table.rows:
        own, seconds = (table.value(row.label, column) for column in (size, time))
        rows.append(
            report.Row(
                row.label,
                [own, 100 * (own / first - 1), seconds, seconds / begin if begin else None],
                row.role,
            )
        )
    heads = [report.Column("parameters", "M", places=2), report.Column("against the base", "%", signed=True)]
    return report.Table(
        "Cost by row", [*heads, report.Column("time", "s"), report.Column("times the base")], rows
    )


def _over_domains(found: Judged, colours: Mapping[str, int]) -> list[Block]:
    table, title = found.by_domain(), "at the last step, each domain against its own base"
    lines = [
        Series(
            row.label,
            range(len(table.columns)),
            [table.value(row.label, column) for column in table.columns],
            colours[row.label],
            [table.spread(row.label, column) for column in table.columns],
        )
        for row in table.rows
    ]
    chart = report.line_chart(lines, title=f"Delta_TTT {title}", y="Δ, %", x_names=found.domains)
    return [Figure(chart, DELTA + f" {title}"), *table_blocks(table)] if len(found.domains) > 1 else []


def _sweep(run: Run, table: Table) -> list[Block]:
    """A chart over the argument of the branch by which the rows of the study differ."""
    name, last = run.about["about"]["sweep"], table.column("Δ last")
    learn = [row for row in table.rows if row.role == "method" and name in row.about["network"]]
    values = {row.label: table.value(row.label, last) for row in learn}
    line = Series(
        "Δ last",
        [row.about["network"][name] for row in learn],
        list(values.values()),
        1,
        [table.spread(row, last) for row in values],
    )
    title, told = f"at the last step by {name}", "; ".join(f"{row}: {signed(v)}" for row, v in values.items())
    chart = report.line_chart([line], title=f"Delta_TTT {title}", y="Δ, %", x=name, description=told)
    return [Figure(chart, DELTA + f" {title}")] * bool(learn)


def _pictures(run: Run, domain: str) -> list[Block]:
    found, drawn = run.other("pictures"), run.about["about"].get("drawn", {})
    if found is None:
        return []
    facts = {"control": "none", **drawn, "domain": domain, "seed": (run.request.seeds or (0,))[0]}
    light, dark = ([base64.b64decode(one[tone]) for one in found["sheets"]] for tone in ("light", "dark"))
    names = [one["caption"] for one in found["sheets"]]
    alts = [f"{name}: every task, label and predictions" for name in names]
    return [Note(NOTES["pictures"].format(**facts)), *map(report.Picture, light, names, alts, dark)]


def _rates(run: Run) -> list[Block]:
    found = {row.label: one for row in run.rows if (one := run.other(f"rate of {row.label}")) is not None}
    rates, rows = sorted({float(rate) for one in found.values() for rate in one["tried"]}), []
    for label, one in found.items():
        tried = {float(rate): math.nan if gain is None else gain for rate, gain in one["tried"].items()}
        cells = [report.Cell(tried.get(rate, ""), bold=rate == one["rate"]) for rate in rates]
        rows.append(report.Row(label, cells))
    table = report.Table("Learning rates", [report.Column(f"{rate:g}", signed=True) for rate in rates], rows)
    return [table, Note(NOTES["rates"])] if rows else []


def _each(found: Judged, blocks: Callable[[str], list[Block]]) -> list[Block]:
    """The blocks of each domain, folded away but for the first where there are several."""
    if len(found.domains) == 1:
        return blocks(found.domains[0])
    return [Details(domain, blocks(domain), place == 0) for place, domain in enumerate(found.domains)]


def _gain(table: Table, row: str) -> str:
    last = table.column("Δ last")
    spread = table.spread(row, last)
    return f"{signed(table.value(row, last))}{f' ±{spread:.1f}' if spread else ''} %"


def _verb(names: Sequence[str], one: str, several: str) -> str:
    return one if len(names) == 1 else several
