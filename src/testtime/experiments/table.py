"""Tables: values by row, column and seed, with mean, spread, best and paired comparison; text, Markdown, CSV, JSON, HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from testtime.report.words import deviation, first_of, mean, show, signed, unrounded

if TYPE_CHECKING:
    from testtime.report import Table as Block

__all__ = ["Column", "Paired", "Record", "Role", "Row", "Table"]

Role = Literal["method", "base", "control", "ceiling"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        label: name of the row.
        role: "method"; "base": what the others are compared with; "control": what could explain a gain; "ceiling": an upper
            bound that uses labels, which is never called the best.
        note: remark below the table, to which a dagger at the label refers.
        about: further facts in values of JSON, such as the method and its arguments.
    """

    label: str
    role: Role = "method"
    note: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def listed(rows: Mapping[str, Mapping[str, Any]]) -> list[Row]:
        """Return the rows of a file of facts: by label the role, if it is not "method", and the further facts.

        >>> Row.listed({"TENT": {"rate": 0.1}})[0].about
        {'rate': 0.1}
        """
        return [
            Row(label, facts.get("role", "method"), about={k: v for k, v in facts.items() if k != "role"})
            for label, facts in rows.items()
        ]

    @property
    def marked(self) -> str:
        """The label, with a dagger if there is a note."""
        return f"{self.label}†" if self.note else self.label


