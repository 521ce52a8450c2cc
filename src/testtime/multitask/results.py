"""The cells of a study, read and judged: Delta_TTT at the last step, the oracle's choice beside it, synchrony, cost."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from testtime import __version__
from testtime.bench.page import deviation, mean, show
from testtime.files import read_json, slug, write_json
from testtime.metrics.synchronisation import cosine_similarity, dtw, step_variance
from testtime.multitask.protocol import Curve
from testtime.multitask.study import AGAIN, RATE, read_cells
from testtime.tasks import Depth, Edges, Normals, Segmentation

__all__ = ["Column", "Outcome", "Results", "columns", "read_results", "text_table", "write_command"]

TASKS = {
    "semseg": ("segmentation", Segmentation.metric),
    "depth": ("depth", Depth.metric),
    "normals": ("normals", Normals.metric),
    "edge": ("edges", Edges.metric),
}
CONTROL = "BN only"
TRAINED_ON = ("source", "validation")  # domains of a study that are no targets


@dataclass(frozen=True)
class Outcome:
    """A cell, judged against the base row of the same seed and domain before any step.

    Attributes:
        row, domain, seed: which cell.
        curve: the metrics of the tasks, step by step.
        base: the metrics that Delta_TTT is measured against.
        gains: Delta_TTT in percent, step by step.
        rate: the learning rate.
        parameters: how many the model has.
        seconds: of the whole cell, its measurements included.
        control: Delta_TTT at the last step of the row that only estimates the statistics of the same network again.
    """

    row: str
    domain: str
    seed: int
    curve: Curve
    base: dict[str, float]
    gains: list[float]
    rate: float
    parameters: int
    seconds: float
    control: float = math.nan

    @property
    def last(self) -> float:
        """Delta_TTT at the last step."""
        return self.gains[-1]

    @property
    def oracle(self) -> float:
        """Delta_TTT at the step that is best by the test labels, which nobody has in the field."""
        return self.gains[self.curve.oracle(self.base)]

    @property
    def own(self) -> float:
        """Delta_TTT at the last step against the row's own network before any step: what adapting alone changed."""
        return self.curve.gains(self.curve.at(0))[-1]

    @property
    def beyond(self) -> float:
        """What the loss adds to the statistics: Delta_TTT less that of the control on the same network."""
        return self.last - self.control

    @property
    def changes(self) -> bool:
        """Whether any metric changed at all."""
        return any(
            value != series[0] for series in self._measured for value in series if not math.isnan(value)
        )

    @property
    def moves(self) -> bool:
        """Whether there are two tasks that were measured, and a metric that changed."""
        return len(self._measured) > 1 and self.changes

    @property
    def _measured(self) -> list[list[float]]:
        return [series for series in self.curve.values.values() if not all(map(math.isnan, series))]

    @property
    def step_variance(self) -> float:
        """The deviation of the steps at which the tasks are best; NaN if nothing moves."""
        if not self.moves:
            return math.nan
        return step_variance(self.curve.values, self.curve.higher_is_better, steps=self.curve.steps)

    @property
    def warping(self) -> float:
        """The mean distance of two tasks' gains over their own start, dynamically warped; NaN if nothing moves."""
        if not self.moves:
            return math.nan
        return dtw(self.curve.values, self.curve.at(0), self.curve.higher_is_better)

    @property
    def similarity(self) -> float:
        """The mean cosine similarity of two tasks' courses; NaN if nothing moves."""
        return cosine_similarity(self.curve.values, self.curve.higher_is_better) if self.moves else math.nan


