"""A family of experiments on numbers, for the tests of the engine: a source, a rate chosen with it, and cells with both."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from testtime import Adapter
from testtime.experiments import (
    Cell,
    Column,
    Experiment,
    Listed,
    Plan,
    Request,
    Row,
    Run,
    Table,
    Unit,
    Workspace,
)

HERE = "toy_family"


def source(work: Workspace) -> dict[str, Any]:
    """An artefact, made in steps of which each leaves a checkpoint."""
    log = work.folder / "steps.txt"
    for step in range(log.read_text().count("\n") if log.is_file() else 0, work.parameters["steps"]):
        time.sleep(work.parameters.get("sleep", 0.0))
        with log.open("a") as file:
            file.write(f"{step} {os.getpid()}\n")
        work.progress(step + 1, work.parameters["steps"])
    (work.folder / "weights.txt").write_text(str(10 * work.parameters["seed"]))
    return {"steps": log.read_text().count("\n")}


def rate(work: Workspace) -> dict[str, Any]:
    """A choice on the source."""
    return {"rate": 0.5 + int((work.needs["source"].folder / "weights.txt").read_text())}


def cell(work: Workspace) -> dict[str, Any]:
    """A value from the source, the rate, and the generator of torch."""
    time.sleep(work.parameters.get("sleep", 0.0))
    if work.parameters["gain"] is None:
        raise ArithmeticError("it diverges")
    if work.parameters["gain"] == -2 or (
        work.parameters["gain"] < 0 and not (work.folder / "killed").exists()
    ):
        (work.folder / "killed").touch()
        os.kill(os.getpid(), 9)
    if work.parameters["gain"] == 1e3:
        return {"value": 1j}
    weights = int((work.needs["source"].folder / "weights.txt").read_text())
    value = weights + work.needs["rate"].result["rate"] + work.parameters["gain"]
    return {"value": value, "random": torch.rand(3).tolist(), "threads": torch.get_num_threads()}


class Mine(Adapter):
    """A method with the label of a row."""

    label = "one"


class Toy(Experiment):
    name, family, title = "toy", "toy", "Numbers"
    seeds = (0, 1)
    settings = {"sleep": 0.0, "steps": 2, "version": "1"}  # noqa: RUF012
    rows = (
        Row("base", "base", about={"gain": 0.0}),
        Row("one", about={"gain": 1.0}),
        Row("two", about={"gain": 2.0}),
    )

    def __init__(self, **gains: float | None) -> None:
        self.rows = (*self.rows, *(Row(name, about={"gain": gain}) for name, gain in gains.items()))

    def plan(self, request: Request) -> Plan:
        sleep = {"sleep": self.setting(request, "sleep")}
        cells, others = [], {}
        for seed in request.seeds or ():
            made = Unit(
                f"{HERE}:source",
                {"seed": seed, "steps": self.setting(request, "steps"), **sleep},
                f"source {seed}",
            )
            chosen = Unit(f"{HERE}:rate", {"seed": seed}, f"rate {seed}", {"source": made}, alone=True)
            others[f"rate {seed}"] = chosen
            for row in self.chosen_rows(self.rows, request):
                gain = row.about.get("gain", 7.0)  # a row of an own method has none
                parameters = {"gain": gain, **sleep, "limit": request.limit}
                needs = {"source": made, "rate": chosen}
                code = {"toy": self.setting(request, "version")} if row.label == "one" else {}
                cells.append(
                    Cell(
                        row.label,
                        "all",
                        seed,
                        Unit(f"{HERE}:cell", parameters, f"{row.label} {seed}", needs, code),
                    )
                )
        return Plan(self.chosen_rows(self.rows, request), cells, others, {"numbers": "ff"})

    def tables(self, run: Run) -> Sequence[Table]:
        columns = [Column("value", lambda result: result["value"], unit="")]
        return [Table.of(self.title, run.rows, columns, run.records(), run.missing, run.notes)]


def toy(name: str) -> Toy:
    return Toy()


def events(store: Path) -> list[dict[str, Any]]:
    """The lines of the store's logs."""
    import json

    return [json.loads(line) for path in store.glob("logs/*.jsonl") for line in path.read_text().splitlines()]


LISTED = [Listed("toy", "Numbers", f"{HERE}:toy")]
