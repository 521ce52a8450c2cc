"""A small trained network, and streams of images, for the tests of serving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from testtime.methods import Tent
from testtime.parts.optimizers import adam


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
        )
    return net.eval()


def tent(lr: float = 0.01) -> Tent:
    return Tent(network(), optimizer=adam(lr))


def images(seed: int, n: int = 4) -> Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> nn.Module:
    return network()