@dataclass(frozen=True)
class Results:
    """The results of a study that were read.

    Attributes:
        folder: where they lie.
        about: ``study.json``.
        outcomes: of the cells whose base is there, in no order.
        rates: by row, the Delta_TTT of each learning rate tried on the validation shift, and the one chosen.
        command: ``command.json``, or nothing.
    """

    folder: Path
    about: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    rates: dict[str, dict[str, Any]]
    command: dict[str, Any]

    @property
    def rows(self) -> list[str]:
        """The rows that have results, in the order of the study."""
        there = {o.row for o in self.outcomes}
        return [row for row in self.about["rows"] if row in there]

    @property
    def base(self) -> str:
        """The row that Delta_TTT is measured against."""
        return str(self.about["rows"][0])

    @property
    def domains(self) -> list[str]:
        """The target domains that have results, in the order of the study."""
        there = {o.domain for o in self.outcomes}
        return [name for name in self.about["domains"] if name in there]

    @property
    def seeds(self) -> list[int]:
        """The seeds that have results."""
        return sorted({o.seed for o in self.outcomes})

    @property
    def tasks(self) -> list[str]:
        """The tasks that were measured."""
        return list(self.outcomes[0].curve.values)

    def of(self, row: str, domain: str | None = None) -> list[Outcome]:
        """The outcomes of a row, by seed, in one domain or in all."""
        found = [o for o in self.outcomes if o.row == row and domain in (None, o.domain)]
        return sorted(found, key=lambda o: (o.domain, o.seed))

    def mean(self, row: str, value: Callable[[Outcome], float], domain: str | None = None) -> float:
        """The mean of a value over the outcomes of a row."""
        return mean([value(o) for o in self.of(row, domain)])

    def by_seed(self, row: str, value: Callable[[Outcome], float]) -> list[float]:
        """A value of a row averaged over the domains, for each seed that the row has."""
        outcomes = self.of(row)
        return [
            mean([value(o) for o in outcomes if o.seed == seed])
            for seed in sorted({o.seed for o in outcomes})
        ]

    @property
    def ranked(self) -> list[str]:
        """The rows by mean Delta_TTT at the last step, best first."""
        return sorted(self.rows, key=lambda row: -_or(self.mean(row, lambda o: o.last), -math.inf))

    @property
    def controls(self) -> list[str]:
        """The rows that only estimate the BatchNorm statistics again and learn nothing."""
        return [row for row in self.rows if CONTROL in row]

    @property
    def learners(self) -> list[str]:
        """The rows that learn, best first: neither a control nor a network that stays as it is."""
        return [
            row for row in self.ranked if row not in self.controls and any(o.changes for o in self.of(row))
        ]

    @property
    def missing(self) -> list[str]:
        """The cells that were asked for and have no result, in words."""
        there = {(o.row, o.domain, o.seed) for o in self.outcomes}
        return [
            f"{row}, {domain}, seed {seed}"
            for row in self.about["rows"]
            for domain in self.about["domains"]
            if domain not in TRAINED_ON
            for seed in sorted({*self.seeds, *self.about.get("seeds", [])})
            if (row, domain, seed) not in there
        ]


@dataclass(frozen=True)
class Column:
    """A column of the table: a value of an outcome, how it is written, and which direction is better.

    Attributes:
        head, unit: of the column.
        value: of an outcome.
        places: decimals.
        better: 1 if higher is better, -1 if lower, 0 if neither.
        signed: whether the sign is written.
        told: what it is, in a sentence.
    """

    head: str
    unit: str
    value: Callable[[Outcome], float]
    places: int = 1
    better: int = 1
    signed: bool = False
    told: str = ""

    def text(self, outcomes: Sequence[Outcome]) -> tuple[str, str]:
        """The mean over outcomes, and the deviation where there are several."""
        values = [self.value(o) for o in outcomes]
        spread = deviation(values)
        average = show(mean(values), self.places)
        if self.signed and round(mean(values), self.places) > 0:
            average = f"+{average}"
        return average, f"±{spread:.{self.places}f}" if spread > 0 else ""

    def best(self, results: Results, domain: str | None = None) -> str:
        """The written mean of the best row, to be set in bold.

        Empty if neither direction is better, if all rows are alike, or if a cell is missing.
        """
        if results.missing:
            return ""
        found = {row: results.mean(row, self.value, domain) for row in results.rows}
        known = {row: v for row, v in found.items() if not math.isnan(v)}
        if not self.better or not known:
            return ""
        written = {row: self.text(results.of(row, domain))[0] for row in known}
        row = max(known, key=lambda r: self.better * known[r])
        return written[row] if len(set(written.values())) > 1 else ""


def columns(results: Results) -> list[Column]:
    """The columns of a study's table."""
    found = []
    for name in results.tasks:
        title, unit = TASKS.get(name, (name, ""))
        metric, _, measure = unit.partition(" (")
        places = 3 if measure.startswith("m)") else 1
        higher = results.outcomes[0].curve.higher_is_better[name]
        found.append(
            Column(
                title,
                f"{metric}, {measure[:-1]}" if measure else metric,
                lambda o, name=name: o.curve.values[name][-1],  # type: ignore[misc]
                places,
                1 if higher else -1,
                told=f"{title}: {metric} at the last step, {'higher' if higher else 'lower'} is better",
            )
        )
    base = results.base
    return [
        *found,
        Column(
            "Δ last",
            "%",
            lambda o: o.last,
            signed=True,
            told=f"Delta_TTT at the last step: the mean relative gain over the tasks against {base} of the same seed",
        ),
        Column(
            "Δ oracle",
            "%, with labels",
            lambda o: o.oracle,
            signed=True,
            told="Delta_TTT at the step that is best by the test labels, as the paper chooses it; no headline",
        ),
        Column(
            "Δ own",
            "%",
            lambda o: o.own,
            signed=True,
            told="Delta_TTT at the last step against the row's own network before adaptation",
        ),
        Column(
            "Δ beyond",
            "BN only",
            lambda o: o.beyond,
            signed=True,
            told="Delta_TTT at the last step less that of BN re-estimation on the same network: what the loss itself adds",
        ),
        Column(
            "SV",
            "steps",
            lambda o: o.step_variance,
            2,
            -1,
            told="step variance: spread of the tasks' best steps",
        ),
        Column(
            "DTW",
            "%",
            lambda o: o.warping,
            2,
            -1,
            told="dynamic time warping: distance of the tasks' gains",
        ),
        Column("CS", "−1 to 1", lambda o: o.similarity, 2, 1, told="cosine similarity of the tasks' courses"),
        Column("size", "M", lambda o: o.parameters / 1e6, 2, 0, told="parameters in millions"),
        Column("time", "s", lambda o: o.seconds, 0, 0, told="seconds of a cell, with all its measurements"),
    ]


