r"""PETAL: CoTTA as probabilistic inference, with a prior from the source and a restoration by the Fisher information.

With the source's mean :math:`\mu` and diagonal variance :math:`\sigma^2` of the weights (SWAG-diagonal), the teacher
:math:`\theta'` and its prediction :math:`\tilde y`, which is its mean over V augmented views where the source model's mean
confidence is below :math:`p_{th}`,

.. math::
    L &= -\frac1N \sum_i \sum_c \tilde y_{ic} \log p_\theta(c \mid x_i)
         + \frac\alpha2 \sum_d \frac{(\theta_d - \mu_d)^2}{\sigma_d^2 + 10^{-6}} \\
    \theta' &\leftarrow \beta\, \theta' + (1 - \beta)\, \theta, \qquad
    F_d = (\partial L / \partial \theta_d)^2, \qquad
    \theta_d \leftarrow \mu_d \;\text{ where }\; F_d < \operatorname{quantile}_\delta(F)

A step, after ``prepare(batches)`` has learned the variance, unless the network brings it along:
    1. the student predicts the batch, the source model gives its confidence, and the teacher predicts;
    2. update weights and biases of all layers once on L, then the teacher;
    3. return the share :math:`\delta` of the weights with the least Fisher information on this batch to the source.

What is learned on source data lies in :mod:`testtime.source.petal`.

Departures:
    The paper trains the source network on, with labels, and starts from the mean of that path:
    ``swag_diagonal`` does so, and gives a network that brings its variance along. For a network that comes alone
    ``prepare`` trains a copy of it on its own predictions of unlabelled images, in ``PETALOptions.passes`` passes, and takes
    the variance of that path; the mean is the network as given.
    The published variance is a difference of two averages, which rounding may turn negative; here it is not (Welford).
    The published code computes all views even where it does not use them; this does not. Its views change all images alike
    (``augment=partial(katana, alike=True)``); here each draws for itself.
    The paper's other variant returns weights by chance, as CoTTA does: ``PETALOptions(restoration=0.01)``.
    Published code step by step, up to the draws: ``PETAL(swag_diagonal(model, batches))`` (CIFAR-10; ``threshold=0.72`` for
    CIFAR-100) and ``PETAL(swag_diagonal(model, batches), sgd(1e-2), threshold=0.1, alpha=1e-11, quantile=0.003)`` (ImageNet).

Cost: two forwards, one more for each view where they are used, one backward. ``prepare`` costs a forward of each batch, and
with every pass a forward and a backward.

Reference: Brahma and Rai, A Probabilistic Framework for Lifelong Test-Time Adaptation, CVPR 2023; Maddox, Garipov, Izmailov,
Vetrov and Wilson, A Simple Baseline for Bayesian Uncertainty in Deep Learning, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural
from testtime.intake.sharing import Stateful, share
from testtime.norm import batch_statistics
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.restoration import restore_at_random
from testtime.parts.views import preserving
from testtime.source.branches import images_of
from testtime.source.petal import SwagDiagonal, flat, swag_diagonal

__all__ = ["PETAL", "DiagonalPrior", "PETALOptions", "quantile_of"]


@final
class DiagonalPrior(Stateful):
    r"""A Gaussian around the source: half the sum of :math:`(\theta - \mu)^2 / (\sigma^2 + 10^{-6})`.

    Args:
        parameters: theta.
        origin: mu, one for each.

    Attributes:
        variance: (P,), one after the other; empty until it was learned.
    """

    learned = True
    variance: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter], origin: Sequence[Tensor]) -> None:
        super().__init__()
        self.about, self.origin = list(parameters), list(origin)
        self.register_buffer("variance", flat(self.origin).new_zeros(0))

    def forward(self) -> Tensor:
        """The scalar."""
        away = flat(self.about) - flat(self.origin)
        return 0.5 * (away.square() / (self.variance + 1e-6)).sum()


@final
@dataclass(frozen=True)
class PETALOptions:
    """Settings of PETAL that are rarely changed.

    Args:
        restoration: chance of a weight to return to the source, instead of the weights of the least information; None for the
            latter.
        passes: number of passes of ``prepare`` over its batches.

    Raises:
        ValueError: passes is below 2.
    """

    restoration: float | None = None
    passes: Natural = 5

    def __post_init__(self) -> None:
        if self.passes < 2:
            raise ValueError(
                f"passes counts the passes of prepare over its batches and is at least 2, got {self.passes}"
            )


@final
class PETAL(Adapter):
    """CoTTA as probabilistic inference, with a prior from the source and a restoration by the Fisher information.

    Args:
        model: any classifier; one of ``swag_diagonal`` needs no ``prepare``.
        optimizer: moves all weights and biases; the paper's are ``adam(1e-3)`` (CIFAR) and ``sgd(1e-2)`` (ImageNet).
        views: V, how many random views the teacher averages.
        threshold: p_th; below this mean confidence of the source the views are used. 0.92 (CIFAR-10), 0.72
            (CIFAR-100), 0.1 (ImageNet).
        decay: beta, the weight of the past in the teacher.
        alpha: the weight of the prior; 1e-9 (CIFAR), 1e-11 (ImageNet).
        quantile: delta, the share of the weights that return to the source; 0.03 (CIFAR), 0.003 (ImageNet).
        augment: makes a view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in all three models.
        seed: random seed of the views.

    Raises:
        ValueError: views is below 1, or quantile not in [0, 1].
        RuntimeError: it is called before ``prepare``, and the network brings no variance along.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> petal = PETAL(net, views=4)
    >>> petal.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> petal(torch.rand(8, 3, 8, 8)).shape
    torch.Size([8, 2])
    """

    name, label = "petal", "PETAL"
    needs = ("classifier", "views")
    answers_with = (
        "the mean over views that are drawn at random, of a batch that the source model is unsure about"
    )
    venue = "CVPR 2023"
    paper = "Brahma and Rai, A Probabilistic Framework for Lifelong Test-Time Adaptation"
    output = "teacher"
    source: SourceData = "data"
    stochastic = True
    cost = (34, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        views: int = 32,
        threshold: float = 0.92,
        decay: float = 0.999,
        alpha: float = 1e-9,
        quantile: float = 0.03,
        augment: Augmentation = katana,
        options: PETALOptions = PETALOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        if views < 1 or not 0 <= quantile <= 1:
            raise ValueError(f"expected views >= 1 and a quantile in [0, 1], got {views} and {quantile}")
        super().__init__(norm(model), seed)
        self.optimizer, self.views, self.threshold, self.decay = optimizer, views, threshold, decay
        self.alpha, self.quantile, self.options = alpha, quantile, options
        self.augment = preserving(augment, self.model)
        self.norm, self.cost = norm, (2 + views, 1)
        self.anchor = share(self.model)
        names = [n for n, _ in self.model.named_parameters() if n.rsplit(".", 1)[-1] in ("weight", "bias")]
        self.adapt([self.model.get_parameter(name) for name in names], optimizer)
        self.teacher = Teacher(self.model, self._adapted, decay)
        origin = [self.anchor.get_parameter(name) for name in names]
        self.prior = DiagonalPrior(self._adapted, origin)
        for swag in self.model.modules():
            if isinstance(swag, SwagDiagonal):
                self.prior.variance = self._of_adapted(swag.variance)
                self.source = "none"

    def _of_adapted(self, every: Tensor) -> Tensor:
        """The entries (P,) of what adapts, of those of all parameters."""
        ids = {id(p) for p in self._adapted}
        parameters = list(self.model.parameters())
        parts = every.split([p.numel() for p in parameters])
        return torch.cat([part for p, part in zip(parameters, parts, strict=True) if id(p) in ids])

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        with torch.no_grad():
            examples = [(x, self.anchor(x).argmax(dim=1)) for x in images_of(batches)]
        self.prior.variance = self._of_adapted(
            swag_diagonal(self.anchor, examples, self.options.passes, title=None).variance
        )

    @torch.no_grad()
    def _predict_batch(self, x: Tensor) -> Tensor:
        """The teacher's answer (N, C): a call answers the same."""
        z = self.anchor(x)
        wide = torch.promote_types(z.dtype, torch.float32)
        if bool(z.softmax(dim=1, dtype=wide).amax(dim=1).mean() >= self.threshold):
            return self.teacher(x)
        total = torch.zeros_like(z, dtype=wide)
        for i in range(self.views):
            view = self.augment(x, generator(self.seed, int(self.clock), f"view {i}", x.device))
            total += self.teacher(view)
        return (total / self.views).to(z.dtype)

    def _answering(self) -> nn.Module:
        return self.teacher.model if self.threshold <= 0 else super()._answering()

    def step(self, x: Tensor) -> Tensor:
        if not len(self.prior.variance):
            raise RuntimeError(
                "PETAL does not know the variance of its weights on the source: call adapter.prepare(batches) with "
                "unlabelled source batches first, or give it the network of swag_diagonal(model, labelled batches)"
            )
        student, teacher = self.model(x), self._predict_batch(x)
        loss = soft_cross_entropy(student, teacher).mean() + self.alpha * self.prior()
        gradients = torch.autograd.grad(loss, self._adapted, materialize_grads=True)
        self.update(gradients)
        self.teacher.update()
        chance = self.options.restoration
        if chance is None:
            self._return_some([g.square() for g in gradients])
        else:
            restore_at_random(self._adapted, self.prior.origin, chance, self.seed, int(self.clock))
        return teacher

    @torch.no_grad()
    def _return_some(self, fisher: Sequence[Tensor]) -> None:
        """Return the weights of the least information to the source."""
        least = quantile_of(flat(fisher), self.quantile)
        for p, source, f in zip(self._adapted, self.prior.origin, fisher, strict=True):
            p.copy_(torch.where(f < least, source, p))


def quantile_of(values: Tensor, share: float) -> Tensor:
    """The value (a scalar) below which a share of the values (P,) lies, linear between two of them.

    As :func:`torch.quantile`, which takes no more than 16 million values.

    >>> quantile_of(torch.tensor([4.0, 1.0, 2.0]), 0.25)
    tensor(1.5000)
    """
    place = share * (len(values) - 1)
    low = int(place)
    below = values.kthvalue(low + 1).values
    above = values.kthvalue(min(low + 2, len(values))).values
    return below + (above - below) * (place - low)
