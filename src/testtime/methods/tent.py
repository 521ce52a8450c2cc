r"""Tent: minimise the entropy of the predictions.

.. math:: \min_{\gamma, \beta} \; \frac1N \sum_{i} H(f_\theta(x_i)), \qquad H = -\sum_c p_c \log p_c

A step:
    1. predict the batch, normalised by its own statistics;
    2. take the gradient of the mean entropy with respect to the scale and shift of the normalisation layers;
    3. update them once, and answer with the prediction of 1.

Departures:
    The paper adapts BatchNorm; this adapts every normalisation layer there is (BatchNorm, LayerNorm, GroupNorm, RMSNorm).
    The paper's text predicts again after the update; its code, and this, answer with the forward before it.
    The published code runs the model in ``train()``, where dropout is active; this leaves dropout off.
    On a multi-task model the entropy is that of its classes, pixel by pixel (the semantic segmentation).
    Published code step by step: ``Tent(model, adam(1e-3))`` (CIFAR, batches of 200), ``Tent(model, sgd(2.5e-4))``
    (ImageNet, batches of 64), on models whose only normalisation is BatchNorm2d and that have no dropout.

Cost: one forward, one backward (of inputs and affine parameters only).

Reference: Wang, Shelhamer, Liu, Olshausen and Darrell, Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import adam, entropy
from testtime.parts.optimizers import OptimizerFactory
from testtime.tasks import class_logits, tasks_of

__all__ = ["Tent"]


@final
class Tent(Adapter):
    """Minimise the entropy of the predictions.

    Args:
        model: any classifier with normalisation layers, or a multi-task model with a segmentation.
        optimizer: moves gamma and beta; the paper's are ``adam(1e-3)`` (CIFAR) and ``sgd(2.5e-4)`` (ImageNet).
        norm: the policy of the BatchNorm layers.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Tent(net)
    >>> logits = tent(torch.rand(8, 3, 8, 8))  # predicts, and adapts
    >>> logits.shape, logits.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "tent", "TENT"
    needs = ("norm",)
    venue = "ICLR 2021"
    paper = "Wang, Shelhamer, Liu, Olshausen and Darrell, Tent: Fully Test-Time Adaptation by Entropy Minimization"
    code = "github.com/DequanWang/tent"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.norm = optimizer, norm
        self.tasks = tasks_of(self.model)
        self.adapt(norm_affine(self.model), optimizer)

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        with observing(self.model):
            y = self.model(x)
        self.update(entropy(class_logits(y, self.tasks)).mean())
        return y
