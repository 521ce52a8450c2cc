"""The page of a run from its tables and figures, and the parts that the pages of all families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from testtime.report import Block, Definitions, Figure, Note, Page, Section, Text, code, join, phrase

if TYPE_CHECKING:
    from testtime.experiments.experiment import Experiment
    from testtime.experiments.run import Run
    from testtime.experiments.table import Table

__all__ = ["comparison_page", "provenance_section", "run_page", "table_blocks", "unfinished"]


def run_page(experiment: Experiment, run: Run) -> Page:
    """Return the page of a run: its tables, its figures, and how it was made."""
    blocks = [block for table in experiment.tables(run) for block in table_blocks(table)]
    drawn: list[Block] = [
        Figure(chart, chart.title) for chart in experiment.figures(run) if chart is not None
    ]
    return Page(
        title=run.about["title"],
        kicker=f"testtime · {run.about['family']} · {run.about['experiment']}",
        lead=run.about["note"],
        sections=[
            Section("result", "Result", "The result", blocks),
            Section("figures", "Figures", "Figures", drawn),
            provenance_section(run),
        ],
        unfinished=unfinished(run),
    )


def comparison_page(experiment: Experiment, runs: Sequence[Run]) -> Page:
    """Return the page of several runs of a family side by side."""
    tables = experiment.compared(runs)
    sections = [
        Section(f"table{number}", table.title, table.title, table_blocks(table))
        for number, table in enumerate(tables, 1)
    ]
    names = [run.about["experiment"] for run in runs]
    return Page(f"{len(runs)} runs", f"testtime · {experiment.family}", ", ".join(names), sections)


def table_blocks(table: Table) -> list[Block]:
    """Return a table and the remarks below it."""
    return [table.block(), *map(Note, table.remarks("bold"))]


def unfinished(run: Run) -> Text:
    """Return what is missing of a run and how it goes on; empty for a run that is finished."""
    if not run.missing:
        return ""
    cells, command = len(run.about["cells"]), run.about["sessions"][-1]["command"]
    again = phrase("; {} continues it", code(" ".join(command))) if command else ""
    done = f"{cells - len(run.missing)} of {cells} cells have a result"
    return join([done, again, ". Nothing is called the best before all have one."], "")


def provenance_section(run: Run, items: Sequence[tuple[Text, object]] = (), *blocks: Block) -> Section:
    """Return the section that says how a run was made.

    Args:
        run: the run.
        items: further facts of the family, such as the stream.
        blocks: blocks below the list.
    """
    about, last = run.about, run.about["sessions"][-1]
    commands = [" ".join(session["command"]) for session in about["sessions"] if session["command"]]
    found: list[tuple[Text, object]] = [
        ("experiment", about["experiment"]),
        ("source of the published figures", about["source"] or "–"),
        *((name, f"{used}, for {prefers}") for name, (used, prefers) in run.stand_ins.items()),
        *items,
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
