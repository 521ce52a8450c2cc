"""The branch of TTT: a linear classifier of quarter turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.parts.taps import Tap, tapped, watched
from testtime.source.branches import UnsupervisedBranch, pooled

__all__ = ["RotationBranch", "turned"]


def turned(x: Tensor, turns: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images turned counter-clockwise by quarter turns, in groups of one shape.

    Args:
        x: (N, C, H, W).
        turns: (N,), of 0 to 3.

    Returns:
        images and the turns they had, sorted by these; one group, or two where H and W differ.

    Raises:
        ValueError: x is not a batch of images.

    >>> [(tuple(y.shape), k.tolist()) for y, k in turned(torch.rand(3, 1, 2, 4), torch.tensor([3, 0, 2]))]
    [((2, 1, 2, 4), [0, 2]), ((1, 1, 4, 2), [3])]
    """
    if x.dim() != 4:
        raise ValueError(f"only images (N, C, H, W) can be turned, got a batch of shape {tuple(x.shape)}")
    groups = []
    for kinds in [(0, 1, 2, 3)] if x.shape[2] == x.shape[3] else [(0, 2), (1, 3)]:
        images = torch.cat([torch.rot90(x[turns == k], k, (2, 3)) for k in kinds])
        if len(images):
            groups.append((images.contiguous(), torch.cat([turns[turns == k] for k in kinds])))
    return groups


@final
class RotationBranch(UnsupervisedBranch):
    """A linear classifier of quarter turns, on features averaged over places.

    Args:
        channels: number of channels of the features.
        layer: name of the layer that gives them.

    Called with features (N, C), maps (N, C, h, w) or tokens (N, T, C), it returns logits (N, 4).

    >>> RotationBranch(8)(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, channels: int, layer: str = "encoder") -> None:
        super().__init__((layer,))
        self.guess = nn.Linear(channels, 4)

    def forward(self, z: Tensor) -> Tensor:
        return self.guess(pooled(z, self.guess.weight))

    def features(
        self, network: nn.Module, taps: Sequence[Tap], x: Tensor, turns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the tapped layer gives for turned images, averaged over places (N, C), and the turns in the same order."""
        groups = turned(x, turns)
        seen = [watched(network, taps, images)[1][0] for images, _ in groups]
        return torch.cat([pooled(z, self.guess.weight) for z in seen]), torch.cat([k for _, k in groups])

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The cross-entropy of one random turn of each image, in nats."""
        turns = torch.randint(4, (len(x),), generator=generator, device=generator.device).to(x.device)
        with tapped(network, self.layers) as taps:
            z, turns = self.features(network, taps, x, turns)
        return {"rotation": F.cross_entropy(self(z), turns)}
