r"""TIPI: predict alike under small transformations, of which the worst represents all.

With the prediction :math:`p_\theta(x) = \operatorname{softmax} f_\theta(x)`, a random start :math:`\delta_0`, uniform in
:math:`[-\epsilon, \epsilon]`, and one signed gradient step,

.. math::
    \delta &= \operatorname{clip}_\epsilon\big(\delta_0 + \epsilon \operatorname{sign} \nabla_{\delta_0}
        D(p_\theta(x + \delta_0), p_\theta(x))\big), \qquad
    D(q, p) = \frac1N \sum_i \sum_c q_{ic} \log \frac{q_{ic}}{p_{ic}} \\
    \min_{\gamma, \beta} \; & D(p_\theta(x + \delta), \bar p(x)) + \lambda \, \frac1N \sum_i H(p_\theta(x_i))

where :math:`\bar p(x)` is :math:`p_\theta(x)` without a gradient: the transformed batch follows the batch.

A step:
    1. predict the batch, and the batch at its random start; take the signed gradient step away from agreement;
    2. predict the transformed batch, normalised by statistics of its own;
    3. move scale and shift of the normalisation layers once down the reverse divergence of the two predictions, and answer
       with that of the batch itself.

For a regression D is the task's own loss with the prediction of the batch as the label; the divergences of several tasks
are summed with the weights of their losses; edges are two classes.

Departures:
    The published code starts at :math:`\delta_0 = 0` by default, except on ImageNet (``random_start=False``). There the
    divergence has no gradient, and the signs are those of rounding errors: on CIFAR-10 runs of that code in float32 and
    float64 differed by 0.12 in a logit in the first batch and by 0.5 in the twelfth.
    The published code predicts again after the update, in evaluation mode, by moving statistics of the untransformed
    images; it has a flag for the statistics of the batch where that is larger than 64. This answers with the forward before
    the update: take ``norm=running_statistics`` and call ``predict``, or wrap in ``Repeat``, for the former. The second
    set of BatchNorm statistics is there under every policy, for only the first forward of a step moves any.
    The transformed images are not clipped to [0, 1]. Normalisation layers of every kind adapt, not BatchNorm alone.
    Published settings: ``TIPI(model, adam(1e-3), random_start=False)`` (CIFAR-10, batches of 200),
    ``TIPI(model, adam(1e-3), entropy_weight=5, random_start=False)`` (CIFAR-100), ``TIPI(model, sgd(2.5e-4),
    entropy_weight=1)`` (ImageNet, batches of 64); for another batch the rate is scaled with its size.

Cost: three forwards, two backwards, one of them to the images; one backward more where the entropy has a weight.

Reference: Nguyen, Nguyen-Tang, Lim and Torr, TIPI: Test Time Adaptation with Transformation Invariance, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import adam, entropy, generator
from testtime.parts.optimizers import OptimizerFactory
from testtime.tasks import class_logits, tasks_of

__all__ = ["TIPI", "divergence"]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence :math:`\sum_c p_c \log (p_c / q_c)` of predictions, in nats, averaged over all others.

    Args:
        p, q: logits (N, C) or (N, C, H, W).

    Returns:
        a scalar, at least in float32; gradients flow into both.

    >>> divergence(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log())  # log 2 / sqrt 3
    tensor(0.1438)
    """
    full = torch.promote_types(p.dtype, torch.float32)
    log_p, log_q = p.to(full).log_softmax(dim=1), q.to(full).log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


@final
class TIPI(Adapter):
    """Predict alike under the worst of the small transformations.

    Args:
        model: a classifier with normalisation layers, or a multi-task network.
        optimizer: moves gamma and beta.
        epsilon: largest change of a pixel in [0, 1].
        entropy_weight: lambda, of the entropy of the classes; 0 (CIFAR-10), 5 (CIFAR-100), 1 (ImageNet).
        reverse: False measures D(p(x), p(x + delta)) instead, where the tasks have classes.
        random_start: False starts at the image itself.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the start of the search.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift; it answers by task and declares no tasks; or
            the entropy has a weight and no task has classes.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = TIPI(net)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "tipi", "TIPI"
    needs = ("norm", "floating-point")
    venue = "CVPR 2023"
    paper = "Nguyen, Nguyen-Tang, Lim and Torr, TIPI: Test Time Adaptation with Transformation Invariance"
    stochastic = True
    cost = (3, 2)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        epsilon: float = 2 / 255,
        entropy_weight: float = 0.0,
        reverse: bool = True,
        random_start: bool = True,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.epsilon, self.entropy_weight = optimizer, epsilon, entropy_weight
        self.reverse, self.random_start, self.norm = reverse, random_start, norm
        self.cost = (3, 3 if entropy_weight else 2)
        self.tasks = tasks_of(self.model)
        self.adapt(norm_affine(self.model), optimizer)

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        with observing(self.model):
            with torch.set_grad_enabled(bool(self.entropy_weight)):
                y = self.model(x)
            clean = {k: v.detach() for k, v in y.items()} if isinstance(y, Mapping) else y.detach()
            moved = self.model(x + self._worst(x, clean))
        loss = self._disagreement(moved, clean)
        if self.entropy_weight:
            loss = loss + self.entropy_weight * entropy(class_logits(y, self.tasks)).mean()
        self.update(loss)
        return y

    def _worst(self, x: Tensor, clean: Any) -> Tensor:
        """The transformation delta (N, C, H, W) away from the prediction of the batch."""
        delta = torch.zeros_like(x)
        if self.random_start:
            rng = generator(self.seed, int(self.clock), "start", x.device)
            draws = torch.rand(x.shape, generator=rng, dtype=torch.float32, device=x.device)
            delta = ((2 * draws - 1) * self.epsilon).to(x.dtype)
        delta.requires_grad_(True)
        (slope,) = torch.autograd.grad(self._disagreement(self.model(x + delta), clean), delta)
        return (delta.detach() + self.epsilon * slope.sign()).clamp(-self.epsilon, self.epsilon)

    def _disagreement(self, moved: Any, y: Any) -> Tensor:
        """How far the prediction of the transformed batch is from that of the batch, a scalar."""
        if isinstance(y, Tensor):
            return divergence(moved, y) if self.reverse else divergence(y, moved)
        losses = []
        for name in (k for k in y if k in self.tasks):
            task, q, p = self.tasks[name], moved[name], y[name]
            if task.kind == "binary":  # a logit is two classes, of which the other has the logit 0
                q, p = (torch.cat([z, torch.zeros_like(z)], dim=1) for z in (q, p))
            if task.kind == "regression":
                losses.append(task.weight * task.agreement(q, p))
            else:
                losses.append(task.weight * (divergence(q, p) if self.reverse else divergence(p, q)))
        if not losses:
            raise ValueError(
                f"this model answers {sorted(y)} and declares the tasks {sorted(self.tasks)}; TIPI must know what the "
                "outputs are: MultiTaskNet(encoder, heads, tasks) declares them"
            )
        return torch.stack(losses).sum()
