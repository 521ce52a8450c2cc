r"""RoTTA: learn from a memory that is balanced, fresh and certain, with statistics that move slowly.

With the teacher :math:`\theta'`, the classes :math:`C`, the capacity :math:`N` of the memory, the age
:math:`A` of an image (images processed since) and its entropy :math:`U` when it was processed,

.. math::
    H(A, U) &= \lambda_t\, \frac{1}{1 + \exp(-A / N)} + \lambda_u\, \frac{U}{\log C} \\
    L &= \tfrac1M \sum_i E(A_i)\, \operatorname{CE}\big(p_{\theta'}(x_i), p_\theta(a(x_i))\big), \qquad
    E(A) = \frac{\exp(-A / N)}{1 + \exp(-A / N)} \\
    \theta' &\leftarrow (1 - \nu)\, \theta' + \nu\, \theta

A step:
    1. the teacher answers the batch, with the statistics it holds;
    2. each image is offered to the memory: a class that is below its share N / C takes a free place, or that
       of the worst image of the largest classes; any other class the place of its own worst; worst is the
       highest H, and it stays unless the newcomer's is lower;
    3. after every ``frequency`` images, within a batch or across, the teacher labels the memory, the student
       learns its strong view, and the teacher follows; both observe the memory in robust statistics
       (:mod:`testtime.norm.robust`).

Departures:
    As published, and not in the paper: the teacher normalises the memory as the student does, so that its own
    statistics move too (``RoTTAOptions.teacher_observes``); U is :math:`-\sum p \log (p + 10^{-6})`.
    The published code adapts BatchNorm alone; this adapts what else there is of normalisation too.
    The published views change all images alike; here each draws for itself (:func:`testtime.parts.katana`).
    Published code step by step: ``RoTTA(model, classes)``, up to the draws of the views.

Cost: one forward of the batch; for every ``frequency`` images two forwards and one backward of the memory.
``cost`` counts batches of a multiple of ``frequency``; a smaller one that completes it pays for the memory
all the same.

Reference: Yuan, Xie and Li, Robust Test-Time Adaptation in Dynamic Scenarios, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.norm import advance, has_batch_norm, norm_affine, observing, robust_statistics
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.memory import ImageMemory
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving

__all__ = ["CSTU", "RoTTA", "RoTTAOptions", "timeliness"]


def timeliness(age: Tensor) -> Tensor:
    """Weight of an image by its age, from 1/2 down to 0.

    Args:
        age: (M,), in capacities of the memory.

    >>> timeliness(torch.tensor([0.0]))
    tensor([0.5000])
    """
    return torch.sigmoid(-age)


@final
class CSTU(ImageMemory):
    """Category-balanced sampling with timeliness and uncertainty: the memory of RoTTA.

    Args:
        classes: C.
        capacity: N, how many images it holds.
        lambda_t, lambda_u: the weights of age and of uncertainty in the score H.

    Attributes:
        images: (N, ...) from the first batch on; empty before.
        label: (N,) pseudo-labels; -1 is a free place.
        uncertainty: (N,) entropy in nats when it was processed.
        age: (N,) images processed since, itself included.
        seen: images offered so far.

    Reference: Yuan et al., CVPR 2023.
    """

    uncertainty: Tensor
    age: Tensor

    def __init__(
        self, classes: int, capacity: int = 64, lambda_t: float = 1.0, lambda_u: float = 1.0
    ) -> None:
        super().__init__(classes, capacity)
        self.lambda_t, self.lambda_u = lambda_t, lambda_u
        self.register_buffer("uncertainty", torch.zeros(capacity, dtype=torch.float64))
        self.register_buffer("age", torch.zeros(capacity, dtype=torch.int64))

    def add(self, x: Tensor, label: Tensor, uncertainty: Tensor) -> None:
        """Offer images (N, ...) one after the other, with pseudo-labels (N,) and entropies (N,)."""
        labels, certain, ages = (
            b.cpu().numpy().copy() for b in (self.label, self.uncertainty.double(), self.age)
        )
        origin = np.full(self.capacity, -1)  # the row of the batch that each place takes
        for row, (c, u) in enumerate(zip(label.tolist(), uncertainty.tolist(), strict=True)):
            place = self._place(c, u, labels, certain, ages)
            if place is not None:
                labels[place], certain[place], ages[place], origin[place] = c, u, 0, row
            ages += 1
        device = self.label.device
        self.label, self.age = torch.from_numpy(labels).to(device), torch.from_numpy(ages).to(device)
        self.uncertainty = torch.from_numpy(certain).to(self.uncertainty)
        self.seen = self.seen + len(x)
        self.take(x, origin)

    def _place(
        self,
        c: int,
        u: float,
        labels: NDArray[np.int64],
        certain: NDArray[np.float64],
        ages: NDArray[np.int64],
    ) -> int | None:
        """Where an image of class c goes, if anywhere."""
        candidates = labels == c
        if np.count_nonzero(candidates) < self.capacity / self.classes:
            free = np.flatnonzero(labels < 0)
            if free.size:
                return int(free[0])
            counts = np.bincount(labels, minlength=self.classes)
            candidates = (counts == counts.max())[labels]
        places = np.flatnonzero(candidates)
        score = self._score(ages[places], certain[places])
        worst = np.lexsort((-ages[places], labels[places], score))[
            -1
        ]  # of equals the youngest of the last class
        return int(places[worst]) if score[worst] > self._score(np.zeros(1), np.array([u]))[0] else None

    def _score(self, age: NDArray[Any], uncertainty: NDArray[np.float64]) -> NDArray[np.float64]:
        timely: NDArray[np.float64] = self.lambda_t / (1 + np.exp(-age / self.capacity))
        return timely + self.lambda_u * uncertainty / math.log(self.classes)

    def aged(self) -> tuple[Tensor, Tensor]:
        """The images (M, ...) and their ages (M,) in capacities."""
        taken = self.label >= 0
        dtype = torch.promote_types(self.images.dtype, torch.float32)
        return self.images[taken], self.age[taken].to(dtype) / self.capacity


@final
@dataclass(frozen=True)
class RoTTAOptions:
    """Settings of RoTTA that are rarely changed.

    Args:
        lambda_t, lambda_u: weights of age and uncertainty in the memory's score.
        teacher_observes: whether the teacher normalises the memory as the student does, and its statistics move; otherwise its
            statistics stay at the source.
    """

    lambda_t: float = 1.0
    lambda_u: float = 1.0
    teacher_observes: bool = True


@final
class RoTTA(Adapter):
    """Learn from a memory that is balanced, fresh and certain, with statistics that move slowly.

    Args:
        model: a classifier with BatchNorm layers, whose statistics are what keeps it robust.
        classes: C.
        optimizer: moves gamma and beta of the student.
        capacity: N, of the memory.
        frequency: number of images between two updates.
        decay: 1 - nu, the weight of the past in the teacher.
        augment: the strong view that the student learns, within the model's invariances; ``testtime.parts.identity``
            switches randomness off.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in student and teacher; alpha is the weight of a new batch.
        seed: random seed of the view.

    Raises:
        ValueError: the model has no BatchNorm layer.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> rotta = RoTTA(net, classes=2, capacity=8, frequency=8)
    >>> rotta(torch.rand(7, 3, 8, 8)).updated, rotta(torch.rand(1, 3, 8, 8)).updated
    (False, True)
    """

    name, label = "rotta", "RoTTA"
    needs = ("classifier", "BatchNorm", "views")
    venue = "CVPR 2023"
    paper = "Yuan, Xie and Li, Robust Test-Time Adaptation in Dynamic Scenarios"
    output = "teacher"
    stochastic = True
    cost: tuple[float, float] = (3, 1)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008
        capacity: Positive = 64,
        frequency: Positive = 64,
        decay: float = 0.999,
        augment: Augmentation = katana,
        options: RoTTAOptions = RoTTAOptions(),
        norm: Callable[[nn.Module], nn.Module] = partial(robust_statistics, alpha=0.05),  # noqa: B008
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        if not has_batch_norm(self.model):
            raise ValueError(
                "RoTTA follows the world through the statistics of BatchNorm layers, and this model has "
                "none; use a method for LayerNorm and GroupNorm models, such as CoTTA, SoTTA or STAMP"
            )
        self.classes, self.optimizer, self.capacity, self.frequency = classes, optimizer, capacity, frequency
        self.augment = preserving(augment, self.model)
        self.decay, self.options, self.norm = decay, options, norm
        self.cost = (1 + 2 * capacity / frequency, capacity / frequency)
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.teacher = Teacher(self.model, affine, decay)
        self.memory = CSTU(classes, capacity, options.lambda_t, options.lambda_u)

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self.teacher(x)

    def _answering(self) -> nn.Module:
        return self.teacher.model

    def step(self, x: Tensor) -> Tensor:
        answer = self.teacher(x)
        p = answer.softmax(dim=1, dtype=torch.promote_types(answer.dtype, torch.float32))
        label, uncertainty = p.argmax(dim=1), -(p * (p + 1e-6).log()).sum(dim=1)
        first = self.frequency - int(self.memory.seen) % self.frequency
        for start, stop in pairwise([0, *range(first, len(x), self.frequency), len(x)]):
            self.memory.add(x[start:stop], label[start:stop], uncertainty[start:stop])
            if int(self.memory.seen) % self.frequency == 0:
                self._replay(start)
        return answer

    def _replay(self, start: int) -> None:
        """Learn from the memory once; ``start`` identifies the update within a step."""
        images, age = self.memory.aged()
        if self.options.teacher_observes:
            with observing(self.teacher):
                teacher = self.teacher(images)
        else:
            teacher = self.teacher(images)
        view = self.augment(images, generator(self.seed, int(self.clock), f"view {start}", images.device))
        with observing(self.model):
            student = self.model(view)
        self.update((soft_cross_entropy(student, teacher) * timeliness(age)).mean())
        self.teacher.update()
        advance(self)  # each memory is an observed batch
