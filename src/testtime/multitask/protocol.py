"""Protocols of multi-task test-time training: on which batches, for how many steps, and what is measured when.

The S4T paper writes of "each batch for up to 40 steps in an online manner" and reports, for every method, the step that is
best on the test labels; its released code adapts to the first batch alone and measures once. Here a protocol chooses which, the
last step is the headline, and the oracle's choice may be shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.data.dense import DenseSet
from testtime.metrics.synchronisation import delta_ttt
from testtime.tasks import Meter, Tasks

__all__ = ["PAPER", "RELEASED", "Curve", "Protocol", "evaluate", "follow", "gain"]


@dataclass(frozen=True)
class Protocol:
    """What a run does.

    Attributes:
        scope: "single_batch": adapt to the first batch, once; "per_batch_episodic": adapt to every batch, each time from
            the source; "online_continual": adapt to every batch and keep what was learned.
        steps: calls of the adapter on a batch.
        batch: images in a batch, also where nothing is adapted.
        eval_on: "full_target": after a step, every image of the target; "adapted_batch": after the k-th step on each batch,
            that batch, pooled over the batches.
        record_every: steps between two measurements; step 0 (the source) and the last are always measured.

    Raises:
        ValueError: the whole target is to be measured at every step on every batch, which no paper did.
    """

    scope: Literal["single_batch", "per_batch_episodic", "online_continual"] = "single_batch"
    steps: int = 40
    batch: int = 8
    eval_on: Literal["full_target", "adapted_batch"] = "full_target"
    record_every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.record_every < 1:
            raise ValueError("steps is at least 0, batch and record_every at least 1")
        if self.eval_on == "full_target" and self.scope != "single_batch":
            raise ValueError(
                f"with scope={self.scope!r} measure eval_on='adapted_batch'; the whole target is for one batch"
            )

    @property
    def recorded(self) -> list[int]:
        """The steps at which something is measured, 0 being the source."""
        return sorted({*range(0, self.steps + 1, self.record_every), self.steps})


RELEASED = Protocol()
"""The released code: the first batch of 8, 40 steps, all of the target measured (here after every step)."""

PAPER = Protocol("online_continual", eval_on="adapted_batch")
"""The paper's words: every batch of 8, 40 steps each, online."""


@dataclass(frozen=True)
class Curve:
    """The metric of every task after every recorded step.

    Attributes:
        steps: the recorded steps, the first being 0.
        values: values by task, one for each recorded step.
        higher_is_better: direction of the metric by task.
    """

    steps: list[int]
    values: dict[str, list[float]]
    higher_is_better: dict[str, bool]

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Curve:
        """Return the curve of its attributes as values of JSON, in which None stands for a missing value.

        Raises:
            ValueError: there are more or fewer values of a task than steps.
        """
        values = {
            name: [math.nan if v is None else v for v in some] for name, some in facts["values"].items()
        }
        if any(len(some) != len(facts["steps"]) for some in values.values()):
            counts = {name: len(some) for name, some in values.items()}
            raise ValueError(f"expected a value of each task for {len(facts['steps'])} steps, got {counts}")
        return cls(facts["steps"], values, facts["higher_is_better"])

    def at(self, place: int) -> dict[str, float]:
        """The metrics at the place-th recorded step (-1 for the last)."""
        return {name: series[place] for name, series in self.values.items()}

    def gains(self, base: Mapping[str, float]) -> list[float]:
        """Delta_TTT in percent at every recorded step."""
        return [gain(self.at(i), base, self.higher_is_better) for i in range(len(self.steps))]

    def oracle(self, base: Mapping[str, float]) -> int:
        """The place of the recorded step (but 0) with the best Delta_TTT, which only labels can tell."""
        gains = self.gains(base)
        return max(range(1, len(gains)), key=gains.__getitem__) if len(gains) > 1 else 0


def gain(
    metrics: Mapping[str, float], base: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    r"""Delta_TTT in percent, :math:`\frac{100}{n} \sum_i (-1)^{l_i} (M_i - B_i) / B_i`; a task never measured has no part."""
    known = [name for name in base if math.isfinite(base[name])]
    if not known:
        raise ValueError(f"none of the tasks {sorted(base)} was measured")
    pick = {name: metrics[name] for name in known}
    return delta_ttt(pick, {k: base[k] for k in known}, {k: higher_is_better[k] for k in known})


def evaluate(
    predict: Any, target: DenseSet, tasks: Tasks, batch: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The headline metric of every task over a whole set.

    Args:
        predict: from images (N, 3, H, W) to outputs by task; an adapter's ``predict``, or a model.
        target: samples with labels.
        tasks: tasks by name.
        batch: images at once.
        device: device of the images.
    """
    meters = {name: task.meter() for name, task in tasks.items()}
    with torch.no_grad():
        for x, labels in loaded(target, tasks, batch, device):
            measure(meters, predict(x), labels)
    return {name: meter.value() for name, meter in meters.items()}


def measure(meters: Mapping[str, Meter], outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
    """Show each meter its output and label; a task without a label is left alone.

    Raises:
        ArithmeticError: an output is not finite.
    """
    for name, meter in meters.items():
        if name in labels:
            if not bool(torch.isfinite(outputs[name]).all()):
                raise ArithmeticError(
                    f"the output {name!r} is not finite: the model has diverged; take a lower rate"
                )
            meter.update(outputs[name], labels[name])


def loaded(
    target: DenseSet, tasks: Tasks, batch: int, device: torch.device | str
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The set in batches, in its order, with the labels of these tasks."""
    for start in range(0, len(target), batch):
        x, labels = target.batch(range(start, min(start + batch, len(target))))
        yield x.to(device), {name: y.to(device) for name, y in labels.items() if name in tasks}


def follow(
    adapter: Adapter,
    target: DenseSet,
    tasks: Tasks,
    protocol: Protocol = RELEASED,
    device: torch.device | str = "cpu",
) -> Curve:
    """Run a protocol: adapt and measure, step by step. Labels reach the meters and nothing else.

    Args:
        adapter: over a multi-task model; it is reset first.
        target: the shifted domain, in the order of the stream.
        tasks: those to measure, by name.
        protocol: protocol of adaptation and measurement.
        device: device of the adapter.

    Raises:
        ValueError: the target holds no sample.
        ArithmeticError: the model has diverged.
    """
    if len(target) == 0:
        raise ValueError(f"{target.name} holds no sample to adapt to")
    adapter.reset()
    recorded = protocol.recorded
    directions = {name: task.higher_is_better for name, task in tasks.items()}
    if protocol.scope == "single_batch" and protocol.eval_on == "full_target":
        x, _ = next(loaded(target, tasks, protocol.batch, device))
        rows = []
        for step in range(protocol.steps + 1):
            if step:
                adapter(x)
            if step in recorded:
                rows.append(evaluate(adapter.predict, target, tasks, protocol.batch, device))
    else:
        meters = [{name: task.meter() for name, task in tasks.items()} for _ in recorded]
        for x, labels in loaded(target, tasks, protocol.batch, device):
            if protocol.scope == "per_batch_episodic":
                adapter.reset()
            for step in range(protocol.steps + 1):
                if step:
                    adapter(x)
                if step in recorded:
                    measure(meters[recorded.index(step)], adapter.predict(x), labels)
            if protocol.scope == "single_batch":
                break
        rows = [{name: meter.value() for name, meter in each.items()} for each in meters]
    return Curve(recorded, {name: [row[name] for row in rows] for name in tasks}, directions)
