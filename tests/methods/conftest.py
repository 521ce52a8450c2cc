"""A small BatchNorm network and a stream on which filters keep some and refuse some, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean(dim=(2, 3)))


def images(labels: Tensor, seed: int, shift: float = 0.0) -> Tensor:
    """Five kinds of 8x8 pattern with noise, float64; ``shift`` is a change of world."""
    rng = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")).double()
    angle = labels.double() * torch.pi / 5
    wave = angle.cos()[:, None, None] * grid[0] + angle.sin()[:, None, None] * grid[1]
    colour = torch.stack([(labels + k) % 3 for k in range(3)], 1).double()[:, :, None, None]
    x = 0.5 + 0.25 * wave[:, None].mul(1.3).sin() + 0.08 * colour
    noise = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    return (x * (1 - shift) + (0.1 + 0.25 * shift) * noise).clamp(0, 1)


def train() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().double()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(60):
            y = torch.randint(5, (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images(y, step)), y).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def trained() -> Net:
    return train()


@pytest.fixture
def net(trained: Net) -> Net:
    import copy

    return copy.deepcopy(trained)


@pytest.fixture(scope="session")
def stream() -> list[Tensor]:
    """20 batches of 24 images, known and unknown (pure noise), drifting away from the source."""
    batches = []
    for step in range(20):
        rng = torch.Generator().manual_seed(1000 + step)
        known = images(torch.randint(5, (16,), generator=rng), 2000 + step, shift=0.02 * step)
        unknown = torch.rand(8, 3, 8, 8, generator=rng, dtype=torch.float64)
        batches.append(torch.cat([known, unknown]))
    return batches


@pytest.fixture
def layer_net() -> nn.Module:
    """A LayerNorm network, untrained, whose predictions range from sure to unsure; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))
        with torch.no_grad():
            net[4].weight.mul_(6)
    return net.double().eval()


@pytest.fixture
def slope() -> Callable[..., np.ndarray]:
    """Central differences of a numpy loss of the logits with respect to the elements of a live parameter."""

    def measure(
        predict: Callable[[], Tensor], p: Tensor, loss: Callable[[np.ndarray], float], h: float = 1e-6
    ) -> np.ndarray:
        before, out = p.detach().clone(), np.zeros(len(p))
        for i in range(len(p)):
            for sign in (1, -1):
                with torch.no_grad():
                    p.copy_(before)
                    p[i] += sign * h
                out[i] += sign * loss(predict().numpy()) / (2 * h)
        with torch.no_grad():
            p.copy_(before)
        return out

    return measure
