r"""UniEnt+: lower and raise the entropy of every sample, as far as it is known and unknown.

With the posterior :math:`\pi` of :mod:`testtime.methods.unient` as weight instead of a split,

.. math::
    L = \frac1N \sum_i \pi(x_i)\, H(x_i) \;-\; \alpha_2\, \frac1N \sum_i \big(1 - \pi(x_i)\big)\, H(x_i)
        \;-\; \alpha_1\, H\Big(\tfrac1N \sum_i p(x_i)\Big)

A step:
    1. predict the batch; take its features from the source model, each normalised by the batch's statistics;
    2. score every image by how far it is from all prototypes, and let two Gaussians give the probability that it is
       known;
    3. update scale and shift of the normalisation layers once on the weighted entropies. A batch that does
       not split (one image, equal scores) is not learned from. Answer with the prediction of 1.

Departures:
    Those of UniEnt, and the same ``mixture=`` reproduces the published code step by step. Both means are over
    all N samples, as there, so that each term is as large as its side of the batch.

Cost: two forwards, one backward; the weights exist once. The mixture is fitted on the CPU.

Reference: Gao, Zhang and Liu, Unified Entropy Optimization for Open-Set Test-Time Adaptation, CVPR 2024;
code:
github.com/gaozhengqing/UniEnt, criterion ``ent_unf``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.methods.unient import Mixture, checked_head, split
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam, entropy, marginal_entropy
from testtime.parts.features import headless
from testtime.parts.mixture import two_gaussians
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["UniEntPlus"]


@final
class UniEntPlus(Adapter):
    """Lower and raise the entropy of every sample, as far as it is known and unknown.

    Args:
        model: a classifier with normalisation layers that ends in a linear layer.
        classes: C, the number of known classes.
        optimizer: moves gamma and beta; ``adam(1e-3)`` (CIFAR), ``sgd(1e-3)`` (ImageNet).
        alpha: the weights of the entropy of the mean prediction (alpha_1) and of the unknown (alpha_2); the
            published code searches {1, 0.5, 0.2, 0.1} for both.
        mixture: fits two components to the scores; returns posteriors (N, 2), those of the lower scores
            first.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers in both models.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, or no linear head of C outputs.

    ``selected`` holds the side to which each sample leans.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = UniEntPlus(net, classes=2)(torch.rand(8, 3, 8, 8))
    >>> y.updated, sorted(y.selected)
    (True, ['maximised', 'minimised'])
    """

    name, label = "unient+", "UniEnt+"
    needs = ("classifier", "norm", "linear head")
    venue = "CVPR 2024"
    paper = "Gao, Zhang and Liu, Unified Entropy Optimization for Open-Set Test-Time Adaptation"
    code = "github.com/gaozhengqing/UniEnt"
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        alpha: tuple[float, float] = (0.5, 0.5),
        mixture: Mixture = two_gaussians,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.classes, self.optimizer, self.alpha = classes, optimizer, alpha
        self.mixture, self.head, self.norm = mixture, head, norm
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.prototypes = checked_head(self.model, classes, head)
        self.origin = headless(self.model, own=affine, head=head)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        with torch.no_grad():
            posterior = split(self.origin(x), self.prototypes, self.mixture)
        known, unknown = posterior[:, 0] > posterior[:, 1], posterior[:, 0] < posterior[:, 1]
        if bool((known | unknown).any()):
            h, (alpha1, alpha2) = entropy(logits), self.alpha
            weight = (posterior[:, 0] - alpha2 * posterior[:, 1]).to(h)
            self.update((weight * h).mean() - alpha1 * marginal_entropy(logits))
        return Prediction(
            logits, selected={"minimised": known.to(x.device), "maximised": unknown.to(x.device)}
        )
