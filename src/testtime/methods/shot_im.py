r"""SHOT-IM: predictions that are sure one by one and spread over the classes together; the classifier's head stays.

.. math::
    \min_{g} \; \frac1N \sum_i H\big(h(g(x_i))\big) - \lambda\, H\Big(\frac1N \sum_i p(x_i)\Big),
    \qquad p = \operatorname{softmax} h(g(x))

with the features :math:`g` and the source's hypothesis :math:`h`, its last linear layer.

A step:
    1. predict the batch, normalised by its own statistics: that is the answer;
    2. take the gradient of the mean entropy less the entropy of the mean prediction (information maximisation) with
       respect to all weights but those of the head;
    3. update them once. A single image has nothing to be spread over: its loss is zero, and nothing moves.

Departures:
    This is the online form in use as a baseline: one step on each batch as it comes. SHOT itself passes over the whole
    target set for many epochs with a falling rate, and adds pseudo-labels from centroids of the features; both need
    the set. Its new bottleneck layer, which learns ten times as fast, is not added either: the model stays as it is.
    The published codes add 1e-5 within the logarithms of both terms (``epsilon=(1e-5, 1e-5)``), T3A's in the second term
    alone (``epsilon=(0, 1e-5)``); here they are exact.
    SHOT trains with the statistics of the batch and tests with running ones (``norm=running_statistics``, and call
    ``predict``).
    Published code step by step: ``SHOTIM(model, adam(5e-5), epsilon=(0, 1e-5), norm=source_statistics)`` is that of T3A
    (the rate times 0.1, 1 or 10, on DomainBed); the default optimizer is that of SHOT's backbone.

Cost: one forward, one backward through all weights.

Reference: Liang, Hu and Feng, Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised
Domain Adaptation, ICML 2020, eq. 3; online: Iwasawa and Matsuo, Test-Time Classifier Adjustment Module, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.models.assisted import Assisted
from testtime.norm import batch_statistics, observing
from testtime.parts import entropy, marginal_entropy, sgd
from testtime.parts.features import linear_head
from testtime.parts.optimizers import OptimizerFactory

__all__ = ["SHOTIM"]


@final
class SHOTIM(Adapter):
    """Predictions that are sure one by one and spread over the classes together; the classifier's head stays.

    Args:
        model: any classifier with a linear head.
        optimizer: moves all weights but the head's; SHOT's rate for a backbone is 1e-3.
        diversity: lambda, the weight of the entropy of the mean prediction.
        epsilon: constants added within the logarithms of the two terms.
        head: the name of the head, or its end; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no linear layer, or none of this name.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = SHOTIM(net)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "shot-im", "SHOT-IM"
    needs = ("classifier", "linear head")
    venue = "ICML 2020"
    paper = (
        "Liang, Hu and Feng, Do We Really Need to Access the Source Data? Source Hypothesis Transfer for "
        "Unsupervised Domain Adaptation"
    )

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-3, weight_decay=1e-3, nesterov=True),  # noqa: B008 - a frozen value
        diversity: float = 1.0,
        epsilon: tuple[float, float] = (0.0, 0.0),
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.diversity, self.epsilon = optimizer, diversity, epsilon
        self.head, self.norm = head, norm
        # Another method's branch takes no part in a prediction.
        network = next((m.network for m in self.model.modules() if isinstance(m, Assisted)), self.model)
        hypothesis = {id(p) for p in linear_head(network, head)[1].parameters()}
        self.adapt([p for p in network.parameters() if id(p) not in hypothesis], optimizer)

    def step(self, x: Tensor) -> Tensor:
        with observing(self.model):
            logits = self.model(x)
        if len(x) > 1:
            each, together = self.epsilon
            loss = entropy(logits, each).mean() - self.diversity * marginal_entropy(logits, together)
            self.update(loss)
        return logits
