"""Accuracy from few labels: coverage and variance of the estimates on streams whose labels are known, and those of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from testtime.evaluation import read_samples
from testtime.experiments import (
    Cell,
    Column,
    Experiment,
    Plan,
    Request,
    Row,
    Run,
    Store,
    Table,
    Unit,
    Workspace,
    read_run,
)
from testtime.experiments.online import listing
from testtime.experiments.online.experiment import HERE, online
from testtime.experiments.online.stream import make_stream
from testtime.metrics.few_labels import Predictions, predictions_of
from testtime.metrics.repeated_draws import DESIGNS, SETTINGS, check_numbers, repeat_for

__all__ = ["FewLabels", "repeat_estimates", "run_predictions"]

KIND = f"{HERE}.few_labels:repeat_estimates"


def repeat_estimates(work: Workspace) -> dict[str, Any]:
    """Estimate the accuracy of the deployed method again and again, from the labels of other samples each time."""
    samples = {name: read_samples(made.folder) for name, made in work.needs.items()}
    found = predictions_of(samples, deployed := work.parameters["deployed"])
    return repeat_for(samples[deployed].correct, found, work.parameters, work.progress)


@final
class FewLabels(Experiment):
    """Designs of an estimate, on the predictions of a deployed method on the stream of an experiment.

    Settings: ``deployed`` is a row of that experiment, ``beside`` are rows whose agreement is a signal, ``labels`` are numbers
    of labels, ``draws`` is the number of draws for each.
    """

    family, settings = "online", SETTINGS
    rows = tuple(Row(label, role, about={"method": name}) for name, (label, role) in DESIGNS.items())

    def __init__(self, name: str) -> None:
        self.name, self.title, self.stream = name, *listing.FEW_LABELS[name].values()

    def plan(self, request: Request) -> Plan:
        p, cells = {name: self.setting(request, name) for name in self.settings}, []
        check_numbers(p["labels"], p["draws"])
        shown, rows = (p["deployed"], *p["beside"]), self.chosen_rows(self.rows, request)
        base = online(self.stream).plan(replace(request, rows=shown, settings={"open_sets": ["none"]}))
        for unit in [cell.unit for cell in base.cells[:1]]:
            stream = make_stream(unit.parameters, unit.places, unit.parameters["limit"])
            check_numbers(p["labels"], p["draws"], stream.images)
        for row, seed in ((row, seed) for row in rows for seed in request.seeds or ()):
            needs = {cell.row: cell.unit for cell in base.cells if cell.seed == seed}
            facts = {"design": row.about["method"], **p, "seed": seed}
            cells.append(Cell(row.label, "", seed, Unit(KIND, facts, f"{row.label}, seed {seed}", needs)))
        return Plan(rows, cells, facts=base.facts, used=base.used, about=p)

    def tables(self, run: Run) -> Sequence[Table]:
        p, records, lower = run.about["about"], run.records(), ("of plain", 2, "lower")
        cells = [(f"{n} labels", ("labels", str(n))) for n in p["labels"]]
        columns = [Column(n, (*at, "coverage"), None, "coverage", better=None) for n, at in cells]
        columns += [Column(n, (*at, "ratio"), None, "variance", *lower) for n, at in cells]  # type: ignore[arg-type]
        right = ", ".join(sorted({f"{r.result['accuracy']:.1f}" for r in records}))
        samples = ", ".join(sorted({f"{r.result['samples']:,}" for r in records}))
        about = f"{p['deployed']} is right in {right} % of {samples} samples; {p['draws']:,} draws."
        notes = [*run.notes, about]
        return [Table.of(self.title, run.rows, columns, records, run.missing, notes)]


def run_predictions(folder: str, deployed: str | None) -> Predictions:
    """Return the predictions of a row of a run, in its first column and seed; those of the other rows are beside them.

    Raises:
        ValueError: it is no run of single predictions, the row is not in it, or its store is not beside it.
    """
    run = read_run(folder)
    cells, store = run.about["cells"], Store(run.folder.absolute().parent / "store")
    same = [c for c in cells if (c["column"], c["seed"]) == (cells[0]["column"], cells[0]["seed"])]
    places = {c["row"]: store.folder(c["unit"]) for c in same}
    there = {row: read_samples(at) for row, at in places.items() if (at / "samples.safetensors").is_file()}
    if deployed is None or deployed not in there:
        if not there:
            raise ValueError(
                f"{folder}: no predictions of single samples in {store.root}; runs of classifiers on streams keep them there, "
                "such as digits-open and cifar10-open; or give a file of predictions"
            )
        names = f"the rows with predictions in {store.root} are {', '.join(there)}"
        raise ValueError(f"{folder}: expected --row, the method in use; {names}; or a file of predictions")
    return predictions_of(there, deployed)
