"""Cells judged against the base row: Delta_TTT at the last step, the oracle's choice beside it, synchrony, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from testtime.experiments.multitask.listing import read_constants
from testtime.experiments.run import Run
from testtime.experiments.table import Column, Record, Row, Table
from testtime.metrics.synchronisation import cosine_similarity, dtw, step_variance
from testtime.multitask.protocol import Curve
from testtime.report import mean
from testtime.tasks import Depth, Edges, Normals, Segmentation

__all__ = ["METRICS", "Judged", "Outcome", "columns", "judged", "only_statistics", "study_tables"]

METRICS: dict[str, tuple[str, Any]] = {
    "semseg": ("segmentation", Segmentation),
    "depth": ("depth", Depth),
    "normals": ("normals", Normals),
    "edge": ("edges", Edges),
}
"""Title and class of each task."""


@dataclass(frozen=True)
class Outcome:
    """A cell, judged against the base row of the same seed and domain before any step.

    Attributes:
        curve: metrics of the tasks, step by step.
        gains: Delta_TTT in percent, step by step.
        last: Delta_TTT at the last step.
        oracle: Delta_TTT at the step that is best by the test labels, which are unknown in the field.
        own: Delta_TTT at the last step against the row's own network before any step: what adapting alone changed.
        beyond: Delta_TTT at the last step less that of the controls on the same network: what the loss adds.
        step_variance, warping, similarity: measures of :mod:`testtime.metrics.synchronisation`; NaN unless two tasks were
            measured and a metric changed.
        millions: parameters of the model, in millions.
        seconds: duration of the cell, its measurements included.
    """

    curve: Curve
    gains: list[float]
    last: float
    oracle: float
    own: float
    beyond: float
    step_variance: float
    warping: float
    similarity: float
    millions: float
    seconds: float


def judged(result: Mapping[str, Any], base: Mapping[str, float], controls: list[Curve]) -> Outcome:
    """Judge the result of a cell.

    Args:
        result: result of the cell's unit.
        base: metrics that Delta_TTT is measured against.
        controls: curves of the rows that only estimate the statistics of the same network.
    """
    curve = _curve(result)
    gains, values, higher = curve.gains(base), curve.values, curve.higher_is_better
    measured = [series for series in values.values() if not all(map(math.isnan, series))]
    changed = any(value != series[0] for series in measured for value in series if not math.isnan(value))
    moves = changed and len(measured) > 1
    return Outcome(
        curve,
        gains,
        gains[-1],
        gains[curve.oracle(base)],
        curve.gains(curve.at(0))[-1],
        gains[-1] - mean([control.gains(base)[-1] for control in controls]),
        step_variance(values, higher, steps=curve.steps) if moves else math.nan,
        dtw(values, curve.at(0), higher) if moves else math.nan,
        cosine_similarity(values, higher) if moves else math.nan,
        result["parameters"] / 1e6,
        result["seconds"],
    )


@dataclass(frozen=True)
class Judged:
    """The judged cells of a table: those whose base is there.

    Attributes:
        run: the run.
        records: cells, each with an :class:`Outcome` as its result.
    """

    run: Run
    records: Sequence[Record]

    @classmethod
    def read(cls, run: Run) -> Judged:
        """Judge the cells of a run."""
        rows = {row.label: row for row in run.rows}
        found = {(one.row, one.column, one.seed): one.result for one in run.records()}
        records = []
        for (label, domain, seed), result in found.items():
            base = found.get((next(iter(rows)), domain, seed))
            same = [row for row in rows.values() if row.about["network"] == rows[label].about["network"]]
            controls = [found.get((row.label, domain, seed)) for row in same if only_statistics(row)]
            if base is not None:
                curves = [_curve(one) for one in controls if one is not None]
                records.append(Record(label, domain, seed, judged(result, _curve(base).at(0), curves)))
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
        shown = [column for column in columns() if names is None or column.name in names]
        shown = sorted(shown, key=lambda column: names.index(column.name)) if names else shown
        records = [record for record in self.records if title not in self.domains or record.column == title]
        return Table.of(title, self.run.rows, shown, records, self.run.missing, self.run.notes)

    def by_domain(self, name: str = "Δ last") -> Table:
        """Return the table of a column that has a column for each domain."""
        (column,) = self.table(names=[name]).columns
        over = [replace(column, name=domain, of=domain, note="") for domain in self.domains]
        return Table.of(
            f"{name} by domain", self.run.rows, over, self.records, self.run.missing, self.run.notes
        )


def only_statistics(row: Row) -> bool:
    """Return whether a row only estimates the BatchNorm statistics again."""
    return row.role == "control" and row.about["method"] != "Source"


def columns() -> list[Column]:
    """Return the columns of a study's table: the metrics of the tasks at the last step, and what is measured on them."""
    found = []
    for name, (title, kind) in METRICS.items():
        metric, _, unit = kind.metric.partition(" (")
        facts: dict[str, Any] = {
            "unit": f"{metric}, {unit[:-1]}" if unit else metric,
            "places": 3 if unit == "m)" else 1,
        }
        facts["better"] = "higher" if kind.higher_is_better else "lower"
        found.append(Column(title, partial(_last, name), **facts))
    for name, facts in read_constants("experiments")["columns"].items():
        more = {"better": None if name in ("size", "time") else "higher", **facts}
        found.append(Column(name, attrgetter(more.pop("value")), **more))
    return found


def study_tables(run: Run) -> list[Table]:
    """Return the tables of a study: one of each domain, and Delta_TTT over the domains where there are several."""
    found, step = Judged.read(run), run.about["about"]["protocol"]["steps"]
    tables = [
        replace(one, title=f"{one.title}, after step {step}") for one in map(found.table, found.domains)
    ]
    return [*tables, found.by_domain()] if len(tables) > 1 else tables


def _last(task: str, outcome: Outcome) -> float:
    return outcome.curve.values[task][-1]


def _curve(result: Mapping[str, Any]) -> Curve:
    values = {task: [math.nan if v is None else v for v in found] for task, found in result["values"].items()}
    return Curve(result["steps"], values, result["higher_is_better"])
