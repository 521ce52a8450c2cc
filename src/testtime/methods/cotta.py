r"""CoTTA: learn from a teacher that averages over time and views, and return to the source at random.

With the student :math:`\theta`, its average :math:`\theta'`, the source :math:`\theta_0`, random views
:math:`a_v(x)`, and :math:`\bar c` the mean over the batch of the source's confidence :math:`\max_c p_c`,

.. math::
    z' &= \tfrac1V \sum_v f_{\theta'}(a_v(x)) \text{ if } \bar c < p_{th}, \text{ else } f_{\theta'}(x) \\
    L &= \tfrac1N \sum_i -\sum_c \operatorname{softmax}(z'_i)_c \log p_\theta(c \mid x_i) \\
    \theta' &\leftarrow \beta\,\theta' + (1 - \beta)\,\theta \\
    \theta &\leftarrow M \odot \theta_0 + (1 - M) \odot \theta, \qquad M \sim \text{Bernoulli}(p)

A step:
    1. compute the confidence of the source model; the teacher answers with the mean logits of its views, or at once;
    2. move every weight and bias of the student towards that answer, then the teacher towards the student;
    3. return a random share of the student's weights to the source; answer as the teacher did in 1.

Departures:
    The published CIFAR code computes the views whether it uses them or not, and the plain teacher too; this
    computes the one it uses. The numbers are the same.
    The published views change all images of a batch alike; here each draws for itself
    (:func:`testtime.parts.katana`).
    The published code runs the models in ``train()``, where dropout is active; this leaves dropout off.
    The published ImageNet code halves the loss with its mirror image (``symmetric=True``), which the
    paper leaves out.
    For logits (N, C, H, W), the segmentation of the paper, all means are over pixels too, and the views are those of its
    segmentation: the images in several sizes and mirrored, whose logits are mirrored back and resized
    (:func:`testtime.parts.pixels.over_scales`). Its settings there (Cityscapes to ACDC, one image a batch) are
    ``CoTTA(model, adam(7.5e-6), threshold=0.69)``, from memory and not checked against its code.
    Published code step by step: ``CoTTA(model)`` (CIFAR-10), ``CoTTA(model, threshold=0.72)`` (CIFAR-100),
    ``CoTTA(model, sgd(0.01), threshold=0.1, restoration=0.001, symmetric=True)`` (ImageNet), up to the draws.

Cost: two forwards and the teacher's, which are V or one, and one backward through all weights. Three sets of
weights exist, the source's in the memory of the model it came from.

Reference: Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.dense import is_dense
from testtime.intake.sharing import share
from testtime.norm import batch_statistics
from testtime.norm.grouped import grouped
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.pixels import SCALES, checked_scales, mirrors, over_scales
from testtime.parts.restoration import restore_at_random
from testtime.parts.views import preserving

__all__ = ["CoTTA"]


def unsure(z: Tensor, threshold: float) -> Tensor:
    """Whether the mean confidence of logits (N, C, ...) is below the threshold; a scalar."""
    wide = torch.promote_types(z.dtype, torch.float32)
    return z.softmax(dim=1, dtype=wide).amax(dim=1).mean() < threshold


class UnsureOverScales(nn.Module):
    """The prediction of a segmenter over sizes and mirror images where another is unsure of the batch, as a module.

    Args:
        anchor: the segmenter whose confidence counts.
        teacher: the segmenter that predicts.
        threshold: p_th.
        scales, mirrored: views of :func:`testtime.parts.pixels.over_scales`.
    """

    def __init__(
        self, anchor: nn.Module, teacher: nn.Module, threshold: float, scales: Sequence[float], mirrored: bool
    ) -> None:
        super().__init__()
        self.anchor, self.teacher, self.threshold = anchor, teacher, threshold
        self.scales, self.mirrored = scales, mirrored

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K, H, W)."""
        z = self.anchor(x)
        chosen = unsure(z, self.threshold)
        if torch.compiler.is_exporting():  # a graph computes both
            return torch.where(chosen, self._over_scales(x, z), self.teacher(x))
        return self._over_scales(x, z) if bool(chosen) else self.teacher(x)

    def _over_scales(self, x: Tensor, like: Tensor) -> Tensor:
        size = (like.shape[-2], like.shape[-1])
        return over_scales(self.teacher, x, size, self.scales, self.mirrored).to(like.dtype)


