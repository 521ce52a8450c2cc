"""A demand that grows, and a forecast from the day before: what learning from the forecasts that have come due is worth."""

import torch

from testtime import adam
from testtime.forecasting import Forecaster, OutputBias, SeasonalNaive, errors_of, forecast_online, origins
from testtime.methods import ADCSD, Source

hours = torch.arange(24 * 40.0)
noise = 0.1 * torch.randn(len(hours), generator=torch.Generator().manual_seed(0))
values = (torch.sin(hours * torch.pi / 12) + 0.005 * hours + noise)[:, None]  # (T, 1)

# Any module (N, L, D) -> (N, H, D) takes the place of the naive one; testtime.forecasting reads CSV files and trains some.
source = Forecaster(SeasonalNaive(horizon=24, period=24), length=48, horizon=24, channels=1)
times = origins(24 * 30, len(values), 24)  # every hour of the last 10 days

# In production: adapter(x) with the last 72 observations (1, 72, 1), once an hour. It learns from the forecast of a day ago.
for adapter in (Source(source), OutputBias(source, adam(1e-2)), ADCSD(source)):
    forecasts = forecast_online(adapter, values, times)
    mse = errors_of(forecasts, values, times, deviation=torch.ones(1))["mse"]
    print(f"{type(adapter).label:12} MSE {mse:.4f}")
