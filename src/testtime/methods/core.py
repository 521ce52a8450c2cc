r"""Core: make classes exclude each other, with statistics between the source's and the batch's (alpha-BN).

With the predictions :math:`P \in [0, 1]^{N \times C}` of a batch and its class correlations :math:`R = P^\top P / N`,

.. math::
    \min_{\gamma, \beta} \; L = \sum_{j \ne k} R_{jk} = \frac1N \sum_i \Big( 1 - \sum_c p_c(x_i)^2 \Big),
    \qquad \mu = (1 - \alpha)\, \mu_s + \alpha\, \mu_b, \quad \sigma^2 = (1 - \alpha)\, \sigma_s^2 + \alpha\, \sigma_b^2

A step:
    1. predict the batch, normalised by blended statistics (:mod:`testtime.norm.alpha`): that is the answer;
    2. correlate the classes over the batch, each with each other;
    3. update scale and shift of the normalisation layers once to make the correlations small.

Departures:
    No code was found, and of the paper's text the abstract alone was at hand: it names alpha-BN and an online optimisation
    of pairwise class correlations, no more. The correlation is that of Jin et al. (Minimum Class Confusion, ECCV 2020,
    eq. 3), without their weights; the sum over all pairs is the loss. ``balanced=True`` divides each row of R by its sum
    first, as they do (eq. 5 and 6), so that frequent classes do not outweigh rare ones. What moves, the optimizer and alpha
    are those of the baselines that tables compare with. Figures of this method are those of this reading, not the paper's.
    For logits (N, C, H, W), the semantic segmentation of the paper, N counts the pixels of all images.
    Every normalisation layer is adapted, not only BatchNorm2d; ``norm`` decides for the BatchNorm layers alone.

Cost: one forward, one backward.

Reference: You, Li and Zhao, Test-time Batch Statistics Calibration for Covariate Shift, 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import alpha_statistics, norm_affine, observing
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.pixels import as_rows

__all__ = ["Core", "class_correlation"]


def class_correlation(logits: Tensor, balanced: bool = False) -> Tensor:
    """How much the predictions of a batch share their probability between classes.

    Args:
        logits: (N, C), or (N, C, H, W), whose pixels are the samples.
        balanced: the mean over the classes of the share that each gives to others, instead of the sum.

    Returns:
        a scalar between 0 and 1, at least in float32.

    >>> class_correlation(torch.zeros(3, 4))
    tensor(0.7500)
    """
    p = as_rows(logits).softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    with torch.autocast(p.device.type, enabled=False):
        r = p.T @ p / len(p)
    if balanced:
        r = r / r.sum(dim=1, keepdim=True).clamp_min(torch.finfo(r.dtype).tiny) / len(r)
    return r.sum() - r.diagonal().sum()


@final
class Core(Adapter):
    """Make classes exclude each other, with statistics between the source's and the batch's (alpha-BN).

    Args:
        model: any classifier or segmenter with normalisation layers.
        optimizer: moves gamma and beta.
        balanced: weigh frequent and rare classes alike.
        norm: the policy of the BatchNorm layers, ``partial(alpha_statistics, alpha=...)``; alpha, the weight of the batch,
            is 0.1 unless given.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = Core(net)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "core", "Core"
    needs = ("class logits", "norm")
    venue = "2021"
    paper = "You, Li and Zhao, Test-time Batch Statistics Calibration for Covariate Shift"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        balanced: bool = False,
        norm: Callable[[nn.Module], nn.Module] = alpha_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.balanced, self.norm = optimizer, balanced, norm
        self.adapt(norm_affine(self.model), optimizer)

    def step(self, x: Tensor) -> Tensor:
        with observing(self.model):
            logits = self.model(x)
        self.update(class_correlation(logits, self.balanced))
        return logits
