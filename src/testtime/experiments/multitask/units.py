"""The work of the family: rendering, training, choosing learning rates, adapting, drawing, and measuring.

Images are those of rendered houses, or of a part of a public set. The parameters of a unit that adapts hold ``rows`` by role,
such as "row" and "base": each with its network, method, optimizer, arguments and learning rate. Its needed units are the
trained network of each role, "rate ROLE" where the learning rate was chosen, and houses. Every image of a stream is met in the
order of the seed, whatever house it is from.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.build import find_method
from testtime.data.dense import DenseSet
from testtime.experiments.store import Workspace
from testtime.methods import Source
from testtime.models.assisted import Assisted
from testtime.models.synchronizer import legacy_order
from testtime.multitask.analysis import affinity, direction, masked_losses, step_times
from testtime.multitask.branches import build
from testtime.multitask.ceiling import Answers
from testtime.multitask.gradients import pulls, qualities
from testtime.multitask.houses import Houses, one_room_first
from testtime.multitask.pictures import Strip, sheets
from testtime.multitask.protocol import Protocol, follow, loaded
from testtime.multitask.public import Part, tasks_with
from testtime.multitask.training import Recipe, load_trained, train
from testtime.norm import running_statistics, source_statistics
from testtime.parts.optimizers import adam, sgd
from testtime.tasks import Tasks

__all__ = ["adapt", "choose_rate", "draw", "measure_affinity", "measure_direction", "measure_gradients"]
__all__ += ["measure_masked_loss", "render", "time_steps", "train_network"]

PREPARED = 512
"""Source images, at most, that an adapter is prepared with."""
MOMENTS = (0, 5, 20)
"""Steps that are drawn beside the last."""
ORDERS = ("depth", "edge", "normals", "semseg"), ("semseg", "depth", "normals", "edge")
"""Orders of the tasks in the released code, of training on Taskonomy and of reading as NYUD-v2."""
NORMS = {"running": running_statistics, "source": source_statistics}
OPTIMIZERS: dict[str, Any] = {"adam": adam, "sgd": sgd}


def render(work: Workspace) -> dict[str, Any]:
    """Render houses into the cache, where the other units find them."""
    return {"images": len(_houses(work))}


def train_network(work: Workspace) -> dict[str, Any]:
    """Train a network with its branch on labelled images, from random weights or from those of the unit "start"."""
    p = work.parameters
    model = build(_declared(p["network"]), p["network"], p["seed"], work.places.get("imagenet"))
    if "start" in work.needs:
        load_trained(model, work.needs["start"].folder)
    recipe = Recipe(**p["recipe"], precision=p["precision"])
    train(model, _houses(work), recipe, work.folder, p["seed"], p["device"])
    return {"parameters": _count(model)}


def choose_rate(work: Workspace) -> dict[str, Any]:
    """Try learning rates on the validation shift, and keep the one that is best after the last step; None where one diverges.

    Raises:
        ArithmeticError: the method diverges at every rate.
    """
    p, data, protocol, tasks = work.parameters, _stream(work), _protocol(work), _tasks(work)
    base = follow(Source(_trained(work, "base")), data, tasks, replace(protocol, steps=0), p["device"]).at(0)
    tried: dict[float, float | None] = {}
    for rate in p["rates"]:
        try:
            curve = follow(_adapter(work, rate=rate), data, tasks, protocol, p["device"])
            tried[rate] = curve.gains(base)[-1]
        except ArithmeticError:
            tried[rate] = None
        work.progress(len(tried), len(p["rates"]))
    held = {rate: gain for rate, gain in tried.items() if gain is not None}
    if not held:
        raise ArithmeticError(f"the method diverges at every rate of {p['rates']}; add lower ones to its row")
    best = max(held, key=held.__getitem__)
    return {"rate": best, "tried": {str(rate): gain for rate, gain in tried.items()}}


def adapt(work: Workspace) -> dict[str, Any]:
    """Follow a protocol on the target, and measure every task at the recorded steps."""
    target, adapter = _stream(work), _adapter(work)
    begin = time.monotonic()
    curve = follow(adapter, target, _tasks(work), _protocol(work), work.parameters["device"])
    cost = {"parameters": _count(_trained(work)), "seconds": time.monotonic() - begin}
    return {"rate": _rate(work), **asdict(curve), **cost}


def draw(work: Workspace) -> dict[str, Any]:
    """Draw images that the row and its control adapted to, before, during and after it, as PNG, light and dark."""
    protocol, (x, labels) = _protocol(work), _batch(work)
    strips = []
    for role, heading in (("row", "step {}"), ("control", "BN only, step {}")):
        if role in work.parameters["rows"]:
            adapter = _adapter(work, role)
            for step in range(protocol.steps + 1):
                if step:
                    adapter(x)
                if step == protocol.steps or (role == "row" and step in MOMENTS):
                    outputs = {name: y.detach().cpu() for name, y in adapter.predict(x).items()}
                    strips.append(Strip(heading.format(step) if step else "before", outputs))
    return {"sheets": sheets(_tasks(work), x, labels, strips)}


def measure_affinity(work: Workspace) -> dict[str, Any]:
    """Measure the affinity of the tasks on the target, of a network or after a method's steps."""
    model = _trained(work) if work.parameters["rows"]["row"]["method"] is None else _adapted(work)
    return {"affinity": affinity(model, _stream(work)).tolist()}


