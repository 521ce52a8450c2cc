"""The smallest complete experiment: a network learns handwritten digits, and adapts to corrupted ones.

It needs no files and runs in about a minute. Read it as the example of how an experiment is written: functions of units,
and an object that plans them and reads the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from testtime.build import build_method
from testtime.corruptions import CORRUPTIONS, EXTRA
from testtime.data import embedded
from testtime.errors import check_name
from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit, Workspace
from testtime.experiments.demo_list import LISTED
from testtime.experiments.registry import code_of
from testtime.models.digits import DigitsCNN
from testtime.parts.one_call_sgd import OneCallSGD
from testtime.processor import autocast
from testtime.source.passes import passes_over
from testtime.streams import continual
from testtime.training.checkpoint import load

__all__ = ["DIGITS", "Digits", "adapt_to_digits", "train_on_digits"]

BATCH, WEIGHTS = 64, "source.safetensors"


def train_on_digits(work: Workspace) -> dict[str, Any]:
    """Train the source network of a seed, with a checkpoint after every epoch in ``source.safetensors``."""
    p, train, test = work.parameters, embedded().train, embedded().test
    images = TensorDataset(train.batch(range(len(train))), train.targets(range(len(train))))
    torch.manual_seed(p["seed"])
    model = DigitsCNN().train()
    optimizer = OneCallSGD(model.parameters(), momentum=0.9, weight_decay=5e-4)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    files = {"file": work.folder / WEIGHTS, "described": p, "seed": p["seed"]}
    batches: Any = DataLoader(images, BATCH, shuffle=True)
    for epoch in passes_over(batches, p["epochs"], model, optimizer, loss, lambda epoch: 0.05, **files):
        work.progress(epoch + 1, p["epochs"])
    with torch.no_grad():
        wrong = model.eval()(test.batch(range(len(test)))).argmax(1) != test.targets(range(len(test)))
    return {"clean error": _percent(wrong), "images": len(train)}


def adapt_to_digits(work: Workspace) -> dict[str, Any]:
    """Run a method on corrupted digits, one corruption after the other, and count the errors of its predictions."""
    p, model = work.parameters, DigitsCNN()
    load(work.needs["source"].folder / WEIGHTS, model)
    adapter = build_method(p, model.eval(), 10, p["seed"])
    stream = continual(embedded().test, p["corruptions"], 5, BATCH, p["limit"], p["seed"])
    wrong: dict[str, list[torch.Tensor]] = {name: [] for name in p["corruptions"]}
    with autocast("cpu", p["precision"]):
        for number, batch in enumerate(stream, 1):
            wrong[batch.domain].append(adapter(batch.x).logits.argmax(1) != batch.y)
            work.progress(number, len(stream))
    return {"error": {name: _percent(torch.cat(found)) for name, found in wrong.items()}}


def _percent(wrong: torch.Tensor) -> float:
    return 100 * wrong.double().mean().item()


@final
class Digits(Experiment):
    """Error of some methods on corrupted digits."""

    name, title = LISTED[0].name, LISTED[0].title
    family = "demo"
    unused = ("model", "device")
    note = "The embedded data: 8x8 digits of the UCI test set, enlarged to 32x32."
    seeds = (0, 1, 2)
    settings = {"epochs": 12, "corruptions": ["gaussian_noise", "fog", "contrast"]}  # noqa: RUF012
    rows = (
        Row("Source", "base", about={"method": "Source"}),
        Row("BN-adapt", "control", about={"method": "BNAdapt"}),
        Row("TENT", about={"method": "Tent"}),
        Row("PAF+KIP", about={"method": "PAFKIP"}),
    )

    def plan(self, request: Request) -> Plan:
        epochs, corruptions = (self.setting(request, name) for name in ("epochs", "corruptions"))
        if type(epochs) is not int or epochs < 1:
            raise ValueError(f"epochs is a whole number from 1, got {epochs}")
        if not corruptions:
            raise ValueError("the list of corruptions is empty; leave it out to take the experiment's own")
        for name in corruptions:
            check_name("corruption", str(name), CORRUPTIONS + EXTRA)
        images = embedded()
        digests = images.train.digest() + images.test.digest()
        facts = {"digits": hashlib.sha256(digests.encode()).hexdigest()}
        common: dict[str, Any] = {"device": "cpu", "precision": request.precision, "facts": facts}
        common |= {"limit": request.limit, "corruptions": corruptions}
        rows, cells, others = self.chosen_rows(self.rows, request), [], {}
        for seed in request.seeds or ():
            training = {"seed": seed, "epochs": epochs, "facts": facts}
            name = f"source, seed {seed}"
            others[name] = source = Unit(f"{__name__}:train_on_digits", training, name)
            for row in rows:
                method, name = row.about["method"], f"{row.label}, seed {seed}"
                parameters, needs = {**common, "method": method, "seed": seed}, {"source": source}
                unit = Unit(f"{__name__}:adapt_to_digits", parameters, name, needs, code_of(method))
                cells.append(Cell(row.label, "continual", seed, unit))
        return Plan(rows, cells, others, facts, about={"corruptions": corruptions})

    def tables(self, run: Run) -> Sequence[Table]:
        names = run.about["about"]["corruptions"]
        columns = [
            Column("mean", lambda result: sum(result["error"].values()) / len(names), better="lower"),
            *(Column(name, ("error", name), better="lower") for name in names),
        ]
        title = "Error on corrupted digits"
        return [Table.of(title, run.rows, columns, run.records(), run.missing, run.notes)]


DIGITS = Digits()
