"""Experiments: the tables and figures of the papers, each a named object, run by one engine.

**Concepts.** A :class:`Unit` is a function (by import path) and its parameters (values of JSON); its result is a small
dictionary, and heavy artefacts lie in its folder of the *store*, by content address. A unit may need others: a trained source
model is a unit that several experiments share. An :class:`Experiment` makes a :class:`Plan` out of a :class:`Request` (rows,
seeds, limit, device, precision, settings of the family): rows, and cells (row, column, seed) that show units. It reads
:class:`Table` objects out of a :class:`Run`, the folder of a run, from that folder alone.

**The folder of a run** is small and can be committed: ``run.toml`` (the request), ``run.json`` (the plan, provenance of every
command), ``results/*.json``, ``failures/*.json``. The store lies beside it and is shared by all runs there: ``units/``,
``cache/``, ``logs/``.

**Example.** :mod:`testtime.experiments.demo` is the smallest complete one.

    from testtime.experiments import Processes, Request, find_experiment, read_run, run_experiment

    digits = find_experiment("digits")
    run_experiment(digits, Request("digits", seeds=(0, 1)), "runs/digits", backend=Processes(2))
    for table in digits.tables(read_run("runs/digits")):
        print(table.text())

**How a family is written.**

1. A function for each kind of unit, ``def cell(work: Workspace) -> dict``: it reads ``work.parameters``,
   ``work.needs["source"].result`` and ``.folder``, paths in ``work.places``; writes artefacts and checkpoints into
   ``work.folder`` (what a killed attempt left is there again), shared caches into ``work.cache``; calls
   ``work.progress(done, total)``. Whatever the result depends on is a parameter (digests of data and weights, device,
   precision, seed). A learning rate that is chosen on a validation shift is the result of a unit that the cell needs.
2. A subclass of :class:`Experiment` whose objects are the tables: ``plan(request)`` and ``tables(run)``. ``chosen_rows`` adds
   rows for own methods of the request; :func:`~testtime.build.find_method` finds the class of any row.
   Versions of code (``Unit.code``, :func:`~testtime.experiments.registry.code_of`) do not change the address; a result of
   another version is reported, and made again with ``again=True``. A measurement of time is a unit with ``alone=True``; one
   that belongs to a single run has ``request.token`` among its parameters. What a table needs beside its cells (baselines,
   chosen rates) is in ``Plan.others`` and comes back by ``run.other(name)``; a column may also read ``result["made"]``, the
   provenance of the unit with its seconds. Data and weights with stand-ins are :class:`Resource` objects.
3. A light module with ``LISTED`` (:class:`~testtime.experiments.registry.Listed`), named in
   :data:`~testtime.experiments.registry.FAMILIES`, so that ``testtime list`` need not import torch.
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
