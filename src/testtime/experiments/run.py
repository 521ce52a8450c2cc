"""The folder of a run: ``run.toml``, ``run.json``, ``results/*.json`` and ``failures/*.json``; small, and readable alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from testtime.claims import claimed
from testtime.errors import DataError, check_name
from testtime.experiments.experiment import Experiment, Plan, Unit, closure
from testtime.experiments.provenance import SCHEMA, now
from testtime.experiments.registry import result_shapes
from testtime.experiments.request import Request
from testtime.experiments.store import AGAIN as MAKE_AGAIN
from testtime.experiments.store import check_schema, read_result
from testtime.experiments.table import Record, Role, Row
from testtime.files import check_shape, damaged, read_json, slug, write_json

__all__ = ["Run", "RunFolder", "read_run"]

REPAIR = "run the same testtime run command again: it keeps what is finished"
AGAIN = f"delete it and {REPAIR}"
ABOUT = {
    "schema": int,
    **dict.fromkeys(("experiment", "family", "title", "source", "note"), str),
    "rows": [{"label": str, "role": str, "note": str, "about": dict}],
    "cells": [{"row": str, "column": str, "seed": int, "unit": str, "about": dict}],
    "units": {str: {"name": str, "code": {str: str}}},
    **{"others": {str: str}, "facts": {str: str}, "used": {str: str}, "about": dict},
    "resources": {str: {"prefers": str}},
    "sessions": [
        {"started": str, "command": [str], "versions": {str: str}, "machine": dict, "device": (str, NoneType)}
    ],
}


@dataclass(frozen=True)
class RunFolder:
    """Writes the folder of a run."""

    path: Path

    def request(self) -> Request | None:
        """Return the request of the run in this folder; None where there is no run."""
        path = self.path / "run.toml"
        return Request.read(path) if path.is_file() else None

    def write(self, experiment: Experiment, request: Request, plan: Plan, session: Mapping[str, Any]) -> None:
        """Write ``run.toml`` and ``run.json``; earlier sessions, and units that no cell shows, are kept.

        Args:
            experiment, request, plan: experiment, request and plan of the run.
            session: provenance of this command.
        """
        there = (self.path / "run.json").is_file()
        before = _about(self.path) if there else {"sessions": [], "others": {}, "units": {}}
        request.write(self.path / "run.toml")
        units = {u.address: {"name": u.name, "code": u.versions} for u in closure(plan.units)}
        earlier = {name: address for name, address in before["others"].items() if name not in plan.others}
        about = {
            "schema": SCHEMA,
            "experiment": experiment.name,
            **{name: getattr(experiment, name) for name in ("family", "title", "source", "note")},
            "rows": [asdict(row) for row in plan.rows],
            "cells": [{**vars(cell), "unit": cell.unit.address} for cell in plan.cells],
            "others": {**earlier, **{name: unit.address for name, unit in plan.others.items()}},
            **{name: getattr(plan, name) for name in ("facts", "used", "about")},
            "resources": {resource.name: asdict(resource) for resource in experiment.resources},
            "units": {address: before["units"][address] for address in earlier.values()} | units,
            "sessions": [*before["sessions"], session],
        }
        write_json(self.path / "run.json", about)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Wait until no other process writes what this run consists of, and keep others from it while the block runs."""
        while True:
            with claimed(self.path) as (own, _):
                if own is not None:
                    yield
                    return
            time.sleep(0.1)

    def _file(self, kind: str, unit: Unit) -> Path:
        return self.path / kind / f"{slug(unit.name)[:80]}-{unit.address[:12]}.json"

    def result(self, unit: Unit) -> dict[str, Any] | None:
        """Return the content of a unit's result file; None if there is none."""
        path = self._file("results", unit)
        return read_result(path, unit.address) if path.is_file() else None

    def adopt(self, unit: Unit, content: Mapping[str, Any]) -> None:
        """Keep the result of a unit; an earlier error of it is removed."""
        write_json(self._file("results", unit), content)
        self._file("failures", unit).unlink(missing_ok=True)

    def fail(self, unit: Unit, error: str, trace: str) -> Path:
        """Keep the error of a unit."""
        content = {"schema": SCHEMA, "address": unit.address, "name": unit.name, "time": now()}
        content |= {"error": error, "traceback": trace.splitlines()}
        return write_json(self._file("failures", unit), content)


