r"""Norm tuning: scale and shift of the normalisation layers, learned from the truth that has arrived.

.. math:: \min_{\gamma, \beta} \; \| f(x_{:L}) - x_{L:} \|^2 / (HD)

These are the parameters that TENT adapts; a regression has no entropy, and here the truth of an earlier forecast is known.

A step:
    1. take the gradient of the mean squared error of the forecast whose truth has just arrived;
    2. update scale and shift of the normalisation layers once;
    3. forecast.

Cost: two forwards, one backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.forecasting.corrected import forecaster_of, in_turn
from testtime.norm import norm_affine, source_statistics
from testtime.parts.optimizers import OptimizerFactory, adam

__all__ = ["NormTuning"]


@final
class NormTuning(Adapter):
    """Learn scale and shift of the normalisation layers from the truth that has arrived.

    Args:
        model: a :class:`testtime.forecasting.Forecaster` whose network has normalisation layers.
        optimizer: moves gamma and beta.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model is no forecaster or has no normalisation layer, or a window is not ``length + horizon`` long.

    >>> import torch
    >>> from testtime.forecasting import Forecaster, GRUNetwork
    >>> adapter = NormTuning(Forecaster(GRUNetwork(8, 2, 3), length=8, horizon=2, channels=3))
    >>> y = adapter(torch.randn(1, 10, 3))
    >>> y["forecast"].shape, y.updated
    (torch.Size([1, 2, 3]), True)
    """

    name, label = "norm-tuning", "norm tuning"
    needs = ("forecaster", "norm")
    output = "after"
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
    ) -> None:
        forecaster_of(model)
        super().__init__(norm(model))
        self.optimizer, self.norm = optimizer, norm
        self.adapt(norm_affine(self.model), optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        return in_turn(self.model, x, self.update)
