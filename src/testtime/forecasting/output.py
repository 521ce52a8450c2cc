r"""The smallest corrections of a forecast: a bias for each step and series, and a scale and shift for each series.

.. math:: \hat y' = \hat y + b, \qquad \hat y' = (1 + a) \odot \hat y + b

A step:
    1. take the gradient of the mean squared error of the forecast whose truth has just arrived;
    2. update the correction once;
    3. forecast.

They are controls: what a method gains over these is its own. Both are the source at first.

Cost: two forwards of the source, no backward through it.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.forecasting.corrected import Corrected, forecaster_of, in_turn
from testtime.parts.optimizers import OptimizerFactory, adam

__all__ = ["OutputBias", "ScaleShift"]


@final
class Affine(nn.Module):
    """Scale and shift, or a shift alone, that are zero at first.

    Args:
        like: tensor whose type and device the parameters have.
        scale: shape of the scale, broadcast to (N, H, D); None for no scale.
        shift: shape of the shift.
    """

    def __init__(self, like: Tensor, scale: tuple[int, ...] | None, shift: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(like.new_zeros(scale))
        self.shift = nn.Parameter(like.new_zeros(shift))

    def forward(self, y: Tensor) -> Tensor:
        """Return the corrected forecast (N, H, D)."""
        return (y if self.scale is None else (1 + self.scale) * y) + self.shift


def like(model: nn.Module) -> Tensor:
    """A tensor of the type and on the device of a model's floating-point weights; float32 where it has none."""
    found = (t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    return next(found, torch.empty(0))


@final
class OutputBias(Adapter):
    """Learn a bias of the forecast, for each step ahead and each series.

    Args:
        model: a :class:`testtime.forecasting.Forecaster`.
        optimizer: moves the bias.

    Raises:
        ValueError: the model is no forecaster, or a window is not ``length + horizon`` long.

    >>> from testtime.forecasting import Forecaster, SeasonalNaive
    >>> naive = Forecaster(SeasonalNaive(horizon=1, period=2), length=2, horizon=1, channels=1)
    >>> adapter, rising = OutputBias(naive, adam(0.1)), torch.arange(60.0).reshape(-1, 1)
    >>> for t in range(3, 60):
    ...     y = adapter(rising[None, t - 3 : t])
    >>> round(y["forecast"].item())  # the naive forecast of 59 is 57
    59
    """

    name, label = "output-bias", "output bias"
    needs = ("forecaster",)
    output = "after"
    cost = (2, 0)

    def __init__(self, model: nn.Module, optimizer: OptimizerFactory = adam(1e-3)) -> None:  # noqa: B008
        shape = forecaster_of(model)
        super().__init__(Corrected(model, Affine(like(model), None, (shape.horizon, shape.channels))))
        self.optimizer = optimizer
        self.adapt(self.model.get_submodule("network.output").parameters(), optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        return in_turn(self.model, x, self.update)


@final
class ScaleShift(Adapter):
    """Learn a scale and a shift of the forecast, for each series.

    Args:
        model: a :class:`testtime.forecasting.Forecaster`.
        optimizer: moves scale and shift.

    Raises:
        ValueError: the model is no forecaster, or a window is not ``length + horizon`` long.

    >>> from testtime.forecasting import Forecaster, SeasonalNaive
    >>> naive = Forecaster(SeasonalNaive(horizon=1, period=1), length=1, horizon=1, channels=1)
    >>> adapter = ScaleShift(naive, adam(0.01))
    >>> y = adapter(torch.tensor([[[1.0], [2.0]]]))
    >>> y.updated, bool(y["forecast"] > 2.0)
    (True, True)
    """

    name, label = "scale-shift", "scale and shift"
    needs = ("forecaster",)
    output = "after"
    cost = (2, 0)

    def __init__(self, model: nn.Module, optimizer: OptimizerFactory = adam(1e-3)) -> None:  # noqa: B008
        shape = forecaster_of(model)
        super().__init__(Corrected(model, Affine(like(model), (shape.channels,), (shape.channels,))))
        self.optimizer = optimizer
        self.adapt(self.model.get_submodule("network.output").parameters(), optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        return in_turn(self.model, x, self.update)
