r"""Batch statistics: each test batch is normalised by itself.

.. math:: \mu, \sigma^2 = \text{mean and (biased) variance of the batch over } N, H, W

Reference: Nado et al., Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift, 2020;
Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020 (N = 0).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from testtime.norm.layer import NormPolicy, policy

__all__ = ["BatchStatistics", "batch_statistics"]


@final
class BatchStatistics(NormPolicy):
    """Normalise with the statistics of the batch; a batch of one value per channel uses the source's."""

    needs_source: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise_by_batch(x)


def batch_statistics(model: nn.Module) -> nn.Module:
    """The model with batch statistics in every BatchNorm layer, as TENT and most of its heirs use it."""
    return policy(model, BatchStatistics)
