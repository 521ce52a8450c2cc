"""The smallest complete experiment: a network learns handwritten digits, and adapts to corrupted ones.

It needs no files and runs in about a minute. Read it as the example of how an experiment is written: functions of units,
and an object that plans them and reads the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F

from testtime.build import build_method
from testtime.corruptions import CORRUPTIONS, EXTRA
from testtime.data import embedded
from testtime.errors import unknown_name
from testtime.experiments.demo_list import LISTED
from testtime.experiments.experiment import Cell, Experiment, Plan, Unit
from testtime.experiments.registry import code_of
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.store import Workspace
from testtime.experiments.table import Column, Row, Table
from testtime.models.digits import DigitsCNN
from testtime.processor import autocast
from testtime.streams import continual
from testtime.training import loop
from testtime.training.checkpoint import load

__all__ = ["DIGITS", "Digits", "adapt_to_digits", "train_on_digits"]

BATCH = 64


def train_on_digits(work: Workspace) -> dict[str, Any]:
    """Train the source network of a seed, a checkpoint after every epoch; ``source.safetensors`` holds the weights."""
    seed, epochs = work.parameters["seed"], work.parameters["epochs"]
    data = embedded().train
    x, y = data.batch(range(len(data))), data.targets(range(len(data)))
    torch.manual_seed(seed)
    model = DigitsCNN()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    per_epoch = -(-len(x) // BATCH)

    def loss(step: int) -> dict[str, torch.Tensor]:
        epoch, at = divmod(step, per_epoch)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        rows = order.split(BATCH)[at]
        return {"loss": F.cross_entropy(model(x[rows]), y[rows])}

    plan = loop.Plan(epochs * per_epoch, save_every=per_epoch)
    files = loop.folder_files(work.folder, "source.safetensors")
    name, recipe = "source network", work.parameters
    training = loop.Training(model.train(), optimizer, plan, name, files, recipe, seed, show=False)
    for step in training.iterate(loss):
        if (step + 1) % per_epoch == 0:
            work.progress((step + 1) // per_epoch, epochs)
    test = embedded().test
    with torch.no_grad():
        right = model.eval()(test.batch(range(len(test)))).argmax(1) == test.targets(range(len(test)))
    return {"clean error": 100 * (1 - right.float().mean().item()), "images": len(x)}


def adapt_to_digits(work: Workspace) -> dict[str, Any]:
    """Run a method on corrupted digits, one corruption after the other, and count the errors of its predictions."""
    p = work.parameters
    model = DigitsCNN()
    load(work.needs["source"].folder / "source.safetensors", model)
    adapter = build_method(p, model.eval(), 10, p["seed"])
    stream = continual(embedded().test, p["corruptions"], 5, BATCH, p["limit"], p["seed"])
    wrong, seen = (dict.fromkeys(p["corruptions"], 0) for _ in range(2))
    with autocast("cpu", p["precision"]):
        for number, batch in enumerate(stream, 1):
            wrong[batch.domain] += int((adapter(batch.x).logits.argmax(1) != batch.y).sum())
            seen[batch.domain] += len(batch)
            work.progress(number, len(stream))
    return {"error": {name: 100 * wrong[name] / seen[name] for name in wrong}}


@final
class Digits(Experiment):
    """Error of some methods on corrupted digits."""

    name, title = LISTED[0].name, LISTED[0].title
    family = "demo"
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
            if name not in CORRUPTIONS + EXTRA:
                raise unknown_name("corruption", str(name), CORRUPTIONS + EXTRA)
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
            *(Column(name, partial(_error, name), better="lower") for name in names),
        ]
        title = "Error on corrupted digits"
        return [Table.of(title, run.rows, columns, run.records(), run.missing, run.notes)]


def _error(corruption: str, result: dict[str, Any]) -> float:
    return float(result["error"][corruption])


DIGITS = Digits()
