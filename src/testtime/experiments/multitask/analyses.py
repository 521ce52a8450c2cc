"""The analyses of the S4T paper beside its tables, on the networks of its first table.

The affinity of tasks (figure 6), the loss under masks (figure 7), parameters and time (tables 6 and 9), and, which the paper
does not have, whether every method moves the encoder where labels would.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from testtime import report
from testtime.experiments.experiment import Cell, Plan
from testtime.experiments.multitask.listing import PUBLISHED
from testtime.experiments.multitask.pages import LEADS, NOTES, family_page
from testtime.experiments.multitask.planning import MultitaskExperiment, Planner, at_rate
from testtime.experiments.multitask.studies import STUDIES, find_row
from testtime.experiments.pages import table_blocks
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.table import Column, Record, Row, Table
from testtime.multitask.gradients import LOSSES, PREDICTIONS
from testtime.multitask.houses import TASKS
from testtime.report import Block, Figure, Grid, Note, Page, Section, Text, heat_map, signed

__all__ = ["Affinity", "Cost", "Direction", "Gradients", "MaskedLoss"]

STILL = {**find_row("S4T").about, "method": None, "rates": [0.0]}
TUNED = "tuned on the target's style"


class _Analysis(MultitaskExperiment):
    """What the analyses share: networks and protocol of the first table, and the form of plan and page."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.study = STUDIES["multitask-table1"]
        self.measure, self.options = self.facts["measure"], self.facts.get("options", {})

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

    def roles(self, row: Row, rows: Sequence[Row]) -> dict[str, Row]:
        """Return the rows of the unit that measures a row, by their role."""
        return {"row": row}

    def plan(self, request: Request) -> Plan:
        if request.methods:
            raise ValueError(f"{self.name} has no rows of own methods; {self.study.name} has")
        planner = Planner(request, self.setting(request, "preset"), self.study.protocol, self.study.rows[0])
        rows, houses, cells = self.chosen_rows(self.rows(), request), self.houses(planner.preset), []
        token = (
            {"token": request.token} if self.measure == "time_steps" else {}
        )  # it belongs to this run alone
        for seed in request.seeds or self.seeds:
            for row in rows:
                of = self.roles(row, rows)
                name = f"{self.name}, {', '.join(one.label for one in of.values())}"
                unit = planner.adapting(self.measure, name, of, seed, houses, **self.options, **token)
                cells.append(Cell(row.label, "", seed, unit))
        return planner.plan(rows, cells, {}, houses=houses)

    def page(self, run: Run) -> Page:
        (table,) = self.tables(run)
        note = NOTES[self.measure].format(**self.options, **run.about["about"]["protocol"])
        blocks = [*self.drawn(run, table), *table_blocks(table), Note(note)] if table.rows else []
        lead = "" if run.missing else self.lead(table)
        return family_page(run, lead, [Section("result", "Result", "The result", blocks)])

    def shown(
        self, run: Run, columns: list[Column], records: list[Record], rows: Sequence[Row] = ()
    ) -> list[Table]:
        """Return the table of the analysis."""
        return [Table.of(self.title, rows or run.rows, columns, records, run.missing, run.notes)]