@final
class CoTTA(Adapter):
    """Learn from a teacher that averages over time and views, and return to the source at random.

    Args:
        model: any classifier or segmenter. What adapts is every parameter called ``weight`` or ``bias``, as published.
        optimizer: the paper's are ``adam(1e-3)`` (CIFAR) and ``sgd(0.01)`` (ImageNet).
        views: V, how many random views the teacher averages.
        threshold: p_th; below this mean confidence of the source the views are used. 0.92 (CIFAR-10), 0.72
            (CIFAR-100), 0.1 (ImageNet), 0.69 (segmentation).
        decay: beta, the weight of the past in the teacher.
        restoration: p, the chance of a weight to return to the source; 0.01 (CIFAR), 0.001 (ImageNet); 0
            switches it off.
        symmetric: average the cross-entropy with that of the teacher against the student.
        augment: makes a view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        chunk: number of views in one forward, each normalised by itself; a divisor of
            ``views``.
            The numbers do not depend on it.
        scales: sizes of the views of a segmenter relative to the image, each as it is and, unless the model forbids it,
            mirrored; ``views``, ``augment`` and ``chunk`` are for classifiers.
        norm: the policy of the BatchNorm layers in all three models.
        seed: random seed of the views and of the restoration.

    Raises:
        ValueError: ``views`` is not positive, ``chunk`` does not divide it, or a scale is not positive.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> cotta = CoTTA(net, views=4)
    >>> logits = cotta(torch.rand(8, 3, 8, 8))
    >>> logits.shape, logits.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "cotta", "CoTTA"
    needs = ("class logits", "views")
    answers_with = (
        "the mean over views that are drawn at random, of a batch that the source model is unsure about"
    )
    venue = "CVPR 2022"
    paper = "Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation"
    output = "teacher"
    stochastic = True
    cost = (34, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008
        views: int = 32,
        threshold: float = 0.92,
        decay: float = 0.999,
        restoration: float = 0.01,
        symmetric: bool = False,
        augment: Augmentation = katana,
        chunk: int = 1,
        scales: Sequence[float] = SCALES,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        if views < 1 or chunk < 1 or views % chunk:
            raise ValueError(
                f"expected views >= 1 and a chunk that divides it, got views={views}, chunk={chunk}"
            )
        super().__init__(norm(model), seed)
        self.optimizer, self.views, self.threshold, self.decay = optimizer, views, threshold, decay
        self.restoration, self.symmetric = restoration, symmetric
        self.augment = preserving(augment, self.model)
        self.scales, self.mirrored = checked_scales(scales), mirrors(self.model)
        self.chunk, self.norm, self.cost = chunk, norm, (2 + max(views, 2 * len(self.scales)), 1)
        self.anchor = share(self.model)
        moving = {
            n: p for n, p in self.model.named_parameters() if n.rsplit(".", 1)[-1] in ("weight", "bias")
        }
        self.adapt(moving.values(), optimizer)
        self.origin = [self.anchor.get_parameter(name) for name in moving]
        self.teacher = Teacher(self.model, self._adapted, decay)
        self.chunked = grouped([self.teacher.model] * chunk) if chunk > 1 else None
        self.pixels = is_dense(self.model, getattr(self.model, "outputs", None))  # or known from an answer

    @torch.no_grad()
    def _predict_batch(self, x: Tensor) -> Tensor:
        """The teacher's answer: a call answers the same."""
        z = self.anchor(x)
        self.pixels = z.dim() == 4
        if not bool(unsure(z, self.threshold)):
            return self.teacher(x)
        if self.pixels:
            size = (z.shape[-2], z.shape[-1])
            return over_scales(self.teacher, x, size, self.scales, self.mirrored).to(z.dtype)
        return self._averaged(x).to(z.dtype)

    def _answering(self) -> nn.Module:
        if self.threshold <= 0:
            return self.teacher.model
        if not self.pixels:
            return super()._answering()
        return UnsureOverScales(self.anchor, self.teacher.model, self.threshold, self.scales, self.mirrored)

    def _averaged(self, x: Tensor) -> Tensor:
        """The teacher's mean logits over the views."""
        total = torch.zeros((), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        for first in range(0, self.views, self.chunk):
            names = [f"view {i}" for i in range(first, first + self.chunk)]
            views = [self.augment(x, generator(self.seed, int(self.clock), v, x.device)) for v in names]
            z = (self.chunked or self.teacher)(torch.cat(views)).unflatten(0, (self.chunk, -1))
            total = total + z.sum(dim=0, dtype=total.dtype)
        return total / self.views

    def step(self, x: Tensor) -> Tensor:
        student, teacher = self.model(x), self._predict_batch(x)
        loss = soft_cross_entropy(student, teacher)
        if self.symmetric:
            loss = (loss + soft_cross_entropy(teacher, student)) / 2
        self.update(loss.mean())
        self.teacher.update()
        restore_at_random(self._adapted, self.origin, self.restoration, self.seed, int(self.clock))
        return teacher
