"""The branch of TTT++: projections in which views of one image lie close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.parts import simclr
from testtime.parts.augment import Augmentation
from testtime.parts.taps import tapped, watched
from testtime.parts.views import preserving
from testtime.source.branches import UnsupervisedBranch, pooled

__all__ = ["ContrastiveBranch", "contrastive"]


def contrastive(h: Tensor, temperature: float = 0.5) -> Tensor:
    """The normalised, temperature-scaled cross-entropy of SimCLR, in nats.

    Args:
        h: projections (2 N, D) of N images and then of N other views of them, of any length.
        temperature: T.

    Returns:
        a scalar; zero for one image, which has no negatives.

    >>> contrastive(torch.eye(2).repeat(2, 1), 1.0)  # log(1 + 2 / e)
    tensor(0.5514)
    """
    u = F.normalize(h, dim=1)
    likeness = (u @ u.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(likeness, torch.arange(len(h), device=h.device).roll(len(h) // 2))


@final
class ContrastiveBranch(UnsupervisedBranch):
    """A projection of two layers, of features averaged over places, in which views of one image lie close.

    Args:
        channels: number of channels of the features.
        outputs: number of outputs of the projection.
        temperature: T.
        augment: draws a view within the model's invariances.
        layer: name of the layer that gives the features.

    Called with features (N, C), maps (N, C, h, w) or tokens (N, T, C), it returns projections (N, outputs).

    >>> ContrastiveBranch(8, 4)(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        channels: int,
        outputs: int = 128,
        temperature: float = 0.5,
        augment: Augmentation = simclr,
        layer: str = "encoder",
    ) -> None:
        super().__init__((layer,))
        self.temperature, self.augment = temperature, augment
        self.inner, self.outer = nn.Linear(channels, channels), nn.Linear(channels, outputs)

    def pool(self, z: Tensor) -> Tensor:
        """Features averaged over places (N, C), in the branch's type."""
        return pooled(z, self.inner.weight)

    def forward(self, z: Tensor) -> Tensor:
        return self.outer(self.inner(self.pool(z)).relu())

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The contrastive loss of two views, in nats."""
        augment = preserving(self.augment, network)
        views = torch.cat([augment(x, generator) for _ in range(2)])
        with tapped(network, self.layers) as taps:
            _, (z,) = watched(network, taps, views)
        return {"contrastive": contrastive(self(z), self.temperature)}
