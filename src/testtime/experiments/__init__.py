"""Experiments: the tables and figures of the papers, each a named object, run by one engine.

**Concepts.** A :class:`Unit` is a function (by import path) and its parameters (values of JSON); its result is a small
dictionary, and heavy artefacts lie in its folder of the *store*, by content address. A unit may need others: a trained source
model is a unit that several experiments share. An :class:`Experiment` makes a :class:`Plan` out of a :class:`Request` (rows,
seeds, limit, device, precision, settings of the family): rows, and cells (row, column, seed) that show units. It reads
:class:`Table` objects out of a :class:`Run`, the folder of a run, from that folder alone.

**The folder of a run** is small and can be committed: ``run.toml`` (the request), ``run.json`` (the plan, provenance of every
command), ``results/*.json``, ``failures/*.json``. The store lies beside it and is shared by all runs there: ``units/``,
``cache/``, ``logs/``. Versions of code (``Unit.code``) do not change the address of a unit; a result of another version is
reported, and made again with ``again=True``.

:mod:`testtime.experiments.demo` is the smallest complete experiment; ``docs/guides/experiment.md`` shows how one is written.

    digits = find_experiment("digits")
    run_experiment(digits, Request("digits", seeds=(0, 1)), "runs/digits", backend=Processes(2))
    for table in digits.tables(read_run("runs/digits")):
        print(table.text())
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.experiments.backends import Backend, Here, Processes, Ray
    from testtime.experiments.engine import Summary, run_experiment
    from testtime.experiments.experiment import Cell, Experiment, Plan, Resource, Unit
    from testtime.experiments.registry import Listed, find_experiment, list_experiments
    from testtime.experiments.request import Request
    from testtime.experiments.run import Run, read_run
    from testtime.experiments.store import Made, Store, Workspace
    from testtime.experiments.table import Column, Paired, Record, Row, Table

__all__ = ["Backend", "Cell", "Column", "Experiment", "Here", "Listed", "Made", "Paired", "Plan", "Processes"]
__all__ += ["Ray", "Record", "Request", "Resource", "Row", "Run", "Store", "Summary", "Table", "Unit"]
__all__ += ["Workspace", "find_experiment", "list_experiments", "read_run", "run_experiment"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "backends": "Backend Here Processes Ray",
        "engine": "Summary run_experiment",
        "experiment": "Cell Experiment Plan Resource Unit",
        "registry": "Listed find_experiment list_experiments",
        "request": "Request",
        "run": "Run read_run",
        "store": "Made Store Workspace",
        "table": "Column Paired Record Row Table",
    },
)