@dataclass(frozen=True)
class Run:
    """A run that was read from its folder: the content of ``run.json``, and of the other files by address of the unit."""

    folder: Path
    about: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, Mapping[str, Any]]

    @cached_property
    def request(self) -> Request:
        """What the run was asked for; a DataError says that ``run.toml`` is not there or is damaged."""
        if (found := RunFolder(self.folder).request()) is None:
            raise DataError(f"{self.folder / 'run.toml'} is missing; {REPAIR}")
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the tables, also those without a result."""
        return [Row(row["label"], row["role"], row["note"], row["about"]) for row in self.about["rows"]]

    def records(self, read: Callable[[Record], Any] | None = None) -> list[Record]:
        """Return the finished cells, each with the result of its unit, and the provenance of that as "made".

        Args:
            read: function that turns a cell into what the columns take instead of its result; what it raises is a DataError.
        """
        records, results = [], self.results
        with damaged(self.folder / "results", "delete the run and give the same command again"):
            for c in self.about["cells"]:
                if (found := results.get(c["unit"])) is not None:
                    result = {**found["result"], "made": found["made"]}
                    record = Record(c["row"], c["column"], c["seed"], result, c["about"])
                    records.append(replace(record, result=read(record)) if read else record)
        return records

    def other(self, name: str) -> Mapping[str, Any] | None:
        """Return the result of a unit that no cell shows, by its name in the plan; None if it is not finished."""
        found = self.results.get(self.about["others"].get(name, ""))
        return None if found is None else found["result"]

    @property
    def missing(self) -> list[str]:
        """The names of the cells without a result."""
        cells = [cell for cell in self.about["cells"] if cell["unit"] not in self.results]
        return [", ".join(filter(None, (c["row"], c["column"], f"seed {c['seed']}"))) for c in cells]

    @property
    def outdated(self) -> list[str]:
        """The names of the units whose result was made with another version of the code than the plan has."""
        units = self.about["units"]
        return [units[a]["name"] for a, r in self.results.items() if r["unit"]["code"] != units[a]["code"]]

    @property
    def stand_ins(self) -> dict[str, tuple[str, str]]:
        """By name of the resource, what was used and what the source used, where the two differ."""
        wanted = {name: resource["prefers"] for name, resource in self.about["resources"].items()}
        used = self.about["used"]
        return {n: (used[n], wanted[n]) for n in wanted if used.get(n) not in (None, wanted[n])}

    @property
    def notes(self) -> list[str]:
        """Remarks for every table of the run: stand-ins, results of other versions, failures."""
        pairs, old = self.stand_ins.items(), self.outdated
        notes = [f"{name}: {used} stands in for {prefers}." for name, (used, prefers) in pairs]
        some = ", ".join(old[:5]) + f" and {len(old) - 5} more" * (len(old) > 5)
        notes += [f"Made with another version of the code: {some}."] * bool(old)
        return notes + [f"Failed: {found['name']}: {found['error']}." for found in self.failures.values()]


def read_run(folder: str | Path) -> Run:
    """Read the folder of a run.

    Raises:
        ValueError: it is none.
        DataError: a file in it is damaged, or does not hold what the tables of its family need.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json; testtime run makes one")
    about, request = _about(folder), RunFolder(folder).request()
    if request is not None and request.experiment != (name := about["experiment"]):
        path = folder / "run.toml"
        raise DataError(f"{path} asks for {request.experiment}, and run.json holds {name}; {AGAIN}")
    shapes = result_shapes(about["family"])
    done, bad = (sorted((folder / kind).glob("*.json")) for kind in ("results", "failures"))
    results = {}
    for path in done:
        found = read_result(path)
        with damaged(path, MAKE_AGAIN):
            function = str(found["unit"].get("kind")).rpartition(":")[2]
            check_shape(found["result"], shapes.get(function, {}), "result")
        results[found["unit"]["address"]] = found
    failures = [read_json(file, AGAIN, {"address": str, "name": str, "error": str}) for file in bad]
    current = {found["address"]: found for found in failures if found["address"] in about["units"]}
    return Run(folder, about, {a: results[a] for a in about["units"] if a in results}, current)


def _about(folder: Path) -> dict[str, Any]:
    """Read the ``run.json`` of a run."""
    path = folder / "run.json"
    about: dict[str, Any] = read_json(path, AGAIN, ABOUT)
    with damaged(path, AGAIN):
        check_schema(about)
        shapes, labels = result_shapes(about["family"]), [row["label"] for row in about["rows"]]
        check_shape(about["about"], shapes.get("about", {}), "about")
        if not about["sessions"]:
            raise ValueError("expected at least one session")
        for row in about["rows"]:
            check_name("role", row["role"], get_args(Role))
            check_shape(row["about"], shapes.get("row", {}), f"row {row['label']!r}")
        for cell in about["cells"]:
            check_name("row", cell["row"], labels)
        for unit in [*(cell["unit"] for cell in about["cells"]), *about["others"].values()]:
            if unit not in about["units"]:
                raise ValueError(f"the unit {unit} of a cell is not among its units")
    return about