@dataclass(frozen=True)
class Record:
    """A result, of any type that the columns' functions take, with its place, and further facts of the cell."""

    row: str
    column: str
    seed: int
    result: Any
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of a table: a value of the records of one setting, or of all.

    Args:
        name: head of the column.
        value: function of a record's result, or the keys that lead to it, () for the result itself; None or NaN where it is
            not defined.
        of: setting, domain or measure whose records count; None averages over all records of a seed.
        group: head above the names of several columns.
        unit: unit of the values.
        places: decimals that are printed; None prints as many as the number has.
        better: which values are better; None for neither.
        signed: whether a plus sign is printed.
        published: values of the source by row label.
        note: explanation below the table.
    """

    name: str
    value: Callable[[Any], float | None] | tuple[str, ...]
    of: str | None = None
    group: str = ""
    unit: str = "%"
    places: int | None = 1
    better: Literal["higher", "lower"] | None = "higher"
    signed: bool = False
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """The name with its group."""
        return f"{self.group} {self.name}".strip()

    def read(self, result: Any) -> float:
        """Return the value of a result; NaN where it is not defined."""
        found = result if isinstance(self.value, tuple) else self.value(result)
        for key in self.value if isinstance(self.value, tuple) else ():
            found = found.get(key) if isinstance(found, Mapping) else None
        return math.nan if found is None else float(found)

    def by_seed(self, records: Iterable[Record]) -> dict[int, float]:
        """Return the values of records by seed; records of one seed are averaged."""
        found: dict[int, list[float]] = {}
        for record in records:
            if self.of in (None, record.column):
                found.setdefault(record.seed, []).append(self.read(record.result))
        known = {seed: mean(values) for seed, values in sorted(found.items())}
        return {seed: value for seed, value in known.items() if not math.isnan(value)}


class Paired(NamedTuple):
    """A comparison of two rows on the seeds that both have.

    Attributes:
        differences: row less other, by seed.
        mean, spread: mean and standard deviation of the differences; NaN without common seeds.
        better, worse: number of seeds on which the row is better and worse; what is equal in print is neither.
    """

    differences: Mapping[int, float]
    mean: float
    spread: float
    better: int
    worse: int


@dataclass(frozen=True)
class Table:
    """Values by row label and column key. Build it with :meth:`of`.

    Args:
        title: title of the table.
        rows: rows that have values, in their order.
        columns: columns in their order; their keys differ.
        values: defined values by seed, for each row label and column key.
        missing: names of the cells without a result; while there are any, no row is the best.
        notes: remarks below the table.
    """

    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    values: Mapping[tuple[str, str], Mapping[int, float]]
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        title: str,
        rows: Sequence[Row],
        columns: Sequence[Column],
        records: Iterable[Record],
        missing: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> Table:
        """Evaluate columns on records; rows without a record are left out. A ValueError says that two columns have one key."""
        if len({column.key for column in columns}) < len(columns):
            keys = ", ".join(column.key for column in columns)
            raise ValueError(f"expected columns of different names, got {keys}; give them groups")
        by_row: dict[str, list[Record]] = {}
        for record in records:
            by_row.setdefault(record.row, []).append(record)
        there = [row for row in rows if row.label in by_row]
        values = {(row.label, c.key): c.by_seed(by_row[row.label]) for row in there for c in columns}
        return cls(title, there, list(columns), values, list(missing), list(notes))

    def column(self, key: str) -> Column:
        """Return the column of a key; KeyError where there is none."""
        return {column.key: column for column in self.columns}[key]

    def value(self, row: str, column: Column) -> float:
        """Return the mean over seeds; NaN where there is none."""
        return mean(list(self.values.get((row, column.key), {}).values()))

    def spread(self, row: str, column: Column) -> float:
        """Return the standard deviation over seeds (n - 1); 0 for a single seed."""
        return deviation(list(self.values.get((row, column.key), {}).values()))

    def leaders(self, column: Column) -> list[str]:
        """Return the labels of the rows (no ceilings) with the best printed value: several in a tie, none while cells miss."""
        if self.missing or column.better is None:
            return []
        values = {row.label: self.value(row.label, column) for row in self.rows if row.role != "ceiling"}
        return first_of(values, column.better == "higher", column.places)

    def best(self, column: Column) -> str | None:
        """Return the label of the best row; None in a tie, for a single row, and while cells are missing."""
        leaders = self.leaders(column)
        return leaders[0] if len(leaders) == 1 and len(self.rows) > 1 else None

    def paired(self, row: str, other: str, column: Column) -> Paired:
        """Compare a row with another on the seeds that both have."""
        ours, theirs = (self.values.get((name, column.key), {}) for name in (row, other))
        found = {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}
        sign = -1 if column.better == "lower" else 1
        gains = [sign * (d if column.places is None else round(d, column.places)) for d in found.values()]
        values, better, worse = list(found.values()), sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        return Paired(found, mean(values), deviation(values), better, worse)

    def sorted_by(self, key: str) -> Table:
        """Return the table with its rows ordered by a column, the best first; rows without a value are last."""
        column = self.column(key)
        sign = 1 if column.better == "lower" else -1
        keys = {row.label: sign * self.value(row.label, column) for row in self.rows}
        rows = sorted(self.rows, key=lambda row: (math.isnan(keys[row.label]), keys[row.label]))
        return replace(self, rows=rows)

    def cell(self, row: str, column: Column) -> tuple[str, str, str]:
        """Return the printed mean, the spread with its sign ± and the published value, each empty where there is none."""
        value, spread = self.value(row, column), self.spread(row, column)
        published = column.published.get(row)
        return (
            (signed if column.signed else show)(value, column.places),
            f"±{show(spread, column.places)}" if spread > 0 else "",
            "" if published is None else f"({unrounded(published, column.places)})",
        )

    def remarks(self, best: str, beside: str = "In parentheses") -> list[str]:
        """Return the sentences below the table, for a mark of the best value and a place of the published ones."""
        count = len({seed for values in self.values.values() for seed in values})
        several = any(self.spread(row.label, column) > 0 for row in self.rows for column in self.columns)
        first = f"{count} seed{'s' * (count != 1)}" + (", mean ± standard deviation" if several else "")
        notes = [f"{first}; {best} is the best." if any(map(self.best, self.columns)) else f"{first}."]
        notes += [f"{beside}: published."] * any(column.published for column in self.columns)
        notes += [f"† {note}" for note in dict.fromkeys(row.note for row in self.rows if row.note)]
        notes += [f"{column.key}: {column.note}" for column in self.columns if column.note]
        if self.missing:
            some = "; ".join(self.missing[:5]) + "; ..." * (len(self.missing) > 5)
            notes.append(f"Not finished, {len(self.missing)} without a result: {some}.")
        return [*notes, *self.notes]

    def text(self) -> str:
        """Return the table for a terminal."""
        heads, body = [[""], [""], [""]], [[row.marked] for row in self.rows]
        for column in self.columns:
            names, best = (column.group, column.name, column.unit), self.best(column)
            cells = [self.cell(row.label, column) for row in self.rows]
            width = max(map(len, (*names, *(value for value, _, _ in cells))))
            for head, name in zip(heads, names, strict=True):
                head.append(name.rjust(width))
            for line, row, (value, *more) in zip(body, self.rows, cells, strict=True):
                line.append(" ".join(filter(None, (value.rjust(width), *more, "*" * (row.label == best)))))
        lines = [head for head in heads if any(map(str.strip, head))] + body
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        printed = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *printed, *self.remarks("*")])

    def markdown(self) -> str:
        """Return the table in Markdown, the best in bold."""
        names = [f"{column.key}, {column.unit}" if column.unit else column.key for column in self.columns]
        lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
        for row in self.rows:
            cells = [row.marked.replace("|", "\\|")]
            for column in self.columns:
                value, *more = self.cell(row.label, column)
                bold = f"**{value}**" if row.label == self.best(column) else value
                cells.append(" ".join(filter(None, (bold, *more))))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, "", *self.remarks("bold")])

    def csv(self) -> str:
        """Return the table as CSV: row, role, and for each column its mean and its standard deviation over seeds."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        heads = [f"{c.key} ({c.unit})" if c.unit else c.key for c in self.columns]
        writer.writerow(["row", "role", *(name for head in heads for name in (head, f"{head} ±"))])
        for row in self.rows:
            values = (f(row.label, c) for c in self.columns for f in (self.value, self.spread))
            writer.writerow([row.label, row.role, *("" if math.isnan(v) else v for v in values)])
        return file.getvalue()

    def json(self) -> dict[str, Any]:
        """Return the table in values of JSON, with the values of every seed; NaN stands where there is no mean."""
        kept = ("name", "group", "unit", "better", "note")
        rows = []
        for row in self.rows:
            cells = {
                column.key: {
                    "mean": self.value(row.label, column),
                    "spread": self.spread(row.label, column),
                    "seeds": {str(s): v for s, v in self.values.get((row.label, column.key), {}).items()},
                    "published": column.published.get(row.label),
                    "best": row.label == self.best(column),
                }
                for column in self.columns
            }
            rows.append({"label": row.label, "role": row.role, "note": row.note, "cells": cells})
        columns = [{"key": c.key, **{name: getattr(c, name) for name in kept}} for c in self.columns]
        about = {"title": self.title, "missing": list(self.missing), "notes": list(self.notes)}
        return {**about, "columns": columns, "rows": rows}

    def block(self) -> Block:
        """Return the table as a block of a page of :mod:`testtime.report`."""
        from testtime import report

        def cells(row: str) -> list[report.Cell]:
            facts = ((self.value(row, c), self.spread(row, c), c.published.get(row)) for c in self.columns)
            return [report.Cell(*of_cell) for of_cell in facts]

        facts = ("name", "unit", "group", "places", "better", "note", "signed")
        columns = [report.Column(*(getattr(c, name) for name in facts)) for c in self.columns]
        rows = [report.Row(r.label, cells(r.label), r.role, "†" * bool(r.note)) for r in self.rows]
        return report.Table(self.title, columns, rows, best=not self.missing)
