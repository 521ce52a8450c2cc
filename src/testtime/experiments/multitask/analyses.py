"""The analyses of the S4T paper beside its tables, on the networks of its first table.

The affinity of tasks (figure 6), the loss under masks (figure 7), parameters and time (tables 6 and 9), and, which the paper
does not have, whether every method moves the encoder where labels would.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from testtime import report
from testtime.experiments.experiment import Cell, Plan
from testtime.experiments.multitask.listing import LISTED, read_constants
from testtime.experiments.multitask.pages import LEADS, NOTES, family_page
from testtime.experiments.multitask.planning import MultitaskExperiment, Planner, at_rate
from testtime.experiments.multitask.studies import STUDIES, find_row
from testtime.experiments.pages import table_blocks
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.table import Column, Record, Row, Table
from testtime.multitask.houses import TASKS
from testtime.report import Block, Figure, Grid, Note, Page, Section, Text, heat_map, signed

__all__ = ["AFFINITY", "COST", "DIRECTION", "MASKED_LOSS"]

OURS, OURS_BN_ONLY = find_row("S4T"), find_row({"control": "S4T"})
STILL = {**OURS.about, "method": None, "rates": [0.0]}
TUNED = "tuned on the target's style"


class _Analysis(MultitaskExperiment):
    """What the analyses share: networks and protocol of the first table, and the form of plan and page."""

    settings = {"preset": "tiny"}  # noqa: RUF012
    measured: ClassVar[str]
    """Name of the function in :mod:`units`, and of the note on the page."""
    facts: ClassVar[dict[str, Any]] = {}
    """Further parameters of the units."""

    def __init__(self, name: str, seeds: Sequence[int] = (0,)) -> None:
        listed = next(one for one in LISTED if one.name == name)
        self.name, self.title, self.source, self.seeds = name, listed.title, listed.source, tuple(seeds)
        self.study = STUDIES["multitask-table1"]

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return the rows that are measured."""

    @abstractmethod
    def lead(self, table: Table) -> Text:
        """Return what was found, of a run that is finished."""

    def drawn(self, run: Run, table: Table) -> list[Block]:
        """Return the charts of the page."""
        return []

    def houses(self, preset: Mapping[str, Any]) -> dict[str, Any]:
        """Return the houses that are measured on."""
        return dict(preset["target"])

    def plan(self, request: Request) -> Plan:
        if request.methods:
            raise ValueError(f"{self.name} has no rows of own methods; {self.study.name} has")
        name, base = self.setting(request, "preset"), self.study.rows[0]
        planner = Planner(request, name, self.study.protocol, base)
        rows, houses, cells = self.chosen_rows(self.rows(), request), self.houses(planner.preset), []
        for seed in request.seeds or self.seeds:
            for row in rows:
                facts, of = self.facts, {"row": row}
                if (
                    self.measured == "time_steps"
                ):  # rows take turns in one unit, which belongs to this run alone
                    facts, of = {**facts, "token": request.token}, {one.label: one for one in rows}
                name = f"{self.name}, {', '.join(one.label for one in of.values())}"
                cells.append(
                    Cell(
                        row.label, "", seed, planner.adapting(self.measured, name, of, seed, houses, **facts)
                    )
                )
        return planner.plan(rows, cells, {}, houses=houses)

    def page(self, run: Run) -> Page:
        (table,) = self.tables(run)
        note = NOTES[self.measured].format(**self.facts, **run.about["about"]["protocol"])
        blocks = [*self.drawn(run, table), *table_blocks(table), Note(note)]
        section = Section("result", "Result", "The result", blocks if table.rows else [])
        return family_page(run, "" if run.missing else self.lead(table), [section])

    def of(
        self, run: Run, columns: list[Column], records: list[Record], rows: Sequence[Row] = ()
    ) -> list[Table]:
        """Return the table of the analysis."""
        return [Table.of(self.title, rows or run.rows, columns, records, run.missing, run.notes)]


class Affinity(_Analysis):
    """Figure 6: is the affinity of the tasks, after adaptation, nearer to that of a network tuned on the target?"""

    measured = "measure_affinity"

    def rows(self) -> list[Row]:
        after = [replace(row, label=f"after {row.label}") for row in (OURS_BN_ONLY, OURS)]
        tuned = Row(TUNED, "ceiling", about={**STILL, "tuned": True})
        return [Row("before adaptation", "base", about=STILL), *after, tuned]

    def tables(self, run: Run) -> Sequence[Table]:
        found = {(one.row, one.seed): np.array(one.result["affinity"]) for one in run.records()}
        gaps = [
            Record(row, "", seed, abs(one - found[TUNED, seed]))
            for (row, seed), one in found.items()
            if row != TUNED and (TUNED, seed) in found
        ]
        return self.of(run, [Column("mean gap", _off_diagonal, unit="", places=3, better="lower")], gaps)

    def lead(self, table: Table) -> Text:
        first, control, last = (table.value(row.label, table.columns[0]) for row in table.rows)
        return LEADS["affinity"].format("closer to" if last < first else "farther from", first, last, control)

    def drawn(self, run: Run, table: Table) -> list[Block]:
        many: dict[str, list[Any]] = {}
        for one in run.records():
            many.setdefault(one.row, []).append(np.array(one.result["affinity"]))
        found, names = {row: np.mean(matrices, axis=0) for row, matrices in many.items()}, list(TASKS)
        gaps = {f"gap, {row.label}": abs(found[row.label] - found[TUNED]) for row in table.rows}
        options: dict[str, Any] = {
            "places": 3,
            "low": 0.0,
            "high": max([g.max() for g in gaps.values()], default=1.0),
        }
        charts = []
        for matrices, more in ((gaps, options), (found, {"places": 2, "high": 1.0, "diverging": True})):
            maps = {
                row: heat_map(names, names, one, title=row, small=True, **more)
                for row, one in matrices.items()
            }
            charts.append(Grid([Figure(chart, row) for row, chart in maps.items()]))
        return list(charts)


