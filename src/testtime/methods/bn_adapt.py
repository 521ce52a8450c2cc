r"""BN-adapt: normalise with the statistics of the batch; learn nothing.

.. math:: z = f_{\theta_0}(x; \mu, \sigma^2), \qquad
    \mu = (1 - \alpha)\,\mu_s + \alpha\,\mu_b, \quad \sigma^2 = (1 - \alpha)\,\sigma_s^2 + \alpha\,\sigma_b^2

with the statistics :math:`s` of the source and :math:`b` of the batch; :math:`\alpha = 1` unless the policy has another.

A step:
    1. predict the batch, its BatchNorm layers normalised by the policy.

Departures:
    A single value per channel (one image at a 1x1 layer) has no variance: the source statistics serve it.
    Schneider et al. let alpha be n / (N + n) for n images and a prior worth N of them; here alpha is fixed,
    so give that value for the batch size in use: ``alpha=64 / (16 + 64)`` for batches of 64 and N = 16.
    Variances are biased unless the policy has ``unbiased=True``.
    Published code step by step: ``BNAdapt(model)`` is the "norm" baseline of TENT and its heirs
    (``BatchNorm2d`` in train mode without running statistics); ``norm=partial(alpha_statistics, alpha=0.1,
    unbiased=True)`` is alpha-BN, and Schneider et al.'s BayesianBatchNorm with the alpha above;
    ``partial(ema_statistics, decay=0.9, unbiased=True)`` keeps the moving average of train mode with momentum
    0.1, except that each batch takes part in the statistics it is normalised with.

Cost: one forward.

Reference: Schneider, Rusak, Eck, Bringmann, Brendel and Bethge, Improving robustness against common
corruptions by covariate shift adaptation, NeurIPS 2020; Nado et al., Evaluating Prediction-Time Batch
Normalization for Robustness under Covariate Shift, 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, has_batch_norm

__all__ = ["BNAdapt"]


@final
class BNAdapt(Adapter):
    """Normalise with the statistics of the batch; learn nothing.

    Args:
        model: a classifier with BatchNorm layers.
        norm: whose statistics: ``batch_statistics``, ``partial(alpha_statistics, alpha=...)`` (source and
            batch blended) or ``partial(ema_statistics, decay=...)`` (they move from batch to batch, and are
            the only state).

    Raises:
        ValueError: the model has no BatchNorm layer.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = BNAdapt(net)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), False)
    """

    name, label = "bn-adapt", "BN-adapt"
    needs = ("BatchNorm",)
    venue = "NeurIPS 2020"
    paper = (
        "Schneider, Rusak, Eck, Bringmann, Brendel and Bethge, Improving robustness against common "
        "corruptions by covariate shift adaptation"
    )
    cost = (1, 0)

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(norm(model))
        if not has_batch_norm(self.model):
            raise ValueError(
                "BNAdapt changes the statistics of BatchNorm layers, and this model has none (LayerNorm and "
                "GroupNorm keep no statistics); use Source for the model as it is, or Tent to adapt its scales "
                "and shifts"
            )
        self.norm = norm

    def step(self, x: Tensor) -> Tensor:
        return self.model(x)
