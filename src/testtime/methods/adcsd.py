r"""ADCSD: correct the seasonal part and the trend of a forecast by two small networks, weighed for each series.

With the moving average :math:`\tau` over five steps of the forecast :math:`\hat y` and the rest :math:`s = \hat y - \tau`,

.. math::
    \hat y' = \hat y + \lambda_s \odot g_s(s) + \lambda_\tau \odot g_\tau(\tau), \qquad
    g(z) = w_2^\top \mathrm{GELU}(\mathrm{LN}(w_1 z + b_1)) + b_2

where :math:`g` maps every value alone, 1 -> 128 -> 1, its LayerNorm runs over steps, series and features together, and
:math:`\lambda_s, \lambda_\tau` (D,) are zero at first, so that it is the source.

A step:
    1. correct the forecast whose truth has just arrived, and take the gradient of its mean squared error with respect to
       both networks and both vectors;
    2. update them once;
    3. forecast with the correction.

Departures:
    Written from descriptions of the paper and of its public code, of which nothing is copied. The public code keeps a queue of
    the last H windows; here a window is L + H observations, and the forecast whose truth has arrived is computed again from
    the first L of them, by the same frozen source. The ends of the moving average are padded with the first and the last value
    (as in Autoformer, Wu et al., NeurIPS 2021). The loss is of the values as the source gets them, standardised in the tables.
    The windows of a batch are taken in turn, so that each is answered as if it came alone.

Cost: two forwards of the source, no backward through it.

Reference: Guo, Jin, Li, Bai and Zhang, Online Test-Time Adaptation of Spatial-Temporal Traffic Flow Forecasting, arXiv
2401.04148, 2024.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.forecasting.corrected import Corrected, forecaster_of, in_turn
from testtime.intake.arguments import Positive
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.randomness import seeded

__all__ = ["ADCSD", "DoubleCorrection", "decompose"]


def decompose(y: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return the season and the trend of series over time, which add up to them.

    Args:
        y: (N, H, D).
        window: number of steps of the moving average, odd; the ends are padded with the first and the last value.

    Returns:
        season and trend, (N, H, D) each.

    >>> season, trend = decompose(torch.tensor([0.0, 3.0, 0.0]).reshape(1, 3, 1), 3)
    >>> trend.flatten(), season.flatten()
    (tensor([1., 1., 1.]), tensor([-1.,  2., -1.]))
    """
    half = window // 2
    padded = torch.cat([y[:, :1].expand(-1, half, -1), y, y[:, -1:].expand(-1, half, -1)], dim=1)
    trend = padded.unfold(1, window, 1).mean(dim=-1)
    return y - trend, trend


@final
class Branch(nn.Module):
    """The network g of one part.

    Args:
        horizon: H, number of steps.
        channels: D, number of series.
        width: number of hidden features.
    """

    def __init__(self, horizon: int, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(1, width), nn.LayerNorm([horizon, channels, width])
        self.last = nn.Linear(width, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Return the correction (N, H, D) of a part (N, H, D)."""
        return self.last(F.gelu(self.norm(self.first(z[..., None]))))[..., 0]


@final
class DoubleCorrection(nn.Module):
    """Both branches with their weights for each series.

    Args:
        horizon: H, number of steps.
        channels: D, number of series.
        width: number of hidden features of a branch.
        window: number of steps of the moving average.
    """

    def __init__(self, horizon: int, channels: int, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.season, self.trend = (Branch(horizon, channels, width) for _ in range(2))
        self.season_weight, self.trend_weight = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, y: Tensor) -> Tensor:
        """Return the corrected forecast (N, H, D)."""
        season, trend = decompose(y, self.window)
        return y + self.season_weight * self.season(season) + self.trend_weight * self.trend(trend)


@final
class ADCSD(Adapter):
    """Correct the seasonal part and the trend of a forecast by two small networks that learn from what has arrived.

    Args:
        model: a :class:`testtime.forecasting.Forecaster`.
        optimizer: moves both networks and their weights.
        width: number of hidden features of a network.
        window: number of steps of the moving average, odd.
        seed: random seed of the initial networks.

    Raises:
        ValueError: the model is no forecaster, ``window`` is even, or a window is not ``length + horizon`` long.

    >>> from testtime.forecasting import Forecaster, NLinear
    >>> adapter = ADCSD(Forecaster(NLinear(8, 4), length=8, horizon=4, channels=3))
    >>> y = adapter(torch.randn(1, 12, 3))
    >>> y["forecast"].shape, y.updated
    (torch.Size([1, 4, 3]), True)
    """

    name, label = "adcsd", "ADCSD"
    needs = ("forecaster",)
    venue = "arXiv 2024"
    paper = "Guo, Jin, Li, Bai and Zhang, Online Test-Time Adaptation of Spatial-Temporal Traffic Flow Forecasting"
    code = "github.com/Pengxin-Guo/ADCSD"
    output = "after"
    cost = (2, 0)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-4),  # noqa: B008 - a frozen value
        width: Positive = 128,
        window: Positive = 5,
        seed: int = 0,
    ) -> None:
        if window % 2 == 0:
            raise ValueError(f"the moving average is centred: window is odd, got {window}")
        shape = forecaster_of(model)
        with seeded(seed, 0, "corrections"):
            correction = DoubleCorrection(shape.horizon, shape.channels, width, window)
        found = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
        super().__init__(Corrected(model, correction.to(next(found, torch.empty(0)))), seed)
        self.optimizer, self.width, self.window = optimizer, width, window
        self.adapt(self.model.get_submodule("network.output").parameters(), optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        return in_turn(self.model, x, self.update)
