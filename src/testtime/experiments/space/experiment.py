"""The experiments of the family "space", and their pages."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, final

from testtime import report
from testtime.errors import need_packages, unknown_name
from testtime.experiments.experiment import Cell, Experiment, Plan, Unit
from testtime.experiments.pages import provenance_section, table_blocks, unfinished
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.space.analyses import ANALYSES, CHANCE, Entry, Variant
from testtime.experiments.space.listing import LISTED, PREFIX
from testtime.experiments.space.planning import Planner
from testtime.experiments.space.presets import PRESETS
from testtime.experiments.table import Column, Record, Row, Table
from testtime.report import Block, Figure, Note, Page, Section, Text, first_of, mean, phrase, show
from testtime.scenes.tracer import warn_if_slow

__all__ = ["SpaceExperiment"]

BETWEEN = "between floor and ceiling"
CLASSES = 8
"""Largest number of rows whose IoU is shown class by class."""
DRAWN = (
    "Frames of the test house from cameras that were not trained on. Shown 25 % of the image's patches, the model expects the "
    "rest of the image and what each sensor would measure; right of the label, segmentations of the whole image."
)


@final
class SpaceExperiment(Experiment):
    """A table of TST-MM.

    Args:
        name: name of the experiment.
    """

    family = "space"

    def __init__(self, name: str) -> None:
        listed = {one.name: one for one in LISTED}[name]
        self.name, self.title, self.source = name, listed.title, listed.source
        self.analysis = ANALYSES[name.removeprefix(PREFIX)]
        self.seeds = self.analysis.seeds
        self.settings = {"preset": self.analysis.preset, "encoders": []}

    def plan(self, request: Request) -> Plan:
        """Return rows, cells and units; the settings are "preset", a name, and "encoders", more rows of mIoU.

        Raises:
            ValueError: there is no such preset or row, or the request asks for something that the family does not have.
        """
        for field in ("methods", "model"):
            if getattr(request, field):
                raise ValueError(f"{self.name} has no {field} to choose; leave --{field} out")
        name = self.setting(request, "preset")
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        preset = PRESETS[name]
        if request.limit:
            preset = replace(preset, tests=min(request.limit, preset.tests))
        entries = list(self.analysis.entries(preset))
        entries += [Entry(e, "mIoU", Variant(e, "named")) for e in self.setting(request, "encoders")]
        labels = dict.fromkeys(entry.row for entry in entries)
        rows = self.chosen_rows([Row(label, _role(label, self.analysis.ends)) for label in labels], request)
        chosen = {row.label for row in rows}
        cells: list[Cell] = []
        others: dict[str, Unit] = {}
        for seed in request.seeds or self.seeds:
            planner = Planner(preset, seed, request.device, request.precision == "float32")
            if self.name == f"{PREFIX}demo" and not others:
                others = {"pictures": planner.pictures()}
            for entry in entries:
                if entry.row in chosen:
                    about = {"measure": entry.measure, **asdict(entry.variant)}
                    unit = planner.measured(entry.variant, entry.measure)
                    cells.append(Cell(entry.row, entry.column, seed, unit, about))
        precision = "float32" if request.precision == "float32" else preset.recipe.precision
        return Plan(rows, cells, others, about={"preset": name, "precision": precision})

    def check_machine(self, say: Callable[[str], None]) -> None:
        need_packages(PIL="images", cv2="scenes", vector_quantize_pytorch="space", pycocotools="space")
        warn_if_slow(say)

    def tables(self, run: Run) -> Sequence[Table]:
        """Return the table, and the IoU of every class where there are few rows of one column."""
        cells, records = run.about["cells"], _records(run)
        columns = [self._column(name) for name in dict.fromkeys(cell["column"] for cell in cells)]
        table = Table.of(self.title, run.rows, columns, records, run.missing, run.notes)
        if placed := self._between(table):
            table = Table.of(self.title, run.rows, [*columns, placed], records, run.missing, run.notes)
        return [table]

    def figures(self, run: Run) -> Sequence[report.Chart | None]:
        """Return the charts: lines over columns that are numbers, otherwise a row of dots for each row; and the matrix."""
        table = self.tables(run)[0]
        columns = [column for column in table.columns if column.name != BETWEEN]
        numbers = [c for c in columns if c.name.replace(".", "", 1).isdigit()]
        if self.analysis.unit and len(numbers) > 1:
            return [self._lines(table, numbers)]
        if self.analysis.comparable:
            return [self._matrix(table, columns), self._dots(table, columns, self.analysis.shows)]
        return [self._dots(table, [column], column.name) for column in columns]

    def page(self, run: Run) -> Page:
        """Return the page: the table, its figures, pictures, classes, and how it was made."""
        table, about = self.tables(run)[0], run.about["about"]
        block = table.block()
        bars = [replace(c, shade="bar" if c.head != BETWEEN else "") for c in block.columns]
        scale: Literal["table", "column"] = "table" if self.analysis.comparable else "column"
        blocks: list[Block] = [replace(block, columns=bars, scale=scale), *table_blocks(table)[1:]]
        blocks += [Figure(chart, chart.title) for chart in self.figures(run) if chart is not None]
        made: list[tuple[Text, object]] = [("preset", about["preset"])]
        made += [("precision of the pre-training", about["precision"])]
        return Page(
            title=self.title,
            kicker=f"testtime · space · {self.name} · {about['preset']}",
            lead=self._lead(table) if not run.missing else "",
            sections=[
                Section("result", "Result", self.analysis.shows, blocks),
                Section("pictures", "Pictures", "What it looks like", _pictures(run)),
                Section("classes", "Classes", "Class by class", _classes(run)),
                provenance_section(run, made),
            ],
            unfinished=unfinished(run),
        )

    def _column(self, name: str) -> Column:
        """A column of the table; numbers have their unit above."""
        unit = "" if name == "CIDEr-D" else "%"
        return Column(name, float, name, self.analysis.unit, unit)

    def _between(self, table: Table) -> Column | None:
        """The column that places rows between floor (0) and ceiling (1); None where these are missing or equal."""
        ends, first = self.analysis.ends, table.columns[0]
        low, high = (table.value(end, first) for end in ends) if ends else (0.0, 0.0)
        if not {*ends} <= {row.label for row in table.rows} or not high - low:
            return None
        return Column(BETWEEN, lambda value: (value - low) / (high - low), first.of, "", "", 2, None)

    def _lead(self, table: Table) -> Text:
        """What was found, in a sentence or two."""
        columns = [column for column in table.columns if column.name != BETWEEN]
        seeds = len({seed for values in table.values.values() for seed in values})
        over = f"{seeds} seed{'s' * (seeds != 1)}"
        if self.analysis.matrix:
            own, other = _diagonal(table, columns)
            return (
                f"A model is worth {show(own)} % mIoU in the house it was pre-trained in and {show(other)} % in another "
                f"({over}): a difference of {own - other:+.1f} points."
            )
        groups = [columns] if self.analysis.comparable else [[column] for column in columns]
        return report.join([self._highest(table, group, over) for group in groups], " ")

    def _highest(self, table: Table, columns: Sequence[Column], over: str) -> Text:
        """The sentence that names the best cells of comparable columns."""
        named = {column.name: column for column in columns}
        rows = [row.label for row in table.rows if row.role != "ceiling"]
        best = first_of(
            {(row, name): table.value(row, column) for row in rows for name, column in named.items()}
        )
        if not best:
            return ""
        plain = len(columns) == 1 and self.analysis.comparable
        names = [report.strong(row if plain or name == "–" else f"{row}, {name}") for row, name in best]
        value, spread, _ = table.cell(best[0][0], named[best[0][1]])
        shown = self.analysis.shows if self.analysis.comparable else columns[0].name
        are, printed = "is" if len(best) == 1 else "are", f"{value} {spread}".strip()
        return phrase("Highest {} {} with {} ({}, {}).", are, report.listed(names), printed, shown, over)

    def _lines(self, table: Table, columns: Sequence[Column]) -> report.Chart | None:
        series = []
        for colour, row in enumerate(table.rows, 1):
            there = [c for c in columns if table.values[row.label, c.key]]
            xs, ys = [float(c.name) for c in there], [table.value(row.label, c) for c in there]
            spread = [table.spread(row.label, c) for c in there]
            if len(xs) == 1:  # a level
                xs, ys, spread = (
                    [min(float(c.name) for c in columns), max(float(c.name) for c in columns)],
                    ys * 2,
                    spread * 2,
                )
            series.append(report.Series(row.label, xs, ys, min(colour, 6), spread))
        told = "; ".join(f"{s.name}: {', '.join(map(show, s.y))}" for s in series)
        y, x = self.analysis.shows, self.analysis.unit
        return report.line_chart(series, title=self.title, y=y, x=x, description=told, height=320)

    def _dots(self, table: Table, columns: Sequence[Column], axis: str) -> report.Chart | None:
        points = [
            report.Point(
                row.label, table.value(row.label, c), 0.0, table.spread(row.label, c), min(colour, 6), c.name
            )
            for row in table.rows
            for colour, c in enumerate(columns, 1)
        ]
        return report.row_chart(points, title=f"{self.title} {axis}", x=axis)

    def _matrix(self, table: Table, columns: Sequence[Column]) -> report.Chart | None:
        if not self.analysis.matrix:
            return None
        values = [[table.value(row.label, c) for c in columns] for row in table.rows]
        names = [row.label for row in table.rows], [c.name for c in columns]
        return report.heat_map(*names, values, title=f"{self.title} {self.analysis.shows}")


def _role(label: str, ends: Sequence[str]) -> Any:
    if ends and label in ends:
        return "base" if label == ends[0] else "ceiling"
    return "control" if label == CHANCE else "method"


def _records(run: Run) -> list[Record]:
    """The finished cells with the value of their measure."""
    return [replace(r, result=float(r.result[r.about["measure"]])) for r in run.records()]


def _diagonal(table: Table, columns: Sequence[Column]) -> tuple[float, float]:
    """The mean on the diagonal of a matrix of places, and beside it."""
    cells = [
        (i == j, table.value(row.label, c)) for i, row in enumerate(table.rows) for j, c in enumerate(columns)
    ]
    own, other = ([value for same, value in cells if same == wanted] for wanted in (True, False))
    return mean(own), mean(other)


def _pictures(run: Run) -> list[Block]:
    found = run.other("pictures")
    if found is None:
        return []
    light, dark = (base64.b64decode(found[tone]) for tone in ("light", "dark"))
    return [Note(DRAWN), report.Picture(light, "", DRAWN, dark)]


def _classes(run: Run) -> list[Block]:
    """IoU by class of every row, where there are few rows of one column."""
    records = run.records()
    rows = list(dict.fromkeys(record.row for record in records))
    few = 0 < len(rows) <= CLASSES and len({record.column for record in records}) == 1
    if not few or any("IoU" not in record.result for record in records):
        return []
    names = list(records[0].result["IoU"])
    lines = []
    for name in names:
        known = [(r.row, r.result["IoU"][name]) for r in records if r.result["IoU"][name] is not None]
        lines.append(
            report.Row(name, [mean([value for row, value in known if row == label]) for label in rows])
        )
    return [report.Table("IoU by class", [report.Column(row, "%") for row in rows], lines, "class")]
