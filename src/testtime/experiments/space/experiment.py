"""The experiments of the family "space", and their pages."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, final

from testtime import report
from testtime.errors import need_packages, unknown_name
from testtime.experiments.experiment import Cell, Experiment, Plan, Resource, Unit
from testtime.experiments.pages import run_page, table_blocks
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.space.analyses import (
    CEILING,
    CHANCE,
    CONSTANT,
    FLOOR,
    PSEUDO,
    WHOLE,
    Entry,
    Variant,
    entries,
)
from testtime.experiments.space.listing import EXPERIMENTS, LISTED, PREFIX
from testtime.experiments.space.planning import Planner
from testtime.experiments.space.presets import PRESETS, Preset
from testtime.experiments.table import Column, Row, Table
from testtime.processor import Precision
from testtime.report import Block, Figure, Note, Page, Section, Text, first_of, mean, phrase, show
from testtime.scenes.tracer import warn_if_slow
from testtime.space.walks import Walk

__all__ = ["SpaceExperiment"]

ENDS = (FLOOR.name, CEILING.name)
BETWEEN = "between floor and ceiling"
OWN = f"{PREFIX}own"
MEASURED = {"mIoU": "semseg", "relative depth error": "depth"}
"""Task of the held-out frames of a walk, by column."""
UNITS = {"CIDEr-D": "", "depth error": "deviations"}
"""Units of the columns that are not in percent."""
CLASSES = 8
"""Largest number of rows whose IoU is shown class by class."""
DRAWN = {
    "demo": "Frames of the test house from cameras that were not trained on. Shown 25 % of the image's patches, the model "
    "expects the rest of the image and what each sensor would measure; right of the label, segmentations of the whole image.",
    "own": "Frames of the walk that were not trained on. Depth goes from dark (near) to light (far), each prediction scaled to "
    "the median of the measured depth; grey is not known.",
    "retrieval": "Frames of the test house from cameras that were not trained on: a picture and the depth maps nearest to it "
    f"for {WHOLE.name}, then the depth map and its nearest pictures. A green frame marks the right one.",
}
"""What the pictures of an experiment show."""


@final
class SpaceExperiment(Experiment):
    """A table of TST-MM; ``experiments.toml`` explains its facts.

    Args:
        name: name of the experiment.
    """

    family = "space"
    forms = {"encoders": ["name"]}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        listed = {one.name: one for one in LISTED}[name]
        self.name, self.title, self.source = name, listed.title, listed.source
        facts = EXPERIMENTS[name.removeprefix(PREFIX)]
        self.seeds = tuple(facts.get("seeds", (0, 1, 2)))
        self.settings = {"preset": facts.get("preset", "tiny"), "encoders": []}
        self.unit, self.shows = facts.get("unit", ""), facts.get("shows", "mIoU in %")
        self.placed, self.matrix = facts.get("placed", False), facts.get("matrix", False)
        self.comparable = self.shows.endswith("%")
        """Whether the columns have the same measure."""
        if name == OWN:
            self.resources = (
                Resource("space", "data", "the authors' walk through a meeting room", ("own",)),
            )
            self.settings |= {"layout": "", "fov": 0.0}

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        preset = PRESETS.get(self.setting(request, "preset"))
        return (
            ("float32",) if preset and preset.recipe.precision == "float32" else super().precisions(request)
        )

    def plan(self, request: Request) -> Plan:
        """Return rows, cells and units; the settings are "preset", a name, and "encoders", more rows.

        Raises:
            ValueError: there is no such preset or row, or the request asks for something that the family does not have.
        """
        for field in ("methods", "model"):
            if getattr(request, field):
                raise ValueError(f"{self.name} has no {field} to choose; leave --{field} out")
        name = self.setting(request, "preset")
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        preset, float32 = PRESETS[name], request.precision == "float32"
        preset = replace(preset, tests=min(request.limit or preset.tests, preset.tests))
        walk, place, facts, used = self._walk(request)
        shown = self._shown(request, preset, walk)
        roles: dict[str, Any] = {**dict.fromkeys(ENDS, "method"), CHANCE: "control", CONSTANT: "control"}
        roles |= dict(zip(ENDS, ("base", "ceiling"), strict=True)) if self.placed else {}
        labels = dict.fromkeys(entry.row for entry in shown)
        rows = self.chosen_rows([Row(label, roles.get(label, "method")) for label in labels], request)
        chosen = {row.label for row in rows}
        planners = [
            Planner(preset, seed, request.device, float32, place) for seed in request.seeds or self.seeds
        ]
        cells = [
            Cell(
                e.row,
                e.column,
                p.seed,
                p.measured(e.variant, e.measure),
                {"measure": e.measure, **asdict(e.variant)},
            )
            for p in planners
            for e in shown
            if e.row in chosen
        ]
        drawn = self._drawn(planners[0], [e for e in shown if e.row in chosen])
        others = {} if drawn is None else {"pictures": drawn}
        precision = "float32" if float32 else preset.recipe.precision
        about = {"preset": name, "precision": precision}
        return Plan(rows, cells, others, facts, used, about)

    def _drawn(self, planner: Planner, shown: Sequence[Entry]) -> Unit | None:
        """Return the unit that draws the page's pictures; None for an experiment without."""
        if self.name == f"{PREFIX}demo":
            return planner.pictures()
        if self.name == f"{PREFIX}retrieval" and WHOLE.name in {e.row for e in shown}:
            return planner.retrieved()
        if self.name == OWN:
            learned = [(MEASURED[e.column], e.variant, e.row) for e in shown if e.row != CONSTANT]
            return planner.predictions(learned) if learned else None
        return None

    def _shown(self, request: Request, preset: Preset, walk: Walk | None) -> list[Entry]:
        """Return the cells: those of the experiment and of encoders, for a walk with what it has."""
        shown = [*entries(self.name.removeprefix(PREFIX), preset)]
        measures = ["mIoU"] if walk is None else [*MEASURED]
        encoders = [(e, Variant(e, "named")) for e in self.setting(request, "encoders")]
        shown += [Entry(e, m, variant, m) for e, variant in encoders for m in measures]
        return shown if walk is None else _walked(shown, walk)

    def _walk(self, request: Request) -> tuple[Walk | None, Any, dict[str, str], dict[str, str]]:
        """Return the walk in the folder of data (7-Scenes where that holds data sets), its path and facts, digest and name."""
        if self.name != OWN:
            return None, None, {}, {}
        path = Path(request.data)
        path = path / "7scenes" if (path / "7scenes").is_dir() else path
        facts = {
            "layout": self.setting(request, "layout") or None,
            "fov": self.setting(request, "fov") or None,
        }
        walk = Walk(path, **facts)
        return (
            walk,
            (str(path), {**facts, "digest": walk.digest}),
            {"space": walk.digest},
            {"space": walk.name},
        )

    def check_machine(self, say: Callable[[str], None]) -> None:
        need_packages(PIL="images", cv2="scenes", vector_quantize_pytorch="space", pycocotools="space")
        warn_if_slow(say)

    def tables(self, run: Run) -> Sequence[Table]:
        """Return the table; with floor and ceiling, a column places the rows between them."""
        names = dict.fromkeys(cell["column"] for cell in run.about["cells"])
        columns = [
            Column(n, (), n, self.unit, UNITS.get(n, "%"), better="lower" if "error" in n else "higher")
            for n in names
        ]
        records = run.records(lambda r: r.result[r.about["measure"]])

        def table(columns: Sequence[Column]) -> Table:
            return Table.of(self.title, run.rows, columns, records, run.missing, run.notes)

        found = table(columns)
        low, high = (found.value(end, columns[0]) for end in ENDS)
        if not self.placed or not {*ENDS} <= {row.label for row in found.rows} or high == low:
            return [found]

        def between(value: float | None) -> float | None:
            return None if value is None else (value - low) / (high - low)

        return [table([*columns, Column(BETWEEN, between, columns[0].of, "", "", 2, None)])]

    def figures(self, run: Run) -> Sequence[report.Chart | None]:
        """Return the charts: lines over columns that are numbers, otherwise a row of dots for each row; and the matrix."""
        table = self.tables(run)[0]
        columns = _measured(table)
        numbers = [c for c in columns if c.name.replace(".", "", 1).isdigit()]
        if self.unit and len(numbers) > 1:
            return [self._lines(table, numbers)]
        if not self.comparable:
            return [self._dots(table, [column], column.name) for column in columns]
        matrix = None
        if self.matrix:
            rows, title = [row.label for row in table.rows], f"{self.title} {self.shows}"
            values = [[table.value(row, c) for c in columns] for row in rows]
            matrix = report.heat_map(rows, [c.name for c in columns], values, title=title)
        return [matrix, self._dots(table, columns, self.shows)]

    def page(self, run: Run) -> Page:
        """Return the page: the table, its figures, pictures, classes, and how it was made."""
        table, about = self.tables(run)[0], run.about["about"]
        block = table.block()
        bars = [replace(c, shade="bar" if c.head != BETWEEN else "") for c in block.columns]
        scale: Literal["table", "column"] = "table" if self.comparable else "column"
        blocks: list[Block] = [replace(block, columns=bars, scale=scale), *table_blocks(table)[1:]]
        blocks += [Figure(chart, chart.title) for chart in self.figures(run) if chart is not None]
        sections = [
            Section("result", "Result", self._shows(table), blocks),
            Section("pictures", "Pictures", "What it looks like", _pictures(run)),
            Section("classes", "Classes", "Class by class", _classes(run)),
        ]
        facts = [("preset", about["preset"]), ("precision of the pre-training", about["precision"])]
        return run_page(run, "" if run.missing else self._lead(table), sections, facts)

    def _lead(self, table: Table) -> Text:
        """What was found, in a sentence or two."""
        columns = _measured(table)
        seeds = len({seed for values in table.values.values() for seed in values})
        over = f"{seeds} seed{'s' * (seeds != 1)}"
        if self.matrix:
            cells = [(i == j, r.label, c) for i, r in enumerate(table.rows) for j, c in enumerate(columns)]
            own, other = (
                mean([table.value(row, c) for is_own, row, c in cells if is_own == one])
                for one in (True, False)
            )
            return (
                f"A model is worth {show(own)} % mIoU in the house it was pre-trained in and {show(other)} % in another "
                f"({over}): a difference of {own - other:+.1f} points."
            )
        groups = [columns] if self.comparable else [[column] for column in columns]
        return report.join([self._highest(table, group, over) for group in groups], " ")

    def _shows(self, table: Table) -> str:
        """What the cells hold: the measure of a single column, where the columns have measures of their own."""
        columns = _measured(table)
        return columns[0].name if len(columns) == 1 and not self.comparable else self.shows

    def _highest(self, table: Table, columns: Sequence[Column], over: str) -> Text:
        """The sentence that names the best cells of comparable columns."""
        rows = [row.label for row in table.rows if row.role != "ceiling"]
        places = {(row, c.name): (row, c) for row in rows for c in columns}
        higher = columns[0].better == "higher"
        best = first_of({place: table.value(*where) for place, where in places.items()}, higher)
        if not best:
            return ""
        plain = len(_measured(table)) == 1
        names = [report.strong(row if plain or name == "–" else f"{row}, {name}") for row, name in best]
        value, spread, _ = table.cell(*places[best[0]])
        shown = self.shows if self.comparable else columns[0].name
        are, printed = "is" if len(best) == 1 else "are", f"{value} {spread}".strip()
        most = "Highest" if higher else "Lowest"
        return phrase("{} {} {} with {} ({}, {}).", most, are, report.listed(names), printed, shown, over)

    def _lines(self, table: Table, columns: Sequence[Column]) -> report.Chart | None:
        series, ends = [], sorted(float(c.name) for c in columns)
        for colour, row in enumerate(table.rows, 1):
            there = [c for c in columns if table.values[row.label, c.key]]
            xs, ys = [float(c.name) for c in there], [table.value(row.label, c) for c in there]
            spread = [table.spread(row.label, c) for c in there]
            if len(xs) == 1:  # a level
                xs, ys, spread = [ends[0], ends[-1]], ys * 2, spread * 2
            series.append(report.Series(row.label, xs, ys, min(colour, 6), spread))
        described = "; ".join(f"{s.name}: {', '.join(map(show, s.y))}" for s in series)
        return report.line_chart(
            series, title=self.title, y=self.shows, x=self.unit, description=described, height=320
        )

    def _dots(self, table: Table, columns: Sequence[Column], axis: str) -> report.Chart | None:
        cells = [(row.label, colour, c) for row in table.rows for colour, c in enumerate(columns, 1)]
        points = [
            report.Point(row, table.value(row, c), 0.0, table.spread(row, c), min(colour, 6), c.name)
            for row, colour, c in cells
        ]
        return report.row_chart(points, title=f"{self.title} {axis}", x=axis)


