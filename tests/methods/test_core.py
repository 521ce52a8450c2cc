"""Core against a plain loop, and its loss against numpy."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import Core
from testtime.methods.core import class_correlation
from testtime.norm import alpha_statistics
from testtime.parts import adam


class AlphaBN(nn.Module):
    """alpha-BN, written anew."""

    def __init__(self, layer: nn.BatchNorm2d, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.requires_grad_(True), layer.bias.requires_grad_(True)
        self.mean, self.var, self.eps, self.alpha = layer.running_mean, layer.running_var, layer.eps, alpha

    def forward(self, x: Tensor) -> Tensor:
        mean = (1 - self.alpha) * self.mean + self.alpha * x.mean((0, 2, 3))
        var = (1 - self.alpha) * self.var + self.alpha * x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_equals_a_plain_loop(net: nn.Module, stream: list[Tensor], alpha: float) -> None:
    core = Core(net, adam(1e-2), norm=partial(alpha_statistics, alpha=alpha))
    plain = copy.deepcopy(net).requires_grad_(False)
    plain.bn1, plain.bn2 = AlphaBN(plain.bn1, alpha), AlphaBN(plain.bn2, alpha)
    optimizer = torch.optim.Adam([p for m in (plain.bn1, plain.bn2) for p in (m.weight, m.bias)], 1e-2)
    for x in stream:
        z = plain(x)
        p = z.softmax(1)
        pairs = [(p[:, j] * p[:, k]).sum() / len(x) for j in range(5) for k in range(5) if j != k]
        optimizer.zero_grad()
        torch.stack(pairs).sum().backward()
        optimizer.step()
        torch.testing.assert_close(core(x).logits, z.detach(), rtol=0, atol=1e-9)


def test_loss_in_numpy() -> None:
    z = 2 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(class_correlation(z).item(), (1 - (p**2).sum(1)).mean(), rtol=1e-12)
    r = p.T @ p
    shares = [r[j, k] / r[j].sum() for j in range(4) for k in range(4) if j != k]
    np.testing.assert_allclose(class_correlation(z, balanced=True).item(), sum(shares) / 4, rtol=1e-12)


def test_certain_predictions_do_not_correlate() -> None:
    z = 40 * torch.eye(4, dtype=torch.float64)
    for balanced in (False, True):
        assert class_correlation(z, balanced) < 1e-15
    assert class_correlation(z[:1].expand(3, -1), balanced=True).isfinite()  # classes that nobody predicts
