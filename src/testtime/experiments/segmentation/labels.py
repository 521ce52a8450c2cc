"""Accuracy from few labelled frames: coverage and variance of estimates on a stream whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit, Workspace
from testtime.experiments.segmentation.experiment import FACTS, Segmentation
from testtime.experiments.segmentation.units import FRAMES, road_frames
from testtime.files import read_tensors
from testtime.metrics.repeated_draws import DESIGNS, SETTINGS, check_numbers, repeat_draws
from testtime.processor import Precision

__all__ = ["FrameLabels", "frame_signals", "repeat_frames"]

KIND = f"{__name__}:repeat_frames"


def frame_signals(
    own: Mapping[str, Tensor], others: Mapping[str, Mapping[str, Tensor]]
) -> NDArray[np.float64]:
    """Return what is known of each frame without labels, (N, K).

    Args:
        own: tensors that the unit of the deployed method keeps: mean confidence, entropy and energy of the pixels, shares
            (N, C) of the classes in the mean prediction, and predicted classes (N, H, W).
        others: those of other methods on the same frames; the share of pixels on which they agree is a signal.
    """
    columns = [own[name].numpy()[:, None] for name in ("confidence", "entropy", "score")]
    columns.append(own["shares"].numpy())
    for other in others.values():
        same = (own["predicted"] == other["predicted"]).double().mean((1, 2))
        columns.append(same.numpy()[:, None])
    return np.concatenate(columns, axis=1)


def repeat_frames(work: Workspace) -> dict[str, Any]:
    """Estimate the mean pixel accuracy of frames again and again, from the labels of other frames each time."""
    p = work.parameters
    found = {name: read_tensors(made.folder / FRAMES)[0] for name, made in work.needs.items()}
    own = found.pop(p["deployed"])
    values, signals = own["accuracy"].numpy(), frame_signals(own, found)
    labels, facts = {}, {"draws": p["draws"], "seed": p["seed"]}
    for number, n in enumerate(p["labels"], 1):
        chances = own["confidence"].numpy()
        labels[str(n)] = repeat_draws(values, signals, chances, n, p["design"], interval="student", **facts)
        work.progress(number, len(p["labels"]))
    return {"accuracy": 100 * float(values.mean()), "samples": len(values), "labels": labels}


@final
class FrameLabels(Experiment):
    """Designs of an estimate of the mean pixel accuracy of frames, on the predictions of a deployed method at dusk.

    Settings: ``deployed`` is a row of segmentation-camvid, ``beside`` are rows whose agreement is a signal, ``labels`` are
    numbers of labelled frames, ``draws`` is the number of draws for each.
    """

    family = "segmentation"
    unused = ("model", "device")
    note = "The sample is a frame, its value the share of its labelled pixels that are predicted correctly."
    rows = tuple(Row(label, role, about={"method": name}) for name, (label, role) in DESIGNS.items())

    def __init__(self, name: str) -> None:
        self.name, self.title = name, FACTS["labels"][name]["title"]
        self.settings = {**SETTINGS, "labels": FACTS["labels"][name]["labels"]}
        self.base = Segmentation("segmentation-camvid")
        self.resources = self.base.resources

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        return ("float32",)

    def plan(self, request: Request) -> Plan:
        p = {name: self.setting(request, name) for name in self.settings}
        check_numbers(p["labels"], p["draws"])
        shown = (p["deployed"], *p["beside"])
        base = self.base.plan(replace(request, rows=shown, methods=(), settings={}))
        frames = len(road_frames(str(Path(request.data).resolve()), "dusk")[0])
        check_numbers(p["labels"], p["draws"], min(request.limit or frames, frames))
        rows, cells = self.chosen_rows(self.rows, request), []
        for row, seed in ((row, seed) for row in rows for seed in request.seeds or ()):
            needs = {cell.row: cell.unit for cell in base.cells if cell.seed == seed and cell.row in shown}
            facts = {"design": row.about["method"], **p, "seed": seed}
            cells.append(Cell(row.label, "", seed, Unit(KIND, facts, f"{row.label}, seed {seed}", needs)))
        return Plan(rows, cells, facts=base.facts, used=base.used, about={"columns": [], "tolerance": 0, **p})

    def tables(self, run: Run) -> Sequence[Table]:
        p, records = run.about["about"], run.records()
        cells = [(f"{n} frames", ("labels", str(n))) for n in p["labels"]]
        columns = [Column(n, (*at, "coverage"), None, "coverage", better=None) for n, at in cells]
        columns += [Column(n, (*at, "ratio"), None, "variance", "of plain", 2, "lower") for n, at in cells]
        of = sorted(
            {f"{r.result['accuracy']:.1f} % of the pixels of {r.result['samples']} frames" for r in records}
        )
        notes = [*run.notes, f"{p['deployed']} is right in {', '.join(of)}; {p['draws']:,} draws."]
        return [Table.of(self.title, run.rows, columns, records, run.missing, notes)]
