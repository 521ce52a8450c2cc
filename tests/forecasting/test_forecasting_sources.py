"""The sources against their equations in numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from testtime.forecasting import (
    Forecaster,
    GraphNetwork,
    GRUNetwork,
    NLinear,
    SeasonalNaive,
    fit_nlinear,
    normalised_graph,
)


def series(steps: int, channels: int = 2, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(steps, channels, generator=rng).cumsum(0) / 3


def test_nlinear_in_closed_form_is_the_least_squares_of_its_windows() -> None:
    values, length, horizon, ridge = series(60), 5, 3, 0.7
    model = fit_nlinear(values, length, horizon, ridge)
    rows, targets = [], []
    for channel in range(2):
        column = values[:, channel].double().numpy()
        for t in range(60 - length - horizon + 1):
            x, y = column[t : t + length], column[t + length : t + length + horizon]
            rows.append(x - x[-1])
            targets.append(y - x[-1])
    # The ridge as further rows of an ordinary least squares; the bias is not penalised.
    a = np.vstack([np.c_[rows, np.ones(len(rows))], np.c_[np.sqrt(ridge) * np.eye(length), np.zeros(length)]])
    t = np.vstack([targets, np.zeros((length, horizon))])
    expected, *_ = np.linalg.lstsq(a, t, rcond=None)
    assert np.allclose(model.network.linear.weight.detach().numpy(), expected[:length].T, atol=1e-5)
    assert np.allclose(model.network.linear.bias.detach().numpy(), expected[length], atol=1e-5)


def test_nlinear_forecasts_by_its_equation() -> None:
    torch.manual_seed(0)
    net, x = NLinear(5, 3), series(5)[None]
    w, b = net.linear.weight.detach().numpy(), net.linear.bias.detach().numpy()
    last = x[0, -1].numpy()
    expected = last + w @ (x[0].numpy() - last) + b[:, None]
    assert np.allclose(net(x)[0].detach().numpy(), expected, atol=1e-6)
    assert np.allclose(net(x + 7)[0].detach().numpy(), expected + 7, atol=1e-5)  # it follows a shift of level


def test_seasonal_naive_repeats_the_last_period() -> None:
    x = torch.arange(14.0).reshape(1, 7, 2)
    y = SeasonalNaive(horizon=5, period=3)(x)[0].numpy()
    expected = np.array([x[0, 7 - 3 + t % 3].numpy() for t in range(5)])
    assert np.array_equal(y, expected)
    with pytest.raises(ValueError, match="a period has 3 observations, got 2"):
        SeasonalNaive(horizon=5, period=3)(x[:, :2])


def test_the_graph_is_normalised_by_its_degrees() -> None:
    graph = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    whole = (graph + graph.T) / 2 + np.eye(3)
    scale = np.diag(whole.sum(1) ** -0.5)
    found = normalised_graph(torch.from_numpy(graph)).numpy()
    assert np.allclose(found, scale @ whole @ scale)
    for bad in (torch.ones(2, 3), -torch.ones(2, 2), torch.full((2, 2), torch.nan)):
        with pytest.raises(ValueError, match="expected"):
            normalised_graph(bad)


def test_the_graph_network_mixes_neighbours_alone() -> None:
    """Two layers of mixing: a series feels those at two edges, and no others."""
    graph = torch.diag(torch.ones(4), 1)  # a path of five
    net = GraphNetwork(graph, length=6, horizon=2).eval()
    x = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 0] += 1
    moved = (net(changed) - net(x)).abs().amax((0, 1)).detach()
    assert (moved[:3] > 1e-6).all()
    assert (moved[3:] == 0).all()


def test_networks_have_the_shape_of_their_forecast() -> None:
    x = torch.randn(4, 8, 3)
    for net in (GRUNetwork(8, 5, 3), GraphNetwork(torch.ones(3, 3), 8, 5), NLinear(8, 5)):
        assert Forecaster(net, 8, 5, 3).eval()(x)["forecast"].shape == (4, 5, 3)
    with pytest.raises(ValueError, match="together divides the length 8, got 3"):
        GRUNetwork(8, 5, 3, together=3)


def test_a_forecaster_reads_the_end_of_its_window_and_refuses_others() -> None:
    model = Forecaster(SeasonalNaive(2, 2), length=4, horizon=2, channels=1)
    x = torch.arange(9.0).reshape(1, 9, 1)
    assert model(x)["forecast"].flatten().tolist() == [7, 8]
    for bad in (x[:, :3], x[0], x.expand(1, 9, 2)):
        with pytest.raises(ValueError, match=r"expected windows \(N, 4 or more observations, 1 series\)"):
            model(bad)
    with pytest.raises(
        ValueError, match=r"Identity returned shape \(1, 4, 1\), expected a forecast \(1, 2, 1\)"
    ):
        Forecaster(nn.Identity(), 4, 2, 1)(x)
    with pytest.raises(ValueError, match="horizon is a whole number from 1, got 0"):
        Forecaster(nn.Identity(), 4, 0, 1)
    with pytest.raises(ValueError, match="ridge is at least 0"):
        fit_nlinear(series(30), 4, 2, -1.0)
    with pytest.raises(ValueError, match="expected at least 40 observations"):
        fit_nlinear(series(30), 38, 2)


@pytest.mark.parametrize(("length", "horizon"), [(96, 60), (8, 2), (600, 2), (1100, 2)])
def test_fracast_forecasts_as_its_package_does(length: int, horizon: int) -> None:
    package = pytest.importorskip("fracast", reason="pip install fracast")
    from testtime.forecasting import Fracast

    x = series(length, 3)[None]
    expected = package.FracastModel.from_pretrained(weights="fp32").forecast(x[0].T.numpy(), horizon=horizon)
    model = Forecaster(Fracast(horizon), length, horizon, 3).eval().requires_grad_(False)
    first, again = model(x)["forecast"][0], model(x)["forecast"][0]  # again: from what it remembers
    assert np.allclose(first, expected[:, :, 4].T, rtol=0, atol=1e-5)
    assert first.equal(again)


def test_fracast_remembers_nothing_of_other_windows_or_weights() -> None:
    pytest.importorskip("fracast", reason="pip install fracast")
    from testtime.forecasting import Fracast

    seen, x = Fracast(4), series(48, 2)[None].requires_grad_()
    y = seen(x)  # its weights take gradients: the whole encoder is in the graph
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    seen.requires_grad_(False)
    torch.testing.assert_close(seen(x), y, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(seen(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert seen(x.detach() * torch.linspace(0, 1, 48)[:, None]).isfinite().all()
    fresh = Fracast(4).requires_grad_(False)
    assert fresh(x).equal(seen(x))
    with torch.no_grad():
        for model in (fresh, seen):
            model.core.in_proj.weight.mul_(1.5)
    assert not torch.allclose(seen(x), y, atol=1e-3)
    assert copy.deepcopy(seen)(x).equal(seen(x))
    torch.testing.assert_close(seen(x), fresh.requires_grad_()(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "other"])
def test_fracast_of_another_version_encodes_the_whole_window(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A private part of the package that is missing, or computes something else, costs time and changes no forecast."""
    pytest.importorskip("fracast", reason="pip install fracast")
    from fracast._core.periodic import official_encoding

    from testtime.forecasting import Fracast

    x = series(96, 2)[None]
    ours = Fracast(4).requires_grad_(False)
    expected = ours.requires_grad_()(x).detach()
    if change == "missing":
        monkeypatch.delattr(official_encoding, "_phase_encoding")
    else:
        phase = official_encoding._phase_encoding
        monkeypatch.setattr(official_encoding, "_phase_encoding", lambda *about: 2 * phase(*about))
    other = Fracast(4).requires_grad_(False)
    assert ours._apart
    assert not other._apart
    assert other(x).equal(expected)


