"""Tables of typed cells: what is best, how sure it is, and what was published, beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, final

from testtime.report.markup import Text, plain
from testtime.report.words import first_of, show, signed, unrounded

__all__ = ["Cell", "Column", "Row", "Table"]


@final
@dataclass(frozen=True)
class Column:
    """A column of a table: its name, the unit below it, and the name above it and its neighbours of the same group.

    Args:
        places: decimals of its numbers; None prints as many as a number has.
        better: which numbers are better, if either; the best one is bold, unless another is equal to it in print.
        explain: explanation, shown where the name is pointed at.
        signed: whether numbers above zero have a sign.
        shade: "heat" colours a cell the stronger the larger its number is, "bar" draws a bar behind it.
        style: "left" is aligned left as prose is, "tilted" has its name written upwards, for many narrow columns.
    """

    head: Text
    unit: Text = ""
    group: Text = ""
    places: int | None = 1
    better: Literal["higher", "lower"] | None = None
    explain: str = ""
    signed: bool = False
    shade: Literal["", "heat", "bar"] = ""
    style: Literal["", "left", "tilted"] = ""


@final
@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        value: number or text; None and NaN are printed as a dash and sorted last.
        spread: standard deviation beside a number; 0 and NaN are left out.
        published: the published number, below.
        text: text that is printed instead of the number, which is then the sort key alone.
        bold: whether it is bold whatever the column says.
    """

    value: float | Text | None
    spread: float = 0.0
    published: float | None = None
    text: Text = ""
    bold: bool = False

    @property
    def number(self) -> float:
        """The value as a number; NaN where it is none."""
        return float(self.value) if isinstance(self.value, int | float) else math.nan

    @property
    def sort_key(self) -> str:
        """The number in full precision, or the text in lower case; nothing for what is sorted last."""
        if isinstance(self.value, int | float):
            return "" if math.isnan(self.value) else repr(float(self.value))
        return plain(self.value or "").lower()


@final
@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        label: its name.
        cells: a cell for each column; a plain number or text is a cell without more.
        role: a "control" is set in italics, a "ceiling" is set apart and never the best.
        mark: a footnote mark after the name.
    """

    label: Text
    cells: Sequence[Cell | float | Text | None]
    role: Literal["method", "base", "control", "ceiling"] = "method"
    mark: str = ""


@final
@dataclass(frozen=True)
class Table:
    """A table; where scripts run it can be sorted by each column, and filtered where it has more than eight rows.

    Args:
        caption: contents of the table, for screen readers.
        columns, rows: columns and rows.
        corner: name of the column of row names.
        best: whether the best of a column is bold; False for a run that is not finished.
        scale: whether shades compare the numbers of the whole table or of each column.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    corner: Text = ""
    best: bool = True
    scale: Literal["table", "column"] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                expected = f"expected {len(self.columns)} cells in the row {plain(row.label)!r}"
                raise ValueError(f"{expected} of the table {self.caption!r}, got {len(row.cells)}")

    @property
    def groups(self) -> list[tuple[Text, int]]:
        """The names above the columns, each with the number of columns it spans; empty where no column has one."""
        found = [(name, len(list(own))) for name, own in groupby(self.columns, key=lambda c: c.group)]
        return found if any(name for name, _ in found) else []

    @property
    def body(self) -> list[tuple[Row, list[dict[str, Any]]]]:
        """Each row with what the template prints of its cells."""
        grid = [[c if isinstance(c, Cell) else Cell(c) for c in row.cells] for row in self.rows]
        columns = [self._column(i, grid) for i in range(len(self.columns))]
        return [(row, [column[i] for column in columns]) for i, row in enumerate(self.rows)]

    def _column(self, index: int, grid: Sequence[Sequence[Cell]]) -> list[dict[str, Any]]:
        column, cells = self.columns[index], [line[index] for line in grid]
        best, low, high = self._best(column, cells), *self._range(index, grid)
        room = max((len(show(c.spread, column.places)) + 1 for c in cells if c.spread > 0), default=0)
        found = []
        for i, cell in enumerate(cells):
            shade = column.shade if math.isfinite(cell.number) else ""
            kinds = (column.style.removesuffix("tilted"), "best" if cell.bold or i == best else "", shade)
            share = (cell.number - low) / ((high - low) or 1.0) if shade else 0.0
            number = (signed if column.signed else show)(cell.number, column.places)
            is_text = cell.value is not None and not isinstance(cell.value, int | float)
            printed = {
                "text": cell.text or (cell.value if is_text else number),
                "sort": cell.sort_key,
                "classes": " ".join(filter(None, kinds)),
                "spread": f"±{show(cell.spread, column.places)}" if cell.spread > 0 else "",
                "room": min(room, 9),
                "published": "" if cell.published is None else unrounded(cell.published, column.places),
                "share": round(100 * min(max(share, 0.0), 1.0)) if shade else None,
            }
            found.append(printed)
        return found

    def _best(self, column: Column, cells: Sequence[Cell]) -> int | None:
        """The index of the best cell; None for a tie in print, for a single one, and where neither direction is better."""
        pairs = enumerate(zip(self.rows, cells, strict=True))
        values = {i: c.number for i, (row, c) in pairs if row.role != "ceiling" and not math.isnan(c.number)}
        if not self.best or column.better is None or len(values) < 2:
            return None
        first = first_of(values, column.better == "higher", column.places)
        return first[0] if len(first) == 1 else None

    def _range(self, index: int, grid: Sequence[Sequence[Cell]]) -> tuple[float, float]:
        """The numbers of the weakest and of the strongest shade; a bar begins at zero."""
        shade, whole = self.columns[index].shade, self.scale == "table"
        alike = [i for i, c in enumerate(self.columns) if (c.shade == shade if whole else i == index)]
        values = [line[i].number for line in grid for i in alike if math.isfinite(line[i].number)]
        return (0.0 if shade == "bar" else min(values, default=0.0)), max(values, default=1.0)
