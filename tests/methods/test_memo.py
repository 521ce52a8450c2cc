"""MEMO against a plain loop of the published behaviour, and its loss against numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import jitter, net, stream
from testtime.adapter import state_hash
from testtime.methods import MEMO
from testtime.norm import source_statistics
from testtime.parts import adam, generator, identity, sgd


class Blended(nn.Module):
    """A BatchNorm layer with a prior worth 16 images, written anew."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.mean, self.var = layer.running_mean, layer.running_var

    def forward(self, x: Tensor) -> Tensor:
        mean = (16 * self.mean + x.mean((0, 2, 3))) / 17
        var = (16 * self.var + x.var((0, 2, 3), unbiased=False)) / 17
        x = (x - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def blended(model: nn.Sequential) -> nn.Sequential:
    for i, m in enumerate(model):
        if isinstance(m, nn.BatchNorm2d):
            model[i] = Blended(m)
    return model.requires_grad_(True)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("episodic", [True, False])
def test_equals_the_published_loop(norm: str, episodic: bool) -> None:
    model = blended(net(norm))
    checkpoint = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    ours = MEMO(net(norm), sgd(0.05, momentum=0.0), views=6, episodic=episodic, augment=jitter, seed=3)
    for clock, x in enumerate(stream([4, 1, 3, 1, 2, 1, 1, 2, 1, 1])):
        expected = []
        for i in range(len(x)):
            if episodic:
                model.load_state_dict(checkpoint)
            views = jitter(torch.stack([x[i]] * 6), generator(3, clock, f"image {i}"))
            optimizer.zero_grad()
            p = model(views).softmax(1).mean(0)
            (-(p * p.log()).sum()).backward()
            optimizer.step()
            with torch.no_grad():
                expected.append(model(x[i : i + 1])[0])
        torch.testing.assert_close(ours(x).logits, torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("reset", [True, False])
def test_moments_of_an_adaptive_optimizer(reset: bool) -> None:
    """The published optimizer keeps its moments from image to image (``reset_optimizer=False``)."""
    model = net("group").requires_grad_(True)
    checkpoint = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    ours = MEMO(net("group"), adam(1e-2), views=4, reset_optimizer=reset, augment=jitter, seed=3)
    for clock, x in enumerate(stream([2, 1, 3, 1, 2, 1, 1, 2, 1, 1])):
        expected = []
        for i in range(len(x)):
            model.load_state_dict(checkpoint)
            if reset:
                optimizer = torch.optim.Adam(model.parameters(), 1e-2)
            views = jitter(torch.stack([x[i]] * 4), generator(3, clock, f"image {i}"))
            optimizer.zero_grad()
            p = model(views).softmax(1).mean(0)
            (-(p * p.log()).sum()).backward()
            optimizer.step()
            with torch.no_grad():
                expected.append(model(x[i : i + 1])[0])
        torch.testing.assert_close(ours(x).logits, torch.stack(expected), rtol=0, atol=1e-8)


def test_the_optimizer_is_reset_with_the_weights() -> None:
    """Adam's moments of one image say nothing to the next, whatever the company."""
    x = stream([3])[0]
    together = MEMO(net("group"), adam(1e-3), views=2, augment=identity)(x)
    alone = [MEMO(net("group"), adam(1e-3), views=2, augment=identity)(image) for image in x.split(1)]
    torch.testing.assert_close(together.logits, torch.cat([y.logits for y in alone]), rtol=0, atol=1e-12)


def test_every_batch_begins_at_the_source() -> None:
    x, other = stream([2, 2])
    ours = MEMO(net(), views=2, augment=identity)
    first = ours(x)
    ours(other)
    assert ours(x).equal(first)
    birth = state_hash(MEMO(net(), views=2, augment=identity))
    ours.reset()
    assert state_hash(ours) == birth


def test_the_loss_in_numpy(slope: Callable[..., np.ndarray]) -> None:
    x = stream([1])[0]
    ours = MEMO(net(), sgd(1.0, momentum=0.0), views=5, augment=jitter, norm=source_statistics)
    views = jitter(x.expand(5, -1, -1, -1), generator(0, 0, "image 0"))

    def loss(z: np.ndarray) -> float:
        p = (np.exp(z) / np.exp(z).sum(1, keepdims=True)).mean(0)
        return float(-(p * np.log(p)).sum())

    bias = ours._adapted[-1]
    gradient, before = slope(lambda: ours.predict(views), bias, loss), bias.detach().clone()
    ours(x)
    np.testing.assert_allclose((before - bias.detach()).numpy(), gradient, rtol=1e-5, atol=1e-9)


def test_views_are_counted() -> None:
    assert MEMO(net(), views=7).cost == (8, 7)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MEMO(net(), views=0)
