"""The branch of ClusT3: projectors from the features of layers to clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.parts import entropy, marginal_entropy
from testtime.source.branches import UnsupervisedBranch, positions

__all__ = ["Projectors"]


@final
class Projectors(UnsupervisedBranch):
    """Linear (1 x 1) projectors from the features of some layers to clusters.

    Args:
        channels: number of channels of each watched layer.
        clusters: K.
        projectors: number of projectors on each layer.
        layers: names of the watched layers.

    Called with what the layers gave, feature maps (N, C, h, w) or vectors (N, C), it returns I(X; Z) in nats, a scalar
    between 0 and log K, averaged over projectors and layers.

    >>> Projectors([8], clusters=10)([torch.zeros(2, 8, 4, 4)]).item() < 1e-6  # all alike
    True
    """

    def __init__(
        self,
        channels: Sequence[int],
        clusters: int = 10,
        projectors: int = 1,
        layers: Sequence[str] = ("encoder",),
    ) -> None:
        super().__init__(layers)
        if clusters < 2 or projectors < 1:
            raise ValueError(
                f"expected at least two clusters and one projector, got {clusters} and {projectors}"
            )
        self.clusters = clusters
        self.project = nn.ModuleList(nn.Linear(c, projectors * clusters) for c in channels)

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        information = []
        for linear, z in zip(self.project, seen, strict=True):
            assert isinstance(linear, nn.Linear)
            for logits in linear(positions(z, linear.weight)).split(self.clusters, dim=1):
                information.append(marginal_entropy(logits) - entropy(logits).mean())
        return torch.stack(information).mean()

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The negative information, in nats."""
        return {"clusters": -self(seen)}
