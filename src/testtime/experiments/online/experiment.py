"""The experiments of the family: which units a run consists of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, final

import torch

from testtime.corruptions import CORRUPTIONS, EXTRA
from testtime.data import sha256_of
from testtime.data.named import TRAINING
from testtime.errors import DataError, unknown_name
from testtime.experiments.experiment import Cell, Experiment, Plan, Resource, Unit
from testtime.experiments.online import listing, sets
from testtime.experiments.online.stream import ORDERS
from testtime.experiments.registry import find_method, plugins
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.table import Row, Table
from testtime.processor import processor_name
from testtime.report import Page
from testtime.streams import GRADUAL_SEVERITIES

__all__ = ["Batches", "Inputs", "Online", "online"]

HERE = "testtime.experiments.online"
STREAM: dict[str, Any] = {
    "order": "continual",
    "corruptions": list(CORRUPTIONS),
    "severity": 5,
    "rounds": 1,
    "slow_limit": None,
    **dict.fromkeys(("target", "pace", "speed")),
    **dict.fromkeys(("reset", "returns"), False),
}
OPTIONAL = ("reset", "returns", "target", "pace", "speed")  # named in a unit where they are used
OF_IMAGES = (
    "closed",
    "side",
    "open_set",
    "batch_size",
    "ratio",
    "order",
    "corruptions",
    "severity",
    "rounds",
)
OF_IMAGES += ("limit", "seed", "returns", "target", "pace")


@dataclass(frozen=True)
class Batches:
    """A column of the tables: what the batches hold.

    Args:
        name: name of the column.
        open_set: data set of the unknown images; None for known images alone.
        batch_size: number of images in a batch, known and unknown together.
        ratio: unknown images for each known one.
        note: remark on the results, for the page.

    Raises:
        ValueError: a batch without known images, or a ratio that is not above 0.
    """

    name: str
    open_set: str | None = None
    batch_size: int = 200
    ratio: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"a batch holds at least 1 image, got batch_size {self.batch_size}")
        if not self.ratio > 0:
            raise ValueError(f"ratio is a number above 0, got {self.ratio}; leave out the open set for none")
        if self.known < 1:
            raise ValueError(
                f"a batch of {self.batch_size} with {self.ratio:g} unknown for each known image holds no known one; take a "
                "larger batch, or no open set"
            )

    @property
    def known(self) -> int:
        """Number of known images in a batch."""
        return self.batch_size if self.open_set is None else round(self.batch_size / (1 + self.ratio))


@dataclass(frozen=True)
class Inputs:
    """Data and weights of a run.

    Args:
        closed: name of the closed set.
        model: name of the source model.
        side: height and width of its images in pixels; None where it takes any.
        facts: digests of data and weights by name.
        places: paths, see :mod:`testtime.experiments.online.sets`.
        images: number of images of the closed set.
    """

    closed: str
    model: str
    side: int | None
    facts: Mapping[str, str]
    places: Mapping[str, str] = field(default_factory=dict)
    images: int = 0


@final
class Online(Experiment):
    """A table of methods on streams.

    Args:
        name: name of the experiment.
        entry: what ``experiments.toml`` says of it.
    """

    family = "online"

    def __init__(self, name: str, entry: Mapping[str, Any]) -> None:
        self.name, self.entry, self.title = name, entry, entry["title"]
        self.source, self.note = entry.get("source", ""), entry.get("note", "")
        self.seeds = tuple(entry.get("seeds", (0,)))
        self.resources = (
            Resource("closed set", "data", entry["closed"], ("own",)),
            Resource("source model", "weights", entry["model"], ("own",)),
        )
        self.columns = tuple(Batches(**column) for column in entry["columns"])
        self.stream = {name: entry.get(name, value) for name, value in STREAM.items()}
        self.settings = {**self.stream, **dict.fromkeys(("open_sets", "batch_size", "source"))}
        self.rows = tuple(
            Row(label, row.pop("role", "method"), about=row) for label, row in listing.rows(entry).items()
        )

    def limit(self, request: Request) -> int | None:
        """Return the number of known images of each domain; None for all."""
        return request.limit or self.entry.get("limit")

    def plan(self, request: Request) -> Plan:
        self.checked_stream(request)
        places: dict[str, str] = {"data": str(Path(request.data).resolve())}
        columns = self.chosen_columns(request, places)
        if source := self.setting(request, "source"):
            places["set source"] = places[f"set {sets.find_set(source, places)}"]
        return self.plan_with(request, self.find_inputs(request, columns, places), columns)

    def plan_with(self, request: Request, inputs: Inputs, columns: Sequence[Batches]) -> Plan:
        """Return the plan of a request whose data and weights are known."""
        rows, left_out = self._fitting_rows(request, inputs)
        cells, stream = [], self.checked_stream(request)
        for seed in request.seeds or ():
            for column in columns:
                for row in rows:
                    p = self.parameters(request, inputs, column, seed)
                    unit = self._cell(row, p, f"{row.label}, {column.name}, seed {seed}", inputs)
                    cells.append(Cell(row.label, column.name, seed, unit))
        baseline = self._baseline(request, inputs, columns)
        about = {
            "closed": inputs.closed,
            "model": inputs.model,
            "stream": stream,
            "limit": self.limit(request),
            "columns": [asdict(column) for column in columns],
            "published": listing.published(
                self.entry.get("published", ""), [r.label for r in rows], [c.name for c in columns]
            ),
            "latency": listing.read("published.toml")["latency"] if self.entry.get("latency") else {},
            "left_out": left_out,
        }
        used = {"closed set": inputs.closed, "source model": inputs.model}
        return Plan(rows, cells, {f"baseline {baseline.address[:8]}": baseline}, inputs.facts, used, about)

    def _cell(self, row: Row, p: dict[str, Any], name: str, inputs: Inputs) -> Unit:
        cls = find_method(row.about["method"])
        images = self.images_unit(p, inputs.places, name.partition(", ")[2])
        domains = (
            len(p["corruptions"]) * p["rounds"] * (len(GRADUAL_SEVERITIES) if p["order"] == "gradual" else 1)
        )
        known = Batches("", p["open_set"], p["batch_size"], p["ratio"]).known
        batches = -(-(p["limit"] or inputs.images) // known) * (domains + bool(p.get("returns")))
        code = {row.about["method"]: sha256_of(inspect.getfile(cls))}
        return Unit(
            f"{HERE}.cell:adapt_online",
            {**row.about, **p},
            name,
            {"images": images},
            code,
            inputs.places,
            batches,
        )

    def images_unit(self, p: Mapping[str, Any], places: Mapping[str, str], name: str) -> Unit:
        """Return the unit that corrupts the images of a stream."""
        wandering = p["order"] == "wandering"  # its difficulty is that of the source model
        kept = {key: p[key] for key in (*OF_IMAGES, *(("model",) if wandering else ())) if key in p}
        facts = {key: value for key, value in p["facts"].items() if wandering or key != "weights"}
        return Unit(
            f"{HERE}.stream:render_images", {**kept, "facts": facts}, f"images, {name}", places=places
        )

    def _baseline(self, request: Request, inputs: Inputs, columns: Sequence[Batches]) -> Unit:
        """The measurement of a plain forward: one for each run, processor and number of threads."""
        parameters = {
            "run": request.token,
            "model": inputs.model,
            "weights": inputs.facts["weights"],
            "device": request.device,
            "precision": request.precision,
            "processor": processor_name(),
            "threads": sorted({1, torch.get_num_threads()}),
            "batch_sizes": sorted({column.batch_size for column in columns}),
        }
        return Unit(
            f"{HERE}.baseline:measure_baseline", parameters, "baseline", places=inputs.places, alone=True
        )

    def parameters(self, request: Request, inputs: Inputs, column: Batches, seed: int) -> dict[str, Any]:
        """Return the parameters of the units of a column and a seed, without those of a method."""
        stream = self.checked_stream(request)
        names = {"weights", "corruptions", inputs.closed, column.open_set}
        return {
            "closed": inputs.closed,
            "model": inputs.model,
            "side": inputs.side,
            "open_set": column.open_set,
            "batch_size": column.batch_size,
            "ratio": column.ratio,
            **{name: value for name, value in stream.items() if name not in OPTIONAL or value},
            "limit": self.limit(request),
            "seed": seed,
            "device": request.device,
            "precision": request.precision,
            "facts": {name: fact for name, fact in sorted(inputs.facts.items()) if name in names},
        }

    def find_inputs(self, request: Request, columns: Sequence[Batches], places: dict[str, str]) -> Inputs:
        """Open data and weights, and return their names and digests; own ones are added to the places.

        Raises:
            DataError: a data set or the weights are not there, or their classes differ.
        """
        closed, model = self.entry["closed"], request.model or self.entry["model"]
        found = sets.source_model(model, places)
        if request.model:
            places[f"model {found.name}"] = request.model
        try:
            images = sets.images_of(closed, places)
        except DataError as error:
            own = dict(places)
            try:
                images = sets.images_of(sets.find_set(request.data, own), own)
                sets.check_classes(images, found)
            except (DataError, ValueError) as other:
                raise DataError(
                    f"{error}; nor is it a folder of own images, one folder for each class: {other}"
                ) from None
            closed, places = images.name, own
        sets.check_classes(images, found)
        stream = self.checked_stream(request)
        size = sets.image_size(closed, found.side)
        facts = {
            "weights": found.digest,
            closed: images.digest(),
            "corruptions": sets.domains(closed, places, stream["corruptions"], stream["severity"], size)[1],
        }
        opened = [column.open_set for column in columns if column.open_set is not None]
        facts |= {name: sets.images_of(name, places).digest() for name in opened}
        return Inputs(closed, found.name, found.side, facts, places, len(images))

    def checked_stream(self, request: Request) -> dict[str, Any]:
        """Return the settings of the stream.

        Raises:
            ValueError: one is out of its range.
        """
        s = {name: self.setting(request, name) for name in STREAM}
        for name in ("slow_limit", "rounds", "pace"):
            if s[name] is not None and s[name] < 1:
                raise ValueError(f"{name} is a whole number from 1, got {s[name]}")
        if s["severity"] not in range(1, 6):
            raise ValueError(f"severity is a whole number from 1 to 5, got {s['severity']}")
        if s["order"] not in ORDERS:
            raise unknown_name("order", s["order"], ORDERS)
        for corruption in s["corruptions"]:
            if corruption not in CORRUPTIONS + EXTRA:
                raise unknown_name("corruption", corruption, CORRUPTIONS + EXTRA)
        if s["order"] == "wandering" and (s["target"] is None or s["pace"] is None):
            raise ValueError(
                "a wandering stream needs a target and a pace; take the experiment field-wandering"
            )
        return s

    def chosen_columns(self, request: Request, places: dict[str, str]) -> list[Batches]:
        """Return the columns with the open sets and the batch size of a request; own sets are added to the places.

        Raises:
            ValueError: there is no such set, or a batch would hold no known image.
        """
        columns, wanted = list(self.columns), self.setting(request, "open_sets")
        if wanted is not None:
            if not wanted:
                raise ValueError("the list of open sets is empty; leave it out to take the experiment's own")
            names = [None if name == "none" else sets.find_set(name, places) for name in wanted]
            columns = [column for name in names for column in _with_open_set(columns, name)]
        size = self.setting(request, "batch_size")
        return columns if size is None else [replace(column, batch_size=size) for column in columns]

    def chosen_rows(self, rows: Sequence[Row], request: Request) -> list[Row]:
        """Return the rows that a request names: labels, classes that are nobody's label, and methods of other packages.

        Raises:
            ValueError: there is no such row.
        """
        own, names = [], []
        labels = {_plain(row.label): [row.label] for row in rows}
        classes: dict[str, list[str]] = {}
        for row in rows:
            classes.setdefault(_plain(row.about["method"]), []).append(row.label)
        for name in request.rows or ():
            if ":" in name or name in plugins("testtime.methods"):
                label = find_method(name).__name__
                label = f"{label} ({name})" if _plain(label) in labels else label
                own.append(Row(label, about={"method": name, "arguments": {}}))
            else:
                names += labels.get(_plain(name)) or classes.get(_plain(name), [name])
        if own and not names:
            return [*(row for row in rows if row.role == "base"), *own]
        asked = replace(request, rows=tuple(names) if request.rows is not None else None)
        return [*super().chosen_rows(rows, asked), *own]

    def _fitting_rows(self, request: Request, inputs: Inputs) -> tuple[list[Row], list[str]]:
        """The rows of a request, and the labels of those left out for want of images of the source."""
        rows = self.chosen_rows(self.rows, request)
        own = f"set {inputs.closed}" in inputs.places or inputs.closed not in TRAINING
        if not own or "set source" in inputs.places:
            return rows, []
        fit = [row for row in rows if find_method(row.about["method"]).source == "none"]
        return fit, [row.label for row in rows if row not in fit]

    def tables(self, run: Run) -> Sequence[Table]:
        from testtime.experiments.online.pages import main_table
        from testtime.experiments.online.results import Results

        return [main_table(Results(run))]

    def page(self, run: Run) -> Page:
        from testtime.experiments.online.pages import online_page
        from testtime.experiments.online.results import Results

        return online_page(Results(run))

    def compared(self, runs: Sequence[Run]) -> Sequence[Table]:
        from testtime.experiments.online.comparison import Comparison

        return Comparison(runs).tables()

    def comparison_page(self, runs: Sequence[Run]) -> Page:
        from testtime.experiments.online.comparison import Comparison

        return Comparison(runs).page()


@cache
def online(name: str) -> Online:
    """Return an experiment of the family by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in listing.entries():
        raise unknown_name("experiment", name, listing.entries())
    return Online(name, listing.entries()[name])


def _with_open_set(columns: Sequence[Batches], name: str | None) -> list[Batches]:
    """The columns of one open set; those of another with the set exchanged where a table has none."""
    same = [column for column in columns if column.open_set == name]
    if same:
        return same
    if name is None:
        return [replace(columns[0], name="closed set", open_set=None, note="")]
    kinds = {(column.batch_size, column.ratio): column for column in columns}
    if len(kinds) == 1:
        return [replace(columns[0], name=name, open_set=name, note="")]
    return [replace(c, name=f"{c.name} {name}", open_set=name, note="") for c in kinds.values()]


def _plain(name: str) -> str:
    """A label without case, spaces, hyphens and an inner "+"; a final one counts.

    >>> _plain("PAF+KIP") == _plain("paf-kip"), _plain("UniEntPlus"), _plain("UniEnt")
    (True, 'unient+', 'unient')
    """
    kept = "".join(c for c in name.lower() if c.isalnum() or c in "+.=").replace("plus", "+")
    return kept[:-1].replace("+", "") + kept[-1:]
