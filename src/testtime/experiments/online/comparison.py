"""Several runs side by side: every method on every stream, what does not beat the source model, and what a simpler one does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from testtime import report
from testtime.experiments import Column, Record, Row, Run, Table
from testtime.experiments.online.results import Results, number, remark_on_steps
from testtime.experiments.pages import table_blocks, table_sections
from testtime.report import Bullets, Figure, Page, Section, first_of, listed, mean, show

__all__ = ["Comparison"]

MARGIN = 0.5  # points of error that a dearer method has to be better to be worth it
SOURCE, COST = "Source", "cost"
FEWER = "On fewer images of each domain, for its cost."
COSTS = (
    Column("forwards", lambda cost: cost["step"][0], COST, unit="", places=None, better=None),
    Column("backwards", lambda cost: cost["step"][1], COST, unit="", places=None, better=None),
    Column("time", ("time",), COST, unit="", better=None),
)
BAD = "Not better than the source model"
IDLE = f"No benefit over a cheaper one, which is as good or better on every stream tried (within {MARGIN:g} point of error)"
MORE = "ECE: expected calibration error. Lost: accuracy on clean images lost by the end of the stream."


class Comparison:
    """Methods and streams of several runs; a stream is a column of a run.

    The methods furthest below the source model in mean error come first (where there is none, those of the least error), those
    without all streams last.

    Args:
        runs: the runs.

    Attributes:
        streams: results and column by name of the stream.
        rows: the methods.
        errors: table of the errors, with declared forwards and backwards of a step, and the time in plain forwards.

    Raises:
        ValueError: a run is named twice, or has no finished cell.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        places = [run.folder.resolve() for run in runs]
        if len(set(places)) < len(places):
            raise ValueError(f"expected each run once, got {', '.join(str(run.folder) for run in runs)}")
        self.runs = [Results(run) for run in runs]
        found = [(_stream_names(one, column), one, column) for one in self.runs for column in one.columns]
        alike = Counter(name for names, _, _ in found for name in names)
        self.streams: dict[str, tuple[Results, str]] = {}
        self.records: list[Record] = []
        fewer: dict[str, bool] = {}  # by method, whether it saw fewer images of a stream than another
        for names, one, column in found:
            name = next(name for name in names if alike[name] == 1)
            self.streams[name] = one, column
            cells = {row: of_row for row in one.rows if (of_row := one.cells(row, column))}
            most = max(of_row[0]["images"] for of_row in cells.values())
            for row, of_row in cells.items():
                self.records += [Record(row, name, cell["seed"], cell) for cell in of_row]
                fewer[row] = fewer.get(row, False) or 0 < of_row[0]["images"] < most
        of_rows = {row: [record.result for record in self.records if record.row == row] for row in fewer}
        remarks = {row: remark_on_steps(row, cells) for row, cells in of_rows.items()}
        notes = {row: " ".join(filter(None, (FEWER * less, remarks[row]))) for row, less in fewer.items()}
        self.rows = [Row(row, note=note) for row, note in notes.items()]
        self.of_streams = self._columns("error")
        table = self._table("Error by method and stream", [*self.of_streams, *COSTS])

        def key(row: Row) -> tuple[int, float]:
            value = (lambda r, c: table.paired(r, SOURCE, c).mean) if SOURCE in fewer else table.value
            gaps = [value(row.label, c) for c in self.of_streams]
            return sum(map(math.isnan, gaps)), mean(gaps)

        self.rows.sort(key=key)
        self.errors = self._table(table.title, table.columns)

    def _costs(self, row: str) -> dict[str, Any]:
        """Declared forwards and backwards of a step, and the median time of a batch in plain forwards."""
        step = next(record.result["cost"]["declared"] for record in self.records if record.row == row)
        times = [time for one, column in self.streams.values() for time in one.times(row, column)]
        known = [time for time in times if not math.isnan(time)]
        return {"step": step, "time": median(known) if known else math.nan}

    def _columns(self, measure: str, group: str = "", better: Any = "lower") -> list[Column]:
        return [Column(name, ("average", measure), name, group, better=better) for name in self.streams]

    def _table(self, title: str, columns: Sequence[Column], notes: Sequence[str] = ()) -> Table:
        missing = [f"{one.run.folder}: {cell}" for one in self.runs for cell in one.run.missing]
        seed = self.records[0].seed  # a cost is of no seed, and must not count as another
        costs = [Record(row.label, COST, seed, self._costs(row.label)) for row in self.rows]
        return Table.of(title, self.rows, columns, [*self.records, *costs], missing, notes)

    def worse_than_source(self) -> dict[str, list[str]]:
        """Return, by method, the streams on which its error is not below the source model's, where that was run."""
        found = {}
        for row in self.rows:
            streams = [c.name for c in self.of_streams if self.errors.paired(row.label, SOURCE, c).mean >= 0]
            if streams and row.label != SOURCE:
                found[row.label] = streams
        return found

    def without_benefit(self) -> dict[str, str]:
        """Return the methods that one method of lower cost equals on every stream they were run on, and the cheapest such.

        The cost is that of a step: forwards, and two for each backward; what is learned before the stream is not counted.
        """
        steps = {row.label: self._costs(row.label)["step"] for row in self.rows}
        cost, found = {row: forwards + 2 * backwards for row, (forwards, backwards) in steps.items()}, {}
        for row in cost:
            tried = [c for c in self.of_streams if not math.isnan(self.errors.value(row, c))]
            cheaper = [other for other in cost if cost[other] < cost[row]]
            equals = [o for o in cheaper if all(self.errors.paired(o, row, c).mean <= MARGIN for c in tried)]
            if tried and equals:
                found[row] = min(equals, key=lambda name: cost[name])
        return found

    def tables(self) -> list[Table]:
        """Return error and cost, calibration and forgetting, and what unknown images showed."""
        bad = ", ".join(f"{row} ({'; '.join(streams)})" for row, streams in self.worse_than_source().items())
        idle = ", ".join(f"{row} ({other})" for row, other in self.without_benefit().items())
        none = (
            "none"
            if any(row.label == SOURCE for row in self.rows)
            else f"not known, for {SOURCE} was not run"
        )
        notes = [f"{BAD}: {bad or none}.", f"{IDLE}: {idle or 'none'}."]
        lost = [Column(name, _lost, name, "lost", "points", better="lower") for name in self.streams]
        found = [
            self._table(self.errors.title, self.errors.columns, notes),
            self._table("Calibration and forgetting", [*self._columns("ece", "ECE"), *lost], [MORE]),
        ]
        opened = [name for name, (one, column) in self.streams.items() if one.facts[column]["open_set"]]
        columns = [*self._columns("auroc", "AUROC", "higher"), *self._columns("h_score", "H", "higher")]
        kept = [column for column in columns if column.of in opened]
        return [*found, self._table("Known and unknown told apart", kept)] if kept else found

    def page(self) -> Page:
        """Return the page: errors as dots, a line for each method, the tables, and what is not worth it."""
        tints = {name: i % 6 + 1 for i, name in enumerate(self.streams)}
        pairs = [(row, c) for row in self.rows for c in self.of_streams]
        found = [
            (row.marked, self.errors.value(row.label, c), self.errors.spread(row.label, c), c.name)
            for row, c in pairs
        ]
        points = [
            report.Point(row, value, 0, spread, tints[name], name) for row, value, spread, name in found
        ]
        chart = report.row_chart(points, title="Error of every method on every stream", x="error, %")
        errors, *others = self.tables()
        bad = [f"{row}: {'; '.join(streams)}" for row, streams in self.worse_than_source().items()]
        idle = [f"{row}: {other}" for row, other in self.without_benefit().items()]
        missing = [str(one.run.folder) for one in self.runs if one.run.missing]
        return Page(
            title="Methods and streams",
            kicker=f"testtime · {len(self.rows)} methods · {len(self.streams)} streams",
            lead="" if missing else self._lead(),
            sections=[
                Section("error", "Error", "Error", [Figure(chart, "Error, %"), *table_blocks(errors)]),
                *table_sections(others),
                Section("source", "Source", BAD, [Bullets(bad)] if bad else []),
                Section("idle", "No benefit", IDLE, [Bullets(idle)] if idle else []),
            ],
            unfinished=f"{listed(missing)}. No method is called the best before." if missing else "",
        )

    def _lead(self) -> report.Text:
        """The method of the lowest mean error over all streams; one that was not run on every stream has none."""
        count = len(self.streams)
        values = {r.marked: [self.errors.value(r.label, c) for c in self.of_streams] for r in self.rows}
        means = {row: sum(of_row) / count for row, of_row in values.items()}
        best = first_of(means, higher=False)
        if not best:
            return "No method was run on every stream."
        equal, names = " (equal in print)" * (len(best) > 1), listed([report.strong(row) for row in best])
        return report.phrase("Lowest mean error{}: {}, {} %.", equal, names, show(means[best[0]]))


def _stream_names(results: Results, column: str) -> tuple[str, str, str]:
    """The names of a stream, of which the first that no other has is taken."""
    short = str(results.run.about["experiment"]).removeprefix("field-")
    short += ", open" * (results.facts[column]["open_set"] is not None)
    return short, f"{short} ({column})", f"{short} ({column}, {results.run.folder})"


def _lost(result: dict[str, Any]) -> float:
    """Points of accuracy on clean images that were lost from before the stream to after it."""
    forgetting = result["forgetting"]
    if "lost" in forgetting:  # of an earlier version, which kept the difference alone
        return number(forgetting["lost"])
    return number(forgetting["before"]) - number(forgetting["after"])
