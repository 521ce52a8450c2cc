"""SAR against a plain loop of the published behaviour without its bugs, and its parts by hand."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import SAR, Tent
from testtime.parts import adam, sgd

E0 = 0.4 * math.log(5)


class Published:
    """The published algorithm as a plain loop; a return begins everything anew, or the weights alone as published."""

    def __init__(
        self, net: nn.Module, lr: float, floor: float, reselect: bool = True, full: bool = True
    ) -> None:
        self.full = full
        self.net = copy.deepcopy(net).train().requires_grad_(False)
        self.affine = []
        for m in self.net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
            if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
                self.affine += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
        self.source = [p.detach().clone() for p in self.affine]
        self.lr, self.floor, self.reselect = lr, floor, reselect
        self.optimizer = torch.optim.SGD(self.affine, lr, momentum=0.9)
        self.average: float | None = None
        self.events = {"returned": 0, "dropped": 0, "idle": 0}

    def step(self, x: Tensor) -> tuple[Tensor, set[int]]:
        z = self.net(x)
        h = -(z.softmax(1) * z.log_softmax(1)).sum(1)
        ids = [i for i in range(len(x)) if h[i] < E0]
        if not ids:
            self.events["idle"] += 1
            return z.detach(), set()
        self.optimizer.zero_grad()
        h[ids].mean().backward()
        length = math.sqrt(sum(float((p.grad**2).sum()) for p in self.affine))
        here = [p.detach().clone() for p in self.affine]
        with torch.no_grad():
            for p in self.affine:
                p.add_(0.05 / (length + 1e-12) * p.grad)
        z2 = self.net(x)
        h2 = -(z2.softmax(1) * z2.log_softmax(1)).sum(1)
        again = [i for i in ids if h2[i] < E0] if self.reselect else ids
        self.events["dropped"] += len(ids) - len(again)
        self.optimizer.zero_grad()
        loss = h2[again].mean()
        if again:
            loss.backward()
        with torch.no_grad():
            for p, value in zip(self.affine, here, strict=True):
                p.copy_(value)
        if again:
            self.optimizer.step()
            self.average = loss.item() if self.average is None else 0.9 * self.average + 0.1 * loss.item()
            if self.average < self.floor:
                self.events["returned"] += 1
                with torch.no_grad():
                    for p, value in zip(self.affine, self.source, strict=True):
                        p.copy_(value)
                if self.full:
                    self.optimizer, self.average = torch.optim.SGD(self.affine, self.lr, momentum=0.9), None
        return z.detach(), set(again)


@pytest.mark.parametrize("reselect", [True, False])
def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor], reselect: bool) -> None:
    reference = Published(net, 1e-2, floor=0.2, reselect=reselect)
    sar = SAR(net, 5, sgd(1e-2), floor=0.2, reselect=reselect)
    for x in stream:
        expected, kept = reference.step(x)
        y = sar(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-10)
        assert set(y.selected["minimised"].nonzero().flatten().tolist()) == kept
        assert y.updated == bool(kept)
    assert 0 < reference.events["returned"] < 20
    assert bool(reference.events["dropped"]) == reselect


def test_recovery_of_the_weights_alone_as_published(net: nn.Module, stream: list[Tensor]) -> None:
    """Average and momentum go on, so that returns follow each other until the average has grown."""
    plain = Published(net, 1e-2, floor=0.2)
    reference = Published(net, 1e-2, floor=0.2, full=False)
    sar, returned = SAR(net, 5, sgd(1e-2), floor=0.2, recovery="weights"), []
    birth = sar.state_dict()
    for x in stream:
        expected, other = reference.step(x)[0], plain.step(x)[0]
        torch.testing.assert_close(sar(x).logits, expected, rtol=0, atol=1e-10)
        if reference.average is not None:
            assert float(sar.average) == pytest.approx(reference.average, abs=1e-12)
        now = sar.state_dict()
        returned.append(all(v.equal(birth[k]) for k, v in now.items() if k.startswith("model.")))
        assert any(v.abs().sum() > 0 for k, v in now.items() if k.startswith("optimizer."))
    assert sum(returned) == reference.events["returned"] > plain.events["returned"] > 0
    assert any(a and b for a, b in pairwise(returned))
    assert not all(returned)
    assert (expected - other).abs().max() > 1e-6
    with pytest.raises(ValueError, match="recovery is one of 'full', 'weights', got 'none'"):
        SAR(net, 5, recovery="none")  # type: ignore[arg-type]


def test_equals_the_published_loop_with_layer_norm(layer_net: nn.Module, stream: list[Tensor]) -> None:
    reference, sar = Published(layer_net, 1e-2, floor=0.0), SAR(layer_net, 5, sgd(1e-2), floor=0.0)
    for x in stream:
        torch.testing.assert_close(sar(x).logits, reference.step(x)[0], rtol=0, atol=1e-10)
    assert reference.events["returned"] == 0


def test_a_return_restores_everything(net: nn.Module, stream: list[Tensor]) -> None:
    """Weights, momentum and average are those of birth, and the clock goes on."""
    sar = SAR(net, 5, adam(1e-2), margin=1.0, floor=math.log(5) + 1)  # every average is too low
    birth = sar.state_dict()
    for t, x in enumerate(stream[:3]):
        assert sar(x).updated
        now = sar.state_dict()
        assert int(now.pop("clock")) == t + 1
        assert all(v.equal(birth[k]) for k, v in now.items())
    sar.floor = 0.0
    sar(stream[3])
    assert bool(sar.begun)


def test_the_average_in_numpy(net: nn.Module, stream: list[Tensor]) -> None:
    """The entropy of the kept at the worst point, averaged; the worst point by differences of the entropy."""
    sar = SAR(net, 5, sgd(0.0), margin=1.01, floor=0.0, decay=0.7, reselect=False)
    losses = []
    for x in stream[:3]:
        theta = [p.detach().clone() for p in sar._adapted]
        slope = []
        for p in sar._adapted:
            for i in range(len(p)):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        p[i] += sign * 1e-5
                        values.append(numpy_entropy(sar.predict(x)))
                        p[i] -= sign * 1e-5
                slope.append((values[0] - values[1]) / 2e-5)
        g = np.array(slope)
        step = torch.from_numpy(0.05 * g / np.linalg.norm(g)).split([len(p) for p in theta])
        with torch.no_grad():
            for p, s in zip(sar._adapted, step, strict=True):
                p.add_(s)
            losses.append(numpy_entropy(sar.predict(x)))
            for p, t in zip(sar._adapted, theta, strict=True):
                p.copy_(t)
        sar(x)
    expected = 0.7 * (0.7 * losses[0] + 0.3 * losses[1]) + 0.3 * losses[2]
    np.testing.assert_allclose(float(sar.average), expected, rtol=1e-7)


def numpy_entropy(logits: Tensor) -> float:
    z = logits.numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(-(p * np.log(p)).sum(1).mean())


def test_without_sharpness_and_selection_it_is_tent(net: nn.Module, stream: list[Tensor]) -> None:
    sar = SAR(net, 5, sgd(1e-2), margin=1.01, rho=0.0, floor=0.0)
    tent = Tent(net, sgd(1e-2))
    for x in stream[:5]:
        torch.testing.assert_close(sar(x).logits, tent(x).logits, rtol=0, atol=1e-12)


def test_no_certain_sample_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    sar = SAR(net, 5, margin=1e-6)
    before = sar.state_dict()
    y = sar(stream[0])
    assert not y.updated
    assert not y.selected["minimised"].any()
    assert all(v.equal(before[k]) for k, v in sar.state_dict().items() if k != "clock")


def test_top_layers_stay(net: nn.Module) -> None:
    assert len(SAR(net, 5, skip=("bn2",))._adapted) == 2
    assert len(SAR(net, 5)._adapted) == 4
