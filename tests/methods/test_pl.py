"""PL against a plain loop, and its loss against numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from testtime.methods import PL
from testtime.parts import sgd


def published(net: nn.Module, stream: list[Tensor], lr: float) -> tuple[list[Tensor], list[set[int]]]:
    """The published algorithm as a plain loop, and whom it kept."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    affine = []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
        if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
            affine += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    optimizer = torch.optim.SGD(affine, lr, momentum=0.9)
    answers, kept = [], []
    for x in stream:
        z = net(x)
        confidence, label = z.softmax(1).max(1)
        chosen = [i for i in range(len(x)) if confidence[i] > 0.9]
        if chosen:
            optimizer.zero_grad()
            nn.functional.cross_entropy(z[chosen], label[chosen]).backward()
            optimizer.step()
        answers.append(z.detach())
        kept.append(set(chosen))
    return answers, kept


def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor]) -> None:
    pl = PL(net, sgd(5e-2))
    answers, kept = published(net, stream, 5e-2)
    assert 0 < min(map(len, kept)) < max(map(len, kept)) < 24
    for x, expected, chosen in zip(stream, answers, kept, strict=True):
        y = pl(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-10)
        assert set(y.selected["minimised"].nonzero().flatten().tolist()) == chosen
        assert y.updated


def test_equals_the_published_loop_with_layer_norm(layer_net: nn.Module, stream: list[Tensor]) -> None:
    pl = PL(layer_net, sgd(1e-2))
    answers, kept = published(layer_net, stream, 1e-2)
    assert not min(map(len, kept))
    for x, expected, chosen in zip(stream, answers, kept, strict=True):
        y = pl(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-10)
        assert y.updated == bool(chosen)


def test_loss_in_numpy(net: nn.Module, stream: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    x, pl = stream[0], PL(net, sgd(1.0, momentum=0.0), threshold=0.6)
    bias = pl.model.network.bn2.layer.bias
    z = pl.predict(x).numpy()
    label = z.argmax(1)
    kept = np.exp(z).max(1) / np.exp(z).sum(1) > 0.6
    assert 0 < kept.sum() < 24

    def loss(z: np.ndarray) -> float:
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), label])[kept].mean())

    gradient, before = slope(lambda: pl.predict(x), bias, loss), bias.detach().clone()
    pl(x)
    np.testing.assert_allclose((before - bias.detach()).numpy(), gradient, rtol=1e-5, atol=1e-9)


def test_no_confident_sample_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    pl = PL(net, threshold=1.0)
    before = pl.state_dict()
    y = pl(stream[0])
    assert not y.updated
    assert not y.selected["minimised"].any()
    assert all(v.equal(before[k]) for k, v in pl.state_dict().items() if k != "clock")
