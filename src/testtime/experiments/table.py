"""Tables: values by row, column and seed, with mean, spread, best and paired comparison; text, Markdown, CSV, JSON, HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev
from typing import Any, Literal

__all__ = ["Column", "Paired", "Record", "Role", "Row", "Table", "deviation", "mean", "shown"]

Role = Literal["method", "base", "control", "ceiling"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        label: name of the row.
        role: "method"; "base": what the others are compared with; "control": what could explain a gain; "ceiling": an upper
            bound that uses labels, which is never called the best.
        note: remark that is printed below the table and marked at the label.
        about: further facts in values of JSON, such as the method and its arguments.
    """

    label: str
    role: Role = "method"
    note: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A result with its place: row, column (setting, domain or measure) and seed.

    Args:
        row: label of the row.
        column: name of the setting, domain or measure.
        seed: random seed.
        result: the result, of any type that the columns' functions take.
        about: further facts of the cell.
    """

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
        value: function of a record's result; None or NaN where the value is not defined.
        of: setting, domain or measure whose records count; None averages over all of a seed.
        group: head above the names of several columns.
        unit: unit of the values.
        places: decimals that are printed; None prints as many as the number has.
        better: which values are better.
        signed: whether a plus sign is printed.
        reduce: how the values over seeds become one.
        published: values of the source by row label.
        note: explanation below the table.
    """

    name: str
    value: Callable[[Any], float | None]
    of: str | None = None
    group: str = ""
    unit: str = "%"
    places: int | None = 1
    better: Literal["higher", "lower", "neither"] = "higher"
    signed: bool = False
    reduce: Literal["mean", "median"] = "mean"
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """The head with its group."""
        return f"{self.group} {self.name}".strip()

    def shown(self, value: float) -> str:
        """A value as it is printed."""
        text = shown(value, self.places)
        return (
            f"+{text}" if self.signed and not math.isnan(value) and _rounded(value, self.places) > 0 else text
        )


