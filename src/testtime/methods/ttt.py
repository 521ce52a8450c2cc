r"""TTT: keep learning, on the test images, to tell how far an image was turned.

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

Departures:
    The paper trains branch and network together: give ``Assisted(network, RotationBranch(...))``, as
    :func:`testtime.multitask.train` leaves it (one random turn for each image and step). On a network that comes alone
    ``prepare`` teaches the branch on the features of the frozen network: ``passes`` over its batches with Adam. A branch so
    taught stays as it is at test time, as in the paper's equation; one that was trained with the network moves, as in its
    code. The paper calls the difference negligible.
    The branch is linear on the features, averaged over places; the paper's, which parts from the network after its second
    stage, repeats the rest of the network: name such a stage as ``layer``, and the branch is still linear.
    The paper meets single images and makes a batch of each, of 32 random crops, flips and turns. Here the batch is what
    arrives, and every image is turned all four ways; ``augment=random_crop_flip`` draws a crop and a flip for each of them.
    Images that are not square go through the network in two shapes, upright and lying, which BatchNorm sees one by one.
    The answer is the forward before the update. The paper's networks have GroupNorm; BatchNorm uses the source's statistics.

Cost: five forwards, four backwards of the shared part. ``prepare`` costs four forwards, once.

Reference: Sun, Wang, Liu, Miller, Efros and Hardt, Test-Time Training with Self-Supervision for Generalization under
Distribution Shifts, ICML 2020; Gidaris, Singh and Komodakis, Unsupervised Representation Learning by Predicting Image
Rotations, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.norm import observing, source_statistics
from testtime.parts import generator, identity, sgd
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import Tap, tapped, watched
from testtime.parts.views import preserving
from testtime.source.branches import UnsupervisedBranch, images_of, joined, pooled, upstream

__all__ = ["TTT", "RotationBranch", "turned"]


def turned(x: Tensor, turns: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images turned counter-clockwise by quarter turns, in groups of one shape.

    Args:
        x: (N, C, H, W).
        turns: (N,), of 0 to 3.

    Returns:
        images and the turns they had, sorted by these; one group, or two where H and W differ.

    Raises:
        ValueError: x is not a batch of images.

    >>> [(tuple(y.shape), k.tolist()) for y, k in turned(torch.rand(3, 1, 2, 4), torch.tensor([3, 0, 2]))]
    [((2, 1, 2, 4), [0, 2]), ((1, 1, 4, 2), [3])]
    """
    if x.dim() != 4:
        raise ValueError(f"only images (N, C, H, W) can be turned, got a batch of shape {tuple(x.shape)}")
    groups = []
    for kinds in [(0, 1, 2, 3)] if x.shape[2] == x.shape[3] else [(0, 2), (1, 3)]:
        images = torch.cat([torch.rot90(x[turns == k], k, (2, 3)) for k in kinds])
        if len(images):
            groups.append((images.contiguous(), torch.cat([turns[turns == k] for k in kinds])))
    return groups


@final
class RotationBranch(UnsupervisedBranch):
    """A linear classifier of quarter turns, on features averaged over places.

    Args:
        channels: of the features.
        layer: name of the layer that gives them.

    Called with features (N, C), maps (N, C, h, w) or tokens (N, T, C), it returns logits (N, 4).

    >>> RotationBranch(8)(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, channels: int, layer: str = "encoder") -> None:
        super().__init__((layer,))
        self.guess = nn.Linear(channels, 4)

    def forward(self, z: Tensor) -> Tensor:
        return self.guess(pooled(z, self.guess.weight))

    def features(
        self, network: nn.Module, taps: Sequence[Tap], x: Tensor, turns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the tapped layer gives for turned images, averaged over places (N, C), and the turns in the same order."""
        groups = turned(x, turns)
        seen = [watched(network, taps, images)[1][0] for images, _ in groups]
        return torch.cat([pooled(z, self.guess.weight) for z in seen]), torch.cat([k for _, k in groups])

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The cross-entropy of one random turn of each image, in nats."""
        turns = torch.randint(4, (len(x),), generator=generator, device=generator.device).to(x.device)
        with tapped(network, self.layers) as taps:
            z, turns = self.features(network, taps, x, turns)
        return {"rotation": F.cross_entropy(self(z), turns)}


@final
class TTT(Adapter):
    """Keep learning to tell how far an image was turned.

    Args:
        model: a multi-task network or a classifier, with the :class:`RotationBranch` it was trained with
            (``Assisted(network, RotationBranch(...))``) or alone.
        optimizer: moves the layers up to the watched one; the paper's has neither momentum nor weight decay.
        layer: the name of the layer that gives the shared features, for a network that comes alone; unless named, it is the
            encoder of a multi-task network, or what a classifier's head is given.
        augment: changes images before they are turned, within the model's invariances; ``testtime.parts.random_crop_flip``
            is the paper's.
        passes: how often ``prepare`` shows the features of its batches to the branch.
        rate: the learning rate of ``prepare``.
        norm: the policy of the BatchNorm layers.
        seed: of the branch's first weights and of ``augment``.

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
        passes: int = 10,
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

    def _learn(self, batches: Iterable[Tensor]) -> None:
        if self.branch.learned:
            with torch.no_grad(), observing(self.model):
                lessons = [self._turns(x, f"source {i}") for i, x in enumerate(images_of(batches))]
            self.branch.fit(lessons, lambda lesson, _: self._loss(*lesson), self.passes, self.rate, self.seed)

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
