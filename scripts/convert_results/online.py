"""Results of testtime bench, until version 0.1.

A run is a folder with run.json and cells/*/result.json; field.json is a comparison of runs whose folders were not kept. The
histograms of scores are read from docs/cifar10-open.html beside the results, since the scores themselves were not kept, and the
declared forwards and backwards of the comparison from the table of docs/field.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from testtime.build import argument, find_method
from testtime.experiments import Plan, Request, Unit
from testtime.experiments.online.experiment import Batches, Inputs, Online, online
from testtime.experiments.provenance import SCHEMA
from testtime.experiments.run import RunFolder
from testtime.metrics import h_score

TOKEN = "converted"  # of results that belong to one run
SIDE = 32  # pixels of the images of all models
FIELD = {"continual": "closed set", "continual, open": "CIFAR-100 among them", "reset": "closed set"}
FIELD |= {"mixed": "closed set", "correlated": "closed set"}
FIELD_COMMANDS = {  # docs/field.md; rows and seeds were added to the folders by further commands
    "field-continual": "testtime bench field-continual --data .data --jobs 2",
    **{
        f"field-{s}": f"testtime bench field-{s} --open-sets none --data .data --jobs 2"
        for s in ("reset", "mixed", "correlated")
    },
}
MEASURES = ("accuracy", "error", "auroc", "h_score", "ece")
Results = dict[tuple[str, str, int], dict[str, Any]]


def convert(old: Path, new: Path) -> Iterator[str]:
    """Convert every run below a folder, and field.json; say what becomes of each."""
    scores = _scores((old.parent / "docs" / "cifar10-open.html").read_text(encoding="utf-8"))
    for path in sorted(old.glob("*/run.json")):
        if "protocol" in (about := json.loads(path.read_text(encoding="utf-8"))):
            found = _cells(path.parent, scores if path.parent.name == "cifar10-open" else {})
            yield _write(new / path.parent.name, about, found)
    if (old / "field.json").is_file():
        costs = _declared((old.parent / "docs" / "field.md").read_text(encoding="utf-8"))
        for about, found in _field(json.loads((old / "field.json").read_text(encoding="utf-8")), costs):
            yield _write(new / about["protocol"], about, found)


def _cells(folder: Path, scores: Mapping[tuple[str, str], Any]) -> Results:
    found = {}
    for path in sorted(folder.glob("cells/*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        place = result["label"], result["column"], result["seed"]
        result["scores"] = scores.get(place[:2], {}) if place[2] == 0 else {}
        found[place] = result
    return found


def _write(out: Path, about: Mapping[str, Any], results: Results) -> str:
    """Write a run in today's format."""
    experiment = online(about["protocol"])
    columns = [Batches(**{"open_set": None, **column}) for column in about["columns"]]
    config = next(iter(results.values()))["config"]
    request = _request(experiment, about, columns, config["precision"])
    inputs = Inputs(about["closed"], about["model"], SIDE, about["facts"], {})
    plan = experiment.plan_with(request, inputs, columns)
    there = {(row, column) for row, column, _ in results}
    cells = [cell for cell in plan.cells if (cell.row, cell.column, cell.seed) in results]
    left = set(results) - {(cell.row, cell.column, cell.seed) for cell in cells}
    if left:
        raise ValueError(f"{about['protocol']}: no place for {sorted(left)}")
    machine = dict(about["machine"])
    machine = {
        "system": machine["system"],
        "architecture": machine["processor"],
        "processor": "",
        "cores": machine["cores"],
    }
    session = {
        "started": about.get("started", ""),
        "command": about["command"],
        "versions": about["versions"],
        "machine": {**machine, "load": None},
        "device": "cpu",
        "precision": config["precision"],
        "threads": None,
    }
    converted = []
    for cell in cells:
        result = results[cell.row, cell.column, cell.seed]
        _compare(cell.unit, result["config"], experiment)
        converted.append((_with_code(cell.unit, result.get("code", "")), result))
    units = {unit.address: unit for unit, _ in converted}
    cells = [type(c)(c.row, c.column, c.seed, units[c.unit.address], c.about) for c in cells]
    rows = [row for row in plan.rows if any(row.label == label for label, _ in there)]
    folder = RunFolder(out)
    folder.write(experiment, request, Plan(rows, cells, {}, inputs.facts, plan.used, plan.about), session)
    for unit, result in converted:
        described = {name: value for name, value in unit.described().items() if name != "places"}
        made = {
            **session,
            "command": [],
            "threads": result.get("threads"),
            "finished": result.get("finished", ""),
        }
        content = {"schema": SCHEMA, "unit": described, "result": _result(result)}
        folder.adopt(unit, {**content, "made": {**made, "seconds": result.get("seconds")}})
    return f"{out}: {len(converted)} cells"


def _request(experiment: Online, about: Mapping[str, Any], columns: list[Batches], precision: str) -> Request:
    """The request whose plan the run is."""
    settings: dict[str, Any] = {}
    if [c.name for c in columns] != [c.name for c in experiment.columns]:
        settings["open_sets"] = [column.open_set or "none" for column in columns]
    labels = tuple(row["label"] for row in about["rows"])
    rows = None if labels == tuple(row.label for row in experiment.rows) else labels
    limit = None if about["limit"] == experiment.entry["limit"] else about["limit"]
    seeds = tuple(about["seeds"])
    return Request(
        experiment.name, seeds, rows, (), limit, precision=precision, settings=settings, token=TOKEN
    )


