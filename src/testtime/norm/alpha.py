r"""Alpha statistics: a fixed blend of source and batch.

.. math:: \mu = (1 - \alpha)\,\mu_s + \alpha\,\mu_b, \qquad \sigma^2 = (1 - \alpha)\,\sigma_s^2 + \alpha\,\sigma_b^2

With :math:`\alpha = n / (N + n)` it is the prior of Schneider et al. (NeurIPS 2020, eq. 4); with a fixed
:math:`\alpha` it is alpha-BN of You et al., Test-time batch statistics calibration for covariate shift, 2021.
The variance of the batch is the biased one (of the N values divided by N); the published code of alpha-BN and of Schneider et
al. blends the unbiased one (``unbiased=True``).
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm.layer import NormPolicy, policy

__all__ = ["AlphaStatistics", "alpha_statistics"]


@final
class AlphaStatistics(NormPolicy):
    """Normalise with ``(1 - alpha) * source + alpha * batch``; gradients flow through the batch's share."""

    def __init__(self, layer: _BatchNorm, alpha: float = 0.1, unbiased: bool = False) -> None:
        super().__init__(layer)
        self.alpha, self.unbiased = alpha, unbiased

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.moments(x, self.unbiased)
        return self.normalise(
            x, self.source_mean.lerp(mean, self.alpha), self.source_var.lerp(var, self.alpha)
        )


def alpha_statistics(model: nn.Module, alpha: float = 0.1, unbiased: bool = False) -> nn.Module:
    """The model with blended statistics in every BatchNorm layer.

    Args:
        model: any module.
        alpha: the weight of the batch, in [0, 1]; 0 is the source model, 1 batch statistics.
        unbiased: blend the unbiased variance of the batch, as the published code does.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the weight of the batch and lies in [0, 1], got {alpha}")
    return policy(model, lambda layer: AlphaStatistics(layer, alpha, unbiased))
