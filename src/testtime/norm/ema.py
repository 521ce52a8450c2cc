r"""EMA statistics: an exponential moving average over the test batches, started at the source.

.. math:: \mu_t = \rho\,\mu_{t-1} + (1 - \rho)\,\mu_b, \qquad \sigma_t^2 = \rho\,\sigma_{t-1}^2 + (1 - \rho)\,\sigma_b^2

The present batch takes part in its own normalisation; a batch of one value per channel has no part in either.
Reference: Schneider et al., NeurIPS 2020 (the online form).
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm.layer import NormPolicy, policy

__all__ = ["EMAStatistics", "ema_statistics"]


@final
class EMAStatistics(NormPolicy):
    """Normalise with the moving statistics that already hold this batch; they advance once per adapted batch."""

    mean: Tensor
    var: Tensor

    def __init__(self, layer: _BatchNorm, decay: float = 0.9, unbiased: bool = False) -> None:
        super().__init__(layer)
        self.decay, self.unbiased = decay, unbiased
        self.register_buffer("mean", self.source_mean.clone())
        self.register_buffer("var", self.source_var.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.lacks_spread(x):  # one value per channel has no spread
            return self.normalise_by(x, self.mean, self.var)
        mean, var = self.moments(x, self.unbiased)
        mean, var = self.mean.lerp(mean, 1 - self.decay), self.var.lerp(var, 1 - self.decay)
        self.propose(mean=mean, var=var)
        return self.normalise(x, mean, var)


def ema_statistics(model: nn.Module, decay: float = 0.9, unbiased: bool = False) -> nn.Module:
    """The model with exponentially averaged statistics in every BatchNorm layer.

    Args:
        model: any module.
        decay: the weight of the past, in [0, 1]; 0 is batch statistics, 1 the source model.
        unbiased: average the unbiased variances of the batches, as torch's train mode does.

    Raises:
        ValueError: decay outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is the weight of the past and lies in [0, 1], got {decay}")
    return policy(model, lambda layer: EMAStatistics(layer, decay, unbiased))