def _compare(unit: Unit, config: Mapping[str, Any], experiment: Online) -> None:
    """Refuse a cell that ran with other parameters than the unit has."""
    ours = dict(unit.parameters)
    ours["arguments"] = {name: _spoken(argument(value)) for name, value in sorted(ours["arguments"].items())}
    for name, value in config.items():
        if name in ours and ours[name] != value:
            raise ValueError(
                f"{experiment.name}, {unit.name}: {name} is {ours[name]}, the old cell has {value}"
            )


def _spoken(value: object) -> str:
    """An argument as the former version wrote it."""
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else repr(value)


def _with_code(unit: Unit, code: str) -> Unit:
    """The unit with the version of the method that made its result."""
    method = find_method(unit.parameters["method"]).__qualname__
    versions = {method: code} if code else {}
    return Unit(unit.kind, unit.parameters, unit.name, unit.needs, versions, unit.places, unit.weight)


def _result(old: Mapping[str, Any]) -> dict[str, Any]:
    kept = (
        "average",
        "domains",
        "time",
        "filters",
        "scores",
        "forgetting",
        "images",
        "unknown",
        "batches",
        "limit",
    )
    found = {name: old[name] for name in kept if name in old}
    seconds = {"seconds": old["seconds"]} if "seconds" in old else {}
    return {**found, "cost": {**old["cost"], **seconds}}


def _field(
    content: Mapping[str, Any], costs: Mapping[str, list[float]]
) -> Iterator[tuple[dict[str, Any], Results]]:
    """The runs whose comparison was kept, with what it says of their cells."""
    runs: dict[str, tuple[dict[str, Any], Results]] = {}
    for name, stream in content.items():
        experiment = online(stream["protocol"])
        column = next(c for c in experiment.columns if c.name == FIELD[name])
        about, found = runs.setdefault(
            stream["protocol"], ({**stream, "columns": [], "rows": {}, "seeds": set()}, {})
        )
        about["columns"].append(vars(column))
        domains = ["mixed"] if stream["order"] == "mixed" else experiment.entry["corruptions"]
        for label, method in stream["methods"].items():
            about["rows"][label] = {"label": label}
            for i, cell in enumerate(method["cell"]):
                seed = int(re.search(r"_s(\d+)_", cell)[1])  # type: ignore[index]
                about["seeds"].add(seed)
                found[label, column.name, seed] = _of_comparison(method, i, domains, costs[label], column)
    for about, found in runs.values():
        facts = dict.fromkeys(("weights", "corruptions", "cifar10"), "")
        opened = {c["open_set"]: "" for c in about["columns"] if c["open_set"]}
        command = FIELD_COMMANDS[about["protocol"]].split()
        rows = [about["rows"][r.label] for r in online(about["protocol"]).rows if r.label in about["rows"]]
        about |= {
            "facts": {**facts, **opened},
            "seeds": sorted(about["seeds"]),
            "rows": rows,
            "command": command,
        }
        yield about, found


def _of_comparison(
    method: Mapping[str, Any], i: int, domains: list[str], declared: list[float], column: Batches
) -> dict[str, Any]:
    error, area = method["error"][i], method["auroc"][i]
    both = None if area is None else h_score(100 - error, area)
    average = {
        "accuracy": 100 - error,
        "error": error,
        "auroc": area,
        "h_score": both,
        "ece": method["ece"][i],
    }
    return {
        "average": average,
        "domains": [{"domain": name, **dict.fromkeys(MEASURES)} for name in domains],
        "time": {"accuracy": [], "auroc": [], "h_score": [], "visit": []},
        "filters": {"all": {}, "time": {}},
        "forgetting": {"before": None, "after": None, "lost": method["lost"]},
        "cost": {
            "declared": declared,
            "relative": method["relative time"][i],
            **dict.fromkeys(("forwards", "backwards", "ms")),
        },
        "images": method["images"],
        "config": {"precision": "bfloat16", "open_set": column.open_set, "batch_size": column.batch_size},
    }


def _declared(page: str) -> dict[str, list[float]]:
    """Forwards and backwards by method, from the first table of docs/field.md."""
    table = page[page.index("| error in %") :].split("\n\n")[0].splitlines()[2:]
    found = {}
    for line in table:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[cells[0].rstrip("*").rstrip("\\")] = [float(cells[-3]), float(cells[-2])]
    return found


def _scores(page: str) -> dict[tuple[str, str], dict[str, list[float]]]:
    """The histograms that the former page drew: shares by bin, by method and column."""
    found = {}
    for title, drawing in re.findall(r"<title[^>]*>Scores of ([^<]*)</title>(.*?)</svg>", page, re.DOTALL):
        paths = dict(re.findall(r'<path class="area (\w+)" d="M0 [\d.]+(.*?)Z"', drawing))
        row, column = title.rsplit(", ", 1)
        found[row, column] = {name: _shares(path) for name, path in paths.items()}
    return found


def _shares(path: str) -> list[float]:
    corners = [float(y) for _, y in re.findall(r"L([\d.]+) ([\d.]+)", path)]
    floor = corners.pop()
    heights = [floor - y for y in corners[::2]]
    return [round(height / sum(heights), 5) for height in heights]