STUDY = {
    **dict.fromkeys(("study", "title", "published", "preset"), str),
    "rows": [str],
    "protocol": dict,
    "domains": dict,
}


def read_results(folder: str | Path) -> Results:
    """Read the folder of a study and judge its cells.

    Raises:
        ValueError: it is none, or the base row has no cell.
    """
    folder = Path(folder)
    if not (folder / "study.json").is_file():
        raise ValueError(
            f"{folder} is not the folder of a finished study: it has no study.json; testtime multitask bench makes one, "
            "and goes on where it was left"
        )
    about = read_json(folder / "study.json", AGAIN, STUDY)
    cells = read_cells(folder)
    base = about["rows"][0]
    outcomes = []
    for (row, domain, seed), cell in cells.items():
        if row not in about["rows"] or (base, domain, seed) not in cells:
            continue
        before = _curve(cells[base, domain, seed]).at(0)
        curve = _curve(cell)
        controls = [
            _curve(other).gains(before)[-1]
            for (name, *where), other in cells.items()
            if CONTROL in name and where == [domain, seed] and other.get("source") == cell.get("source")
        ]
        outcomes.append(
            Outcome(
                row,
                domain,
                seed,
                curve,
                before,
                curve.gains(before),
                cell["rate"],
                cell["parameters"],
                cell["seconds"],
                mean(controls),
            )
        )
    if not outcomes:
        raise ValueError(
            f"{folder}: the base row {base!r} has no cell to measure the others against; run testtime multitask bench "
            "again, it goes on from there"
        )
    rates = {
        row: _rates(read_json(path, AGAIN, RATE, finite=False))
        for row in about["rows"]
        for path in [folder / f"rate-{slug(row)}.json"]
        if path.is_file()
    }
    path = folder / "command.json"
    command = read_json(path, AGAIN) if path.is_file() else {}
    return Results(folder, about, tuple(outcomes), rates, command)


def write_command(folder: str | Path, argv: Sequence[str]) -> None:
    """Keep beside the results which command made them, and with which versions on which machine."""
    about = {
        "command": ["testtime", *argv],
        "versions": {
            "testtime": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }
    write_json(Path(folder) / "command.json", about)


def text_table(results: Results) -> str:
    """The table for a terminal, a block for each domain: the mean over seeds, ± the deviation."""
    shown = columns(results)
    blocks = []
    for domain in results.domains:
        cells = [
            ["", *(c.head for c in shown)],
            ["", *(c.unit for c in shown)],
            *(
                [row, *(" ".join(filter(None, c.text(results.of(row, domain)))) for c in shown)]
                for row in results.rows
                if results.of(row, domain)
            ),
        ]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(
                f"{text:<{width}}" if i == 0 else f"{text:>{width}}"
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        seeds = f"{len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}"
        step = results.outcomes[0].curve.steps[-1]
        blocks.append("\n".join([f"{domain}, {seeds}, after step {step}", *lines]))
    notes = [
        f"Δ last: Delta_TTT at the last step against {results.base} of the same seed before any step; the headline.",
        "Δ oracle: at the step chosen with the test labels. Δ own: against the row's own network before any step.",
        "Δ beyond: less that of BN re-estimation on the same network, seed by seed: what the loss itself adds.",
    ]
    if results.missing:
        notes.append(f"Not there yet: {'; '.join(results.missing)}.")
    return "\n\n".join([*blocks, "\n".join(notes)])


def _rates(found: dict[str, Any]) -> dict[str, Any]:
    """What was tried; a rate at which the method diverged has no gain."""
    return {
        **found,
        "tried": {rate: math.nan if gain is None else gain for rate, gain in found["tried"].items()},
    }


def _curve(cell: dict[str, Any]) -> Curve:
    values = {task: [math.nan if v is None else v for v in found] for task, found in cell["values"].items()}
    return Curve(cell["steps"], values, cell["higher_is_better"])


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value
