"""Several runs side by side: every method on every stream, what does not beat the source model, and what a simpler one does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from testtime.experiments.online.results import Results
from testtime.experiments.pages import table_blocks
from testtime.experiments.run import Run
from testtime.experiments.table import Column, Record, Row, Table
from testtime.report import (
    Bullets,
    Page,
    Point,
    Section,
    Text,
    dot_chart,
    figures,
    first_of,
    join,
    listed,
    mean,
    number,
    phrase,
    show,
    strong,
)

__all__ = ["Comparison"]

MARGIN = 0.5  # points of error that a dearer method has to be better to be worth it
SOURCE, COST = "Source", "cost"
FEWER = "On fewer images of each domain, for its cost."
IDLE = f"No benefit over a cheaper one, which is as good or better on every stream tried (within {MARGIN:g} point of error)"
BAD = "Not better than the source model"


class Comparison:
    """Methods and streams of several runs; a stream is a column of a run.

    The methods furthest below the source model in mean error come first (where there is none, those of the least error), those
    without all streams last.

    Args:
        runs: the runs.

    Raises:
        ValueError: a run is named twice, or has no finished cell.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        places = [run.folder.resolve() for run in runs]
        if len(set(places)) < len(places):
            raise ValueError(f"expected each run once, got {', '.join(str(run.folder) for run in runs)}")
        self.runs = [Results(run) for run in runs]
        found = [(self._name(one, column), one, column) for one in self.runs for column in one.columns]
        alike = Counter(name for name, _, _ in found)
        self.streams = {
            f"{name} ({column}, {one.run.folder})" if alike[name] > 1 else name: (one, column)
            for name, one, column in found
        }
        self.records = [
            Record(row, name, cell["seed"], cell)
            for name, (one, column) in self.streams.items()
            for row in one.rows
            for cell in one.cells(row, column)
        ]
        rows = list(dict.fromkeys(record.row for record in self.records))
        whole = self._table("", [Row(row) for row in rows], self._columns("error"))

        def key(row: str) -> tuple[int, float]:
            gaps = [
                whole.paired(row, SOURCE, column).mean if SOURCE in rows else whole.value(row, column)
                for column in whole.columns
            ]
            return sum(map(math.isnan, gaps)), mean(gaps)

        self.rows = [Row(row, note=FEWER if self._fewer(row) else "") for row in sorted(rows, key=key)]

    @staticmethod
    def _name(results: Results, column: str) -> str:
        short = str(results.run.about["experiment"]).removeprefix("field-")
        return short if results.about_columns[column]["open_set"] is None else f"{short}, open"

    def _cells(self, row: str) -> list[dict[str, Any]]:
        return [record.result for record in self.records if record.row == row]

    def _fewer(self, row: str) -> bool:
        """Whether a method saw fewer images of a stream than another."""
        return any(
            0
            < one.cells(row, column)[0]["images"]
            < max(c["images"] for r in one.rows for c in one.cells(r, column)[:1])
            for one, column in self.streams.values()
            if one.cells(row, column)
        )

    def _time(self, row: str) -> float:
        """The median time of a batch in plain forwards."""
        times = [
            t
            for one, column in self.streams.values()
            for c in one.cells(row, column)
            for t in [one.relative(c, column)]
        ]
        known = sorted(time for time in times if not math.isnan(time))
        return known[len(known) // 2] if known else math.nan

    def _columns(self, measure: str, group: str = "", better: Any = "lower") -> list[Column]:
        def value(result: dict[str, Any]) -> float:
            return number(result["average"].get(measure))

        return [Column(name, value, name, group, better=better) for name in self.streams]

    def _table(
        self, title: str, rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str] = ()
    ) -> Table:
        missing = [f"{one.run.folder}: {cell}" for one in self.runs for cell in one.run.missing]
        costs = [
            Record(
                row.label,
                COST,
                0,
                {"declared": self._cells(row.label)[0]["cost"]["declared"], "time": self._time(row.label)},
            )
            for row in rows
        ]
        return Table.of(title, rows, columns, [*self.records, *costs], missing, notes)

    @cached_property
    def errors(self) -> Table:
        """Error on every stream, with the cost of a step: declared forwards and backwards, and the time in plain forwards."""
        kinds: dict[str, tuple[Callable[[Any], float], int]] = {
            "forwards": (lambda r: r["declared"][0], 0),
            "backwards": (lambda r: r["declared"][1], 0),
            "time": (lambda r: r["time"], 1),
        }
        costs = [
            Column(k, value, COST, unit="", places=places, better=None)
            for k, (value, places) in kinds.items()
        ]
        return self._table("Error by method and stream", self.rows, [*self._columns("error"), *costs])

    @property
    def _streams(self) -> list[Column]:
        return [column for column in self.errors.columns if column.of != COST]

    def worse_than_source(self) -> dict[str, list[str]]:
        """Return, by method, the streams on which its error is not below the source model's."""
        found = {
            row.label: [c.name for c in self._streams if self.errors.paired(row.label, SOURCE, c).mean >= 0]
            for row in self.rows
            if row.label != SOURCE
        }
        return {row: streams for row, streams in found.items() if streams}

    def without_benefit(self) -> dict[str, str]:
        """Return the methods that one method of lower cost equals on every stream they were run on, and the cheapest such.

        The cost is that of a step: forwards, and two for each backward; what is learned before the stream is not counted.
        """
        cost = {}
        for row in self.rows:
            forwards, backwards = self._cells(row.label)[0]["cost"]["declared"]
            cost[row.label] = float(forwards) + 2 * float(backwards)
        found = {}
        for row in cost:
            tried = [c for c in self._streams if not math.isnan(self.errors.value(row, c))]
            equals = [
                other
                for other in cost
                if cost[other] < cost[row]
                and all(self.errors.paired(other, row, c).mean <= MARGIN for c in tried)
            ]
            if tried and equals:
                found[row] = min(equals, key=lambda name: cost[name])
        return found

    def tables(self) -> list[Table]:
        """Return error and cost, calibration and forgetting, and what unknown images showed."""
        bad = "; ".join(f"{row} ({', '.join(streams)})" for row, streams in self.worse_than_source().items())
        idle = "; ".join(f"{row} ({other})" for row, other in self.without_benefit().items())
        notes = [f"{BAD}: {bad or 'none'}.", f"{IDLE}: {idle or 'none'}."]
        lost = [Column(name, _lost, name, "lost", "points", better="lower") for name in self.streams]
        more = (
            "ECE: expected calibration error. Lost: accuracy on clean images lost by the end of the stream."
        )
        found = [
            self._table(self.errors.title, self.rows, self.errors.columns, notes),
            self._table(
                "Calibration and forgetting", self.rows, [*self._columns("ece", "ECE"), *lost], [more]
            ),
        ]
        if opened := [
            name for name, (one, column) in self.streams.items() if one.about_columns[column]["open_set"]
        ]:
            columns = [*self._columns("auroc", "AUROC", "higher"), *self._columns("h_score", "H", "higher")]
            kept = [column for column in columns if column.of in opened]
            found.append(self._table("Known and unknown told apart", self.rows, kept))
        return found

    def page(self) -> Page:
        """Return the page: errors as dots, a line for each method, the tables, and what is not worth it."""
        colours = {name: i % 6 + 1 for i, name in enumerate(self.streams)}
        points = [
            Point(
                row.marked,
                self.errors.value(row.label, c),
                0,
                self.errors.spread(row.label, c),
                colours[c.name],
                c.name,
            )
            for row in self.rows
            for c in self._streams
        ]
        drawn = figures(
            (dot_chart(points, title="Error of every method on every stream", x="error, %"), "Error, %")
        )
        errors, *others = self.tables()
        bad = [f"{row}: {'; '.join(streams)}" for row, streams in self.worse_than_source().items()]
        idle = [f"{row}: {other}" for row, other in self.without_benefit().items()]
        missing = [str(one.run.folder) for one in self.runs if one.run.missing]
        return Page(
            title="Methods and streams",
            kicker=f"testtime · {len(self.rows)} methods · {len(self.streams)} streams",
            lead="" if missing else self._lead(),
            sections=[
                Section("error", "Error", "Error", [*drawn, *table_blocks(errors)]),
                *(Section(f"t{i}", t.title, t.title, table_blocks(t)) for i, t in enumerate(others)),
                Section("source", "Source", BAD, [Bullets(bad)] if bad else []),
                Section("idle", "No benefit", IDLE, [Bullets(idle)] if idle else []),
            ],
            unfinished=f"{listed(missing)}. No method is called the best before." if missing else "",
        )

    def _lead(self) -> Text:
        """The method of the lowest mean error over all streams; one that was not run on every stream has none."""
        means = {
            row.marked: sum(self.errors.value(row.label, c) for c in self._streams) / len(self.streams)
            for row in self.rows
        }
        best = first_of(means, higher=False)
        if not best:
            return "No method was run on every stream."
        equal = " (equal in print)" if len(best) > 1 else ""
        names = join([strong(row) for row in best], " and ")
        return phrase("Lowest mean error{}: {}, {} %.", equal, names, show(means[best[0]]))


def _lost(result: dict[str, Any]) -> float:
    """Points of accuracy on clean images that were lost from before the stream to after it."""
    forgetting = result["forgetting"]
    if "lost" in forgetting:  # of an earlier version, which kept the difference alone
        return number(forgetting["lost"])
    return number(forgetting["before"]) - number(forgetting["after"])
