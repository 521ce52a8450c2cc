"""Pages: of a run, from a lead and sections; of tables side by side; and the sentence that names the best rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from testtime import report

if TYPE_CHECKING:
    from testtime.experiments import Run, Table

__all__ = ["provenance_section", "run_page", "table_blocks", "table_sections", "tables_page"]
__all__ += ["unfinished", "winner"]


def run_page(
    run: Run,
    lead: report.Text | Sequence[report.Block] = "",
    sections: Sequence[report.Section] = (),
    facts: Sequence[tuple[report.Text, object]] = (),
    *made: report.Block,
    title: str = "",
) -> report.Page:
    """Return the page of a run: lead, remarks on the whole run, sections, what is missing, and how it was made.

    Args:
        run: the run.
        lead: findings.
        sections: sections; remarks on the whole run (:attr:`Run.notes`) are left out below their tables.
        facts: facts of the family for the provenance, such as the stream.
        made: blocks below the provenance.
        title: title; empty takes the experiment's.
    """
    about, found = run.about, [lead] if isinstance(lead, str) else lead
    own = [replace(s, blocks=_without(s.blocks, run.notes)) for s in sections]
    own.append(provenance_section(run, facts, *made))
    kicker = f"testtime · {about['family']} · {about['experiment']}"
    return report.Page(
        title or about["title"], kicker, [*found, *map(report.Note, run.notes)], own, unfinished(run)
    )


def tables_page(title: str, kicker: report.Text, lead: report.Text, tables: Sequence[Table]) -> report.Page:
    """Return a page with a section for each table, such as a comparison of runs."""
    return report.Page(title, kicker, lead, table_sections(tables))


def table_sections(tables: Sequence[Table]) -> list[report.Section]:
    """Return a section for each table, with its title as the heading."""
    numbered = enumerate(tables, 1)
    return [report.Section(f"table{i}", t.title, t.title, table_blocks(t)) for i, t in numbered]


def table_blocks(*tables: Table) -> list[report.Block]:
    """Return tables, each with the remarks below it."""
    found: list[report.Block] = []
    for table in tables:
        found += [table.block(), *map(report.Note, table.remarks("bold", "Below, in italics"))]
    return found


def _without(blocks: Sequence[report.Block], notes: Sequence[str]) -> list[report.Block]:
    """The blocks without some remarks."""
    kept = [block for block in blocks if not (isinstance(block, report.Note) and block.text in notes)]
    return [
        replace(b, blocks=_without(b.blocks, notes)) if isinstance(b, report.Details | report.Grid) else b
        for b in kept
    ]


def unfinished(run: Run) -> report.Text:
    """Return what is missing of a run and how it goes on; empty for a run that is finished."""
    if not run.missing:
        return ""
    cells, command = len(run.about["cells"]), run.about["sessions"][-1]["command"]
    again = report.phrase("; {} continues it", report.code(" ".join(command))) if command else ""
    done = f"{cells - len(run.missing)} of {cells} cells have a result"
    return report.join([done, again, ". Nothing is called the best before all have one."], "")


def winner(
    values: Mapping[str, float],
    measure: str,
    by_column: Sequence[Mapping[str, float]] = (),
    base: str = "",
    names: Mapping[str, report.Text] | None = None,
) -> report.Text:
    """Return the sentence that names the best rows as they are printed; a tie is not called a win.

    Args:
        values: values in percent by row, the mean over columns; higher is better.
        measure: name of the measure.
        by_column: values by row of each column; columns without a value do not count.
        base: row of the model without adaptation, whose value is given too.
        names: text for the names of rows, such as one with a footnote mark.

    >>> str(winner({"TENT": 78.24, "EATA": 78.16, "Source": 60.0}, "accuracy"))
    '<strong>TENT</strong> and <strong>EATA</strong> share the highest accuracy, 78.2 %; next is <strong>Source</strong> with \
60.0 %.'
    """

    def named(rows: Sequence[str]) -> report.Text:
        return report.listed([(names or {}).get(row, report.strong(row)) for row in rows])

    best = report.first_of(values)
    others = {row: value for row, value in values.items() if row not in best}
    firsts = [report.first_of(column) for column in by_column if not all(map(math.isnan, column.values()))]
    average = " on average" if len(firsts) > 1 else ""
    figure = f"{measure}, {report.show(values[best[0]])} %{average}"
    if not others:
        tie = ", no difference between them" if len(best) > 1 else ""
        return report.phrase(
            "{}: {} {} %{}{}.", named(best), measure, report.show(values[best[0]]), average, tie
        )
    second = report.first_of(others)
    are = "are" if len(second) > 1 else "is"
    after = report.phrase("; next {} {} with {} %", are, named(second), report.show(others[second[0]]))
    if base in others and base not in second:
        after += f". The model without adaptation has {report.show(others[base])} %"
    if len(best) > 1:
        return report.phrase("{} share the highest {}{}.", named(best), figure, after)
    alone, shared = (sum(best[0] in f and (len(f) > 1) == tie for f in firsts) for tie in (False, True))
    where = f", and is first in {alone} of {len(firsts)} settings" if len(firsts) > 1 else ""
    where += f" and one of the first in {shared}" if len(firsts) > 1 and shared else ""
    return report.phrase("{} has the highest {}{}{}.", named(best), figure, where, after)


def provenance_section(
    run: Run, facts: Sequence[tuple[report.Text, object]] = (), *blocks: report.Block
) -> report.Section:
    """Return the section that says how a run was made."""
    about, last = run.about, run.about["sessions"][-1]
    commands = [" ".join(session["command"]) for session in about["sessions"] if session["command"]]
    found: list[tuple[report.Text, object]] = [
        ("experiment", about["experiment"]),
        ("source of the published figures", about["source"]),
        *((name, f"{used}, for {prefers}") for name, (used, prefers) in run.stand_ins.items()),
        *facts,
        ("seeds", ", ".join(map(str, run.request.seeds or ()))),
        *(("command", command) for command in dict.fromkeys(commands)),
        ("precision", run.request.precision),
        ("device", last["device"]),
        ("started", about["sessions"][0]["started"]),
        ("versions", ", ".join(f"{name} {value}" for name, value in last["versions"].items())),
        ("machine", ", ".join(f"{k} {v}" for k, v in last["machine"].items() if v not in (None, ""))),
        *((f"digest of {name}", value) for name, value in about["facts"].items()),
    ]
    shown = report.Definitions([(name, value or "–") for name, value in found])
    return report.Section("made", "Provenance", "How this was made", [shown, *blocks])
