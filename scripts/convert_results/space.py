"""Results of testtime space bench, until version 0.1: a folder with results.json for each analysis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testtime.experiments import Request, find_experiment, read_run
from testtime.experiments.provenance import SCHEMA
from testtime.experiments.run import RunFolder

UNKNOWN = "not recorded"


def convert(old: Path, new: Path) -> Iterator[str]:
    """Convert every analysis below a folder; say what becomes of each."""
    for path in sorted(old.glob("*/results.json")):
        _convert(path.parent, new / path.parent.name)
        yield str(new / path.parent.name)


def _convert(source: Path, out: Path) -> None:
    """Convert ``results.json`` of an analysis of test-space training.

    Raises:
        ValueError: a cell of the experiment has no result of the same variant, or several.
    """
    from testtime.experiments.space.analyses import Variant

    about = json.loads((source / "results.json").read_text(encoding="utf-8"))
    experiment = find_experiment(f"space-{about['analysis']}")
    results = about["results"]
    seeds = tuple(dict.fromkeys(result["seed"] for result in results))
    settings = {} if about["preset"] == "tiny" else {"preset": about["preset"]}
    request = Request(experiment.name, seeds, settings=settings, precision="float32", token=UNKNOWN)
    plan, folder = experiment.plan(request), RunFolder(out)
    session = _session(about["command"], about["machine"])
    folder.write(experiment, request, plan, session)
    known = {*asdict(Variant("", "scratch")), "row", "column", "seed", "value", "seconds"}
    for cell in plan.cells:
        places = [
            r for r in results if (r["row"], r["column"], r["seed"]) == (cell.row, cell.column, cell.seed)
        ]
        wanted = json.loads(json.dumps({k: v for k, v in cell.about.items() if k not in ("measure", "name")}))
        same = [r for r in places if {name: r[name] for name in wanted} == wanted]
        if len(same) != 1:
            raise ValueError(f"{source}: {cell.row}, {cell.column}, seed {cell.seed} has {len(same)} results")
        result = {name: value for name, value in same[0].items() if name not in known}
        if result[cell.about["measure"]] != same[0]["value"]:
            raise ValueError(f"{source}: {cell.row}, {cell.column}: the value is not that of its measure")
        described = {name: v for name, v in cell.unit.described().items() if name != "places"}
        made = {**session, "seconds": round(same[0]["seconds"], 3)}
        folder.adopt(cell.unit, {"schema": SCHEMA, "unit": described, "result": result, "made": made})
    if missing := read_run(out).missing:
        raise ValueError(f"{source}: {len(missing)} cells have no result, first {missing[0]}")


def _session(command: Sequence[str], machine: Mapping[str, str]) -> dict[str, Any]:
    """The provenance of an earlier version in today's form."""
    system, _, architecture = machine["machine"].partition(", ")
    return {
        "started": UNKNOWN,
        "command": list(command),
        "versions": dict(version.split(" ", 1) for version in machine["versions"].split(", ")),
        "machine": {"system": system, "architecture": architecture},
        "device": "cpu",
        "precision": "float32",
        "threads": None,
    }
