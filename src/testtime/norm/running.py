r"""Running statistics: BatchNorm as in training, with the statistics learned on.

.. math:: \mu_t = (1 - m)\,\mu_{t-1} + m\,\mu_b, \qquad \sigma_t^2 = (1 - m)\,\sigma_{t-1}^2 + m\,\tfrac{n}{n-1}\,\sigma_b^2

While it observes (:func:`testtime.norm.observing`), a batch is normalised by its own statistics; while it only predicts, by
the running ones. NOTE and SoTTA adapt in this way. The running variance takes the unbiased one, as torch's does.
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm.layer import NormPolicy, policy

__all__ = ["RunningStatistics", "running_statistics"]


@final
class RunningStatistics(NormPolicy):
    """Look with the running statistics; observe with those of the batch, and move towards them."""

    mean: Tensor
    var: Tensor

    def __init__(self, layer: _BatchNorm, momentum: float = 0.1) -> None:
        super().__init__(layer)
        self.momentum = momentum
        self.register_buffer("mean", self.source_mean.clone())
        self.register_buffer("var", self.source_var.clone())

    def statistics(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.var

    def forward(self, x: Tensor) -> Tensor:
        if not self.observes():
            return self.normalise_by(x, self.mean, self.var)
        if self.proposal is None and not self.lacks_spread(x):
            mean, var = self.moments(x.detach(), unbiased=True)
            self.propose(mean=self.mean.lerp(mean, self.momentum), var=self.var.lerp(var, self.momentum))
        return self.normalise_by_batch(x)


def running_statistics(model: nn.Module, momentum: float = 0.1) -> nn.Module:
    """The model with running statistics in every BatchNorm layer; ``momentum`` is the weight of the batch."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is the weight of the batch and lies in [0, 1], got {momentum}")
    return policy(model, lambda layer: RunningStatistics(layer, momentum))
