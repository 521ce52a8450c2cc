"""The branch of NC-TTT: a discriminator of little noise from much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.source.branches import UnsupervisedBranch, positions

__all__ = ["NoiseDiscriminator", "in_distribution"]


def in_distribution(noise: Tensor, small: float, large: float) -> Tensor:
    """How likely the noise (M, d) had the small deviation rather than the large one, both as likely before: (M,).

    >>> in_distribution(torch.tensor([[0.0], [3.0]]), 1.0, 2.0)
    tensor([0.6667, 0.0641])
    """
    odds = noise.shape[1] * math.log(large / small)
    return (odds - 0.5 * noise.square().sum(1) * (small**-2 - large**-2)).sigmoid()


@final
class NoiseDiscriminator(UnsupervisedBranch):
    """A linear projection of a layer's features, and a perceptron that distinguishes little noise on it from much.

    Args:
        channels: number of channels of the watched layer.
        width: d, at most as many as the channels.
        hidden: units of the perceptron's one hidden layer.
        small, large: sigma_s and sigma_o, where each dimension of the projection has deviation 1 on the source.
        layer: name of the watched layer.

    Called with features, maps (N, C, h, w) or vectors (N, C), it returns D (M,), one log-odds for each place of each image.

    Attributes:
        mean, var: (d,), of the projection on the source; averages over the batches that were learned from.
        batches: (), their number.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(
        self,
        channels: int,
        width: int = 16,
        hidden: int = 64,
        small: float = 0.1,
        large: float = 0.5,
        layer: str = "encoder",
    ) -> None:
        super().__init__((layer,))
        if not 0 < small < large:
            raise ValueError(f"expected deviations 0 < small < large, got {small} and {large}")
        self.small, self.large = small, large
        self.project = nn.Linear(channels, min(width, channels))
        self.discriminate = nn.Sequential(
            nn.Linear(self.project.out_features, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        self.register_buffer("mean", torch.zeros(self.project.out_features))
        self.register_buffer("var", torch.ones(self.project.out_features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Forget the source's averages."""
        self.mean.zero_()
        self.var.fill_(1)
        self.batches.zero_()

    def forward(self, z: Tensor) -> Tensor:
        raw = self.project(positions(z, self.project.weight))
        return self._judge(self._standardised(raw, self.mean, self.var))

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The cross-entropy of both views, in nats."""
        raw = self.project(positions(seen[0], self.project.weight))
        mean, var = raw.mean(0), raw.var(0, correction=0)
        self._remember(mean.detach(), var.detach())
        z = self._standardised(raw, mean, var)
        losses = []
        for deviation in (self.small, self.large):
            noise = deviation * torch.randn(z.shape, generator=generator, device=generator.device).to(z)
            odds, target = self._judge(z + noise), in_distribution(noise, self.small, self.large)
            losses.append(F.binary_cross_entropy_with_logits(odds, target.to(odds.dtype)))
        return {"noise": torch.stack(losses).mean()}

    def _standardised(self, raw: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (raw - mean) * torch.rsqrt(var + 1e-5)

    def _judge(self, z: Tensor) -> Tensor:
        return self.discriminate(z).squeeze(1)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        """Move the averages towards a batch's, with weight 0.1 or what makes them the mean of the first few."""
        self.batches += 1
        weight = max(0.1, 1 / int(self.batches))
        self.mean.lerp_(mean.to(self.mean), weight)
        self.var.lerp_(var.to(self.var), weight)
