"""Results of testtime multitask bench and analyse, until version 0.1.

A study is a folder with study.json, command.json, cells/*.json, rate-*.json and pictures/*; an analysis is a folder with
command.json and result.json. Both become folders of runs, of the experiment that is named alike.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from testtime.experiments import Plan, Request, Unit, find_experiment
from testtime.experiments.provenance import SCHEMA
from testtime.experiments.run import RunFolder

ANALYSES = {"affinity": "affinity", "masks": "masked-loss", "cost": "cost", "direction": "direction"}
TOKEN = "converted"  # of results that belong to one run


def convert(old: Path, new: Path) -> Iterator[str]:
    """Convert every study and analysis below a folder; say what becomes of each."""
    for folder in sorted(path for path in old.iterdir() if path.is_dir()):
        kind, _, name = folder.name.rpartition("analyse-")
        if (folder / "study.json").is_file():
            yield _study(folder, new / folder.name)
        elif not kind and name in ANALYSES and (folder / "result.json").is_file():
            yield _analysis(folder, name, new / ANALYSES[name])


def _study(old: Path, new: Path) -> str:
    about, cells = _read(old / "study.json"), {}
    for path in (old / "cells").glob("*.json"):
        cell = _read(path)
        cells[cell["row"], cell["domain"], cell["seed"]] = cell
    seeds = sorted({*about.get("seeds", []), *(seed for _, _, seed in cells)})
    experiment, request = _request(f"multitask-{old.name}", about["preset"], seeds)
    plan = _plan(experiment.plan(replace(request, rows=tuple(about["rows"]))))
    results: dict[str, Any] = {}
    kept = ("rate", "steps", "values", "higher_is_better", "parameters", "seconds")
    for place in plan.cells:
        found = cells.get((place.row, place.column, place.seed))
        if found is not None:
            results[place.unit.address] = {name: found[name] for name in kept}
    for path in old.glob("rate-*.json"):
        (row,) = (row for row in about["rows"] if f"rate-{_slug(row)}.json" == path.name)
        results[plan.others[f"rate of {row}"].address] = _read(path)
    if (old / "pictures" / "pictures.json").is_file():
        results[plan.others["pictures"].address] = {"sheets": _sheets(old / "pictures")}
    return _write(old, new, experiment, request, plan, results)


def _analysis(old: Path, name: str, new: Path) -> str:
    found = _read(old / "result.json")
    seeds = found.get("seeds", [found["seed"]])
    experiment, request = _request(f"multitask-{ANALYSES[name]}", found["preset"], seeds)
    plan, results = _plan(experiment.plan(request)), {}
    for cell in plan.cells:
        if name == "affinity":
            result = {
                "affinity": {**found["affinity"], "tuned on the target's style": found["tuned"]}[cell.row]
            }
        elif name == "masks":
            result = {"losses": found["losses"]}
        elif name == "cost":
            result = found["rows"]
        else:
            result = {"cosines": found["cosines"][cell.row][seeds.index(cell.seed)]}
        results[cell.unit.address] = result
    return _write(old, new, experiment, request, plan, results)


def _request(name: str, preset: str, seeds: list[int]) -> tuple[Any, Request]:
    experiment = find_experiment(name)
    settings = {} if experiment.settings["preset"] == preset else {"preset": preset}
    return experiment, Request(name, tuple(seeds), precision="float32", settings=settings, token=TOKEN)


def _write(
    old: Path, new: Path, experiment: Any, request: Request, plan: Plan, results: dict[str, Any]
) -> str:
    command = _read(old / "command.json")
    machine = {"system": command["machine"]["system"], "architecture": command["machine"]["processor"]}
    machine |= {"processor": None, "cores": command["machine"]["cores"], "load": None}
    facts = {
        "machine": machine,
        "device": "cpu",
        "precision": "float32",
        "threads": 1,
        "started": "not recorded",
    }
    made = {"versions": command["versions"], **facts}
    folder = RunFolder(new)
    folder.write(experiment, request, plan, {**made, "command": command["command"], "converted": True})
    for unit in plan.units:
        if unit.address in results:
            described = {name: value for name, value in unit.described().items() if name != "places"}
            seconds = results[unit.address].get("seconds")
            content = {"schema": SCHEMA, "unit": described, "result": results[unit.address]}
            folder.adopt(unit, {**content, "made": {**made, "command": [], "seconds": seconds}})
    return f"{old} -> {new}: {len(results)} of {len(plan.units)} results"


def _plan(plan: Plan) -> Plan:
    """The plan with units whose code has no version."""

    def bare(unit: Unit) -> Unit:
        return replace(unit, code={}, needs={name: bare(need) for name, need in unit.needs.items()})

    cells = [replace(cell, unit=bare(cell.unit)) for cell in plan.cells]
    return replace(plan, cells=cells, others={name: bare(unit) for name, unit in plan.others.items()})


def _sheets(folder: Path) -> list[dict[str, str]]:
    def encoded(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    sheets = _read(folder / "pictures.json")["sheets"]
    return [
        {"caption": s["caption"], "light": encoded(s["light"]), "dark": encoded(s["dark"])} for s in sheets
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+-." else "_" for c in name.lower())
