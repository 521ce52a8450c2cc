"""The experiments of the family, for lists."""

from testtime.experiments.registry import Listed, read_constants

__all__ = ["LISTED", "SHAPES"]

TITLES = read_constants(__package__ or "", "experiments")["experiments"]
LOAD = "testtime.experiments.forecasting.experiment:Forecasting"
LISTED = tuple(Listed(name, about["title"], LOAD) for name, about in TITLES.items())
ERRORS = dict.fromkeys(("mse", "mae", "mse_units", "mae_units", "last_fifth"), float)
SHAPES = {
    "about": {"horizons": [int], "stride": int},
    "follow": {**ERRORS, "forecasts": int, "rate": (float, type(None))},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
