"""SHOT-IM against a plain loop of the published behaviour, and its loss against numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import adapt
from testtime.methods import SHOTIM
from testtime.norm import source_statistics
from testtime.parts import adam, sgd


def published(
    net: nn.Module, stream: list[Tensor], lr: float, train: bool, each: float = 0.0, together: float = 0.0
) -> list[Tensor]:
    """The published algorithm as a plain loop: Adam on everything but ``fc``."""
    net = copy.deepcopy(net).eval()
    for m in net.modules():
        if train and isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    moving = [p for name, p in net.named_parameters() if not name.startswith("fc.")]
    optimizer = torch.optim.Adam(moving, lr)
    answers = []
    for x in stream:
        z = net(x)
        p = z.softmax(1)
        mean = p.mean(0)
        loss = -(p * torch.log(p + each)).sum(1).mean() + (mean * torch.log(mean + together)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        answers.append(z.detach())
    return answers


@pytest.mark.parametrize("train", [True, False])
def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor], train: bool) -> None:
    norm = {} if train else {"norm": source_statistics}
    shot, answers = SHOTIM(net, adam(1e-3), **norm), published(net, stream, 1e-3, train)
    for x, expected in zip(stream, answers, strict=True):
        torch.testing.assert_close(shot(x).logits, expected, rtol=0, atol=1e-8)
    assert (answers[-1] - published(net, stream, 0.0, train)[-1]).abs().max() > 0.1


@pytest.mark.parametrize("epsilon", [(0.0, 1e-5), (1e-5, 1e-5), (1e-2, 0.0), (0.0, 1e-2)])
def test_constants_within_the_logarithms(
    net: nn.Module, stream: list[Tensor], epsilon: tuple[float, float]
) -> None:
    """T3A's and SHOT's codes, and constants large enough to be seen (small ones count by their square)."""
    shot, exact = SHOTIM(net, adam(1e-3), epsilon=epsilon), SHOTIM(net, adam(1e-3))
    for x, expected in zip(stream, published(net, stream, 1e-3, True, *epsilon), strict=True):
        y, other = shot(x).logits, exact(x).logits
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-8)
    assert ((y - other).abs().max() > 1e-4) == (max(epsilon) > 1e-3)


def test_loss_in_numpy(net: nn.Module, stream: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    x, lam = stream[0], 0.7
    shot = SHOTIM(net, sgd(1.0, momentum=0.0), diversity=lam)
    bias = shot.model.network.bn2.layer.bias

    def loss(z: np.ndarray) -> float:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        mean = p.mean(0)
        return float(-(p * np.log(p)).sum(1).mean() + lam * (mean * np.log(mean)).sum())

    gradient, before = slope(lambda: shot.predict(x), bias, loss), bias.detach().clone()
    shot(x)
    np.testing.assert_allclose((before - bias.detach()).numpy(), gradient, rtol=1e-5, atol=1e-9)


def test_the_head_stays(net: nn.Module, stream: list[Tensor]) -> None:
    shot = SHOTIM(net)
    shot(stream[0])
    network = shot.model.network
    assert network.fc.weight.equal(net.fc.weight)
    assert network.fc.bias.equal(net.fc.bias)
    assert not network.conv1.weight.equal(net.conv1.weight)
    assert len(shot._adapted) == len(list(net.parameters())) - 2
    with pytest.raises(ValueError, match="no torch.nn.Linear layer named 'top'"):
        SHOTIM(net, head="top")


def test_one_image_changes_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    """Its gradient is zero but for rounding, which Adam would make a step of."""
    shot = SHOTIM(net, adam(1e-2))
    before = shot.state_dict()
    assert not shot(stream[0][:1]).updated
    assert all(v.equal(before[k]) for k, v in shot.state_dict().items() if k != "clock")


def test_it_goes_by_the_name_of_the_field(net: nn.Module) -> None:
    assert isinstance(adapt(net, "SHOT-IM"), SHOTIM)
