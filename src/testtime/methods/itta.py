r"""ITTA: a consistency whose measure was learned to agree with the task, lowered by parameters that are there for that alone.

With the groups :math:`f_1 \dots f_K` of a network of parameters :math:`\theta`, behind each the adaptive parameters
:math:`\Theta_k = (a_k, b_k)`, the features z of an image, those :math:`z'` of the same image in another's style, and a small
network :math:`f_w` that weighs their difference,

.. math::
    x_k &= a_k \odot f_k(x_{k-1}) + b_k, \qquad
    x'_k = S\big(a_k \odot f_k(x'_{k-1}) + b_k\big), \quad k < K \\
    S(x_i) &= \sigma_i^{mix}\, \frac{x_i - \mu(x_i)}{\sigma(x_i)} + \mu_i^{mix}, \qquad
    \mu_i^{mix} = \lambda_i\, \mu(x_i) + (1 - \lambda_i)\, \mu(x_{j(i)}), \quad
    \sigma_i^{mix} = \lambda_i\, \sigma(x_i) + (1 - \lambda_i)\, \sigma(x_{j(i)}) \\
    L_w &= \operatorname{mean} f_w(z - z')^2, \qquad
    L_{align} = \bigg\lVert \frac{\nabla_\theta L_{main}}{\lVert \nabla_\theta L_{main} \rVert}
                - \frac{\nabla_\theta L_w}{\lVert \nabla_\theta L_w \rVert} \bigg\rVert^2

On the source :math:`\min_\theta L_{main} + \alpha L_w` and :math:`\min_w L_{align}`, with :math:`\Theta` the identity; at test
time :math:`\min_\Theta L_w` alone.

A step:
    1. see the batch twice, the second time every image in the style of another one of the batch;
    2. take the gradient of the learned consistency with respect to the adaptive parameters, and update them once;
    3. predict the batch again, and answer.

What is learned on source data lies in :mod:`testtime.source.itta`.

Departures:
    The published code has no licence and was not read, and the paper's full text was not at hand: this was written from its
    abstract ("a learnable consistency loss ... which contains learnable parameters that can be adjusted toward better alignment
    between our TTT task and the main prediction task"; "we introduce additional adaptive parameters for the trained model, and
    we suggest only updating the adaptive parameters during the test phase") and from the caption of its figure 3: the adaptive
    parameters come in at test time, one behind each block, for the features of the image and of its other version alike.
    Figures of the paper cannot be claimed. What was chosen:
    The other version is MixStyle's (Zhou et al., 2021), with :math:`\lambda` uniform, in each group but the last; the partner j
    is drawn, and is another image wherever there are two.
    :math:`\Theta_k` is a scale and a shift of each channel. :math:`f_w` is of linear layers without bias, with ReLU between
    them, on what the linear head is given: equal features cost nothing. Gradients are compared at unit length, over all
    parameters but the head's. BatchNorm keeps its source statistics, in training and at test.
    ``train_itta`` trains network and :math:`f_w` together on the labelled source. For a network that comes alone
    ``prepare`` trains :math:`f_w` alone, with the network's own answers to unlabelled images for labels.
    At test the published code is reported to go by Adam at a tenth of the rate of training, ``adam(5e-6)`` where that is
    DomainBed's; scales and shifts hardly move at that rate, and the default is this library's.

Cost: three forwards, two backwards. ``prepare`` costs a forward of each batch, and with every pass two forwards, and three
backwards of which one is of second order.

Reference: Chen, Zhang, Song, Shan and Liu, Improved Test-Time Adaptation for Domain Generalization, CVPR 2023; Zhou, Yang, Qiao
and Xiang, Domain Generalization with MixStyle, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Positive
from testtime.moved import renamed
from testtime.norm import observing, source_statistics
from testtime.parts import adam
from testtime.parts.features import head_tap, linear_head, with_features
from testtime.parts.optimizers import OptimizerFactory
from testtime.source.branches import images_of
from testtime.source.itta import (
    Consistent,
    LearnedConsistency,
    adaptive_groups,
    learn_consistency,
    restyled,
    with_adaptive,
)

__all__ = ["ITTA"]

__getattr__ = renamed(
    __name__,
    {
        "mix_style": "testtime.source.itta:mix_style",
        "AdaptiveGroup": "testtime.source.itta:AdaptiveGroup",
        "alignment": "testtime.source.itta:alignment",
        "train_itta": "testtime.source.itta:train_itta",
    },
)


@final
class ITTA(Adapter):
    """A consistency whose measure was learned to agree with the task, lowered by parameters that are there for that alone.

    Args:
        model: a convolutional classifier that ends in a linear head; one of ``train_itta`` needs no ``prepare``.
        optimizer: moves the adaptive parameters.
        depth: linear layers of f_w, where the network comes alone.
        passes, rate: passes of ``prepare`` over its batches, and their learning rate.
        layers: the dotted names of the groups; None for the children with convolutions of the outermost container that has
            two or more of them (the stem and the stages of a ResNet).
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the styles and of the initial weights.

    Raises:
        ValueError: the model has no linear head or no convolution, or as ``AdaptiveGroup``.
        RuntimeError: it is called before ``prepare``, and the network brings no consistency along.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> itta = ITTA(net)
    >>> itta.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = itta(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "itta", "ITTA"
    needs = ("classifier", "convolution", "linear head")
    venue = "CVPR 2023"
    paper = "Chen, Zhang, Song, Shan and Liu, Improved Test-Time Adaptation for Domain Generalization"
    output = "after"
    source: SourceData = "data"
    stochastic = True
    cost = (3, 2)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        depth: Positive = 2,
        passes: Positive = 5,
        rate: float = 1e-3,
        layers: Sequence[str] | None = None,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.depth, self.passes, self.rate = optimizer, depth, passes, rate
        self.layers, self.head, self.norm = layers, head, norm
        brought = [m for m in self.model.modules() if isinstance(m, Consistent)]
        home = brought[-1].network if brought else self.model.get_submodule("network")
        if not adaptive_groups(home):
            with_adaptive(home, layers)
        last = linear_head(home, head)[1]
        if brought:
            self.consistency = brought[-1].consistency
            self.source = "none"
        else:
            dtype = torch.promote_types(last.weight.dtype, torch.float32)
            fresh = LearnedConsistency(last.in_features, depth, seed).to(last.weight.device, dtype)
            self.consistency = fresh.requires_grad_(False)
            self.consistency.learned = True
        self._tap = head_tap(home, head)
        self.adapt([p for g in adaptive_groups(self.model) for p in (g.scale, g.shift)], optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if not self.consistency.learned:
            return
        images = images_of(batches)
        learn_consistency(self.model, self._tap, self.consistency, images, self.passes, self.rate, self.seed)

    def step(self, x: Tensor) -> Tensor:
        if self.consistency.learned and not self.consistency.lessons:
            raise RuntimeError(
                "ITTA's consistency was not learned: call adapter.prepare(batches) with unlabelled source batches first, or "
                "give it the network of train_itta(model, labelled batches)"
            )
        with observing(self.model):
            _, z = with_features(self.model, self._tap, x)
            with restyled(self.model, len(x), self.seed, int(self.clock)):
                _, other = with_features(self.model, self._tap, x)
        self.update(self.consistency(z, other))
        with torch.no_grad():
            return self.model(x)