def _walked(shown: Sequence[Entry], walk: Walk) -> list[Entry]:
    """The entries that a walk can be evaluated on, with those modalities that it has."""

    def fitted(v: Variant) -> Variant:
        return replace(v, modalities=tuple(m for m in v.modalities if m in (*walk.sensors, *PSEUDO)))

    return [replace(e, variant=fitted(e.variant)) for e in shown if MEASURED[e.column] in walk.measured]


def _measured(table: Table) -> list[Column]:
    """The columns of a table that are measured."""
    return [column for column in table.columns if column.name != BETWEEN]


def _pictures(run: Run) -> list[Block]:
    found = run.other("pictures")
    if found is None:
        return []
    light, dark = (base64.b64decode(found[tone]) for tone in ("light", "dark"))
    said = DRAWN[run.about["experiment"].removeprefix(PREFIX)]
    return [Note(said), report.Picture(light, "", said, dark)]


def _classes(run: Run) -> list[Block]:
    """IoU by class of every row, where there are few rows of one column."""
    records = run.records()
    rows = list(dict.fromkeys(record.row for record in records))
    few = 0 < len(rows) <= CLASSES and len({record.column for record in records}) == 1
    if not few or any("IoU" not in record.result for record in records):
        return []

    def line(name: str) -> report.Row:
        known = [(r.row, value) for r in records if (value := r.result["IoU"].get(name)) is not None]
        return report.Row(name, [mean([value for row, value in known if row == label]) for label in rows])

    lines = list(map(line, records[0].result["IoU"]))
    return [report.Table("IoU by class", [report.Column(row, "%") for row in rows], lines, "class")]