class Affinity(_Analysis):
    """Figure 6: is the affinity of the tasks, after adaptation, nearer to that of a network tuned on the target?"""

    def rows(self) -> list[Row]:
        after = [find_row({"control": "S4T"}), find_row("S4T")]
        tuned = Row(TUNED, "ceiling", about={**STILL, "tuned": True})
        named = [replace(row, label=f"after {row.label}") for row in after]
        return [Row("before adaptation", "base", about=STILL), *named, tuned]

    def tables(self, run: Run) -> Sequence[Table]:
        found = {(one.row, one.seed): one.result for one in run.records(_matrix)}
        gaps = [
            Record(row, "", seed, abs(one - found[TUNED, seed]))
            for (row, seed), one in found.items()
            if row != TUNED and (TUNED, seed) in found
        ]
        return self.shown(run, [Column("mean gap", _off_diagonal, unit="", places=3, better="lower")], gaps)

    def lead(self, table: Table) -> Text:
        first, control, last = (table.value(row.label, table.columns[0]) for row in table.rows)
        return LEADS["affinity"].format("closer to" if last < first else "farther from", first, last, control)

    def drawn(self, run: Run, table: Table) -> list[Block]:
        many: dict[str, list[Any]] = {}
        for one in run.records(_matrix):
            many.setdefault(one.row, []).append(one.result)
        found = {row: np.mean(matrices, axis=0) for row, matrices in many.items()}
        gaps = {f"gap, {row.label}": abs(found[row.label] - found[TUNED]) for row in table.rows}
        high = max([gap.max() for gap in gaps.values()], default=1.0)

        def maps(matrices: Mapping[str, Any], **options: Any) -> Grid:
            names, common = list(TASKS), {"small": True, **options}
            drawn = {row: heat_map(names, names, one, title=row, **common) for row, one in matrices.items()}
            return Grid([Figure(chart, row) for row, chart in drawn.items()])

        return [
            maps(gaps, places=3, low=0.0, high=high),
            maps(found, places=2, high=1.0, diverging=True),
        ]


class MaskedLoss(_Analysis):
    """Figure 7: how much does the synchronizer lose when most of what it sees is hidden?"""

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
        ratios = [f"{ratio:g}" for ratio in self.options["ratios"]]
        columns = [Column(ratio, (), ratio, "masked share", "", 3, None) for ratio in ratios]
        return self.shown(run, columns, records, [Row(name) for name in TASKS])

    def lead(self, table: Table) -> Text:
        at = {name: values[self.options["ratios"].index(0.9)] for name, values in _relative(table).items()}
        return LEADS["masked_loss"].format(min(at.values()), max(at.values()), max(at, key=at.__getitem__))

    def drawn(self, run: Run, table: Table) -> list[Block]:
        title, x = "Loss of every task, % of that with nothing masked", "share of the tokens that is masked"
        found = enumerate(_relative(table).items(), 1)
        lines = [report.Series(name, self.options["ratios"], values, n) for n, (name, values) in found]
        return [Figure(report.line_chart(lines, title=title, y="%", x=x), title)]


class Cost(_Analysis):
    """Tables 6 and 9: parameters, and the time of a step as a multiple of a plain prediction, in one run, in turns."""

    def rows(self) -> list[Row]:
        rows = [
            row
            for row in self.study.rows
            if row.role != "ceiling" and (row.role == "method" or not row.about["network"])
        ]
        return [at_rate(row, row.about["rates"][0]) for row in rows]

    def roles(self, row: Row, rows: Sequence[Row]) -> dict[str, Row]:
        return {one.label: one for one in rows}  # they take turns in one unit

    def tables(self, run: Run) -> Sequence[Table]:
        found = run.records(lambda one: one.result[one.row])
        size = next((one.result["parameters"] for one in found if one.row == run.rows[0].label), math.nan)
        paper = PUBLISHED["table9"].items()
        printed, seconds = ({row: one[name] for row, one in paper} for name in ("parameters", "seconds"))
        columns = [
            Column("parameters", lambda r: r["parameters"] / 1e6, None, "", "M", 3, None, published=printed),
            Column(
                "against the base", lambda r: 100 * (r["parameters"] / size - 1), better=None, signed=True
            ),
            Column("step", lambda r: r["times_a_prediction"], unit="predictions", better=None),
            Column("step, published", lambda r: None, None, "", "s", 4, None, published=seconds),
        ]
        return self.shown(run, columns, found)

    def lead(self, table: Table) -> Text:
        return LEADS["cost"].format(*(table.value("S4T", column) for column in table.columns[1:3]))


