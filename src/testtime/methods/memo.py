r"""MEMO: adapt to each image alone, so that its augmented copies are predicted alike and with confidence.

With views :math:`a_1, \dots, a_B` of one image,

.. math:: \min_\theta \; H\Big( \frac1B \sum_b p_\theta(a_b(x)) \Big)

A step, for each image of the batch:
    1. return to the source;
    2. predict its views, and move all weights once down the entropy of the mean prediction;
    3. predict the image itself: that is the answer.

Departures:
    The published optimizer is not reset with the weights, so that the moments of an adaptive one leak from image to image
    (``reset_optimizer=False``); here it is reset with them.
    On ImageNet the paper blends the statistics of the source, as worth 16 images, with those of the views, and when
    it answers with those of the one image: the default policy. On CIFAR its network has no BatchNorm.
    The published views start from a random crop of any size on ImageNet, of a padded image on CIFAR; here the latter for
    both (:func:`testtime.parts.augmix`).
    ``episodic=False`` goes on from image to image, which the paper does not; ``predict`` uses the state that the last left.
    Published code step by step, up to the draws: ``MEMO(model)`` (CIFAR, ResNet-26 with GroupNorm),
    ``MEMO(model, sgd(2.5e-4, momentum=0), views=64)`` (ImageNet, ResNet-50); its other ImageNet networks take AdamW, 1e-5
    and weight decay 0.01.

Cost: B + 1 forwards and B backwards of the batch, one image after the other.

Reference: Zhang, Levine and Finn, MEMO: Test Time Robustness via Adaptation and Augmentation, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.norm import alpha_statistics, observing
from testtime.parts import augmix, generator, marginal_entropy, sgd
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving

__all__ = ["MEMO"]


@final
class MEMO(Adapter):
    """Adapt to each image alone, so that its augmented copies are predicted alike and with confidence.

    Args:
        model: any classifier.
        optimizer: moves all weights; ``sgd(5e-3, momentum=0)`` (CIFAR), ``sgd(2.5e-4, momentum=0)`` (ImageNet).
        views: B, 32 (CIFAR) or 64 (ImageNet).
        episodic: return to the source before each image.
        reset_optimizer: whether the optimizer's state returns to zero with the weights; in the published code it does not.
        augment: makes the views of an image, given as many copies, within the model's invariances;
            ``testtime.parts.identity`` switches randomness off.
        norm: the policy of the BatchNorm layers; alpha is the weight of one image against 16 of the source.
        seed: random seed of the views.

    Raises:
        ValueError: views is not positive.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = MEMO(net, views=4)(torch.rand(3, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([3, 2]), True)
    """

    name, label = "memo", "MEMO"
    needs = ("classifier", "views")
    venue = "NeurIPS 2022"
    paper = "Zhang, Levine and Finn, MEMO: Test Time Robustness via Adaptation and Augmentation"
    output = "after"
    stochastic = True
    episodic = True
    cost = (33, 32)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(5e-3, momentum=0.0),  # noqa: B008 - a frozen value
        views: Positive = 32,
        episodic: bool = True,
        reset_optimizer: bool = True,
        augment: Augmentation = augmix,
        norm: Callable[[nn.Module], nn.Module] = partial(alpha_statistics, alpha=1 / 17),  # noqa: B008
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.views, self.episodic, self.norm = optimizer, views, episodic, norm
        self.augment = preserving(augment, self.model)
        self.reset_optimizer, self.cost = reset_optimizer, (views + 1, views)
        self.adapt(self.model.parameters(), optimizer)

    def step(self, x: Tensor) -> Tensor:
        answers = []
        for i, image in enumerate(x.split(1)):
            if self.episodic:
                initial = self._initial_state()
                names = [n for n in self.moving() if self.reset_optimizer or not n.startswith("optimizer.")]
                self._restore({name: initial[name] for name in names if name != "clock"})
            copies = image.expand(self.views, *image.shape[1:])
            views = self.augment(copies, generator(self.seed, int(self.clock), f"image {i}", x.device))
            with observing(self.model):
                self.update(marginal_entropy(self.model(views)))
            with torch.no_grad():
                answers.append(self.model(image))
        return torch.cat(answers)
