"""The units of an evaluation: a source that is trained once, and an adapter that follows the test rows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from testtime.adapter import Adapter
from testtime.errors import DataError, check_name
from testtime.forecasting.forecaster import Forecaster
from testtime.forecasting.foundation import Fracast
from testtime.forecasting.graph import GraphNetwork
from testtime.forecasting.layouts import read_buses, read_ett, read_libcity
from testtime.forecasting.linear import SeasonalNaive, fit_nlinear
from testtime.forecasting.online import errors_of, forecast_online, origins
from testtime.forecasting.recurrent import GRUNetwork
from testtime.forecasting.series import Series, read_csv, windows_of
from testtime.parts import adam
from testtime.parts.randomness import seeded
from testtime.plugins import resolve
from testtime.source.passes import passes_over
from testtime.training import checkpoint

if TYPE_CHECKING:
    from testtime.experiments import Workspace

__all__ = ["RATES", "SOURCES", "check_sources", "fit_source", "follow", "make_source", "read_series"]

HELD = 64  # validation windows of a source without training, at most
SOURCES = ("seasonal-naive", "nlinear", "gru", "graph", "fracast")
"""Names of the sources; ``module:function`` of (length, horizon, channels) is a source too."""
TRAINED = ("gru", "graph")
RATES = (1e-4, 1e-3, 1e-2)
"""Learning rates among which the validation rows choose."""
WEIGHTS, BATCH, RATE = "source.safetensors", {"gru": 256, "graph": 32}, {"gru": 1e-3, "graph": 3e-3}


def read_series(name: str, data: str) -> Series:
    """Return series by name; they are kept in memory until the CSV file that they are from changes.

    Args:
        name: "etth1", "etth2", "buses", the path of a CSV file with a column ``time``, or "libcity:NAME".
        data: folder of data sets.

    Raises:
        DataError: files are missing or damaged.
        ValueError: there is no such name.
    """
    if not name.endswith(".csv"):
        return _published(name, data)
    found = Path(name).stat() if Path(name).is_file() else None
    return _own(name, found and (found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=8)
def _own(path: str, version: tuple[int, int] | None) -> Series:
    """The series of a CSV file in a version of it: time of its last change in nanoseconds, and number of bytes."""
    return read_csv(path)


@cache
def _published(name: str, data: str) -> Series:
    if name.startswith("libcity:"):
        return read_libcity(data, name.removeprefix("libcity:"))
    check_name("series", name, ("etth1", "etth2", "buses"))
    return read_buses(data) if name == "buses" else read_ett(data, f"ETT{name[3:]}")


def check_sources(kinds: Sequence[str], series: Series) -> None:
    """Refuse sources that there are not, before anything is trained.

    Args:
        kinds: names of sources, as :func:`make_source` takes them.
        series: series that they are for.

    Raises:
        ValueError: there is no such source, "module:function" names no function, or a graph source is asked for series without
            a graph.
        ImportError: the import path leads nowhere.
    """
    for kind in kinds:
        if ":" in kind:
            if not callable(made := resolve(kind)):
                raise ValueError(
                    f"{kind}: expected a function of (length, horizon, channels) that returns a module, got {made!r}"
                )
            continue
        check_name("source", kind, SOURCES)
        if kind == "graph" and series.graph is None:
            others = ", ".join(s for s in SOURCES if s != "graph")
            raise ValueError(f"{series.name} has no graph; choose other sources: {others}")


def _own_source(kind: str, length: int, horizon: int, channels: int) -> Forecaster:
    """The source of a function of the user's, which is run once on windows of zeros.

    Raises:
        ValueError: the function raises or returns no module, or the module does not take windows (N, L, D) or returns no
            forecast (N, H, D).
    """
    build = resolve(kind)
    try:
        network = build(length, horizon, channels)
    except Exception as error:
        raise ValueError(
            f"{kind}({length}, {horizon}, {channels}) raised {type(error).__name__}: {error}; expected a function of "
            "(length, horizon, channels) that returns a module, with its weights"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{kind} returned {type(network).__name__}, expected a torch.nn.Module")
    model = Forecaster(network, length, horizon, channels).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(2, length, channels))
    except Exception as error:
        raise ValueError(
            f"the module of {kind} raised {type(error).__name__} on windows (2, {length}, {channels}): {error}; expected a "
            "module (N, length, channels) -> (N, horizon, channels)"
        ) from error
    return model


def make_source(
    kind: str, series: Series, length: int, horizon: int, seed: int, period: int = 0
) -> Forecaster:
    """Return a source, trained where its training has a closed form, for standardised values.

    Args:
        kind: one of :data:`SOURCES`, or "module:function" of (length, horizon, channels) that returns a module
            (N, L, D) -> (N, H, D) with its weights, which are not trained further.
        series: series of which the training rows are used.
        length: L, number of observations of a window.
        horizon: H, number of steps.
        seed: random seed of the initial weights.
        period: number of observations of a season of the seasonal naive forecast; 0 for those of a day.

    Raises:
        ValueError: there is no such source, a day is no whole number of steps, a graph source is asked for series without a
            graph, or a function of the user's own raises or returns a module that is no forecaster.
        ImportError: the package of the source is not installed.
    """
    channels = len(series.columns)
    if ":" in kind:
        return _own_source(kind, length, horizon, channels)
    check_sources([kind], series)
    if kind == "nlinear":
        return fit_nlinear(series.standardised()[: series.train], length, horizon)
    with seeded(seed, 0, "source"):
        network: nn.Module
        if kind == "graph":
            network = GraphNetwork(cast(Tensor, series.graph), length, horizon)
        elif kind == "gru":
            network = GRUNetwork(length, horizon, channels)
        else:
            network = (
                Fracast(horizon) if kind == "fracast" else SeasonalNaive(horizon, period or series.period())
            )
    return Forecaster(network, length, horizon, channels).eval()


def _series(work: Workspace) -> Series:
    """The series of a unit, which must be those that its run was planned with."""
    series = read_series(work.places.get("series", work.parameters["series"]), work.places["data"])
    if series.digest() != work.parameters["facts"]["series"]:
        raise DataError(
            f"{series.name}: expected the series that the run began with, found others; give the same command again"
        )
    return series


def fit_source(work: Workspace) -> dict[str, Any]:
    """Train a source on the training rows, with a checkpoint after every pass in ``source.safetensors``."""
    p, series = work.parameters, _series(work)
    length, horizon = p["length"], p["horizon"]
    model = make_source(p["source"], series, length, horizon, p["source_seed"], p.get("period", 0))
    values = series.standardised()
    if p["source"] in TRAINED:
        windows = windows_of(values[: series.train], length + horizon)
        pairs = TensorDataset(windows[:, :length], windows[:, length:])
        batches: Any = DataLoader(pairs, BATCH[p["source"]], shuffle=True)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(model(x)["forecast"], y)

        def rate(done: int) -> float:
            return RATE[p["source"]] * (1 - done / p["passes"])

        model.train()
        file = {"file": work.folder / WEIGHTS, "described": dict(p), "seed": p["source_seed"]}
        for done in passes_over(batches, p["passes"], model, optimizer, loss, rate, **file):
            work.progress(done + 1, p["passes"])
    else:
        checkpoint.save(work.folder / WEIGHTS, model, None, 0, dict(p))
    with torch.no_grad():
        held = windows_of(values[series.train - length : series.train + series.validation], length + horizon)
        if p["source"] not in TRAINED:  # nothing is chosen by it, and a foundation model is slow
            held = held[:: -(-len(held) // HELD)]
        error = [F.mse_loss(model.eval()(x[:, :length])["forecast"], x[:, length:]) for x in held.split(256)]
    return {"validation": float(torch.stack(error).mean()), "windows": len(held)}


def follow(work: Workspace) -> dict[str, Any]:
    """Let an adapter follow the test rows, at the learning rate that is the best of ``rates`` on the last validation rows."""
    p, series = work.parameters, _series(work)
    model = make_source(p["source"], series, p["length"], p["horizon"], p["source_seed"], p.get("period", 0))
    checkpoint.load(work.needs["source"].folder / WEIGHTS, model)
    values, begin = series.standardised(), series.train + series.validation
    rates, tried = p["rates"], dict[str, float]()
    leaking = p["leaking"]
    if len(rates) > 1:
        known = values[:begin]  # the choice sees no test row
        before = origins(series.train, begin, p["horizon"])[:: p["stride"]][-p["tune"] :]
        for rate in rates:
            found = forecast_online(_adapter(p, model, rate), known, before, leaking=leaking)
            tried[f"{rate:g}"] = errors_of(found, known, before, series.deviation)["mse"]
        rates = [float(min(tried, key=lambda name: tried[name]))]
    times = origins(begin, len(values), p["horizon"])[:: p["stride"]][: p["limit"]]
    adapter = _adapter(p, model, rates[0] if rates else None)
    found = forecast_online(adapter, values, times, leaking=leaking, progress=work.progress)
    errors = errors_of(found, values, times, series.deviation)
    return {**errors, "forecasts": len(times), "rate": rates[0] if rates else None, "tried": tried}


def _adapter(p: Mapping[str, Any], model: Forecaster, rate: float | None) -> Adapter:
    """The adapter of a unit at a learning rate."""
    cls = _find(p["method"])
    arguments: dict[str, Any] = {} if rate is None else {"optimizer": adam(rate)}
    if "seed" in _parameters(cls):
        arguments["seed"] = p["seed"]
    return cls(model, **arguments)


def _find(name: str) -> type[Adapter]:
    import testtime.methods

    return resolve(name) if ":" in name else getattr(testtime.methods, name)


def _parameters(cls: type[Adapter]) -> Sequence[str]:
    import inspect

    return list(inspect.signature(cls).parameters)
