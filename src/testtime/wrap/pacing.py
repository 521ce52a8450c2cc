"""Wrappers that decide how often a batch is learned: several times, or only when there is time."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.wrap.wrapper import Wrapper

__all__ = ["Repeat", "TimeConstrained"]


@final
class Repeat(Wrapper):
    r"""Every batch is learned several times, and then predicted: test-time training as its papers run it.

    A step:
        1. let the adapter learn the batch, ``times`` times;
        2. answer what it predicts then.

    ``Episodic(Repeat(adapter, 40))`` begins every batch at the source, ``Repeat(adapter, 40)`` goes on from the last.

    Args:
        adapter: adapter that learns; one call is one step of its optimizer.
        times: steps on a batch.

    Raises:
        ValueError: times is below 1.

    Cost: ``times`` times the adapter's, and one prediction.

    Reference: Sun et al., Test-Time Training with Self-Supervision for Generalization under Distribution Shifts, ICML 2020
    (10 steps); Jeong et al., Synchronizing Task Behavior, ICCV 2025 (up to 40).

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Repeat(Tent(net), 5)
    >>> y = tent(torch.rand(8, 3, 8, 8))
    >>> y.updated, int(tent.adapter.clock), tent.cost
    (True, 5, (6, 5))
    """

    def __init__(self, adapter: Adapter, times: int = 40) -> None:
        super().__init__(adapter)
        if times < 1:
            raise ValueError(f"times counts the steps on a batch and is at least 1, got {times}")
        self.times = times
        forwards, backwards = adapter.cost
        self.output, self.cost = "after", (times * forwards + 1, times * backwards)

    def step(self, x: Tensor) -> Any:
        updated = [self.adapter(x).updated for _ in range(self.times)]
        self._updated = any(updated)
        return self.adapter.predict(x)


@final
class TimeConstrained(Wrapper):
    r"""The stream does not wait: batches that come while the adapter is still learning are predicted without learning.

    With the cost c of a step of the adapter, in plain predictions, and :math:`\eta` batches coming in the time of one,

    .. math:: \text{batches that are missed after each that is learned} = \lceil \eta\, c \rceil - 1

    A step:
        1. if the last update is over, let the adapter predict the batch and update itself on it: this update begins;
        2. else predict without learning, by another model or by the adapter as it is.

    Departures: the paper measures c by the clock, so that no run is repeated; here it is declared, the forwards of a step and
    two for each backward unless given, and a run is a function of its seed. A method that answers and learns within one
    plain prediction misses nothing.

    Args:
        adapter: any.
        meanwhile: adapter that predicts the missed batches; the paper's is ``Source(model)``. None: the adapter itself, without
            learning.
        speed: eta, in (0, 1] in the paper; 1 is a stream as fast as the source model.
        cost: c; what the adapter declares unless given.

    Raises:
        TypeError: ``meanwhile`` is no adapter.
        ValueError: speed or cost is not positive, or infinite.

    Cost: the adapter's, and one prediction.

    Reference: Alfarra, Itani, Pardo, Bhuwalka, Singh, Ghanem and Pérez, Evaluation of Test-Time Adaptation Under Computational
    Time Constraints, ICML 2024.

    >>> from torch import nn
    >>> from testtime.methods import Source, Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = TimeConstrained(Tent(net), Source(net))  # a forward and a backward: two of three batches are missed
    >>> [tent(torch.rand(8, 3, 8, 8)).updated for _ in range(5)]
    [True, False, False, True, False]
    """

    kept_as: ClassVar = {
        "cost": "taken"
    }  # for testtime.save: the attribute that holds an argument of another name
    answers_with = "the adapter or the model that stands in for it, by the time that has passed"
    busy: Tensor

    def __init__(
        self,
        adapter: Adapter,
        meanwhile: Adapter | None = None,
        speed: float = 1.0,
        cost: float | None = None,
    ) -> None:
        super().__init__(adapter)
        if meanwhile is not None and not isinstance(meanwhile, Adapter):
            raise TypeError(f"meanwhile is an adapter, such as Source(model), got {type(meanwhile).__name__}")
        forwards, backwards = adapter.cost
        self.meanwhile, self.speed = meanwhile, speed
        self.taken = forwards + 2 * backwards if cost is None else cost
        if not 0 < speed < math.inf or not 0 < self.taken < math.inf:
            raise ValueError(f"speed and cost are positive and finite, got {speed} and {self.taken}")
        self.register_buffer("busy", torch.zeros((), dtype=torch.int64))

    @property
    def delay(self) -> int:
        """Batches that are missed after each that is learned."""
        return max(0, math.ceil(round(self.speed * self.taken, 9)) - 1)  # 0.28 * 25 is above 7

    def _initial_state(self) -> dict[str, Tensor]:
        if self.meanwhile is not None:
            self.meanwhile._initial_state()
        return super()._initial_state()

    def _predict_batch(self, x: Tensor) -> Tensor:
        return (self.meanwhile if self.meanwhile is not None and int(self.busy) else self.adapter).predict(x)

    def step(self, x: Tensor) -> Tensor:
        if int(self.busy):
            y = self._predict_batch(x)
            self.busy -= 1
            return y
        self.busy += self.delay
        return self.adapter(x)
