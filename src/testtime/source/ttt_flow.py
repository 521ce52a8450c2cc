"""The branch of TTTFlow: a normalising flow on the features of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.source.branches import UnsupervisedBranch, positions

__all__ = ["Coupling", "Flow"]


@final
class Coupling(nn.Module):
    """An affine coupling: one half of a vector determines scale and shift of the other. Initially it changes nothing.

    Args:
        channels: D; the first D // 2 are one half.
        hidden: units of each of the two hidden layers.
        swapped: whether the second half determines them.
    """

    def __init__(self, channels: int, hidden: int, swapped: bool = False) -> None:
        super().__init__()
        self.swapped, self.sizes = swapped, [channels // 2, channels - channels // 2]
        given, changed = reversed(self.sizes) if swapped else self.sizes
        self.first = nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.last = nn.Linear(hidden, 2 * changed)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No scale and no shift."""
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The changed vectors (M, D), and the log-determinants (M,)."""
        given, other = self._halves(u)
        s, t = self._affine(given)
        return self._whole(given, other * s.exp() + t), s.sum(1)

    def inverse(self, v: Tensor) -> Tensor:
        """The vectors (M, D) that became v."""
        given, other = self._halves(v)
        s, t = self._affine(given)
        return self._whole(given, (other - t) * (-s).exp())

    def _affine(self, given: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.last(self.first(given)).chunk(2, dim=1)
        return s.tanh(), t

    def _halves(self, u: Tensor) -> tuple[Tensor, Tensor]:
        first, second = u.split(self.sizes, dim=1)
        return (second, first) if self.swapped else (first, second)

    def _whole(self, given: Tensor, other: Tensor) -> Tensor:
        return torch.cat([other, given] if self.swapped else [given, other], dim=1)


@final
class Flow(UnsupervisedBranch):
    """A RealNVP on the features of a layer.

    Args:
        channels: D, of the watched layer; at least 2.
        couplings: number of couplings, which change one half and the other by turns.
        hidden: units of each of the two hidden layers of a coupling.
        layer: name of the watched layer.

    Called with features, maps (N, C, h, w) or vectors (N, C), it returns :math:`-\\log p(z) / D`, (M,), in nats: one for each
    place of each image.

    Attributes:
        mean, var: (D,), of the features on the source; averages over the batches that were learned from.
        batches: (), their number.

    >>> Flow(2)(torch.zeros(1, 2)).shape
    torch.Size([1])
    """

    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(self, channels: int, couplings: int = 4, hidden: int = 64, layer: str = "encoder") -> None:
        super().__init__((layer,))
        if channels < 2 or couplings < 1:
            raise ValueError(
                f"a flow of couplings needs two channels and one coupling at least, got {channels} and {couplings}"
            )
        self.couplings = nn.ModuleList(Coupling(channels, hidden, i % 2 == 1) for i in range(couplings))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Forget the source's averages."""
        self.mean.zero_()
        self.var.fill_(1)
        self.batches.zero_()

    @property
    def deviation(self) -> Tensor:
        """What each channel is divided by, (D,)."""
        return (self.var + 0.01 * self.var.mean() + 1e-6).sqrt()

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F of feature vectors (M, D), and the log-determinants (M,)."""
        u = (z - self.mean) / self.deviation
        total = -self.deviation.log().sum().expand(len(z))
        for coupling in self.couplings:
            u, log_det = coupling(u)
            total = total + log_det
        return u, total

    def inverse(self, u: Tensor) -> Tensor:
        """The feature vectors (M, D) whose transform is u; those of a standard normal are samples of the source."""
        for coupling in reversed(list(self.couplings)):
            assert isinstance(coupling, Coupling)
            u = coupling.inverse(u)
        return u * self.deviation + self.mean

    def forward(self, z: Tensor) -> Tensor:
        u, log_det = self.transform(positions(z, self.mean))
        channels = u.shape[1]
        normal = 0.5 * u.square().sum(1) + 0.5 * channels * math.log(2 * math.pi)
        return (normal - log_det) / channels

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The mean negative log-likelihood, in nats per dimension; no gradient reaches the network."""
        z = positions(seen[0].detach(), self.mean)
        self._remember(z)
        return {"flow": self(z).mean()}

    @torch.no_grad()
    def _remember(self, z: Tensor) -> None:
        """Move the averages towards a batch's, with weight 0.1 or what makes them the mean of the first few."""
        self.batches += 1
        weight = max(0.1, 1 / int(self.batches))
        self.mean.lerp_(z.mean(0), weight)
        self.var.lerp_(z.var(0, correction=0), weight)
