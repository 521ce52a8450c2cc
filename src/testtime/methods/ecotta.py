r"""EcoTTA: small networks beside the groups of a frozen one learn, and are kept near the outputs of the frozen ones.

With the groups :math:`f_1 \dots f_K` of the frozen network, and beside each a meta network of a normalisation :math:`n_k`
and a block :math:`c_k` of a convolution, a normalisation and a ReLU,

.. math::
    x_k &= f_k(\tilde x_{k-1}), \qquad \tilde x_k = n_k(x_k) + c_k(\tilde x_{k-1}) \\
    L &= \operatorname*{mean}_{i :\, H(p_i) < H_0} H(p_i) + \lambda \sum_k \lVert \tilde x_k - x_k \rVert_1, \qquad
    H_0 = 0.4 \log C

where the norm is a mean over elements, and :math:`x_k` is a constant in it.

A step, after the meta networks were warmed up on the source:
    1. predict the batch; the meta networks normalise it by its own statistics;
    2. take the gradient of the entropy of what is certain enough and of the distance to the frozen groups;
    3. update the meta networks once, and answer with the prediction of 1.

What is learned on source data lies in :mod:`testtime.source.ecotta`.

Departures:
    There is no official code, and the paper's full text was not at hand: this was written from its abstract, the caption of
    its overview, and how an unofficial implementation behaves, whose values the defaults are; figures of the paper cannot be
    claimed. What was chosen: :math:`x_k` is what the frozen group makes of the adapted input; a group is a named module, by
    default each child with convolutions of the outermost container that has two or more of these (the stem and the stages of
    a ResNet); :math:`c_k` has a kernel of 3 on an input that is averaged down to the places of :math:`x_k`; where no image is
    certain the distance alone is minimised; a channel of one value is not normalised; the meta networks set out from the mean
    and deviation of :math:`x_k` on the first batch and a tenth of that deviation, so that the network answers nearly as it
    did.
    For logits (N, C, H, W), the segmentation of the paper, every pixel is a sample: the entropy is that of the certain pixels.
    ``train_meta`` warms up on the labelled source, and gives a network that brings its meta networks along. For
    a network that comes alone ``prepare`` does so with the network's own answers to unlabelled images.
    The unofficial implementation takes two steps and answers with the forward of the second; this takes one. With
    ``Repeat(EcoTTA(model), times)`` there are more, and the answer is the one after them.
    The paper's claim is memory. No activation inside a group is kept for the gradients of its weights, which are frozen; what
    the backward through it keeps is up to torch, and is measured, not promised.

Cost: one forward, one backward. ``prepare`` costs a forward of each batch, and with every pass a forward and a backward.

Reference: Song, Lee, Kweon and Choi, EcoTTA: Memory-Efficient Continual Test-time Adaptation via Self-distilled
Regularization, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural
from testtime.moved import renamed
from testtime.norm import source_statistics
from testtime.parts import entropy, sgd
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction
from testtime.source.branches import images_of
from testtime.source.ecotta import Warmth, in_mode, meta_groups, warm_up, with_meta

__all__ = ["EcoTTA"]

__getattr__ = renamed(
    __name__,
    {
        "BatchScale": "testtime.source.ecotta:BatchScale",
        "MetaGroup": "testtime.source.ecotta:MetaGroup",
        "train_meta": "testtime.source.ecotta:train_meta",
    },
)


@final
class EcoTTA(Adapter):
    """Small networks beside the groups of a frozen one learn, and are kept near the outputs of the frozen ones.

    Args:
        model: a convolutional classifier or segmenter; one of ``train_meta`` needs no ``prepare``.
        optimizer: moves the meta networks.
        hold: lambda, the weight of the distance to the frozen groups.
        margin: H_0 as a fraction of log C.
        passes, rate: passes of ``prepare`` over its batches, and their learning rate.
        layers: the dotted names of the groups; None for the children with convolutions of the outermost container that has
            two or more of them.
        norm: the policy of the frozen network's BatchNorm layers; the meta networks always normalise by the batch.
        seed: random seed of the initial weights of the meta networks.

    Raises:
        ValueError: the model has no convolutions, or as ``MetaGroup``.
        RuntimeError: it is called before ``prepare``, and the network brings no meta networks along.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> ecotta = EcoTTA(net)
    >>> ecotta.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = ecotta(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "ecotta", "EcoTTA"
    needs = ("class logits", "convolution")
    venue = "CVPR 2023"
    paper = (
        "Song, Lee, Kweon and Choi, EcoTTA: Memory-Efficient Continual Test-time Adaptation via Self-"
        "distilled Regularization"
    )
    source: SourceData = "data"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(5e-3),  # noqa: B008 - a frozen value
        hold: float = 0.25,
        margin: float = 0.4,
        passes: Natural = 10,
        rate: float = 0.05,
        layers: Sequence[str] | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.hold, self.margin, self.passes = optimizer, hold, margin, passes
        self.rate, self.layers, self.norm = rate, layers, norm
        self.warmth = Warmth(bool(meta_groups(self.model)))
        if self.warmth.done:
            self.source = "none"
        else:
            with_meta(self.model.get_submodule("network"), layers)
        self.adapt([p for g in meta_groups(self.model) for p in g.meta()], optimizer)
        if not self.warmth.done:
            self.remember_birth()

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        images = images_of(batches)
        groups = meta_groups(self.model)
        with torch.no_grad():
            answers = in_mode(groups, "frozen", lambda: [self.model(x).argmax(dim=1) for x in images])
        warm_up(self.model, list(zip(images, answers, strict=True)), self.passes, self.rate, self.seed)
        self.warmth.done = torch.ones_like(self.warmth.done)

    def step(self, x: Tensor) -> Tensor:
        if not self.warmth.done:
            raise RuntimeError(
                "EcoTTA's meta networks were not warmed up: call adapter.prepare(batches) with unlabelled source batches "
                "first, or give it the network of train_meta(model, labelled batches)"
            )
        logits, gaps = self._watched(x)
        h = entropy(logits)
        kept = h < self.margin * math.log(logits.shape[1])
        loss = self.hold * torch.stack(gaps).sum()
        self.update(loss + h[kept].mean() if kept.any() else loss)
        return Prediction(logits, selected={"minimised": kept})

    def _watched(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and each group's distance to the frozen one."""
        groups = meta_groups(self.model)
        for g in groups:
            g.watched = True
        try:
            logits = self.model(x)
            return logits, [g.gap for g in groups if g.gap is not None]
        finally:
            for g in groups:
                g.watched, g.gap = False, None