@dataclass(frozen=True)
class Paired:
    """A comparison of two rows on the seeds that both have.

    Attributes:
        seeds: the common seeds.
        differences: row less other, by seed.
        better: on how many seeds the row is better; ``worse`` likewise. What is equal in print is neither.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    better: int
    worse: int

    @property
    def mean(self) -> float:
        """The mean difference; NaN without common seeds."""
        return mean(self.differences)

    @property
    def spread(self) -> float:
        """The standard deviation of the differences."""
        return deviation(self.differences)


@dataclass(frozen=True)
class Table:
    """Values by row label, column key and seed. Build it with :meth:`of`.

    Args:
        title: title of the table.
        rows: rows that have values, in their order.
        columns: columns in their order.
        values: by row label and column key, the values by seed.
        missing: names of the cells without a result; while there are any, no row is the best.
        notes: remarks below the table.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    values: Mapping[tuple[str, str], Mapping[int, float]]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        """Evaluate columns on records; rows without a record are left out.

        Args:
            title: title of the table.
            rows: rows in their order.
            columns: columns in their order; the keys differ.
            records: results with their places.
            missing: names of the cells without a result.
            notes: remarks below the table.

        Raises:
            ValueError: two columns have one key.

        >>> table = Table.of("Error", [Row("Source", "base"), Row("TENT")], [Column("error", float, better="lower")], [
        ...     Record("Source", "fog", 0, 30.0), Record("TENT", "fog", 0, 20.0), Record("TENT", "fog", 1, 22.0)])
        >>> print(table.text())
        Error
                error
                    %
        Source   30.0
        TENT     21.0 ±1.4 *
        2 seeds, mean ± standard deviation; * is the best.
        """
        by_row: dict[str, list[Record]] = {}
        for record in records:
            by_row.setdefault(record.row, []).append(record)
        keys = [column.key for column in columns]
        if len(set(keys)) < len(keys):
            raise ValueError(f"expected columns of different names, got {', '.join(keys)}; set their group")
        there = [row for row in rows if row.label in by_row]
        values = {
            (row.label, column.key): _by_seed(column, by_row[row.label])
            for row in there
            for column in columns
        }
        return cls(title, tuple(there), tuple(columns), values, tuple(missing), tuple(notes))

    def column(self, key: str) -> Column:
        """Return the column of a key.

        Raises:
            ValueError: there is none.
        """
        for column in self.columns:
            if column.key == key:
                return column
        raise ValueError(f"no column {key!r}; there are {', '.join(c.key for c in self.columns)}")

    def by_seed(self, row: str, column: Column) -> dict[int, float]:
        """Return the values of a cell by seed, those that are defined."""
        found = self.values.get((row, column.key), {})
        return {seed: value for seed, value in sorted(found.items()) if not math.isnan(value)}

    def value(self, row: str, column: Column) -> float:
        """Return the mean (or median) over seeds; NaN where there is none."""
        values = list(self.by_seed(row, column).values())
        return median(values) if values and column.reduce == "median" else mean(values)

    def spread(self, row: str, column: Column) -> float:
        """Return the standard deviation over seeds (n - 1); 0 for a single seed."""
        return deviation(list(self.by_seed(row, column).values()))

    def best(self, column: Column) -> tuple[str, ...]:
        """Return the labels of the best rows: several if they are equal in print, none if all are, or if cells are missing.

        A ceiling is never the best.
        """
        if self.missing or column.better == "neither":
            return ()
        rows = [row.label for row in self.rows if row.role != "ceiling"]
        printed = {row: _rounded(self.value(row, column), column.places) for row in rows}
        printed = {row: value for row, value in printed.items() if not math.isnan(value)}
        if not printed:
            return ()
        top = (max if column.better == "higher" else min)(printed.values())
        best = tuple(row for row, value in printed.items() if value == top)
        return () if len(best) == len(printed) > 1 else best

    def wins(self, row: str) -> int:
        """Return in how many columns the row alone is the best; a tie is no win."""
        return sum(self.best(column) == (row,) for column in self.columns)

    def paired(self, row: str, other: str, column: Column) -> Paired:
        """Compare a row with another on the seeds that both have."""
        ours, theirs = self.by_seed(row, column), self.by_seed(other, column)
        seeds = tuple(sorted(ours.keys() & theirs.keys()))
        differences = tuple(ours[seed] - theirs[seed] for seed in seeds)
        signs = [_rounded(d, column.places) * (-1 if column.better == "lower" else 1) for d in differences]
        better, worse = sum(s > 0 for s in signs), sum(s < 0 for s in signs)
        return Paired(seeds, differences, better, worse)

    def against(self, row: str) -> Table:
        """Return the table of the differences to a row, seed by seed; that row is left out."""
        values = {
            (other.label, column.key): dict(zip(pair.seeds, pair.differences, strict=True))
            for other in self.rows
            for column in self.columns
            for pair in [self.paired(other.label, row, column)]
        }
        columns = tuple(replace(column, signed=True, published={}) for column in self.columns)
        rows = tuple(other for other in self.rows if other.label != row)
        return replace(self, title=f"{self.title}, against {row}", rows=rows, columns=columns, values=values)

    def sorted_by(self, key: str) -> Table:
        """Return the table with its rows ordered by a column, the best first; rows without a value are last."""
        column = self.column(key)
        sign = 1 if column.better == "lower" else -1

        def rank(row: Row) -> tuple[bool, float]:
            value = self.value(row.label, column)
            return (True, 0.0) if math.isnan(value) else (False, sign * value)

        return replace(self, rows=tuple(sorted(self.rows, key=rank)))

    @property
    def seeds(self) -> list[int]:
        """The seeds that have values."""
        return sorted({seed for values in self.values.values() for seed in values})

    def cell(self, row: str, column: Column) -> tuple[str, str, str]:
        """Return the printed mean, "±" with the spread (empty for one seed), and the published value (or nothing)."""
        spread, published = self.spread(row, column), column.published.get(row)
        several = len(self.by_seed(row, column)) > 1 and column.places is not None
        return (
            column.shown(self.value(row, column)),
            f"±{spread:.{column.places}f}" if several and spread > 0 else "",
            "" if published is None else shown(published, column.places),
        )

    def remarks(self, html: bool = False) -> list[str]:
        """Return the sentences below the table."""
        count = len(self.seeds)
        several = any(self.cell(row.label, column)[1] for row in self.rows for column in self.columns)
        first = f"{count} seed{'s' * (count != 1)}" + (", mean ± standard deviation" if several else "")
        best = any(self.best(column) for column in self.columns)
        notes = [f"{first}; {'bold' if html else '*'} is the best." if best else f"{first}."]
        if any(column.published for column in self.columns):
            notes.append("In parentheses: published.")
        marked: dict[str, list[str]] = {}
        for row in self.rows:
            if row.note:
                marked.setdefault(row.note, []).append(row.label)
        notes += [f"† {note}" for note in marked]
        notes += [f"{column.key}: {column.note}" for column in self.columns if column.note]
        if self.missing:
            first_ones = "; ".join(self.missing[:5]) + ("; ..." if len(self.missing) > 5 else "")
            notes.append(f"Not finished, {len(self.missing)} without a result: {first_ones}.")
        return [*notes, *self.notes]

    def label(self, row: Row) -> str:
        """Return the label of a row, with a dagger if it has a note."""
        return f"{row.label}†" if row.note else row.label

    def text(self) -> str:
        """Return the table for a terminal."""
        body = [[self.label(row)] for row in self.rows]
        heads: list[list[str]] = [[""], [""], [""]]
        for column in self.columns:
            best, names = self.best(column), (column.group, column.name, column.unit)
            cells = [self.cell(row.label, column) for row in self.rows]
            width = max(map(len, (*names, *(cell[0] for cell in cells))))
            for head, name in zip(heads, names, strict=True):
                head.append(name.rjust(width))
            for line, row, (value, spread, published) in zip(body, self.rows, cells, strict=True):
                more = (spread, f"({published})" if published else "", "*" if row.label in best else "")
                line.append(" ".join((value.rjust(width), *filter(None, more))))
        lines = [head for head in heads if any(name.strip() for name in head)] + body
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns) + 1)]
        printed = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([self.title, *printed, *self.remarks()])

    def markdown(self) -> str:
        """Return the table in Markdown, the best in bold."""
        names = [f"{column.key}, {column.unit}" if column.unit else column.key for column in self.columns]
        lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
        for row in self.rows:
            cells = []
            for column in self.columns:
                value, spread, published = self.cell(row.label, column)
                value = f"**{value}**" if row.label in self.best(column) else value
                cells.append(" ".join(filter(None, (value, spread, f"({published})" if published else ""))))
            lines.append(f"| {_escaped(self.label(row))} | {' | '.join(cells)} |")
        return "\n".join([*lines, "", *self.remarks(html=True)])

    def csv(self) -> str:
        """Return the table as CSV: row, role, and for each column its mean and its standard deviation over seeds."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        heads = [f"{c.key} ({c.unit})" if c.unit else c.key for c in self.columns]
        writer.writerow(["row", "role", *(name for head in heads for name in (head, f"{head} ±"))])
        for row in self.rows:
            cells = []
            for column in self.columns:
                value = self.value(row.label, column)
                cells += ["" if math.isnan(value) else repr(value), repr(self.spread(row.label, column))]
            writer.writerow([row.label, row.role, *cells])
        return file.getvalue()

    def json(self) -> dict[str, Any]:
        """Return the table in values of JSON, with the values of every seed."""
        rows = [
            {
                "label": row.label,
                "role": row.role,
                "note": row.note,
                "cells": {
                    column.key: {
                        "mean": _finite(self.value(row.label, column)),
                        "spread": _finite(self.spread(row.label, column)),
                        "seeds": {str(seed): v for seed, v in self.by_seed(row.label, column).items()},
                        "published": column.published.get(row.label),
                        "best": row.label in self.best(column),
                    }
                    for column in self.columns
                },
            }
            for row in self.rows
        ]
        columns = [
            {
                "key": c.key,
                "name": c.name,
                "group": c.group,
                "unit": c.unit,
                "better": c.better,
                "note": c.note,
            }
            for c in self.columns
        ]
        return {
            "title": self.title,
            "columns": columns,
            "rows": rows,
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    def html(self, render: Callable[[Table], str]) -> str:
        """Return the table as HTML, by a renderer of :mod:`testtime.report`."""
        return render(self)


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none.

    >>> mean([1.0, 3.0, float("nan")])
    2.0
    """
    seen = [value for value in values if not math.isnan(value)]
    return fmean(seen) if seen else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1) of the values that are not NaN; 0 for a single one."""
    seen = [value for value in values if not math.isnan(value)]
    return stdev(seen) if len(seen) > 1 else 0.0


def shown(value: float, places: int | None = 1) -> str:
    """Return a number as text: a dash for NaN, and no minus sign before what is printed as zero.

    >>> shown(-0.04), shown(-0.06), shown(2.0, None)
    ('0.0', '-0.1', '2')
    """
    if math.isnan(value):
        return "–"
    return f"{value:g}" if places is None else f"{round(value, places) + 0.0:.{places}f}"


def _by_seed(column: Column, records: Sequence[Record]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for record in records:
        if column.of in (None, record.column):
            value = column.value(record.result)
            found.setdefault(record.seed, []).append(math.nan if value is None else float(value))
    return {seed: mean(values) for seed, values in found.items()}


def _rounded(value: float, places: int | None) -> float:
    return value if places is None or math.isnan(value) else round(value, places)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
