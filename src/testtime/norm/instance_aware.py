r"""Instance-aware statistics (IABN): each instance corrects the moving statistics where it plainly departs from them.

With mean and variance :math:`\mu, \sigma^2` of many images, those :math:`\tilde\mu, \tilde\sigma^2` of an instance over its L
places (the variance unbiased), and the soft shrinkage :math:`\psi(d; \lambda) = \operatorname{sign}(d) \max(|d| - \lambda, 0)`,

.. math::
    s_\mu &= \sqrt{\sigma^2 / L}, \qquad s_{\sigma^2} = \sigma^2 \sqrt{2 / (L - 1)} \\
    \mu' &= \mu + \psi(\tilde\mu - \mu;\, k\, s_\mu), \qquad
    \sigma'^2 = \sigma^2 + \psi(\tilde\sigma^2 - \sigma^2;\, k\, s_{\sigma^2})

so that a difference which L draws of the same world explain is left alone. A prediction uses the running :math:`\mu` and
:math:`\sigma^2`. While it observes (:func:`testtime.norm.observing`), it uses those of the batch, and the running ones move
towards them with the momentum, as torch's do.

Departures:
    As in the published code, :math:`\sigma^2` in :math:`s` holds the layer's eps, the batch's variance is unbiased, and what
    has one place (a layer after pooling) is not corrected. The published source models are trained with these layers; here
    they replace those of any model.

Reference: Gong, Jeong, Kim, Kim, Shin and Lee, NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation,
NeurIPS 2022, eq. 2 to 6.
"""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm.layer import NormPolicy, policy

__all__ = ["InstanceAwareStatistics", "iabn"]


@final
class InstanceAwareStatistics(NormPolicy):
    """Normalise by moving statistics, corrected by those of the instance; they move once per observed batch."""

    mean: Tensor
    var: Tensor

    def __init__(self, layer: _BatchNorm, k: float = 4.0, momentum: float = 0.01) -> None:
        super().__init__(layer)
        self.k, self.momentum = k, momentum
        self.register_buffer("mean", self.source_mean.clone())
        self.register_buffer("var", self.source_var.clone())

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self._of_many(x)
        places = math.prod(x.shape[2:])  # 1 for (N, C); a batch may be empty
        if places == 1:
            return self.normalise(x, mean, var)
        own_mean, own_var = self.instance_moments(x)
        own_var = own_var * (places / (places - 1))
        wide = (var + self.layer.eps).to(own_var.dtype)
        mean = mean + _shrink(own_mean - mean, self.k * (wide / places).sqrt())
        var = var + _shrink(own_var - var, self.k * wide * math.sqrt(2 / (places - 1)))
        return self.normalise(x, mean, var)

    def _of_many(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics (C,) that an instance is held against."""
        if not self.observes():
            return self.mean, self.var
        if self.lacks_spread(x):  # one value per channel has no statistics
            return self.source_mean, self.source_var
        mean, var = self.moments(x, unbiased=True)
        self.propose(mean=self.mean.lerp(mean, self.momentum), var=self.var.lerp(var, self.momentum))
        return mean, var


def _shrink(x: Tensor, by: Tensor) -> Tensor:
    """The soft shrinkage of x (N, C) by thresholds (C,)."""
    return F.relu(x - by) - F.relu(-x - by)


def iabn(model: nn.Module, k: float = 4.0, momentum: float = 0.01) -> nn.Module:
    """The model with NOTE's instance-aware statistics in every BatchNorm layer.

    Args:
        model: any module.
        k: number of standard errors within which the statistics of an instance are ignored.
        momentum: the weight of a batch that is learned from, in [0, 1].

    Raises:
        ValueError: k below 0, or momentum outside [0, 1].

    >>> import torch
    >>> iabn(nn.BatchNorm2d(3))(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """
    if k < 0:
        raise ValueError(f"k counts standard errors and is at least 0, got {k}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum is the weight of the batch and lies in [0, 1], got {momentum}")
    return policy(model, lambda layer: InstanceAwareStatistics(layer, k, momentum))
