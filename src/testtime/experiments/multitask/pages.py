"""The page of a table: what was found, step by step, whether the tasks move together, costs, pictures, learning rates."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from testtime import report
from testtime.experiments.multitask.listing import CONSTANTS, PUBLISHED
from testtime.experiments.multitask.results import Judged, judged_against
from testtime.experiments.pages import run_page, table_blocks
from testtime.experiments.run import Run
from testtime.experiments.table import Column, Table
from testtime.multitask.houses import TASKS
from testtime.multitask.outcome import Outcome
from testtime.multitask.pictures import TITLES
from testtime.report import Block, Details, Figure, Grid, Note, Page, Section, Series, Text, phrase, signed

__all__ = ["LEADS", "NOTES", "family_page", "highlights", "study_page"]

NOTES: dict[str, str] = CONSTANTS["notes"]
LEADS: dict[str, str] = CONSTANTS["leads"]
DELTA = "Δ" + report.sub("TTT")
SYNCHRONY = {
    "SV": ("Step variance", "deviation of the tasks' best steps, in steps", "upper left is better"),
    "DTW": ("Dynamic time warping", "distance of the tasks' gains, in %", "upper left is better"),
    "CS": ("Cosine similarity", "of the tasks' increments of gain", "upper right is better"),
}


def family_page(run: Run, lead: Text, sections: Sequence[Section]) -> Page:
    """Return the page of a run of this family: its lead and sections, what is missing, and how it was made."""
    about = run.about["about"]
    facts = {"protocol": about["protocol"], **about.get("domains", {"houses": about.get("houses", {})})}
    given = {n: ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in one.items()) for n, one in facts.items()}
    return run_page(run, "" if run.missing else lead, sections, [("preset", about["preset"]), *given.items()])


def study_page(run: Run) -> Page:
    """Return the page of a table."""
    found = Judged.read(run)
    if not found.records:
        return family_page(run, "The base row has no result yet, against which the others are measured.", [])
    table = found.table()
    colours = highlights(table)
    heads = ["Δ last", "Δ beyond", *TITLES.values(), "Δ oracle", "Δ own", "Δ before"]
    result = _each(found, lambda domain: table_blocks(found.table(domain, heads)))
    steps = _each(found, lambda domain: _curves(found, domain, colours))
    blocks: dict[tuple[str, str], list[Block]] = {
        ("Result", "The result"): [*result, *_published(found, table)],
        ("Steps", "Step by step"): [Note(NOTES["steps"]), report.Legend(colours), *steps],
        ("Synchrony", "Do the tasks move together?"): _synchrony(found, table, colours),
        ("Cost", "What it costs"): [*_costs(found, table), Note(NOTES["cost"])],
        ("Domains", "Over the domains"): [*_over_domains(found, colours), *_against(run, colours)],
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
    first, most, chosen = report.first_of(last), report.first_of(beyond), report.first_of(oracle)
    second, best = report.first_of({row: gain for row, gain in last.items() if row not in first}), first[0]
    seeds, domains = len(found.run.request.seeds or ()), len(found.domains)
    over = f"{seeds} seed{'s' * (seeds > 1)}" + f", {domains} domains" * (domains > 1)
    step, names = (
        str(found.run.about["about"]["protocol"]["steps"]),
        report.listed([report.strong(row) for row in first]),
    )
    has = "has" if len(first) == 1 else "share"
    sentence = phrase(LEADS["first"], names, has, DELTA, step, _gain(table, best), over)
    if second:
        are = "is" if len(second) == 1 else "are"
        sentence += LEADS["second"].format(are, report.listed(second), _gain(table, second[0]))
    said: list[Text] = [sentence]
    if not math.isnan(control := last[best] - beyond[best]):
        part = max(control, 0.0)
        explains = (
            LEADS["explains"].format(100 * part / last[best]) if last[best] > part else LEADS["nothing"]
        )
        said.append(LEADS["control"].format(signed(control)) + explains)
    if most and not {*most} & {*first} and round(beyond[most[0]], 1) > 0:
        gains = "gains" if len(most) == 1 else "gain"
        said.append(LEADS["beyond"].format(report.listed(most), gains, signed(beyond[most[0]])))
    if chosen and not {*chosen} & {*first}:
        said.append(LEADS["oracle"].format(report.listed(chosen), signed(oracle[chosen[0]])))
    return report.join(said, ". ") + "."


def _published(found: Judged, table: Table) -> list[Block]:
    """What the paper prints, beside ours where the names of rows, or of domains, agree."""
    tables = [PUBLISHED[name] for name in found.run.about["about"]["published"]]
    shifts = {shift.replace("->", "→"): rows for one in tables for shift, rows in one.items()}
    over, oracle, rows = found.by_domain("Δ oracle"), table.column("Δ oracle"), []
    for name in dict.fromkeys(row for shift in shifts.values() for row in shift):
        ours = over.value("S4T", over.column(name)) if name in found.domains else table.value(name, oracle)
        printed = [shift.get(name, {}).get("delta_ttt") for shift in shifts.values()]
        rows.append(report.Row(name, [*printed, ours]))
    heads = [report.Column(head, "%", signed=True) for head in (*shifts, "here, oracle")]
    blocks: list[Block] = [report.Table("Published gains", heads, rows), Note(NOTES["published"])]
    return [Details(f"What the paper prints ({found.run.about['source']})", blocks)] * bool(rows)


def _curves(found: Judged, domain: str, colours: Mapping[str, int]) -> list[Block]:
    def lines(values: Callable[[Outcome], Sequence[float]]) -> list[Series]:
        drawn = []
        for label in (row.label for row in found.run.rows):
            of = [one.result for one in found.records if (one.row, one.column) == (label, domain)]
            many = np.array([values(outcome) for outcome in of], dtype=float)
            spread = many.std(0, ddof=1).tolist() if len(of) > 1 else ()
            if of:
                drawn.append(Series(label, of[0].curve.steps, many.mean(0).tolist(), colours[label], spread))
        return drawn

    title, small = f"over the steps, {domain}", []
    whole = report.line_chart(lines(lambda o: o.gains), title=f"Delta_TTT {title}", y="Δ, %", x="step")
    known = {name for one in found.records for name in one.result.curve.values}
    for name, task in ((name, task) for name, task in TASKS.items() if name in known):
        better = f"{task.metric}, {'higher' if task.higher_is_better else 'lower'} is better"
        drawn = lines(lambda o, name=name: o.curve.values[name])  # type: ignore[misc]
        facts: dict[str, Any] = {"y": task.metric, "x": "step", "height": 220, "small": True}
        chart = report.line_chart(drawn, title=f"{TITLES[name]} {title}", **facts)
        small.append(Figure(chart, phrase("{} {}", TITLES[name].capitalize(), report.dim(better))))
    return [Figure(whole, DELTA + f" over the steps · {domain}"), Grid(small, 26.0)]


def _synchrony(found: Judged, table: Table, colours: Mapping[str, int]) -> list[Block]:
    last, charts = table.column("Δ last"), []
    for name, (title, axis, better) in SYNCHRONY.items():
        points = [
            report.Point(
                row,
                table.value(row, table.column(name)),
                table.value(row, last),
                table.spread(row, last),
                tint,
            )
            for row, tint in colours.items()
        ]
        chart = report.scatter(points, title=f"{title} against Delta_TTT", x=axis, y="Δ, %", small=True)
        charts.append(Figure(chart, phrase("{} {}", title, report.dim(better))))
    shown = table_blocks(found.table("all domains", list(SYNCHRONY)))
    return [Note(NOTES["synchrony"]), Grid(charts), *shown] if any(one.chart for one in charts) else []


def _costs(found: Judged, table: Table) -> list[Block]:
    size, time = (table.value(table.rows[0].label, table.column(name)) for name in ("size", "time"))
    columns = [
        Column("parameters", lambda o: o.millions, unit="M", places=2, better=None),
        Column("against the base", lambda o: 100 * (o.millions / size - 1), better=None, signed=True),
        Column("time", lambda o: o.seconds, unit="s", better=None),
        Column("times the base", lambda o: o.seconds / time if time else None, unit="", better=None),
    ]
    return table_blocks(found.shown("Cost by row", columns, found.records))


def _over_domains(found: Judged, colours: Mapping[str, int], base: str = "its own base") -> list[Block]:
    title, x = f"at the last step, each domain against {base}", range(len(found.domains))
    table, lines = found.by_domain(), []
    for row in (row.label for row in table.rows):
        y, spread = ([of(row, column) for column in table.columns] for of in (table.value, table.spread))
        lines.append(Series(row, x, y, colours[row], spread))
    chart = report.line_chart(lines, title=f"Delta_TTT {title}", y="Δ, %", x_names=found.domains)
    return [Figure(chart, DELTA + f" {title}"), *table_blocks(table)] if len(x) > 1 else []


def _against(run: Run, colours: Mapping[str, int]) -> list[Block]:
    """The same against the base of one domain, where the study names it."""
    one = judged_against(run)
    return _over_domains(Judged.read(run, one), colours, f"the base of {one}") if one else []


def _sweep(run: Run, table: Table) -> list[Block]:
    """A chart over the argument of the branch by which the rows of the study differ."""
    name, last = run.about["about"]["sweep"], table.column("Δ last")
    at = {
        row.label: row.about["network"][name]
        for row in table.rows
        if row.role == "method" and name in row.about["network"]
    }
    y, spread = ([of(row, last) for row in at] for of in (table.value, table.spread))
    title, described = (
        f"at the last step by {name}",
        "; ".join(f"{r}: {signed(v)}" for r, v in zip(at, y, strict=True)),
    )
    line = Series("Δ last", [*at.values()], y, 1, spread)
    chart = report.line_chart([line], title=f"Delta_TTT {title}", y="Δ, %", x=name, description=described)
    return [Figure(chart, DELTA + f" {title}")] * bool(at)


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
    named = {name.removeprefix("rate of "): run.other(name) for name in run.about["others"]}
    found = {name: one for name, one in named.items() if one is not None and "tried" in one}
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
