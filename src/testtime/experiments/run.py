"""The folder of a run: ``run.toml``, ``run.json``, ``results/*.json`` and ``failures/*.json``; small, and readable alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from testtime.experiments.experiment import Experiment, Plan, Unit, closure
from testtime.experiments.provenance import SCHEMA, now
from testtime.experiments.request import Request
from testtime.experiments.store import read_result
from testtime.experiments.table import Record, Row
from testtime.files import damaged, read_json, slug, write_json

__all__ = ["Run", "RunFolder", "read_run"]

AGAIN = "delete it and run the same testtime run command again: it keeps what is finished"
ABOUT = {
    "schema": int,
    **dict.fromkeys(("experiment", "family", "title", "source", "note"), str),
    "rows": [{"label": str, "role": str, "note": str, "about": dict}],
    "cells": [{"row": str, "column": str, "seed": int, "unit": str, "about": dict}],
    **dict.fromkeys(("others", "facts", "used", "about", "units"), dict),
    "sessions": [dict],
}


@dataclass(frozen=True)
class RunFolder:
    """Writes the folder of a run.

    Args:
        path: the folder.
    """

    path: Path

    def request(self) -> Request | None:
        """Return what the run in this folder was asked for, or None where there is no run."""
        path = self.path / "run.toml"
        return Request.read(path) if path.is_file() else None

    def write(self, experiment: Experiment, request: Request, plan: Plan, session: Mapping[str, Any]) -> None:
        """Write ``run.toml`` and ``run.json``; the sessions of earlier commands are kept."""
        request.write(self.path / "run.toml")
        path = self.path / "run.json"
        before = read_json(path, AGAIN, ABOUT)["sessions"] if path.is_file() else []
        units = list(closure(plan.units))
        about = {
            "schema": SCHEMA,
            "experiment": experiment.name,
            "family": experiment.family,
            "title": experiment.title,
            "source": experiment.source,
            "note": experiment.note,
            "rows": [
                {"label": row.label, "role": row.role, "note": row.note, "about": row.about}
                for row in plan.rows
            ],
            "cells": [
                {
                    "row": cell.row,
                    "column": cell.column,
                    "seed": cell.seed,
                    "unit": cell.unit.address,
                    "about": cell.about,
                }
                for cell in plan.cells
            ],
            "others": {name: unit.address for name, unit in plan.others.items()},
            "facts": plan.facts,
            "used": plan.used,
            "resources": {
                r.name: {"kind": r.kind, "prefers": r.prefers, "accepts": r.accepts}
                for r in experiment.resources
            },
            "about": plan.about,
            "units": {unit.address: {"name": unit.name, "code": unit.versions} for unit in units},
            "sessions": [*before, dict(session)],
        }
        write_json(path, about)

    def result_file(self, unit: Unit) -> Path:
        """The file of a unit's result."""
        return self.path / "results" / _file(unit.name, unit.address)

    def failure_file(self, unit: Unit) -> Path:
        """The file of a unit's error."""
        return self.path / "failures" / _file(unit.name, unit.address)

    def adopt(self, unit: Unit, content: Mapping[str, Any]) -> None:
        """Keep the result of a unit; an earlier error of it is removed."""
        write_json(self.result_file(unit), content)
        self.failure_file(unit).unlink(missing_ok=True)

    def fail(self, unit: Unit, error: str, trace: str) -> Path:
        """Keep the error of a unit."""
        content = {"schema": SCHEMA, "address": unit.address, "name": unit.name, "time": now()}
        return write_json(
            self.failure_file(unit), {**content, "error": error, "traceback": trace.splitlines()}
        )


@dataclass(frozen=True)
class Run:
    """A run that was read from its folder.

    Attributes:
        folder: the folder.
        about: content of ``run.json``.
        results: content of the files of results by address of the unit.
        failures: content of the files of errors by address.
    """

    folder: Path
    about: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, Mapping[str, Any]]

    @cached_property
    def request(self) -> Request:
        """What the run was asked for."""
        return Request.read(self.folder / "run.toml")

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the run's tables."""
        return [Row(row["label"], row["role"], row["note"], row["about"]) for row in self.about["rows"]]

    def records(self, read: Callable[[dict[str, Any]], Any] = dict) -> list[Record]:
        """Return the finished cells.

        Args:
            read: function that turns a result, a dictionary, into what the columns' functions take.
        """
        return [
            Record(cell["row"], cell["column"], cell["seed"], read(dict(found["result"])), cell["about"])
            for cell in self.about["cells"]
            if (found := self.results.get(cell["unit"])) is not None
        ]

    def other(self, name: str) -> Mapping[str, Any] | None:
        """Return the result of a unit that no cell shows, by its name; None if it is not finished."""
        found = self.results.get(self.about["others"].get(name, ""))
        return None if found is None else found["result"]

    def made(self, cell: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the provenance of a finished cell of ``about["cells"]``: versions, machine, precision, seconds."""
        found: Mapping[str, Any] = self.results[cell["unit"]]["made"]
        return found

    @property
    def missing(self) -> list[str]:
        """The names of the cells without a result."""
        cells = [cell for cell in self.about["cells"] if cell["unit"] not in self.results]
        return [", ".join(filter(None, (c["row"], c["column"], f"seed {c['seed']}"))) for c in cells]

    @property
    def outdated(self) -> list[str]:
        """The names of the units whose result was made with another version of the code than the plan has."""
        return [
            unit["name"]
            for address, unit in self.about["units"].items()
            if (found := self.results.get(address)) is not None and found["unit"]["code"] != unit["code"]
        ]

    @property
    def stand_ins(self) -> dict[str, tuple[str, str]]:
        """What was used and what the source used, by name of the resource, where the two differ."""
        return {
            name: (self.about["used"][name], resource["prefers"])
            for name, resource in self.about.get("resources", {}).items()
            if self.about["used"].get(name, resource["prefers"]) != resource["prefers"]
        }

    @property
    def notes(self) -> list[str]:
        """Remarks for every table of the run: stand-ins, outdated results, failures."""
        notes = [
            f"{name}: {used} stands in for {prefers}." for name, (used, prefers) in self.stand_ins.items()
        ]
        if self.outdated:
            notes.append(f"Made with another version of the code: {', '.join(self.outdated)}.")
        notes += [f"Failed: {found['name']}: {found['error']}." for found in self.failures.values()]
        return notes


def read_run(folder: str | Path) -> Run:
    """Read the folder of a run.

    Raises:
        ValueError: it is none.
        DataError: a file in it is damaged.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json; testtime run makes one")
    about = read_json(path, AGAIN, ABOUT)
    with damaged(path, AGAIN):
        if about["schema"] > SCHEMA:
            raise ValueError(f"it has schema {about['schema']}, this version reads up to {SCHEMA}")
    results = _by_address(folder / "results", lambda path: read_result(path))
    failures = _by_address(folder / "failures", lambda path: read_json(path, AGAIN, {"error": str}))
    planned = about["units"]
    return Run(
        folder,
        about,
        {address: found for address, found in results.items() if address in planned},
        {address: found for address, found in failures.items() if address in planned},
    )


def _by_address(folder: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = read(path)
        found[content["unit"]["address"] if "unit" in content else content["address"]] = content
    return found


def _file(name: str, address: str) -> str:
    return f"{slug(name)[:80]}-{address[:12]}.json"


def finished(folder: RunFolder, units: Sequence[Unit]) -> dict[str, dict[str, Any]]:
    """Return the results that a run's folder has of some units, by address."""
    found = {}
    for unit in units:
        path = folder.result_file(unit)
        if path.is_file():
            found[unit.address] = read_result(path)
    return found
