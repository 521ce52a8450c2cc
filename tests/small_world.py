"""A small world for the fidelity tests: prototypes under drift, and nets that know them, in float64."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4
SIDE = 8


def prototypes() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(CLASSES, 3, SIDE, SIDE, generator=rng, dtype=torch.float64)


def batch(size: int, seed: int, drift: float = 0.0, skew: bool = False) -> tuple[Tensor, Tensor]:
    """Images (size, 3, 8, 8) and labels; ``drift`` fades and adds noise, ``skew`` makes class 0 common."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (size,), generator=rng)
    if skew:
        y = torch.where(torch.rand(size, generator=rng) < 0.5, 0, y)
    noise = torch.randn(size, 3, SIDE, SIDE, generator=rng, dtype=torch.float64)
    x = prototypes()[y] * (1 - 0.3 * drift) + (0.3 + 0.4 * drift) * noise + 0.2 * drift
    return x.clamp(0, 1), y


def stream(sizes: list[int], skew: bool = True) -> list[Tensor]:
    """Batches whose drift grows and falls again."""
    return [
        batch(n, 100 + i, drift=1 - abs(2 * i / len(sizes) - 1), skew=skew)[0] for i, n in enumerate(sizes)
    ]


def net(norm: str = "batch") -> nn.Module:
    """A trained network in evaluation mode, new each time; ``norm`` is "batch", "layer" or "group"."""
    return copy.deepcopy(_trained(norm))


@functools.cache
def _trained(norm: str) -> nn.Module:
    def layer(channels: int, side: int) -> nn.Module:
        if norm == "batch":
            return nn.BatchNorm2d(channels)
        if norm == "group":
            return nn.GroupNorm(2, channels)
        return nn.LayerNorm([channels, side, side])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            layer(6, SIDE),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
            layer(8, SIDE // 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        ).double()
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for i in range(15):
            x, y = batch(64, i)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def norms_of(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of the BatchNorm, LayerNorm and GroupNorm layers, in order."""
    kinds = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    return [p for m in model.modules() if isinstance(m, kinds) for p in (m.weight, m.bias)]


def by_batch(model: nn.Module) -> nn.Module:
    """The model with the statistics of each batch, the way published code forces it."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    return model.train()


def jitter(x: Tensor, rng: torch.Generator) -> Tensor:
    """A view with draws that a reference can repeat."""
    return (x + 0.1 * torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x)).clamp(0, 1)


def mirrored(x: Tensor, rng: torch.Generator) -> Tensor:
    """A view without draws that differs from the image."""
    return 0.8 * x.flip(3)
