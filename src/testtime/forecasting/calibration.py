r"""Gated calibration: small maps over time before and behind a frozen forecaster, each opened by a gate for each series.

.. math::
    x' = x + \tanh(g_x) \odot (A_x B_x x + c_x), \qquad
    \hat y' = f(x') + \tanh(g_y) \odot (A_y B_y f(x') + c_y)

over time, with :math:`A` (T, r), :math:`B` (r, T) for T = L at the input and T = H at the output, a bias :math:`c` (T, D)
and a gate :math:`g` (D,) for each series. :math:`A` and :math:`c` are zero at first, so it is the source.

A step:
    1. take the gradient of the mean squared error of the forecast whose truth has just arrived;
    2. update maps, biases and gates once;
    3. forecast.

Departures:
    This is in the spirit of two methods and neither of them: its figures are not theirs. TAFAS (Kim et al., AAAI 2025) has
    such gated maps of full rank for each series, and learns also from truths that have arrived in part; PETSA (Medeiros et
    al., 2025) has maps of low rank with gates that depend on the input, and further terms of the loss. Here the maps are of
    low rank, shared by the series, and the loss is of whole windows.

Cost: two forwards and one backward of the source.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.forecasting.corrected import Corrected, forecaster_of, in_turn
from testtime.forecasting.output import like
from testtime.intake.arguments import Positive
from testtime.parts.optimizers import OptimizerFactory, adam
from testtime.parts.randomness import generator

__all__ = ["GatedCalibration"]


@final
class GatedMap(nn.Module):
    """A map of low rank over time, added behind a gate.

    Args:
        like: tensor whose type and device the parameters have.
        time: T, number of steps.
        channels: D, number of series.
        rank: r, rank of the map.
        gate: initial value of the gates.
        rng: generator of the initial values of B, normal with deviation 1 / sqrt(T).
    """

    def __init__(
        self, like: Tensor, time: int, channels: int, rank: int, gate: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.gate = nn.Parameter(like.new_full((channels,), gate))
        self.left = nn.Parameter(like.new_zeros(time, rank))
        drawn = torch.randn(rank, time, generator=rng) / time**0.5
        self.right = nn.Parameter(drawn.to(like))
        self.bias = nn.Parameter(like.new_zeros(time, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the calibrated values (N, T, D)."""
        return x + torch.tanh(self.gate) * (self.left @ (self.right @ x) + self.bias)


@final
class GatedCalibration(Adapter):
    """Learn gated maps over time before and behind the forecaster.

    Args:
        model: a :class:`testtime.forecasting.Forecaster`.
        optimizer: moves maps, biases and gates.
        rank: r, rank of the maps.
        gate: initial value of the gates.
        seed: random seed of the initial maps.

    Raises:
        ValueError: the model is no forecaster, or a window is not ``length + horizon`` long.

    >>> from testtime.forecasting import Forecaster, NLinear
    >>> adapter = GatedCalibration(Forecaster(NLinear(4, 2), length=4, horizon=2, channels=3))
    >>> y = adapter(torch.randn(1, 6, 3))
    >>> y["forecast"].shape, y.updated
    (torch.Size([1, 2, 3]), True)
    """

    name, label = "gated-calibration", "gated calibration"
    needs = ("forecaster",)
    output = "after"
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        rank: Positive = 8,
        gate: float = 0.05,
        seed: int = 0,
    ) -> None:
        shape, of = forecaster_of(model), like(model)
        rng = generator(seed, 0, "gated maps")
        before = GatedMap(of, shape.length, shape.channels, rank, gate, rng)
        behind = GatedMap(of, shape.horizon, shape.channels, rank, gate, rng)
        super().__init__(Corrected(model, behind, before), seed)
        self.optimizer, self.rank, self.gate = optimizer, rank, gate
        maps = [self.model.get_submodule(f"network.{name}") for name in ("inputs", "output")]
        self.adapt([p for m in maps for p in m.parameters()], optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        return in_turn(self.model, x, self.update)