class Direction(_Analysis):
    """Why a method gains more or less than the statistics alone: the way it went, against the way labels would have sent it."""

    def rows(self) -> list[Row]:
        return [at_rate(row, self.options["rate"]) for row in self.study.rows if len(row.about["rates"]) > 1]

    def tables(self, run: Run) -> Sequence[Table]:
        records = [
            Record(one.row, task, one.seed, cosine)
            for one in run.records()
            for task, cosine in one.result["cosines"].items()
        ]
        columns = [Column(name, (), name, "", "", 2, signed=True) for name in (*TASKS, "all")]
        return [table.sorted_by("all") for table in self.shown(run, columns, records)]

    def lead(self, table: Table) -> Text:
        best, column = table.rows[0].label, table.column("all")
        each = ", ".join(signed(value, 2) for value in table.values.get(("S4T", "all"), {}).values())
        values = [signed(table.value(row, column), 2) for row in (best, "S4T")]
        return report.phrase(LEADS["direction"], report.strong(best), *values, each)


class Gradients(_Analysis):
    """Why S4T's loss gains less than labels: the gradients of its loss and of losses beside it, against that of labels."""

    def rows(self) -> list[Row]:
        control = find_row({"control": "S4T"})
        return [
            Row("source's statistics", "control", about={**control.about, "norm": "source"}),
            replace(control, label="re-estimated statistics"),
        ]

    def tables(self, run: Run) -> Sequence[Table]:
        tables = [
            self._table(run, row.label, f"{row.label}: {title}", kind, keys)
            for row in run.rows
            for kind, title, keys in (
                ("cosines", "cosine with the gradient of labels", (*TASKS, "all", "equal")),
                ("shares", "share of the task in the gradient", tuple(TASKS)),
            )
        ]
        metrics = [
            Column(name, (), name, "", task.metric, 2, "higher" if task.higher_is_better else "lower")
            for name, task in TASKS.items()
        ]
        for row in run.rows:
            records = [
                Record(kind, name, one.seed, value)
                for one in run.records()
                if one.row == row.label
                for kind, values in one.result["qualities"].items()
                for name, value in values.items()
            ]
            rows = [Row(kind) for kind in PREDICTIONS]
            title = f"{row.label}: predictions of heads and synchronizer"
            tables.append(Table.of(title, rows, metrics, records, run.missing, run.notes))
        return tables

    def page(self, run: Run) -> Page:
        tables = self.tables(run)
        note = Note(NOTES[self.measure].format(**self.options, **run.about["about"]["protocol"]))
        blocks = [block for table in tables for block in table_blocks(table)]
        lead = "" if run.missing else self.lead(tables[0], tables[2])
        return family_page(run, lead, [Section("result", "Result", "The result", [*blocks, note])])

    def lead(self, table: Table, *others: Table) -> Text:
        both = table, *others
        names = "S4T", "labels through the synchronizer", "heads learn the synchronizer"
        values = [signed(one.value(name, one.column("all")), 2) for name in names for one in both]
        return LEADS["gradients"].format(*values)

    def _table(self, run: Run, row: str, title: str, kind: str, keys: Sequence[str]) -> Table:
        records = [
            Record(loss, name, one.seed, value)
            for one in run.records()
            if one.row == row
            for loss, found in one.result["pulls"].items()
            for name, value in found[kind].items()
        ]
        columns = [Column(name, (), name, "", "", 2, signed=True) for name in keys]
        return Table.of(title, [Row(loss) for loss in LOSSES], columns, records, run.missing, run.notes)


def _relative(table: Table) -> dict[str, list[float]]:
    """The losses by task in percent of the first column's."""
    found = {row.label: [table.value(row.label, column) for column in table.columns] for row in table.rows}
    return {name: [100 * value / values[0] for value in values] for name, values in found.items()}


def _matrix(record: Record) -> Any:
    matrix = np.array(record.result["affinity"], dtype=float)
    if matrix.shape != (len(TASKS), len(TASKS)):
        raise ValueError(f"expected {len(TASKS)} x {len(TASKS)} affinities, got {matrix.shape}")
    return matrix


def _off_diagonal(matrix: Any) -> float:
    return float(matrix.sum() - matrix.trace()) / max(1, len(matrix) * (len(matrix) - 1))
