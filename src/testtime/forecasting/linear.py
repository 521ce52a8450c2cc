r"""Sources without training by gradients: the seasonal naive forecast, and NLinear in closed form."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from testtime.forecasting.forecaster import Forecaster, checked_counts
from testtime.forecasting.series import windows_of

__all__ = ["NLinear", "SeasonalNaive", "fit_nlinear"]

ROWS = 2**16  # rows of the least squares that are held at once


@final
class SeasonalNaive(nn.Module):
    """The values of one period before: the control of every table.

    Args:
        horizon: H, number of steps.
        period: number of observations of a season, such as 24 for hours of a day.

    Raises:
        TypeError, ValueError: a number is no whole one from 1, or, when called, there are fewer observations than a period.

    >>> SeasonalNaive(horizon=3, period=2)(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten()
    tensor([2., 3., 2.])
    """

    def __init__(self, horizon: int, period: int) -> None:
        super().__init__()
        checked_counts(horizon=horizon, period=period)
        self.horizon, self.period = horizon, period

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecast (N, H, D) of windows (N, L, D)."""
        if x.shape[1] < self.period:
            raise ValueError(
                f"a period has {self.period} observations, got {x.shape[1]}; lengthen the window"
            )
        last = x[:, -self.period :]
        return last.repeat(1, -(-self.horizon // self.period), 1)[:, : self.horizon]


@final
class NLinear(nn.Module):
    r"""One linear map over time for all series, on values less the last one.

    .. math:: \hat y = x_L + W (x - x_L) + b

    Args:
        length: L, number of observations.
        horizon: H, number of steps.

    Reference: Zeng, Chen, Zhang and Xu, Are Transformers Effective for Time Series Forecasting?, AAAI 2023.

    >>> net = NLinear(4, 2)
    >>> _ = [nn.init.zeros_(p) for p in net.parameters()]
    >>> net(torch.tensor([[[1.0], [2.0], [3.0], [5.0]]])).flatten()  # without weights: the last value
    tensor([5., 5.], grad_fn=<ViewBackward0>)
    """

    def __init__(self, length: int, horizon: int) -> None:
        super().__init__()
        self.linear = nn.Linear(length, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecast (N, H, D) of windows (N, L, D)."""
        last = x[:, -1:]
        return last + self.linear((x - last).transpose(1, 2)).transpose(1, 2)


def fit_nlinear(values: Tensor, length: int, horizon: int, ridge: float = 1.0) -> Forecaster:
    r"""Return NLinear as the least squares of all windows of all series, in closed form.

    With the rows :math:`a = (x - x_L, 1)` and the targets :math:`t = y - x_L` of all windows,

    .. math:: (W, b) = \Big( \sum a a^\top + \rho\, \mathrm{diag}(1, \dots, 1, 0) \Big)^{-1} \sum a t^\top

    Args:
        values: (T, D), the training observations, standardised.
        length: L, number of observations of a window.
        horizon: H, number of steps.
        ridge: rho, the weight of the squared entries of W.

    Raises:
        TypeError, ValueError: a number of observations is no whole one from 1, values are no tensor or not finite, there is no
            window, or ridge is negative.

    >>> wave = torch.sin(torch.arange(200.0) * torch.pi / 12)[:, None]
    >>> model = fit_nlinear(wave[:150], length=24, horizon=6, ridge=1e-6)
    >>> error = model(wave[None, :176])["forecast"][0] - wave[176:182]
    >>> bool(error.abs().max() < 1e-2)
    True
    """
    checked_counts(length=length, horizon=horizon)
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is at least 0 and finite, got {ridge}")
    if not isinstance(values, Tensor):
        raise TypeError(
            f"expected the observations (T, D) as a tensor, got {type(values).__name__}; of a Series, those of training are "
            "series.standardised()[: series.train]"
        )
    if not bool(values.isfinite().all()):
        raise ValueError("expected finite observations (T, D), got NaN or infinity; fill the gaps first")
    windows = windows_of(values, length + horizon)  # (n, L + H, D)
    rows = windows.transpose(1, 2).reshape(-1, length + horizon)
    gram = torch.zeros(length + 1, length + 1, dtype=torch.float64)
    cross = torch.zeros(length + 1, horizon, dtype=torch.float64)
    for part in rows.split(ROWS):
        part = part.double()
        last = part[:, length - 1 : length]
        a = torch.cat([part[:, :length] - last, torch.ones_like(last)], dim=1)
        gram += a.T @ a
        cross += a.T @ (part[:, length:] - last)
    penalty = torch.full((length + 1,), float(ridge), dtype=torch.float64)
    penalty[-1] = 0.0
    # The last of the differences is zero in every row; the penalty, or the pseudo-inverse, leaves its weight at zero.
    solution = torch.linalg.pinv(gram + penalty.diag(), hermitian=True) @ cross
    network = NLinear(length, horizon)
    with torch.no_grad():
        network.linear.weight.copy_(solution[:length].T)
        network.linear.bias.copy_(solution[length])
    return Forecaster(network, length, horizon, values.shape[1]).eval()
