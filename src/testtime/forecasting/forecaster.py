"""The forecaster: a network with the shape of its windows, whose answer is a dictionary with the key "forecast"."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from testtime.tasks import Meter, Task

__all__ = ["Forecast", "Forecaster"]


class MeanSquaredError:
    """The mean squared error over all values of all batches."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add the errors of a batch."""
        self.total += float((output.double() - label.double()).square().sum())
        self.count += output.numel()

    def value(self) -> float:
        """Return the mean; NaN before the first batch."""
        return self.total / self.count if self.count else float("nan")


@final
@dataclass(frozen=True)
class Forecast(Task):
    """The next values of some series: mean squared error.

    Args:
        channels: D, number of series.

    >>> Forecast(channels=7).metric
    'MSE'
    """

    name: str = "forecast"
    channels: int = 1
    kind = "regression"
    metric, higher_is_better = "MSE", False

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        return F.mse_loss(output, label)

    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target.detach())

    def meter(self) -> Meter:
        return MeanSquaredError()


def checked_counts(**counts: int) -> None:
    """Refuse numbers that are no whole ones from 1.

    Raises:
        TypeError, ValueError: a number is no integer, or below 1.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} is a whole number from 1, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} is a whole number from 1, got {value}")


@final
class Forecaster(nn.Module):
    """A network that forecasts the next ``horizon`` steps of some series from the last ``length``.

    A window may be longer than ``length``: its last ``length`` observations are read. So an adapter gets
    ``length + horizon`` observations, and a model that does not adapt takes the same windows.

    Args:
        network: any module (N, L, D) -> (N, H, D).
        length: L, number of observations that the network reads.
        horizon: H, number of steps that it forecasts.
        channels: D, number of series.
        input_range: lowest and highest value of the inputs; an adapter refuses windows far outside of it. None: any value.

    Raises:
        TypeError: network is no module, or a number is no whole one.
        ValueError: a number is below 1, or, when called, a window has another form.

    >>> import torch
    >>> from testtime.forecasting import SeasonalNaive
    >>> model = Forecaster(SeasonalNaive(horizon=2, period=2), length=4, horizon=2, channels=1)
    >>> model(torch.arange(6.0).reshape(1, 6, 1))["forecast"].flatten()  # reads 2, 3, 4, 5
    tensor([4., 5.])
    """

    def __init__(
        self,
        network: nn.Module,
        length: int,
        horizon: int,
        channels: int,
        input_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        checked_counts(length=length, horizon=horizon, channels=channels)
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"expected a torch.nn.Module (N, L, D) -> (N, H, D), got {type(network).__name__}; a function fits into the "
                "forward of one"
            )
        self.network, self.length, self.horizon, self.channels = network, length, horizon, channels
        self.input_range = input_range
        self.tasks = {"forecast": Forecast(channels=channels)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Forecast the steps after the last observation.

        Args:
            x: (N, T, D) with T from ``length``.

        Returns:
            ``{"forecast": (N, H, D)}``.
        """
        self.check(x)
        n = x.shape[0]  # not len(x), which an exporter takes for a constant
        y = self.network(x[:, -self.length :])
        if not isinstance(y, Tensor) or tuple(y.shape) != (n, self.horizon, self.channels):
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{type(self.network).__name__} returned {got}, expected a forecast "
                f"({n}, {self.horizon}, {self.channels}); wrap it in a module that returns (N, horizon, series)"
            )
        return {"forecast": y}

    def check(self, x: Tensor) -> None:
        """Refuse what are no windows (N, T, D) with T from ``length``.

        Raises:
            ValueError: they have another form.
        """
        if x.dim() != 3 or x.shape[1] < self.length or x.shape[2] != self.channels:
            raise ValueError(
                f"expected windows (N, {self.length} or more observations, {self.channels} series), got shape "
                f"{tuple(x.shape)}; for a single window add the batch dimension: x[None]"
            )
