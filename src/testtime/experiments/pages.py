"""Pages: of a run, from a lead and sections; of tables side by side; and the sentence that names the best rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from testtime.report import (
    Block,
    Definitions,
    Details,
    Grid,
    Note,
    Page,
    Section,
    Text,
    code,
    first_of,
    join,
    listed,
    phrase,
    show,
    strong,
)

if TYPE_CHECKING:
    from testtime.experiments.run import Run
    from testtime.experiments.table import Table

__all__ = ["provenance_section", "run_page", "table_blocks", "tables_page", "unfinished", "winner"]


def run_page(
    run: Run,
    lead: Text | Sequence[Block] = "",
    sections: Sequence[Section] = (),
    facts: Sequence[tuple[Text, object]] = (),
    *made: Block,
    title: str = "",
) -> Page:
    """Return the page of a run: lead, remarks on the whole run, sections, what is missing, and how it was made.

    Args:
        run: the run.
        lead: findings.
        sections: sections; remarks on the whole run (:attr:`Run.notes`) are left out below their tables.
        facts: facts of the family for the provenance, such as the stream.
        made: blocks below the provenance.
        title: title; empty takes the experiment's.
    """
    about = run.about
    said = [lead] if isinstance(lead, str) else lead
    return Page(
        title=title or about["title"],
        kicker=f"testtime · {about['family']} · {about['experiment']}",
        lead=[*said, *map(Note, run.notes)],
        sections=[
            *(replace(s, blocks=_without(s.blocks, run.notes)) for s in sections),
            provenance_section(run, facts, *made),
        ],
        unfinished=unfinished(run),
    )


def tables_page(title: str, kicker: Text, lead: Text, tables: Sequence[Table]) -> Page:
    """Return a page with a section for each table, such as a comparison of runs."""
    sections = [
        Section(f"table{number}", table.title, table.title, table_blocks(table))
        for number, table in enumerate(tables, 1)
    ]
    return Page(title, kicker, lead, sections)


def table_blocks(*tables: Table) -> list[Block]:
    """Return tables, each with the remarks below it."""
    found: list[Block] = []
    for table in tables:
        found += [table.block(), *map(Note, table.remarks("bold", "Below, in italics"))]
    return found


def _without(blocks: Sequence[Block], notes: Sequence[str]) -> list[Block]:
    """The blocks without some remarks."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Details | Grid):
            found.append(replace(block, blocks=_without(block.blocks, notes)))
        elif not (isinstance(block, Note) and block.text in notes):
            found.append(block)
    return found


def unfinished(run: Run) -> Text:
    """Return what is missing of a run and how it goes on; empty for a run that is finished."""
    if not run.missing:
        return ""
    cells, command = len(run.about["cells"]), run.about["sessions"][-1]["command"]
    again = phrase("; {} continues it", code(" ".join(command))) if command else ""
    done = f"{cells - len(run.missing)} of {cells} cells have a result"
    return join([done, again, ". Nothing is called the best before all have one."], "")


def winner(
    values: Mapping[str, float],
    measure: str,
    by_column: Sequence[Mapping[str, float]] = (),
    base: str = "",
    names: Mapping[str, Text] | None = None,
) -> Text:
    """Return the sentence that names the best rows as they are printed; a tie is not called a win.

    Args:
        values: values in percent by row, the mean over columns; higher is better.
        measure: name of the measure.
        by_column: values by row of each column; columns without a value do not count.
        base: row of the model without adaptation, whose value is told too.
        names: text for the names of rows, such as one with a footnote mark.

    >>> str(winner({"TENT": 78.24, "EATA": 78.16, "Source": 60.0}, "accuracy"))
    '<strong>TENT</strong> and <strong>EATA</strong> share the highest accuracy, 78.2 %; next is <strong>Source</strong> with \
60.0 %.'
    """

    def named(rows: Sequence[str]) -> Text:
        return listed([(names or {}).get(row, strong(row)) for row in rows])

    best = first_of(values)
    others = {row: value for row, value in values.items() if row not in best}
    firsts = [first_of(column) for column in by_column if not all(map(math.isnan, column.values()))]
    average = " on average" if len(firsts) > 1 else ""
    figure = f"{measure}, {show(values[best[0]])} %{average}"
    if not others:
        tie = ", no difference between them" if len(best) > 1 else ""
        return phrase("{}: {} {} %{}{}.", named(best), measure, show(values[best[0]]), average, tie)
    second = first_of(others)
    are = "are" if len(second) > 1 else "is"
    after = phrase("; next {} {} with {} %", are, named(second), show(others[second[0]]))
    if base in others and base not in second:
        after += f". The model without adaptation has {show(others[base])} %"
    if len(best) > 1:
        return phrase("{} share the highest {}{}.", named(best), figure, after)
    alone, shared = (sum(best[0] in f and (len(f) > 1) == tie for f in firsts) for tie in (False, True))
    where = f", and is first in {alone} of {len(firsts)} settings" if len(firsts) > 1 else ""
    where += f" and one of the first in {shared}" if len(firsts) > 1 and shared else ""
    return phrase("{} has the highest {}{}{}.", named(best), figure, where, after)


def provenance_section(run: Run, facts: Sequence[tuple[Text, object]] = (), *blocks: Block) -> Section:
    """Return the section that says how a run was made."""
    about, last = run.about, run.about["sessions"][-1]
    commands = [" ".join(session["command"]) for session in about["sessions"] if session["command"]]
    found: list[tuple[Text, object]] = [
        ("experiment", about["experiment"]),
        ("source of the published figures", about["source"] or "–"),
        *((name, f"{used}, for {prefers}") for name, (used, prefers) in run.stand_ins.items()),
        *facts,
        ("seeds", ", ".join(map(str, run.request.seeds or ()))),
        *(("command", command) for command in dict.fromkeys(commands)),
        ("precision", run.request.precision),
        ("device", last["device"]),
        ("started", about["sessions"][0]["started"]),
        ("versions", ", ".join(f"{name} {value}" for name, value in last["versions"].items())),
        ("machine", ", ".join(f"{k} {v}" for k, v in last["machine"].items() if v is not None)),
        *((f"digest of {name}", value) for name, value in about["facts"].items()),
    ]
    return Section("made", "Provenance", "How this was made", [Definitions(found), *blocks])