def measure_direction(work: Workspace) -> dict[str, Any]:
    """Measure whether a method's steps went where the labels of the target would have led."""
    return {"cosines": direction(_adapted(work), _trained(work), _stream(work), _tasks(work))}


def measure_gradients(work: Workspace) -> dict[str, Any]:
    """Measure the gradients of S4T's loss and of losses beside it against labels, and the predictions of the synchronizer."""
    frozen = work.parameters["rows"]["row"]["norm"] == "source"
    model, target = _adapter(work) if frozen else _adapted(work), _stream(work)
    found = pulls(model, target, _protocol(work).batch, work.parameters["batches"], work.parameters["seed"])
    return {"pulls": found, "qualities": qualities(model, target, _tasks(work))}


def measure_masked_loss(work: Workspace) -> dict[str, Any]:
    """Measure the loss of the synchronised outputs by the share of tokens that is masked, on unseen houses of the source."""
    found = masked_losses(_trained(work), _houses(work), work.parameters["ratios"])
    return {"losses": {f"{ratio:g}": losses for ratio, losses in found.items()}}


def time_steps(work: Workspace) -> dict[str, Any]:
    """Time the steps of all rows in turns, as multiples of a plain prediction of the first."""
    rows = work.parameters["rows"]
    base, adapters = _trained(work, next(iter(rows))), {role: _adapter(work, role) for role in rows}
    times = step_times(base, adapters, _batch(work)[0], work.parameters["rounds"], work.progress)
    return {r: {"parameters": _count(_trained(work, r)), "times_a_prediction": times[r]} for r in rows}


def _tasks(work: Workspace) -> Tasks:
    """The tasks of the networks, which all roles share."""
    network = next(iter(work.parameters["rows"].values()))["network"]
    return {name: _declared(network)[name] for name in network.get("tasks", _declared(network))}


def _declared(network: Mapping[str, Any]) -> Tasks:
    """The tasks with the classes of a network: those of a transfer between public sets, or the groups of houses."""
    return tasks_with(network.get("classes"))


def _houses(work: Workspace, name: str = "houses") -> DenseSet:
    """The houses of a parameter, or the part of a public set in their place."""
    facts = work.parameters[name]
    if "set" not in facts:
        return Houses(**facts).read(work.cache)
    declared = {key: value for key, value in facts.items() if key not in ("count", "digest")}
    return Part(**declared).read(work.places["data"])


def _stream(work: Workspace) -> DenseSet:
    data, p = _houses(work), work.parameters
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(p["seed"])).tolist()
    if p.get("one_room"):
        order = one_room_first(order, Houses(**p["houses"]).rooms(work.cache), _protocol(work).batch)
    return data.subset(order[: p["limit"]])


def _batch(work: Workspace) -> tuple[Tensor, dict[str, Tensor]]:
    """The first batch of the stream."""
    return next(loaded(_stream(work), _tasks(work), _protocol(work).batch, work.parameters["device"]))


def _protocol(work: Workspace) -> Protocol:
    return Protocol(**work.parameters["protocol"])


def _rate(work: Workspace, role: str = "row") -> float:
    need = work.needs.get(f"rate {role}")
    return float(work.parameters["rows"][role]["rate"] if need is None else need.result["rate"])


def _trained(work: Workspace, role: str = "row") -> nn.Module:
    network = work.parameters["rows"][role]["network"]
    model = build(_declared(network), network, work.parameters["seed"])
    return load_trained(model, work.needs[role].folder).to(work.parameters["device"])


def _adapter(work: Workspace, role: str = "row", rate: float | None = None) -> Adapter:
    row, model = work.parameters["rows"][role], _trained(work, role)
    if row["misplaced"]:  # as released: S4T on outputs that the released transfer puts in each other's places
        assert isinstance(model, Assisted)
        model = Assisted(model.network, legacy_order(model.branch, *ORDERS))  # type: ignore[arg-type]
    cls = find_method(row["method"])
    optimizer = OPTIMIZERS[row["optimizer"]](_rate(work, role) if rate is None else rate, **row["options"])
    given = {"optimizer": optimizer, "norm": NORMS[row["norm"]], "seed": work.parameters["seed"]}
    takes = inspect.signature(cls).parameters
    if "answers" in takes:  # of a ceiling: the one place where labels reach what adapts
        given["answers"] = Answers(_stream(work))
    adapter = cls(model, **{k: v for k, v in given.items() if k in takes}, **row["arguments"])
    if row["prepare"]:
        source, size = _houses(work, "source"), work.parameters["prepared"]
        starts = range(0, min(PREPARED, len(source)) - size + 1, size)
        adapter.prepare(source.batch(range(i, i + size))[0].to(work.parameters["device"]) for i in starts)
    return adapter


def _adapted(work: Workspace) -> Adapter:
    """The adapter of the row after the protocol's steps on the first batch."""
    adapter, x = _adapter(work), _batch(work)[0]
    for _ in range(_protocol(work).steps):
        adapter(x)
    return adapter


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
