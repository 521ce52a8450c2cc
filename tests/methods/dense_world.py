"""A tiny multi-task network, its images, and central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from testtime.multitask import Depth, Edges, MultiTaskNet, Segmentation, Task

TASKS: dict[str, Task] = {t.name: t for t in (Segmentation(("a", "b", "c")), Depth(), Edges())}


def network(seed: int = 0) -> MultiTaskNet:
    """Two stages; the latent z has 6 channels on half the image's grid."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
            nn.Conv2d(5, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Tanh(),
        )  # fmt: skip
        heads = {k: nn.Conv2d(6, t.channels, 1) for k, t in TASKS.items()}
        return MultiTaskNet(encoder, heads, TASKS).double().eval()


def batch(seed: int = 0, n: int = 4) -> Tensor:
    """Images (n, 3, 8, 8)."""
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n: int = 4) -> dict[str, Tensor]:
    """One of each task for every pixel."""
    return {
        "semseg": torch.ones(n, 8, 8, dtype=torch.int64),
        "depth": torch.full((n, 1, 8, 8), 2.0, dtype=torch.float64),
        "edge": torch.zeros(n, 1, 8, 8, dtype=torch.float64),
    }


def by_batch(encoder: nn.Module, x: Tensor) -> Tensor:
    """What an encoder gives in train mode, its statistics left as they are."""
    scratch = {name: b.clone() for name, b in encoder.named_buffers()}
    z = torch.func.functional_call(encoder.train(), scratch, (x,))
    encoder.eval()
    return z


def differences(loss: Callable[[], float], p: Tensor, h: float = 1e-6) -> np.ndarray:
    """Central differences of a loss with respect to the elements of a parameter."""
    slope = np.zeros(p.numel())
    with torch.no_grad():
        flat = p.view(-1)
        for i in range(len(flat)):
            before = flat[i].item()
            for sign in (1, -1):
                flat[i] = before + sign * h
                slope[i] += sign * loss() / (2 * h)
            flat[i] = before
    return slope.reshape(p.shape)
