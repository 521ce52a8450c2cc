r"""PL: take what the model is sure of for the truth.

With the label :math:`\hat y = \arg\max_c p_c(x)` and the confident :math:`K = \{\, i : p_{\hat y}(x_i) > \tau \,\}`,

.. math:: \min_{\gamma, \beta} \; \frac{1}{|K|} \sum_{i \in K} -\log p_{\hat y_i}(x_i)

A step:
    1. predict the batch, normalised by its own statistics: that is the answer;
    2. label with its own prediction whom the model is confident of;
    3. update scale and shift of the normalisation layers once on their mean cross-entropy; where no sample is kept,
       nothing moves.

Departures:
    Pseudo-labels come from semi-supervised learning, and no paper has made the online form its own: this is the
    baseline of the test-time papers, whose settings differ. LAME's moves what is moved here, by ``sgd(1e-2)``; that of
    T3A moves all weights of the network, by Adam, under the statistics of the source; both with :math:`\tau` = 0.9.
    The default optimizer is that of Tent, so that the two differ by the loss alone.
    Where no sample is confident the loss of those codes is NaN.
    For logits (N, C, H, W) every pixel is a sample: K are the confident pixels of the batch.

Cost: one forward, one backward.

Reference: Lee, Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks, ICML 2013
Workshop on Challenges in Representation Learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["PL"]


@final
class PL(Adapter):
    """Take what the model is sure of for the truth.

    Args:
        model: any classifier or segmenter with normalisation layers.
        optimizer: moves gamma and beta.
        threshold: tau, the confidence above which a prediction is a label; 0 takes all.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = PL(net, threshold=0.4)(torch.rand(8, 3, 8, 8))
    >>> y.updated, y.selected["minimised"].sum()
    (True, tensor(8))
    """

    name, label = "pl", "PL"
    needs = ("class logits", "norm")
    venue = "ICML 2013 Workshop"
    paper = (
        "Lee, Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"
    )

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        threshold: float = 0.9,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.threshold, self.norm = optimizer, threshold, norm
        self.adapt(norm_affine(self.model), optimizer)

    def step(self, x: Tensor) -> Tensor:
        with observing(self.model):
            logits = self.model(x)
        log_p = logits.log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).amax(dim=1)
        kept = log_p.detach().exp() > self.threshold
        if kept.any():
            self.update(-log_p[kept].mean())
        return Prediction(logits, selected={"minimised": kept})
