"""Tables of typed cells: what is best, how sure it is, and what was published, beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal, final

from testtime.report.markup import Text, html
from testtime.report.words import first_of, show, signed

__all__ = ["Cell", "Column", "Row", "Table"]


@final
@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        head: its name.
        unit: unit, below the name.
        group: name above it and its neighbours of the same group.
        places: decimals of its numbers.
        better: which direction is better; its best number is bold, unless another is equal to it in print.
        explain: what it is, shown where the name is pointed at.
        signed: whether numbers above zero have a sign.
        shade: "heat" colours a cell the stronger the larger its number is, "bar" draws a bar behind it.
        left: whether it is aligned left, as prose is.
        headline: whether it carries the conclusion and stands out.
        tilted: whether its name is written upwards, for many narrow columns.
    """

    head: Text
    unit: Text = ""
    group: Text = ""
    places: int = 1
    better: Literal["higher", "lower"] | None = None
    explain: str = ""
    signed: bool = False
    shade: Literal["heat", "bar"] | None = None
    left: bool = False
    headline: bool = False
    tilted: bool = False


@final
@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        value: number or text; None and NaN are printed as a dash and sorted last.
        spread: standard deviation beside a number; 0 and NaN are left out.
        published: the published number, below.
        note: text of the second rank after the value.
        text: what is printed instead of the number, which is then the sort key alone.
        bold: whether it is bold whatever the column says.
    """

    value: float | Text | None
    spread: float = 0.0
    published: float | None = None
    note: Text = ""
    text: Text = ""
    bold: bool = False

    @property
    def number(self) -> float:
        """The value as a number; NaN where it is none."""
        return float(self.value) if isinstance(self.value, int | float) else math.nan


@final
@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        label: its name.
        cells: a cell for each column; a plain number or text is a cell without more.
        role: "control" for rows that explain others and are set in italics, "reference" for those that are outside the
            competition (an oracle); neither keeps a cell from being the best, but a reference.
        mark: a footnote mark after the name.
    """

    label: Text
    cells: Sequence[Cell | float | Text | None]
    role: Literal["", "control", "reference"] = ""
    mark: str = ""

    @property
    def typed(self) -> list[Cell]:
        """The cells as :class:`Cell`."""
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells]


@final
@dataclass(frozen=True)
class Table:
    """A table; where scripts run it can be sorted by each column, and filtered where it has more than eight rows.

    Args:
        caption: what it holds, for those who do not see it.
        columns: columns.
        rows: rows.
        corner: name of the column of row names.
        best: whether the best of a column is bold; False for a run that is not finished.
        scale: whether shades compare the numbers of the whole table or of each column.
        sortable: whether the rows can be sorted and filtered.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    corner: Text = ""
    best: bool = True
    scale: Literal["table", "column"] = "table"
    sortable: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"expected {len(self.columns)} cells in the row {str(row.label)!r} of the table {self.caption!r}, "
                    f"got {len(row.cells)}"
                )

    @property
    def groups(self) -> list[tuple[Text, int]]:
        """The names above the columns, each with the number of columns it spans; empty where no column has one."""
        if not any(column.group for column in self.columns):
            return []
        found = groupby(self.columns, key=lambda column: column.group)
        return [(name, len(list(columns))) for name, columns in found]

    @property
    def body(self) -> list[tuple[Row, list[ShownCell]]]:
        """Each row with its cells as they are shown."""
        grid = [row.typed for row in self.rows]
        columns = [self._shown(column, [cells[i] for cells in grid]) for i, column in enumerate(self.columns)]
        return [(row, [column[i] for column in columns]) for i, row in enumerate(self.rows)]

    def _shown(self, column: Column, cells: Sequence[Cell]) -> list[ShownCell]:
        best = self._best(column, cells)
        spreads = [f"±{c.spread:.{column.places}f}" if c.spread > 0 else "" for c in cells]
        width = max(map(len, spreads), default=0)
        low, high = self._range(column, cells)
        found = []
        for i, (cell, spread) in enumerate(zip(cells, spreads, strict=True)):
            classes = [
                *(["left"] if column.left else []),
                *(["headline"] if column.headline else []),
                *(["best"] if cell.bold or i in best else []),
                *([column.shade] if column.shade and not math.isnan(cell.number) else []),
            ]
            share = 0.0 if math.isnan(cell.number) else (cell.number - low) / ((high - low) or 1.0)
            found.append(
                ShownCell(
                    text=cell.text or _printed(cell, column),
                    sort=_sort_key(cell),
                    classes=" ".join(classes),
                    spread=spread,
                    room=min(width, 9),
                    published="" if cell.published is None else show(cell.published, max(column.places, 2)),
                    note=cell.note,
                    share=round(100 * min(max(share, 0.0), 1.0)) if column.shade else -1,
                )
            )
        return found

    def _best(self, column: Column, cells: Sequence[Cell]) -> list[int]:
        """The index of the best cell; none for a tie in print, a single row, or a column without a direction."""
        if not self.best or column.better is None:
            return []
        values = {
            i: cell.number
            for i, (row, cell) in enumerate(zip(self.rows, cells, strict=True))
            if row.role != "reference" and not math.isnan(cell.number)
        }
        first = first_of(values, column.better == "higher", column.places)
        return first if len(first) == 1 and len(values) > 1 else []

    def _range(self, column: Column, cells: Sequence[Cell]) -> tuple[float, float]:
        """The numbers of the weakest and of the strongest shade; a bar begins at zero."""
        pool = list(cells)
        if self.scale == "table":
            alike = [i for i, other in enumerate(self.columns) if other.shade == column.shade]
            pool = [row.typed[i] for row in self.rows for i in alike]
        values = [cell.number for cell in pool if math.isfinite(cell.number)]
        if not values or column.shade is None:
            return 0.0, 1.0
        return (0.0 if column.shade == "bar" else min(values)), max(values)


@final
@dataclass(frozen=True)
class ShownCell:
    """A cell as the template prints it."""

    text: Text
    sort: str
    classes: str
    spread: str
    room: int
    published: str
    note: Text
    share: int


def _printed(cell: Cell, column: Column) -> Text:
    if isinstance(cell.value, int | float) or cell.value is None:
        return (signed if column.signed else show)(cell.value, column.places)
    return cell.value


def _sort_key(cell: Cell) -> str:
    """A number in full precision, the text in lower case, or nothing: what has no key is sorted last."""
    if isinstance(cell.value, int | float):
        return "" if math.isnan(cell.value) else repr(float(cell.value))
    return "" if cell.value is None else html(cell.value).lower()
