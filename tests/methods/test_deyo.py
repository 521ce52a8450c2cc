"""DeYO against a plain loop of the published behaviour, its shuffling against lists, its equations against numpy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.laws import CLASSES, Case, parametrize_with_laws
from testtime.methods import DeYO
from testtime.methods.deyo import label_drop
from testtime.parts import generator, sgd, shuffle_patches

LOG_C = math.log(5)


ALL_COUNT = [Case("DeYO-all", partial(DeYO, classes=CLASSES, margin=1.01, threshold=0.1))]


@parametrize_with_laws(ALL_COUNT, rotate=True)
def test_obeys(check: Callable[[], None]) -> None:
    """Where all are certain it costs what it declares, so that no law is excused."""
    check()


@pytest.mark.slow
@parametrize_with_laws(ALL_COUNT)
def test_obeys_in_every_world(check: Callable[[], None]) -> None:
    check()


def shuffled(image: Tensor, order: list[int], side: int = 4) -> Tensor:
    """The patch at each place, row by row, is the one of that number."""
    h, w = image.shape[1] // side, image.shape[2] // side
    out = image.clone()
    for place, source in enumerate(order):
        r, c = divmod(place, side)
        i, j = divmod(source, side)
        out[:, r * h : (r + 1) * h, c * w : (c + 1) * w] = image[:, i * h : (i + 1) * h, j * w : (j + 1) * w]
    return out


class Published:
    """The published algorithm as a plain loop."""

    def __init__(self, net: nn.Module, lr: float, threshold: float, seed: int = 0) -> None:
        self.net = copy.deepcopy(net).train().requires_grad_(False)
        affine = []
        for m in self.net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
            if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
                affine += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
        self.optimizer = torch.optim.SGD(affine, lr, momentum=0.9)
        self.threshold, self.seed, self.t = threshold, seed, -1

    def step(self, x: Tensor) -> tuple[Tensor, set[int], set[int]]:
        self.t += 1
        z = self.net(x)
        h = -(z.softmax(1) * z.log_softmax(1)).sum(1)
        first = [i for i in range(len(x)) if h[i] < 0.5 * LOG_C]
        if not first:
            return z.detach(), set(), set()
        orders = torch.rand(len(first), 16, generator=generator(self.seed, self.t, "destroy")).argsort(1)
        with torch.no_grad():
            z2 = self.net(
                torch.stack([shuffled(x[i], o) for i, o in zip(first, orders.tolist(), strict=True)])
            )
        losses, second = [], set()
        for row, i in enumerate(first):
            label = int(z[i].argmax())
            drop = float(z[i].detach().softmax(0)[label] - z2[row].softmax(0)[label])
            if drop > self.threshold:
                second.add(i)
                losses.append(h[i] * (1 / math.exp(h[i].item() - 0.4 * LOG_C) + 1 / math.exp(-drop)))
        if losses:
            self.optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            self.optimizer.step()
        return z.detach(), set(first), second


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor], threshold: float) -> None:
    reference, deyo = Published(net, 1e-2, threshold, 3), DeYO(net, 5, sgd(1e-2), threshold=threshold, seed=3)
    dropped = kept = 0
    for x in stream:
        expected, first, second = reference.step(x)
        y = deyo(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-10)
        assert set(y.selected["minimised"].nonzero().flatten().tolist()) == second
        assert y.updated == bool(second)
        dropped, kept = dropped + len(first - second), kept + len(second)
    assert dropped > 20
    assert kept > 20


def test_equals_the_published_loop_with_layer_norm(layer_net: nn.Module, stream: list[Tensor]) -> None:
    reference, deyo = Published(layer_net, 1e-2, 0.1), DeYO(layer_net, 5, sgd(1e-2), threshold=0.1)
    for x in stream:
        torch.testing.assert_close(deyo(x).logits, reference.step(x)[0], rtol=0, atol=1e-10)


def test_equations_in_numpy(net: nn.Module, stream: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    """The gradient of the weighted loss, by differences, with the weights and the selection held."""
    x = stream[0]
    deyo = DeYO(net, 5, sgd(1.0, momentum=0.0), margin=0.9, weight_margin=0.3, threshold=0.05)
    bias = deyo.model.network.bn2.layer.bias
    p, h = probabilities(deyo.predict(x).numpy())
    certain = h < 0.9 * LOG_C
    destroyed = shuffle_patches(x[torch.from_numpy(certain)], generator(0, 0, "destroy"))
    q, _ = probabilities(deyo.predict(destroyed).numpy())
    drop = np.full(len(x), -np.inf)
    drop[certain] = p[certain].max(1) - q[np.arange(len(q)), p[certain].argmax(1)]
    kept = drop > 0.05
    assert 0 < kept.sum() < certain.sum()
    weight = np.exp(0.3 * LOG_C - h[kept]) + np.exp(drop[kept])

    def loss(z: np.ndarray) -> float:
        return float((weight * probabilities(z)[1][kept]).mean())

    gradient, before = slope(lambda: deyo.predict(x), bias, loss), bias.detach().clone()
    deyo(x)
    np.testing.assert_allclose((before - bias.detach()).numpy(), gradient, rtol=1e-5, atol=1e-9)


def probabilities(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p, -(p * np.log(p)).sum(1)


def test_label_drop_in_numpy() -> None:
    z, z2 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = probabilities(z.numpy())[0], probabilities(z2.numpy())[0]
    expected = [p[i, p[i].argmax()] - q[i, p[i].argmax()] for i in range(6)]
    np.testing.assert_allclose(label_drop(z, z2).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_patches_are_shuffled_whole(size: tuple[int, int]) -> None:
    x = torch.rand(5, 3, *size)
    y = shuffle_patches(x, generator(0, 0, "a"))
    orders = torch.rand(5, 16, generator=generator(0, 0, "a")).argsort(1).tolist()
    for image, got, order in zip(x, y, orders, strict=True):
        assert got.equal(shuffled(image, order))
    assert len({tuple(o) for o in orders}) == 5


def test_other_sizes_keep_their_size() -> None:
    y = shuffle_patches(torch.full((2, 3, 9, 11), 0.25), generator(0, 0, "a"))
    torch.testing.assert_close(y, torch.full((2, 3, 9, 11), 0.25))
    with pytest.raises(ValueError, match="3 x 8 pixels has no 4 x 4 patches"):
        shuffle_patches(torch.rand(1, 3, 3, 8), generator(0, 0, "a"))


def test_no_kept_sample_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    for settings in ({"margin": 1e-6}, {"threshold": 1.0}):
        deyo = DeYO(net, 5, **settings)
        before = deyo.state_dict()
        y = deyo(stream[0])
        assert not y.updated
        assert not y.selected["minimised"].any()
        assert all(v.equal(before[k]) for k, v in deyo.state_dict().items() if k != "clock")
