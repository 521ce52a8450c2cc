"""Output bias, scale and shift, gated calibration and norm tuning against their equations in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from testtime import adam, load, save, sgd, state_hash
from testtime.forecasting import (
    Forecaster,
    GatedCalibration,
    GraphNetwork,
    GRUNetwork,
    NLinear,
    NormTuning,
    OutputBias,
    ScaleShift,
    SeasonalNaive,
)
from testtime.methods import ADCSD, BNAdapt

L, H, D = 6, 4, 2


def source() -> Forecaster:
    torch.manual_seed(1)
    return Forecaster(NLinear(L, H), L, H, D).eval()


def window(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, L + H, D, generator=torch.Generator().manual_seed(seed))


def forecast(x: torch.Tensor) -> np.ndarray:
    return source()(x)["forecast"][0].detach().numpy().astype(float)


def test_output_bias_takes_the_gradient_step_of_the_revealed_error() -> None:
    x, rate = window(), 0.5
    y = OutputBias(source(), sgd(rate, momentum=0.0))(x)["forecast"][0].numpy()
    gradient = 2 * (forecast(x[:, :L]) - x[0, L:].numpy()) / (H * D)
    assert np.allclose(y, forecast(x) - rate * gradient, atol=1e-6)


def test_scale_and_shift_take_the_gradient_step_of_the_revealed_error() -> None:
    x, rate = window(), 0.3
    y = ScaleShift(source(), sgd(rate, momentum=0.0))(x)["forecast"][0].numpy()
    past, error = forecast(x[:, :L]), forecast(x[:, :L]) - x[0, L:].numpy()
    scale = -rate * (2 * error * past).sum(0) / (H * D)
    shift = -rate * (2 * error).sum(0) / (H * D)
    assert np.allclose(y, (1 + scale) * forecast(x) + shift, atol=1e-6)


def test_gated_calibration_is_its_equation() -> None:
    adapter = GatedCalibration(source(), rank=2)
    rng = torch.Generator().manual_seed(3)
    maps = {name: adapter.model.get_submodule(f"network.{name}") for name in ("inputs", "output")}
    with torch.no_grad():
        for module in maps.values():
            for p in module.parameters():
                p.copy_(torch.randn(p.shape, generator=rng))

    def gated(values: np.ndarray, module: nn.Module) -> np.ndarray:
        p = {k: v.detach().numpy().astype(float) for k, v in module.named_parameters()}
        return values + np.tanh(p["gate"]) * (p["left"] @ p["right"] @ values + p["bias"])

    x = window()
    read = gated(x[0, -L:].numpy().astype(float), maps["inputs"])
    y = source()(torch.from_numpy(read).float()[None])["forecast"][0].detach().numpy()
    expected = gated(y, maps["output"])
    assert np.allclose(adapter.predict(x)["forecast"][0].numpy(), expected, atol=1e-4)


def test_a_gate_that_is_shut_leaves_the_source() -> None:
    adapter = GatedCalibration(source(), gate=0.0)
    with torch.no_grad():
        adapter.model.get_parameter("network.output.bias").fill_(3.0)
    assert np.allclose(adapter.predict(window())["forecast"][0].numpy(), forecast(window()), atol=1e-6)


@pytest.mark.parametrize("make", [OutputBias, ScaleShift, GatedCalibration])
def test_it_is_the_source_at_first(make: type) -> None:
    assert torch.allclose(
        make(source()).predict(window())["forecast"], source()(window())["forecast"], atol=1e-6
    )


def test_norm_tuning_moves_the_normalisation_alone() -> None:
    adapter = NormTuning(Forecaster(GRUNetwork(8, H, D, width=4), 8, H, D), adam(1e-2))
    before = {k: v.detach().clone() for k, v in adapter.model.named_parameters()}
    adapter(torch.randn(1, 8 + H, D))
    moved = {
        k.rpartition("network.")[2]
        for k, v in adapter.model.named_parameters()
        if not torch.equal(v, before[k])
    }
    assert moved == {"norm.weight", "norm.bias"}


def test_bn_adapt_normalises_a_forecast_by_its_own_window() -> None:
    torch.manual_seed(0)
    net = GraphNetwork(torch.ones(5, 5), L, H, width=4)
    model = Forecaster(net, L, H, 5).eval()
    x = torch.randn(1, L + H, 5)
    found = BNAdapt(model)(x)["forecast"]
    net.train()
    with torch.no_grad():
        expected = model(x)["forecast"]
    assert torch.allclose(found, expected, atol=1e-5)


def test_refusals() -> None:
    naive = Forecaster(SeasonalNaive(H, 2), L, H, D)
    with pytest.raises(ValueError, match="this model has none"):
        NormTuning(naive)
    for make in (OutputBias, ScaleShift, GatedCalibration, NormTuning):
        with pytest.raises(ValueError, match="expected a forecaster, got Sequential"):
            make(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    with pytest.raises(ValueError, match=r"length \+ horizon = 6 \+ 4 = 10 observations"):
        OutputBias(naive)(window()[:, 1:])
    with pytest.raises(ValueError, match="rank"):
        GatedCalibration(naive, rank=0)
    assert OutputBias(naive)(window()).updated  # a source without a parameter has an output to correct


@pytest.mark.parametrize("make", [OutputBias, ScaleShift, GatedCalibration, ADCSD])
def test_an_adapter_can_be_saved_and_goes_on(make: type, tmp_path: Path) -> None:
    adapter = make(source(), adam(1e-2))
    adapter(window())
    save(adapter, tmp_path)
    again = load(tmp_path, source())  # a class of the library need not be passed
    assert state_hash(again) == state_hash(adapter)
    assert torch.equal(again(window(1))["forecast"], adapter(window(1))["forecast"])