def test_fracast_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from testtime.forecasting import Fracast

    monkeypatch.setitem(sys.modules, "fracast", None)
    with pytest.raises(ImportError, match="pip install fracast"):
        Fracast(24)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeasonalNaive(2, 0), "period is a whole number from 1, got 0"),
        (lambda: SeasonalNaive(2, 24.0), "period is a whole number from 1, got 24.0"),
        (lambda: Forecaster(NLinear(4, 2), 4.0, 2, 1), "length is a whole number from 1, got 4.0"),
        (lambda: Forecaster(lambda x: x, 4, 2, 1), "expected a torch.nn.Module .* got function"),
        (lambda: GRUNetwork(4, 2, 1, together=0), "together is a whole number from 1, got 0"),
        (lambda: GraphNetwork(torch.ones(3, 3), 0, 2), "length is a whole number from 1, got 0"),
        (
            lambda: GraphNetwork(torch.ones(3, 3), 4, 2)(torch.zeros(1, 4, 2)),
            "graph has 3 series, and the windows 2",
        ),
        (lambda: fit_nlinear(series(20), 0, 2), "length is a whole number from 1, got 0"),
        (
            lambda: fit_nlinear(series(20).numpy(), 4, 2),
            r"as a tensor, got ndarray; of a Series, .* series.standardised",
        ),
        (lambda: fit_nlinear(series(20) * float("nan"), 4, 2), "expected finite observations"),
        (
            lambda: fit_nlinear(series(20), 4, 2, ridge=float("nan")),
            "ridge is at least 0 and finite, got nan",
        ),
    ],
)
def test_sources_that_cannot_be_built_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_counts_may_be_integers_of_numpy() -> None:
    forecast = SeasonalNaive(np.int64(3), np.int64(2))(torch.tensor([[[1.0], [2.0]]]))
    assert forecast.flatten().tolist() == [1.0, 2.0, 1.0]
    with pytest.raises(TypeError, match=r"period is a whole number from 1, got 2\.0"):
        SeasonalNaive(3, 2.0)  # type: ignore[arg-type]
