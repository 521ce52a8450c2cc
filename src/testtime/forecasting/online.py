"""Online evaluation: an adapter gets one window after the other, and its forecasts are scored when their truth has come."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.forecasting.corrected import forecaster_of
from testtime.forecasting.forecaster import checked_counts

__all__ = ["errors_of", "forecast_online", "origins"]


def origins(first: int, last: int, horizon: int) -> range:
    """Return the times from which the rows ``first`` to ``last`` (exclusive) are forecast: t forecasts t + 1 to t + horizon.

    Raises:
        TypeError, ValueError: the horizon is no whole number from 1, no row is before the first, or there are fewer rows than a
            horizon.

    >>> list(origins(10, 14, 2))  # rows 10, 11 from 9; 11, 12 from 10; 12, 13 from 11
    [9, 10, 11]
    """
    checked_counts(horizon=horizon, first=first)
    if last - first < horizon:
        raise ValueError(
            f"the rows {first} to {last} are fewer than the horizon {horizon}; take a shorter one"
        )
    return range(first - 1, last - horizon)


def forecast_online(
    adapter: Adapter,
    values: Tensor,
    times: range,
    *,
    leaking: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the forecast from each time, by an adapter that learns on its way.

    At time t the adapter gets the observations up to t, learns from the forecast whose truth they hold, and forecasts.

    Args:
        adapter: adapter around a :class:`Forecaster`.
        values: (T, D) standardised observations.
        times: times t, each later than the one before.
        leaking: whether the adapter learns at time t from the window that ends at t + horizon, whose truth is what it is then
            scored on. This is what public code of this field often does; it is no method, and the tables name it so.
        progress: function of the number of forecasts that are done and of all.

    Returns:
        (n, H, D).

    Raises:
        TypeError: the values are no tensor.
        ValueError: times do not increase, the values have other series than the forecaster, there are fewer than length +
            horizon observations up to the first time, or the last leaves no truth for a leaking run.
    """
    shape = forecaster_of(adapter)
    if not isinstance(values, Tensor):
        raise TypeError(
            f"expected the observations (T, D) as a tensor, got {type(values).__name__}; of a Series: series.standardised()"
        )
    if values.dim() != 2 or values.shape[1] != shape.channels:
        raise ValueError(
            f"expected observations (T, {shape.channels}) of the series of the forecaster, got shape {tuple(values.shape)}"
        )
    span, ahead = shape.length + shape.horizon, shape.horizon if leaking else 0
    if not len(times):
        raise ValueError("expected times to forecast from, got none")
    late = next((b for a, b in pairwise(times) if b <= a), None)
    if late is not None:
        raise ValueError(
            f"expected times that increase, got {late} after a time that is not before it; an adapter would have learned from "
            "what comes after: sort them"
        )
    if times[0] + 1 < span or times[-1] + ahead >= len(values):
        raise ValueError(
            f"windows of length + horizon = {span} observations are needed from time {times[0]} to {times[-1]}"
            f"{' and a horizon more' if leaking else ''}, and there are {len(values)} observations; begin later"
        )
    found = torch.empty(len(times), shape.horizon, shape.channels)
    for i, t in enumerate(times):
        window = values[None, t + 1 - span : t + 1]
        if leaking:
            adapter(values[None, t + 1 + ahead - span : t + 1 + ahead])
            y = adapter.predict(window)
        else:
            y = adapter(window)
        found[i] = y["forecast"][0]
        if progress is not None and i % 64 == 0:
            progress(i, len(times))
    return found


def errors_of(forecasts: Tensor, values: Tensor, times: range, deviation: Tensor) -> dict[str, float]:
    """Return mean squared and mean absolute error, of standardised values and in the units of the data.

    Args:
        forecasts: (n, H, D) of standardised values.
        values: (T, D) standardised observations.
        times: the times of the forecasts.
        deviation: (D,) standard deviations by which the values were divided.

    Returns:
        ``mse``, ``mae``, ``mse_units``, ``mae_units``, and ``last_fifth``, the ``mse`` of the last fifth of the forecasts.

    Raises:
        ValueError: there is no forecast, or not one for each time and series, a truth lies outside of the values, or there is
            not a deviation for each series.

    >>> values = torch.tensor([[0.0], [1.0], [3.0]])
    >>> errors_of(torch.zeros(2, 1, 1), values, range(2), torch.tensor([2.0]))["mae_units"]
    4.0
    """
    n, (rows, channels) = len(times), values.shape
    if not n or forecasts.dim() != 3 or (forecasts.shape[0], forecasts.shape[2]) != (n, channels):
        raise ValueError(
            f"expected a forecast for each time and series, ({n or 'one or more'}, H, {channels}), got shape "
            f"{tuple(forecasts.shape)}"
        )
    horizon = forecasts.shape[1]
    if min(times) < -1 or max(times) + horizon >= rows:
        raise ValueError(
            f"the forecasts from time {min(times)} to {max(times)} are of {horizon} steps each, and there are {rows} "
            "observations; leave out the forecasts without a truth"
        )
    if deviation.shape != (channels,):
        raise ValueError(f"expected a deviation for each series, ({channels},), got {tuple(deviation.shape)}")
    truth = torch.stack([values[t + 1 : t + 1 + horizon] for t in times])
    error = forecasts.double() - truth.double()
    in_units = error * deviation.double()
    return {
        "mse": float(error.square().mean()),
        "mae": float(error.abs().mean()),
        "mse_units": float(in_units.square().mean()),
        "mae_units": float(in_units.abs().mean()),
        "last_fifth": float(error[-max(1, len(error) // 5) :].square().mean()),
    }
