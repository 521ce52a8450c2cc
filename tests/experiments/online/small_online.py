"""Small runs of digits for the tests of online adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from testtime.experiments import Processes, Request, Run, Summary, Unit, Workspace, read_run, run_experiment
from testtime.experiments.online.experiment import online

SETTINGS = {"corruptions": ["fog", "contrast"], "batch_size": 20, "slow_limit": 10}
SMALL = Request(
    "digits-open", (0,), ("Source", "TENT"), limit=30, precision="float32", settings=SETTINGS, token="t"
)
ROWS = ["Source", "TENT"]


def silent(line: str) -> None:
    """Say nothing."""


def asked(**changes: Any) -> Request:
    """The small request with other fields, and settings among them."""
    fields = {
        name: changes.pop(name)
        for name in ("seeds", "rows", "methods", "limit", "data", "model")
        if name in changes
    }
    return replace(SMALL, **fields, settings={**SETTINGS, **changes})


def run(
    folder: Path, request: Request = SMALL, jobs: int = 0, say: Callable[[str], None] = silent
) -> Summary:
    """Run the request in a folder."""
    experiment = online(request.experiment)
    return run_experiment(experiment, request, folder, backend=Processes(jobs) if jobs else None, say=say)


def results(folder: Path) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """The results of a run by row, column and seed."""
    return {(r.row, r.column, r.seed): r.result for r in read_run(folder).records()}


def finished(folder: Path, request: Request = SMALL) -> Run:
    """The run of a request, made if it is not there."""
    assert run(folder, request).exit_code == 0
    return read_run(folder)


def unit(row: str = "TENT", **changes: Any) -> Unit:
    """The unit of a row."""
    request = asked(rows=(row,), **changes)
    plan = online(request.experiment).plan(request)
    return next(cell.unit for cell in plan.cells if cell.row == row)


def workspace(one: Unit, folder: Path, report: Callable[[float], None] = lambda share: None) -> Workspace:
    """What the function of a unit gets, in a folder of its own; the cache lies beside it."""
    cache = folder.parent / "cache"
    for path in (folder, cache):
        path.mkdir(parents=True, exist_ok=True)
    return Workspace(one.described()["parameters"], dict(one.places), {}, folder, cache, report)
