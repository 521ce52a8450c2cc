"""Protocols: which batches are adapted to, how often, and what is measured after which step."""

from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from torch import nn

from testtime import Adapter
from testtime.data import DenseSet, Sample
from testtime.multitask import MultiTaskNet, Task
from testtime.multitask.protocol import PAPER, RELEASED, Curve, Protocol, evaluate, follow, gain


class Mean:
    """The mean of all outputs that have a label."""

    def __init__(self):
        self.seen = []

    def update(self, output, label):
        self.seen += output[label.isfinite()].flatten().tolist()

    def value(self):
        return sum(self.seen) / len(self.seen) if self.seen else float("nan")


@dataclass(frozen=True)
class Level(Task):
    name: str = "level"
    channels = 1
    kind: ClassVar = "regression"
    metric, higher_is_better = "mean", True

    def loss(self, output, label):
        return (output - label).abs().mean()

    agreement = loss

    def meter(self):
        return Mean()


TASKS = {"level": Level()}


class Numbers(DenseSet):
    """Sample i is an image of i; the label is known in even samples alone."""

    name, tasks = "numbers", ("level",)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = torch.full((3, 2, 2), float(index))
        return Sample(image, {"level": image[:1]} if index % 2 == 0 else {})


@final
class Counting(Adapter):
    """Adds 10 to its answers for every call, and 100 times the batch's mean."""

    needs = ()

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("calls", torch.zeros(()))

    def step(self, x):
        self.calls = self.calls + 1
        return self.model(x)

    def _predict_batch(self, x):
        return {"level": self.model(x)["level"] + 10 * self.calls}


def adapter():
    first = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        first.weight.fill_(1 / 3)
        first.bias.zero_()
    net = MultiTaskNet(first, {"level": nn.Identity()}, TASKS)
    net.input_range = (0.0, 8.0)
    return Counting(net)


def test_the_released_protocol_adapts_to_the_first_batch_and_measures_all():
    curve = follow(adapter(), Numbers(), TASKS, Protocol(steps=3, batch=2))
    assert curve.steps == [0, 1, 2, 3]
    assert curve.values["level"] == pytest.approx([2, 12, 22, 32])  # the mean of 0, 2, 4: what has a label
    assert Protocol("single_batch", 40, 8, "full_target") == RELEASED


def test_episodic_starts_every_batch_from_the_source():
    protocol = Protocol("per_batch_episodic", 2, 2, "adapted_batch")
    assert follow(adapter(), Numbers(), TASKS, protocol).values["level"] == pytest.approx([2, 12, 22])


def test_online_keeps_what_was_learned():
    protocol = Protocol("online_continual", 2, 2, "adapted_batch")
    # Before its steps the k-th batch meets 2k earlier ones: 0, 20, 40 on average 20.
    assert follow(adapter(), Numbers(), TASKS, protocol).values["level"] == pytest.approx([22, 32, 42])
    assert PAPER.scope == "online_continual"


def test_the_first_batch_alone_can_be_measured_alone():
    protocol = Protocol("single_batch", 1, 4, "adapted_batch")
    assert follow(adapter(), Numbers(), TASKS, protocol).values["level"] == pytest.approx([1, 11])


def test_what_is_recorded():
    assert Protocol(steps=40, record_every=15).recorded == [0, 15, 30, 40]
    assert Protocol(steps=0).recorded == [0]


def test_a_run_begins_at_the_initial_state():
    a = adapter()
    a(torch.zeros(1, 3, 2, 2))
    assert follow(a, Numbers(), TASKS, Protocol(steps=1, batch=2)).values["level"] == pytest.approx([2, 12])


def test_evaluate_leaves_out_what_has_no_label():
    assert evaluate(adapter().predict, Numbers(), TASKS, 4) == {"level": pytest.approx(2)}


def test_gain_and_oracle():
    curve = Curve([0, 1, 2], {"a": [10, 20, 15], "b": [4, 4, 1]}, {"a": True, "b": False})
    base = curve.at(0)
    assert curve.gains(base) == pytest.approx([0, 50, 62.5])
    assert curve.oracle(base) == 2
    worse = Curve([0, 1, 2], {"a": [10, 9, 8]}, {"a": True})
    assert worse.oracle({"a": 10}) == 1  # an oracle chooses among the steps that were taken
    nan = float("nan")
    assert gain({"a": 20, "b": nan}, {"a": 10, "b": nan}, {"a": True, "b": True}) == pytest.approx(100)
    with pytest.raises(ValueError, match="none of the tasks"):
        gain({"a": 1.0}, {"a": nan}, {"a": True})
    with pytest.raises(ValueError, match="base of"):  # a task that has diverged does not leave the mean
        gain({"a": nan, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": True, "b": True})


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="adapted_batch"):
        Protocol("online_continual")
    with pytest.raises(ValueError, match="at least"):
        Protocol(batch=0)
    with pytest.raises(ValueError, match="no sample"):
        follow(adapter(), Numbers().subset([]), TASKS)
