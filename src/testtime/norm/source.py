"""Source statistics: what the model learned in training, whatever the inputs."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from testtime.norm.layer import NormPolicy, policy

__all__ = ["SourceStatistics", "source_statistics"]


@final
class SourceStatistics(NormPolicy):
    """Normalise with the running statistics of the source model; a layer that holds none uses the batch's, as in ``eval()``."""

    needs_source: ClassVar[bool] = False

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        return None if self.source_mean is None else (self.source_mean, self.source_var)

    def forward(self, x: Tensor) -> Tensor:
        if self.source_mean is None:
            return self.normalise_by_batch(x)
        return self.normalise_by(x, self.source_mean, self.source_var)


def source_statistics(model: nn.Module) -> nn.Module:
    """The model with its source statistics in every BatchNorm layer: the plain ``eval()`` model."""
    return policy(model, SourceStatistics)
