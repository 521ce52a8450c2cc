r"""Robust statistics (RoTTA's RobustBN): moving statistics that only the batches learned from may move.

.. math:: \mu_t = (1 - \alpha)\,\mu_{t-1} + \alpha\,\mu_b, \qquad \sigma_t^2 = (1 - \alpha)\,\sigma_{t-1}^2 + \alpha\,\sigma_b^2

While it observes (:func:`testtime.norm.observing`), a batch is normalised by the statistics that already hold it,
gradients included; while it only predicts, by the stored ones.
Reference: Yuan et al., Robust Test-Time Adaptation in Dynamic Scenarios, CVPR 2023, eq. 3 and 4.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm.layer import NormPolicy, policy

__all__ = ["RobustStatistics", "robust_statistics"]


@final
class RobustStatistics(NormPolicy):
    """Look with the stored statistics; observe with, and move towards, those of the batch."""

    mean: Tensor
    var: Tensor

    def __init__(self, layer: _BatchNorm, alpha: float = 0.05) -> None:
        super().__init__(layer)
        self.alpha = alpha
        self.register_buffer("mean", self.source_mean.clone())
        self.register_buffer("var", self.source_var.clone())

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.var

    def forward(self, x: Tensor) -> Tensor:
        if not self.observes() or self.lacks_spread(x):  # one value per channel has no spread
            return self.normalise_by(x, self.mean, self.var)
        mean, var = self.moments(x)
        mean, var = self.mean.lerp(mean, self.alpha), self.var.lerp(var, self.alpha)
        self.propose(mean=mean, var=var)
        return self.normalise(x, mean, var)


def robust_statistics(model: nn.Module, alpha: float = 0.05) -> nn.Module:
    """The model with RoTTA's robust statistics in every BatchNorm layer; ``alpha`` is the weight of the batch."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the weight of the batch and lies in [0, 1], got {alpha}")
    return policy(model, lambda layer: RobustStatistics(layer, alpha))
