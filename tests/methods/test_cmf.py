"""CMF against a plain loop of the published behaviour, and its filter against numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from test_roid import Published
from torch import Tensor, nn

from small_world import mirrored
from testtime.laws import CLASSES, Case, parametrize_with_laws
from testtime.methods import CMF, ROID
from testtime.methods.cmf import MomentumFilter
from testtime.methods.roid import ROIDOptions

ALL_COUNT = [
    Case("CMF-all", partial(CMF, classes=CLASSES, options=ROIDOptions(weighting=False, prior="none")))
]


@parametrize_with_laws(ALL_COUNT, rotate=True)
def test_obeys(check: Callable[[], None]) -> None:
    """Where all count and no prior corrects, no law is excused."""
    check()


@pytest.mark.slow
@parametrize_with_laws(ALL_COUNT)
def test_obeys_in_every_world(check: Callable[[], None]) -> None:
    check()


class Filtered(Published):
    """The published algorithm as a plain loop, with the published filter."""

    def __init__(self, net: nn.Module, q: float) -> None:
        super().__init__(net)
        self.hidden, self.var = [s.clone() for s in self.source], 0.0
        self.q = q * sum(p.numel() for p in self.affine) / 38400
        self.betas: list[float] = []

    def pull(self) -> None:
        self.var = 0.99**2 * self.var + self.q
        r = 1 - self.q
        beta = min(max(r / (self.var + r), 0.89), 1.0)
        beta = beta if beta < 0.9999 else 1.0
        self.betas.append(beta)
        self.var *= beta
        for p, s, h in zip(self.affine, self.source, self.hidden, strict=True):
            h.copy_(beta * (0.99 * h + 0.01 * s) + (1 - beta) * p)
            p.copy_(0.99 * p + 0.01 * h)


@pytest.mark.parametrize("q", [0.005, 10.0, 300.0])
def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor], q: float) -> None:
    """A q whose beta is 1 at first, one in between, and one at the lower bound."""
    reference, cmf = Filtered(net, q), CMF(net, 5, q=q, options=ROIDOptions(prior="logits"), augment=mirrored)
    for x in stream:
        torch.testing.assert_close(cmf(x).logits, reference.step(x)[0], rtol=0, atol=1e-9)
    assert {0.005: 1.0, 300.0: 0.89}.get(q, reference.betas[0]) == reference.betas[0]
    assert q != 10.0 or 0.89 < min(reference.betas) < max(reference.betas) < 0.9999
    np.testing.assert_allclose(float(cmf.filter.variance), reference.var, rtol=1e-12)


def test_filter_in_numpy() -> None:
    source, observed = np.array([1.0, -2.0]), np.array([[2.0, 0.0], [0.5, 1.0], [0.0, 0.0]])
    kalman = MomentumFilter(torch.from_numpy(source), 0.9, 0.03)
    mean, var = source, 0.0
    for theta in observed:
        var = 0.81 * var + 0.03
        beta = 0.97 / (var + 0.97)
        mean, var = beta * (0.9 * mean + 0.1 * source) + (1 - beta) * theta, beta * var
        kalman.update(torch.from_numpy(theta))
        np.testing.assert_allclose(kalman.mean.numpy(), mean, rtol=1e-12)
        np.testing.assert_allclose(float(kalman.variance), var, rtol=1e-12)


def test_without_noise_the_hidden_weights_are_the_sources(net: nn.Module, stream: list[Tensor]) -> None:
    """Then it is ROID."""
    cmf, roid = CMF(net, 5, q=0.0), ROID(net, 5)
    for x in stream:
        torch.testing.assert_close(cmf(x).logits, roid(x).logits, rtol=0, atol=1e-12)


def test_reset_restarts_the_filter(net: nn.Module, stream: list[Tensor]) -> None:
    cmf = CMF(net, 5, q=10.0)
    first = [cmf(x).logits for x in stream[:4]]
    assert float(cmf.filter.variance) > 0
    cmf.reset()
    assert float(cmf.filter.variance) == 0
    assert all(cmf(x).equal(z) for x, z in zip(stream, first, strict=False))


def test_arguments_are_checked(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"noise 1\.25 for the 48 parameters"):
        CMF(net, 5, q=1000.0)
    with pytest.raises(ValueError, match="expected prior"):
        CMF(net, 5, options=ROIDOptions(prior="odds"))
