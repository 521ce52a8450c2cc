"""What a grid of short units costs beside their own work: in this process, on local processes, and on a local cluster of Ray.

Every way is a process of its own, so that it pays for its start. Times of a processor that other work shares say little about
wall time; the time of processors for each unit, workers and their starts included, is beside it (not of Ray, whose workers
are not children of this process). The efficiency is the wall time of one worker over that of two, times two; it says something
on a machine that has two idle processors.

    python benchmarks/jobs.py --units 200
    python benchmarks/jobs.py --units 200 --jobs 1 2 --ray 1 2    # with pip install 'testtime[ray]'
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, final

from testtime.data import embedded
from testtime.experiments import (
    Cell,
    Experiment,
    Here,
    Plan,
    Processes,
    Ray,
    Request,
    Row,
    Run,
    Table,
    Unit,
    run_experiment,
)

SOURCE, UNIT = (f"testtime.experiments.demo:{name}" for name in ("train_on_digits", "adapt_to_digits"))


@final
class Grid(Experiment):
    """A source network, and short units that adapt it."""

    name, family, title = "grid", "benchmark", "Short units"
    settings = {"units": 200, "images": 100}  # noqa: RUF012

    def plan(self, request: Request) -> Plan:
        facts = {"digits": embedded().test.digest()}
        source = Unit(SOURCE, {"seed": 0, "epochs": 1, "facts": facts}, "source")
        common = {"device": "cpu", "precision": "float32", "facts": facts, "method": "Tent"}
        common |= {"limit": self.setting(request, "images"), "corruptions": ["fog"]}
        units = [
            Unit(UNIT, {**common, "seed": seed}, f"TENT, seed {seed}", {"source": source})
            for seed in range(self.setting(request, "units"))
        ]
        return Plan([Row("TENT")], [Cell("TENT", "", seed, unit) for seed, unit in enumerate(units)])

    def tables(self, run: Run) -> Sequence[Table]:
        return []


def measured(units: int, jobs: int, ray: bool, folder: Path) -> dict[str, float]:
    """Run the grid in this process (0 jobs), on local processes or on Ray, and return its times in seconds."""
    request = Request("grid", (0,), precision="float32", settings={"units": units})
    store = folder / "store"
    before, begin = time.process_time(), time.monotonic()
    backend = Ray("local", jobs) if ray else Processes(jobs) if jobs else Here()
    summary = run_experiment(Grid(), request, folder / "run", store, backend, say=lambda line: None)
    assert not summary.failed, summary.failed
    wall = time.monotonic() - begin
    if not ray:
        forkserver._forkserver._stop()  # type: ignore[attr-defined] - waited for, its children's time counts
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    paths = [path for path in store.glob("units/*/*/result.json") if '"TENT, seed' in path.read_text()]
    own = sum(json.loads(path.read_text())["made"]["seconds"] for path in paths)
    cpu = time.process_time() - before + children.ru_utime + children.ru_stime
    return {"wall": wall, "cpu": cpu, "main": time.process_time() - before, "units": own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--jobs", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--ray", type=int, nargs="*", default=[], help="processors of clusters that are started"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        jobs, ray = (given.ray[0], True) if given.ray else (given.jobs[0], False)
        print(json.dumps(measured(given.units, jobs, ray, Path(given.one))))
        return
    if given.ray and importlib.util.find_spec("ray") is None:
        parser.error("--ray needs ray: pip install -e '.[ray]'")
    found: dict[tuple[str, int], dict[str, Any]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    print(f"{given.units} units, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print("workers  wall s  processor s  of it here  in units, wall  ms a unit  efficiency on the clock")
    for kind, jobs in [*(("jobs", n) for n in given.jobs), *(("ray", n) for n in given.ray)]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--units", str(given.units), f"--{kind}", str(jobs)]
            text = subprocess.check_output([*command, "--one", folder], env=environment, text=True)
        one = found[kind, jobs] = json.loads(text.splitlines()[-1])
        first = found.get((kind, 1))
        speed = f"{first['wall'] / (jobs * one['wall']):.2f}" if first and jobs else ""
        each = "" if kind == "ray" else f"{1000 * one['cpu'] / given.units:.0f}"
        processor = "" if kind == "ray" else f"{one['cpu']:.1f}"
        print(
            f"{kind} {jobs}  {one['wall']:7.1f}  {processor:>11}  {one['main']:10.1f}  "
            f"{one['units']:14.1f}  {each:>9}  {speed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
