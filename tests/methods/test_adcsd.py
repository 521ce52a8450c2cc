"""ADCSD against its equations in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from testtime.forecasting import Forecaster, NLinear
from testtime.methods import ADCSD
from testtime.methods.adcsd import decompose

L, H, D, WIDTH = 8, 6, 3, 4
Array = NDArray[np.float64]


def moving_average(y: Array, window: int) -> Array:
    """(H, D) -> (H, D), by its definition: the mean over the steps around each, the ends repeated."""
    half, steps = window // 2, len(y)
    return np.stack(
        [
            np.mean([y[min(max(t + k, 0), steps - 1)] for k in range(-half, half + 1)], axis=0)
            for t in range(steps)
        ]
    )


def branch(z: Array, p: dict[str, Array]) -> Array:
    """(H, D) -> (H, D): w2 . GELU(LN(w1 z + b1)) + b2, the LayerNorm over steps, series and features."""
    h = z[..., None] * p["first.weight"][:, 0] + p["first.bias"]
    h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * p["norm.weight"] + p["norm.bias"]
    gelu = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    return gelu @ p["last.weight"][0] + p["last.bias"][0]


def source() -> Forecaster:
    torch.manual_seed(1)
    return Forecaster(NLinear(L, H), L, H, D).eval()


def test_the_moving_average_is_that_of_its_definition() -> None:
    y = torch.randn(2, H, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for window in (1, 3, 5):
        season, trend = decompose(y, window)
        for i in range(2):
            expected = moving_average(y[i].numpy(), window)
            assert np.allclose(trend[i].numpy(), expected, atol=1e-12)
            assert np.allclose(season[i].numpy(), y[i].numpy() - expected, atol=1e-12)


def test_the_correction_is_that_of_the_equation() -> None:
    adapter = ADCSD(source().double(), width=WIDTH)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in adapter.model.get_submodule("network.output").parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64))
    x = torch.randn(1, L + H, D, generator=rng, dtype=torch.float64)
    y = source().double()(x)["forecast"][0].detach().numpy()
    values = {
        k: v.detach().numpy() for k, v in adapter.model.get_submodule("network.output").named_parameters()
    }
    trend = moving_average(y, 5)
    parts = [
        {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}
        for name in ("season", "trend")
    ]
    expected = y + values["season_weight"] * branch(y - trend, parts[0])
    expected = expected + values["trend_weight"] * branch(trend, parts[1])
    assert np.allclose(adapter.predict(x)["forecast"][0].numpy(), expected, atol=1e-10)


def test_a_step_learns_from_the_revealed_window_and_answers_from_the_newest() -> None:
    """The first update of the weights is that of Adam along the gradient on x[:L] -> x[L:], recomputed by hand."""
    adapter = ADCSD(source(), width=WIDTH)
    x = torch.randn(1, L + H, D, generator=torch.Generator().manual_seed(3))
    output = adapter.model.get_submodule("network.output")
    before = {k: v.detach().numpy().astype(float) for k, v in output.named_parameters()}
    y = source()(x[:, :L])["forecast"][0].detach().numpy().astype(float)
    trend = moving_average(y, 5)
    part = {k.removeprefix("season."): v for k, v in before.items() if k.startswith("season.")}
    corrected = branch(y - trend, part)
    gradient = (2 * (y - x[0, L:].numpy()) * corrected).sum(0) / (H * D)  # lambda is zero: no correction yet
    adapter(x)
    moved = dict(output.named_parameters())["season_weight"].detach().numpy()
    assert np.allclose(moved, -1e-4 * gradient / (np.abs(gradient) + 1e-8), rtol=1e-3, atol=1e-9)
    assert not np.allclose(moved, 0)


def test_it_is_the_source_at_first_and_its_networks_follow_the_seed() -> None:
    x = torch.randn(2, L + H, D)
    assert torch.allclose(ADCSD(source()).predict(x)["forecast"], source()(x)["forecast"], atol=1e-6)

    def first(seed: int) -> torch.Tensor:
        return ADCSD(source(), seed=seed).model.get_parameter("network.output.season.first.weight").detach()

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_it_mends_a_constant_error_of_its_source() -> None:
    """A source that is too high by 0.5: after 400 steps less than half of that error is left."""

    class TooHigh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, -4:].mean(1, keepdim=True).expand(-1, H, -1) + self.by

    from testtime import adam

    adapter = ADCSD(Forecaster(TooHigh(), L, H, D), adam(3e-3), width=8)
    rng = torch.Generator().manual_seed(0)
    values = 0.1 * torch.randn(600, D, generator=rng)
    errors = [float((adapter(values[None, t : t + L + H])["forecast"][0]).abs().mean()) for t in range(400)]
    assert np.mean(errors[:5]) > 0.45
    assert np.mean(errors[-20:]) < 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ADCSD(nn.Linear(3, 3)), r"expected a forecaster, got Linear; wrap the network: testtime"),
        (lambda: ADCSD(source(), window=4), r"window is odd, got 4"),
        (lambda: ADCSD(source())(torch.randn(1, L, D)), r"length \+ horizon = 8 \+ 6 = 14 observations"),
        (lambda: ADCSD(source())(torch.randn(1, L + H, D + 1)), r"3 series\), got shape \(1, 8, 4\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_a_window_with_nan_is_refused_and_its_neighbours_are_answered() -> None:
    x = torch.randn(3, L + H, D)
    x[1, 2, 0] = torch.nan
    one, other = ADCSD(source()), ADCSD(source())
    y = one(x)
    assert y.valid.tolist() == [True, False, True]
    assert torch.equal(y["forecast"][[0, 2]], other(x[[0, 2]])["forecast"])
