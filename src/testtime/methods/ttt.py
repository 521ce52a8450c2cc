r"""TTT: keep learning, on the test images, to predict the rotation of an image.

With the shared features :math:`z = E_{\theta_e}(x)`, the image :math:`R_k x` turned by k quarter turns, and a branch
:math:`s` that guesses k,

.. math::
    L_{rot}(\theta_e, \theta_s) = \frac{1}{4N} \sum_i \sum_{k=0}^{3} -\log p\big(k \mid s_{\theta_s}(E_{\theta_e}(R_k x_i))\big)

on the source jointly with the task, :math:`L_{task} + L_{rot}`, and at test time alone.

A step:
    1. predict the batch;
    2. turn every image four ways, and let the branch guess the turns from the shared features;
    3. move the shared features' parameters, and the branch, once down the cross-entropy; answer with the prediction of 1.

The paper takes 10 steps on an image, from the source each time (``Episodic(Repeat(ttt, 10))``), or one, online.

What is learned on source data lies in :mod:`testtime.source.ttt`.

Departures:
    The paper trains branch and network together: give ``Assisted(network, RotationBranch(...))``, as
    :func:`testtime.multitask.train` leaves it (one random turn for each image and step). On a network that comes alone
    ``prepare`` trains the branch on the features of the frozen network: ``passes`` over its batches with Adam. A branch so
    trained stays as it is at test time, as in the paper's equation; one that was trained with the network moves, as in its
    code. The paper calls the difference negligible.
    The branch is linear on the features, averaged over places; the paper's, which parts from the network after its second
    stage, repeats the rest of the network: name such a stage as ``layer``, and the branch is still linear.
    The paper adapts to single images and makes a batch of each, of 32 random crops, flips and turns. Here the batch is that of
    the call, and every image is turned all four ways; ``augment=random_crop_flip`` draws a crop and a flip for each of them.
    Images that are not square go through the network in two shapes, upright and lying, which BatchNorm sees one by one.
    The answer is the forward before the update. The paper's networks have GroupNorm; BatchNorm uses the source's statistics.

Cost: five forwards, four backwards of the shared part. ``prepare`` costs four forwards, once.

Reference: Sun, Wang, Liu, Miller, Efros and Hardt, Test-Time Training with Self-Supervision for Generalization under
Distribution Shifts, ICML 2020; Gidaris, Singh and Komodakis, Unsupervised Representation Learning by Predicting Image
Rotations, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural
from testtime.moved import renamed
from testtime.norm import observing, source_statistics
from testtime.parts import generator, identity, sgd
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving
from testtime.source.branches import images_of, joined, upstream
from testtime.source.ttt import RotationBranch

__all__ = ["TTT"]

__getattr__ = renamed(
    __name__,
    {
        "turned": "testtime.source.ttt:turned",
    },
)


@final
class TTT(Adapter):
    """Keep learning to predict the rotation of an image.

    Args:
        model: a multi-task network or a classifier, with the ``RotationBranch`` it was trained with
            (``Assisted(network, RotationBranch(...))``) or alone.
        optimizer: moves the layers up to the watched one; the paper's has neither momentum nor weight decay.
        layer: the name of the layer that gives the shared features, for a network that comes alone; unless named, it is the
            encoder of a multi-task network, or what a classifier's head is given.
        augment: changes images before they are turned, within the model's invariances; ``testtime.parts.random_crop_flip``
            is the paper's.
        passes: passes of ``prepare`` over the features of its batches.
        rate: the learning rate of ``prepare``.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the initial weights of the branch and of ``augment``.

    Raises:
        ValueError: the layer is not there, or a batch does not hold images.
        RuntimeError: it is called with neither a trained nor a prepared branch.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> ttt = TTT(net)
    >>> ttt.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = ttt(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "ttt", "TTT"
    needs = ("linear head", "images")
    venue = "ICML 2020"
    paper = (
        "Sun, Wang, Liu, Miller, Efros and Hardt, Test-Time Training with Self-Supervision for "
        "Generalization under Distribution Shifts"
    )
    source: SourceData = "data"
    stochastic = True
    cost = (5, 4)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-3, momentum=0.0),  # noqa: B008 - a frozen value
        layer: str | None = None,
        augment: Augmentation = identity,
        passes: Natural = 10,
        rate: float = 1e-2,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.layer = optimizer, layer
        self.augment = preserving(augment, self.model)
        self.passes, self.rate, self.norm = passes, rate, norm
        self.stochastic = augment is not identity
        self.branch, self._taps = joined(
            self.model,
            RotationBranch,
            [layer] if layer else [],
            lambda widths: RotationBranch(widths[0]),
            seed,
        )
        self.source = "data" if self.branch.learned else "none"
        branch = [] if self.branch.learned else self.branch.parameters()
        self.adapt([*upstream(self.model, self._taps), *branch], optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if self.branch.learned:
            with torch.no_grad(), observing(self.model):
                examples = [self._turns(x, f"source {i}") for i, x in enumerate(images_of(batches))]
            self.branch.fit(
                examples, lambda example, _: self._loss(*example), self.passes, self.rate, self.seed
            )

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        self.branch.demand("TTT")
        with observing(self.model):
            with torch.no_grad():
                y = self.model(x)
            z, turns = self._turns(x, "turns")
        self.update(self._loss(z, turns))
        return y

    def _turns(self, x: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
        """Features of every image turned four ways, and the turns; (4 N, C) and (4 N,)."""
        turns = torch.arange(4, device=x.device).repeat_interleave(len(x))
        rng = generator(self.seed, int(self.clock), purpose, x.device)
        return self.branch.features(self.model, self._taps, self.augment(torch.cat([x] * 4), rng), turns)

    def _loss(self, z: Tensor, turns: Tensor) -> Tensor:
        return F.cross_entropy(self.branch(z), turns)