class MaskedLoss(_Analysis):
    """Figure 7: how much does the synchronizer lose when most of what it sees is hidden?"""

    measured = "measure_masked_loss"
    facts = {"ratios": (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)}  # noqa: RUF012

    def rows(self) -> list[Row]:
        return [Row("S4T", about=STILL)]

    def houses(self, preset: Mapping[str, Any]) -> dict[str, Any]:
        return {**preset["source"], "first": 4000, "houses": preset["target"]["houses"]}

    def tables(self, run: Run) -> Sequence[Table]:
        records = [
            Record(task, ratio, one.seed, loss)
            for one in run.records()
            for ratio, losses in one.result["losses"].items()
            for task, loss in losses.items()
        ]
        ratios = [f"{ratio:g}" for ratio in self.facts["ratios"]]
        columns = [Column(ratio, float, ratio, "masked share", "", 3, None) for ratio in ratios]
        return self.of(run, columns, records, [Row(name) for name in TASKS])

    def lead(self, table: Table) -> Text:
        at = {name: values[self.facts["ratios"].index(0.9)] for name, values in _relative(table).items()}
        return LEADS["masked_loss"].format(min(at.values()), max(at.values()), max(at, key=at.__getitem__))

    def drawn(self, run: Run, table: Table) -> list[Block]:
        title, ratios = "Loss of every task, % of that with nothing masked", self.facts["ratios"]
        found = enumerate(_relative(table).items(), 1)
        lines = [report.Series(name, ratios, values, number) for number, (name, values) in found]
        return [
            Figure(
                report.line_chart(lines, title=title, y="%", x="share of the tokens that is masked"), title
            )
        ]


class Cost(_Analysis):
    """Tables 6 and 9: parameters, and the time of a step as a multiple of a plain prediction, in one run, in turns."""

    measured = "time_steps"
    facts = {"rounds": 20}  # noqa: RUF012

    def rows(self) -> list[Row]:
        rows = [row for row in self.study.rows if row.role == "method" or not row.about["network"]]
        return [at_rate(row, row.about["rates"][0]) for row in rows]

    def tables(self, run: Run) -> Sequence[Table]:
        found = [replace(one, result=one.result[one.row]) for one in run.records()]
        size = next((one.result["parameters"] for one in found if one.row == run.rows[0].label), math.nan)
        paper = read_constants("published")["table9"]
        printed, seconds = (
            {row: one[name] for row, one in paper.items()} for name in ("parameters", "seconds")
        )
        columns = [
            Column("parameters", lambda r: r["parameters"] / 1e6, None, "", "M", 3, None, published=printed),
            Column(
                "against the base", lambda r: 100 * (r["parameters"] / size - 1), better=None, signed=True
            ),
            Column("step", lambda r: r["times_a_prediction"], unit="predictions", better=None),
            Column("step, published", lambda r: None, None, "", "s", 4, None, published=seconds),
        ]
        return self.of(run, columns, found)

    def lead(self, table: Table) -> Text:
        return LEADS["cost"].format(*(table.value("S4T", column) for column in table.columns[1:3]))


class Direction(_Analysis):
    """Why a method gains more or less than the statistics alone: the way it went, against the way labels would have sent it."""

    measured = "measure_direction"
    facts = {"rate": 1e-4}  # noqa: RUF012 - small, so that the steps of all methods show where their losses point

    def rows(self) -> list[Row]:
        return [at_rate(row, self.facts["rate"]) for row in self.study.rows if len(row.about["rates"]) > 1]

    def tables(self, run: Run) -> Sequence[Table]:
        records = [
            Record(one.row, task, one.seed, cosine)
            for one in run.records()
            for task, cosine in one.result["cosines"].items()
        ]
        columns = [
            Column(name, lambda cosine: cosine, name, "", "", 2, signed=True) for name in (*TASKS, "all")
        ]
        return [table.sorted_by("all") for table in self.of(run, columns, records)]

    def lead(self, table: Table) -> Text:
        best, column = table.rows[0].label, table.column("all")
        each = ", ".join(signed(value, 2) for value in table.values.get(("S4T", "all"), {}).values())
        values = [signed(table.value(row, column), 2) for row in (best, "S4T")]
        return report.phrase(LEADS["direction"], report.strong(best), *values, each)


def _relative(table: Table) -> dict[str, list[float]]:
    """The losses by task in percent of the first column's."""
    found = {row.label: [table.value(row.label, column) for column in table.columns] for row in table.rows}
    return {name: [100 * value / values[0] for value in values] for name, values in found.items()}


def _off_diagonal(matrix: Any) -> float:
    return float(matrix.sum() - matrix.trace()) / max(1, len(matrix) * (len(matrix) - 1))


AFFINITY, MASKED_LOSS = Affinity("multitask-affinity"), MaskedLoss("multitask-masked-loss")
COST, DIRECTION = Cost("multitask-cost"), Direction("multitask-direction", (0, 1, 2))
