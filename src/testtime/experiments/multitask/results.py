"""Cells judged against the base row: Delta_TTT at the last step, the oracle's choice beside it, synchrony, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from testtime.experiments.multitask.listing import CONSTANTS
from testtime.experiments.run import Run
from testtime.experiments.table import Column, Record, Row, Table
from testtime.multitask.houses import TASKS
from testtime.multitask.outcome import Outcome
from testtime.multitask.pictures import TITLES
from testtime.multitask.protocol import Curve

__all__ = ["Judged", "columns", "only_statistics", "study_tables"]


@dataclass(frozen=True)
class Judged:
    """The judged cells of a table: those whose base is there.

    Attributes:
        run: the run.
        records: cells, each with an :class:`~testtime.multitask.outcome.Outcome` as its result.
    """

    run: Run
    records: Sequence[Record]

    @classmethod
    def read(cls, run: Run) -> Judged:
        """Judge the cells of a run: against the base row of the same seed and domain before any step."""
        curves = run.records(lambda one: Curve.read(one.result))
        pairs = zip(curves, run.records(), strict=True)
        found = {(one.row, one.column, one.seed): (curve.result, one) for curve, one in pairs}
        networks = {row.label: row.about["network"] for row in run.rows}
        statistics = [row.label for row in run.rows if only_statistics(row)]
        records = []
        for (label, domain, seed), (curve, one) in found.items():
            if base := found.get((run.rows[0].label, domain, seed)):
                same = [row for row in statistics if networks[row] == networks[label]]
                controls = [found[at][0] for at in ((row, domain, seed) for row in same) if at in found]
                cost = one.result["parameters"], one.result["seconds"]
                records.append(replace(one, result=Outcome.of(curve, base[0].at(0), controls, *cost)))
        return cls(run, records)

    @property
    def domains(self) -> list[str]:
        """The names of the domains that have results."""
        return list(dict.fromkeys(record.column for record in self.records))

    def table(self, title: str = "all domains", names: Sequence[str] | None = None) -> Table:
        """Return a table of the outcomes on a domain, which is its title, or on all of them.

        Args:
            title: name of the domain, or another title.
            names: names of the columns; None takes all.
        """
        known = {column.name: column for column in columns()}
        records = [record for record in self.records if title not in self.domains or record.column == title]
        return self.shown(title, [known[name] for name in names or known], records)

    def by_domain(self, name: str = "Δ last") -> Table:
        """Return the table of a column that has a column for each domain."""
        (column,) = self.table(names=[name]).columns
        over = [replace(column, name=domain, of=domain, note="") for domain in self.domains]
        return self.shown(f"{name} by domain", over, self.records)

    def shown(self, title: str, columns: Sequence[Column], records: Sequence[Record]) -> Table:
        """Return a table of columns of outcomes."""
        return Table.of(title, self.run.rows, columns, records, self.run.missing, self.run.notes)


def only_statistics(row: Row) -> bool:
    """Return whether a row only estimates the BatchNorm statistics again."""
    return row.role == "control" and row.about["method"] != "Source"


def columns() -> list[Column]:
    """Return the columns of a study's table: the metrics of the tasks at the last step, and what is measured on them."""
    found = []
    for name, task in TASKS.items():
        metric, _, unit = task.metric.partition(" (")
        facts: dict[str, Any] = {"unit": f"{metric}, {unit[:-1]}" if unit else metric}
        facts |= {
            "places": 3 if unit == "m)" else 1,
            "better": "higher" if task.higher_is_better else "lower",
        }
        found.append(Column(TITLES[name], partial(_last, name), **facts))
    for name, facts in CONSTANTS["columns"].items():
        more = {"better": None if name in ("size", "time") else "higher", **facts}
        found.append(Column(name, attrgetter(more.pop("value")), **more))
    return found


def study_tables(run: Run) -> list[Table]:
    """Return the tables of a study: one of each domain, and Delta_TTT over the domains where there are several."""
    found, step = Judged.read(run), run.about["about"]["protocol"]["steps"]
    tables = [replace(found.table(name), title=f"{name}, after step {step}") for name in found.domains]
    return [*tables, found.by_domain()] if len(tables) > 1 else tables


def _last(task: str, outcome: Outcome) -> float:
    return outcome.curve.values[task][-1]
