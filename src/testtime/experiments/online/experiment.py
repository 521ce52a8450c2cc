"""The experiments of the family: which units a run consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from testtime.build import find_method
from testtime.corruptions import CORRUPTIONS, EXTRA
from testtime.data.named import EMBEDDED
from testtime.data.places import add_source, find_set, has_source, image_size, images_of, is_there
from testtime.errors import DataError, check_name, need_packages
from testtime.experiments import Cell, Experiment, Plan, Request, Resource, Row, Run, Table, Unit
from testtime.experiments.online import listing
from testtime.experiments.online.comparison import Comparison
from testtime.experiments.online.pages import main_table, online_figures, online_page
from testtime.experiments.online.results import Results
from testtime.experiments.online.stream import source_model
from testtime.experiments.registry import code_of
from testtime.models import OpenedModel
from testtime.processor import processor_name
from testtime.report import Chart, Page
from testtime.streams.named import ORDERS, corrupted_domains

__all__ = ["HERE", "Batches", "Inputs", "Online", "online"]

HERE = "testtime.experiments.online"
OPTIONAL = ("reset", "returns", "target", "pace", "speed")  # named in a unit where they are used
FORMS = {"open_sets": ["textures"], "batch_size": 200, "source": "images"}
FORMS |= {"slow_limit": 250, "target": 0.5, "pace": 1, "speed": 1.0}
OF_IMAGES = (  # parameters that images depend on
    *("closed", "side", "open_set", "batch_size", "ratio", "order", "corruptions", "severity", "rounds"),
    *("limit", "seed", "returns", "target", "pace", "skip_damaged"),
)


@dataclass(frozen=True)
class Batches:
    """A column of the tables: its name, what the batches hold, and a remark on the results.

    Args:
        open_set: data set of the unknown images; None for known images alone.
        batch_size: number of images in a batch, known and unknown together.
        ratio: unknown images for each known one.
    """

    name: str
    open_set: str | None = None
    batch_size: int = 200
    ratio: float = 1.0
    note: str = ""

    def check(self) -> None:
        """Refuse a batch without known images, and a ratio that is not above 0, with a ValueError."""
        if self.batch_size < 1:
            raise ValueError(f"a batch holds at least 1 image, got batch_size {self.batch_size}")
        if not self.ratio > 0:
            raise ValueError(f"ratio is a number above 0, got {self.ratio}; leave out the open set for none")
        if self.open_set is not None and round(self.batch_size / (1 + self.ratio)) < 1:
            holds = f"a batch of {self.batch_size} with {self.ratio:g} unknown for each known image"
            raise ValueError(f"{holds} holds no known one; take a larger batch, or no open set")


class Inputs(NamedTuple):
    """Data and weights of a run: names of closed set and model, side of its images, digests by name, and places."""

    closed: str
    model: str
    side: int | None
    facts: Mapping[str, str]
    places: Mapping[str, str]


@final
class Online(Experiment):
    """A table of methods on streams, by its name and its entry in ``experiments.toml``."""

    family = "online"
    forms = FORMS

    def __init__(self, name: str, entry: Mapping[str, Any]) -> None:
        self.name, self.entry = name, entry
        self.title, self.source, self.note = (entry[key] for key in ("title", "source", "note"))
        self.seeds = tuple(entry["seeds"])
        self.resources = (
            Resource("closed set", "data", entry["closed"], ("own",)),
            Resource("source model", "weights", entry["model"], ("own",)),
        )
        self.columns = tuple(Batches(**column) for column in entry["columns"])
        others = dict.fromkeys(("open_sets", "batch_size", "source"))
        self.settings = {**{key: entry.get(key) for key in listing.STREAM}, **others}
        rows = listing.rows(entry).items()
        self.rows = tuple(Row(label, about.pop("role", "method"), about=about) for label, about in rows)

    def check_machine(self, say: Callable[[str], None]) -> None:
        if EMBEDDED & {self.entry["closed"], *(column.open_set for column in self.columns)}:
            need_packages(sklearn="demo", PIL="images")

    def plan(self, request: Request) -> Plan:
        self.stream(request)
        places = self.places(request)
        columns = self.chosen_columns(request, places)
        if not is_there(self.entry["closed"], places) and self.setting(request, "open_sets") is None:
            # own images have no unknown ones unless they are named
            there = [c for c in columns if c.open_set is None or is_there(c.open_set, places)]
            columns = there or [replace(columns[0], name="closed set", open_set=None, note="")]
        for column in columns:
            column.check()
        return self.plan_with(request, self.find_inputs(request, columns, places), columns)

    def plan_with(self, request: Request, inputs: Inputs, columns: Sequence[Batches]) -> Plan:
        """Return the plan of a request whose data and weights are known."""
        rows, left_out, cells = self.chosen_rows(self.rows, request), [], []
        if not has_source(inputs.closed, inputs.places):
            left_out = [row.label for row in rows if find_method(row.about["method"]).source != "none"]
            rows = [row for row in rows if row.label not in left_out]
        for seed in request.seeds or ():
            for column in columns:
                p = self.parameters(request, inputs, column, seed)
                needs = {"images": self.images_unit(p, inputs, f"{column.name}, seed {seed}")}
                for row in rows:
                    name, code = f"{row.label}, {column.name}, seed {seed}", code_of(row.about["method"])
                    facts = {**row.about, **p}
                    unit = Unit(f"{HERE}.cell:adapt_online", facts, name, needs, code, inputs.places)
                    cells.append(Cell(row.label, column.name, seed, unit))
        labels, names = [row.label for row in rows], [column.name for column in columns]
        baseline = self._baseline(request, inputs, columns)
        about = {
            **{"closed": inputs.closed, "model": inputs.model, "left_out": left_out},
            "limit": self.limit(request),
            "stream": self.stream(request),
            "columns": [asdict(column) for column in columns],
            "published": listing.published(self.entry["published"], labels, names),
            "latency": listing.read("published.toml")["latency"] if self.entry.get("latency") else {},
        }
        used = {"closed set": inputs.closed, "source model": inputs.model}
        return Plan(rows, cells, {f"baseline {baseline.address[:8]}": baseline}, inputs.facts, used, about)

    def images_unit(self, p: Mapping[str, Any], inputs: Inputs, name: str) -> Unit:
        """Return the unit that corrupts the images of a stream."""
        wandering = p["order"] == "wandering"  # its difficulty is that of the source model
        kept = {key: p[key] for key in (*OF_IMAGES, *(("model",) if wandering else ())) if key in p}
        facts = {key: value for key, value in p["facts"].items() if wandering or key != "weights"}
        kind = f"{HERE}.stream:render_images"
        return Unit(kind, {**kept, "facts": facts}, f"images, {name}", places=inputs.places, weight=0.1)

    def _baseline(self, request: Request, inputs: Inputs, columns: Sequence[Batches]) -> Unit:
        """The measurement of a plain forward: one for each run, processor and number of threads."""
        parameters = {
            **{"run": request.token, "device": request.device, "precision": request.precision},
            **{"model": inputs.model, "weights": inputs.facts["weights"], "processor": processor_name()},
            "threads": sorted({1, torch.get_num_threads()}),
            "batch_sizes": sorted({column.batch_size for column in columns}),
        }
        kind, places = f"{HERE}.cell:measure_baseline", inputs.places
        return Unit(kind, parameters, "baseline", places=places, weight=0.1, alone=True)

    def limit(self, request: Request) -> int | None:
        """Return the number of known images of each domain; None for all."""
        return request.limit or self.entry["limit"]

    def parameters(self, request: Request, inputs: Inputs, column: Batches, seed: int) -> dict[str, Any]:
        """Return the parameters of the units of a column and a seed, without those of a method."""
        names = {"weights", "corruptions", inputs.closed, column.open_set}
        return {
            **{"closed": inputs.closed, "model": inputs.model, "side": inputs.side, "seed": seed},
            **{key: getattr(column, key) for key in ("open_set", "batch_size", "ratio")},
            **{key: value for key, value in self.stream(request).items() if key not in OPTIONAL or value},
            **{"limit": self.limit(request), "device": request.device, "precision": request.precision},
            "facts": {name: fact for name, fact in sorted(inputs.facts.items()) if name in names},
        }

    def first_column(self, request: Request, places: dict[str, str]) -> tuple[Inputs, dict[str, Any]]:
        """Return data and weights of the first column, and the parameters of its units with the first seed."""
        column = self.chosen_columns(request, places)[0]
        column.check()
        inputs = self.find_inputs(request, [column], places)
        return inputs, self.parameters(request, inputs, column, (request.seeds or self.seeds)[0])

    def places(self, request: Request) -> dict[str, str]:
        """Return the places that a request names; a DataError says that the folder of data is not there."""
        if request.data != Request.data and not Path(request.data).is_dir():
            expected = "expected that of data sets and weights, or of own images"
            raise DataError(f"{request.data}: no such folder; {expected}")
        places = {"data": str(Path(request.data).resolve())}
        if source := self.setting(request, "source"):
            add_source(source, places)
        return places

    def find_inputs(self, request: Request, columns: Sequence[Batches], places: dict[str, str]) -> Inputs:
        """Open data and weights, and return their names and digests; own ones are added to the places.

        Raises:
            DataError: a data set or the weights are not there, or their classes differ.
        """
        closed, found = self.entry["closed"], self.find_model(request, places)
        try:
            images = images_of(closed, places)
        except DataError as error:
            try:  # own images in place of the set
                closed = find_set(request.data, places)
                images = images_of(closed, places)
                found.check_classes(images)
            except ValueError as other:
                own = "a folder of own images, with a folder for each class"
                raise DataError(f"{error}; nor is {request.data} {own}: {other}") from None
        found.check_classes(images)
        stream, size = self.stream(request), image_size(closed, found.side)
        origin = corrupted_domains(closed, places, stream["corruptions"], stream["severity"], size)[1]
        facts = {"weights": found.digest, closed: images.digest(), "corruptions": origin}
        opened = [column.open_set for column in columns if column.open_set is not None]
        facts |= {name: images_of(name, places).digest() for name in opened}
        return Inputs(closed, found.name, found.side, facts, places)

    def find_model(self, request: Request, places: dict[str, str]) -> OpenedModel:
        """Open the source model; an own file is added to the places."""
        name = request.model or self.entry["model"]
        found = source_model(name, places)
        if Path(name).is_file():
            places[f"model {found.name}"] = str(Path(name).resolve())
            return found
        return replace(found, name=name)

    def stream(self, request: Request) -> dict[str, Any]:
        """Return the settings of the stream; a ValueError says that one is out of its range."""
        s = {name: self.setting(request, name) for name in listing.STREAM}
        for name in ("slow_limit", "rounds", "pace"):
            if s[name] is not None and s[name] < 1:
                raise ValueError(f"{name} is a whole number from 1, got {s[name]}")
        if s["severity"] not in range(1, 6):
            raise ValueError(f"severity is a whole number from 1 to 5, got {s['severity']}")
        check_name("order", s["order"], ORDERS)
        for corruption in s["corruptions"]:
            check_name("corruption", corruption, CORRUPTIONS + EXTRA)
        if s["order"] == "wandering" and None in (s["target"], s["pace"]):
            advice = "take the experiment field-wandering"
            raise ValueError(f"a wandering stream needs a target and a pace; {advice}")
        return s

    def chosen_columns(self, request: Request, places: dict[str, str]) -> list[Batches]:
        """Return the columns with the open sets and the batch size of a request; own sets are added to the places.

        Raises:
            ValueError: there is no such set.
        """
        columns, wanted = list(self.columns), self.setting(request, "open_sets")
        if wanted == []:
            raise ValueError("the list of open sets is empty; leave it out to take the experiment's own")
        if wanted is not None:
            names = [None if name == "none" else find_set(name, places) for name in wanted]
            columns = [column for name in names for column in _with_open_set(columns, name)]
        if (size := self.setting(request, "batch_size")) is not None:
            columns = [replace(column, batch_size=size) for column in columns]
        return columns

    def tables(self, run: Run) -> Sequence[Table]:
        return [main_table(Results(run))]

    def figures(self, run: Run) -> Sequence[Chart | None]:
        return online_figures(Results(run))

    def page(self, run: Run) -> Page:
        return online_page(Results(run))

    def compared(self, runs: Sequence[Run]) -> Sequence[Table]:
        return Comparison(runs).tables()

    def comparison_page(self, runs: Sequence[Run]) -> Page:
        return Comparison(runs).page()


@cache
def online(name: str) -> Online:
    """Return an experiment of the family by its name; a ValueError says that there is none."""
    check_name("experiment", name, listing.entries())
    return Online(name, listing.entries()[name])


def _with_open_set(columns: Sequence[Batches], name: str | None) -> list[Batches]:
    """The columns of one open set; those of another with the set exchanged where a table has none."""
    same = [column for column in columns if column.open_set == name]
    if same:
        return same
    if name is None:
        return [replace(columns[0], name="closed set", open_set=None, note="")]
    kinds = {(column.batch_size, column.ratio): column for column in columns}.values()
    names = [f"{c.name} {name}" if len(kinds) > 1 else name for c in kinds]
    return [replace(c, name=n, open_set=name, note="") for c, n in zip(kinds, names, strict=True)]
