"""Online evaluation: the times, the errors, and what leaks when it is made to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from testtime import adam
from testtime.forecasting import (
    Forecaster,
    NLinear,
    OutputBias,
    SeasonalNaive,
    errors_of,
    forecast_online,
    origins,
)
from testtime.methods import ADCSD, Source

L, H, D = 4, 3, 2


def naive() -> Forecaster:
    return Forecaster(SeasonalNaive(H, 1), L, H, D)


def walk(steps: int = 60) -> torch.Tensor:
    return torch.randn(steps, D, generator=torch.Generator().manual_seed(0)).cumsum(0)


def test_errors_are_those_of_numpy() -> None:
    values, times = walk(), origins(20, 40, H)
    forecasts = forecast_online(Source(naive()), values, times)
    deviation = torch.tensor([2.0, 0.5])
    v, error = values.double().numpy(), []
    for t in range(19, 37):  # rows 20 to 39 are scored, each forecast whole
        error.append([v[t] - v[t + k] for k in (1, 2, 3)])
    error = np.array(error)
    found = errors_of(forecasts, values, times, deviation)
    scaled = error * deviation.numpy()
    assert found == pytest.approx(
        {
            "mse": (error**2).mean(),
            "mae": np.abs(error).mean(),
            "mse_units": (scaled**2).mean(),
            "mae_units": np.abs(scaled).mean(),
            "last_fifth": (error[-3:] ** 2).mean(),
        },
        rel=1e-5,
    )


def test_no_forecast_depends_on_what_comes_after_its_time() -> None:
    values, times = walk(), origins(20, 40, H)
    other = values.clone()
    other[31:] = 100.0  # after time 30
    one = forecast_online(ADCSD(naive(), adam(1e-2)), values, times)
    two = forecast_online(ADCSD(naive(), adam(1e-2)), other, times)
    known = [i for i, t in enumerate(times) if t <= 30]
    assert torch.equal(one[known], two[known])
    assert not torch.equal(one[known[-1] + 1 :], two[known[-1] + 1 :])


def test_the_leaking_variant_depends_on_it_and_gains_by_it() -> None:
    values, times = walk(200), origins(30, 200, H)
    other = values.clone()
    other[151:] = 100.0
    one, two = (
        forecast_online(OutputBias(naive(), adam(0.3)), v, times, leaking=True) for v in (values, other)
    )
    at = list(times).index(150)
    assert not torch.equal(one[at], two[at])
    unit = torch.ones(D)
    honest = forecast_online(OutputBias(naive(), adam(0.3)), values, times)
    leaking, fair = (errors_of(f, values, times, unit)["mse"] for f in (one, honest))
    assert leaking < 0.97 * fair


def test_an_adapter_learns_from_the_windows_that_have_arrived() -> None:
    """The hand loop over windows gives the same forecasts."""
    values, times = walk(), origins(20, 30, H)
    torch.manual_seed(0)
    source = Forecaster(NLinear(L, H), L, H, D)
    adapter = OutputBias(source)
    by_hand = torch.cat([adapter(values[None, t - L - H + 1 : t + 1])["forecast"] for t in times])
    assert torch.equal(forecast_online(OutputBias(source), values, times), by_hand)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="the rows 5 to 7 are fewer than the horizon 3"):
        origins(5, 7, 3)
    with pytest.raises(
        ValueError, match="windows of length \\+ horizon = 7 observations are needed from time 3"
    ):
        forecast_online(Source(naive()), walk(), range(3, 9))
    with pytest.raises(ValueError, match="and a horizon more"):
        forecast_online(Source(naive()), walk(20), range(10, 18), leaking=True)
    with pytest.raises(ValueError, match="got none"):
        forecast_online(Source(naive()), walk(20), range(0))
    with pytest.raises(ValueError, match="expected a forecaster"):
        forecast_online(Source(torch.nn.Linear(2, 2)), walk(20), range(10, 12))
    with pytest.raises(ValueError, match="expected times that increase, got 11 after"):
        forecast_online(Source(naive()), walk(20), range(12, 8, -1))
    with pytest.raises(ValueError, match="expected times that increase, got 0 after"):
        forecast_online(Source(naive()), walk(20), range(12, -1, -12))
    with pytest.raises(ValueError, match="of the series of the forecaster, got shape"):
        forecast_online(Source(naive()), walk(20)[:, :1], range(10, 12))
    with pytest.raises(TypeError, match="as a tensor, got ndarray; of a Series: series.standardised"):
        forecast_online(Source(naive()), walk(20).numpy(), range(10, 12))
    with pytest.raises(ValueError, match="horizon is a whole number from 1, got 0"):
        origins(5, 7, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"forecasts": torch.zeros(1, 2, 2)}, r"\(3, H, 2\), got shape \(1, 2, 2\)"),  # would be broadcast
        ({"forecasts": torch.zeros(3, 2, 1)}, r"\(3, H, 2\), got shape \(3, 2, 1\)"),
        ({"forecasts": torch.zeros(3, 2)}, r"got shape \(3, 2\)"),
        ({"times": range(0)}, "expected a forecast for each time and series"),
        ({"times": range(5, 8)}, "from time 5 to 7 are of 2 steps each, and there are 9 observations"),
        ({"deviation": torch.ones(1)}, r"expected a deviation for each series, \(2,\), got \(1,\)"),
    ],
)
def test_errors_of_other_forms_are_refused(wrong: dict[str, Any], message: str) -> None:
    right = {
        "forecasts": torch.zeros(3, 2, 2),
        "values": torch.ones(9, 2),
        "times": range(4, 7),
        "deviation": torch.ones(2),
    }
    assert errors_of(**right)["mse"] == 1
    with pytest.raises(ValueError, match=message):
        errors_of(**{**right, **wrong})
