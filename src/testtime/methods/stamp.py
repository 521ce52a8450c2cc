r"""STAMP: answer with many views, and learn from a stable memory instead of the risky batch.

With views :math:`a_v(x)`, of which the first is the image itself, the classes :math:`C`, the source model under
batch statistics :math:`s`, the memory :math:`M` and its capacity :math:`N`,

.. math::
    \bar p(x) &= \tfrac1V \sum_v p_\theta(a_v(x)) \\
    x \in M &\Rightarrow H(\bar p(x)) < \alpha \log C \;\wedge\; \arg\max_c \bar p_c(x) = \arg\max_c s_c(x) \\
    L(\theta) &= \tfrac1{|M|} \sum_{x \in M} w(x)\, H(p_\theta(x)), \qquad
    w(x) = N\, \frac{\exp(-H(p_\theta(x)))}{\sum_{x' \in M} \exp(-H(p_\theta(x')))}, \qquad
    H(p) = - \sum_c p_c \log(p_c + \epsilon)

A step:
    1. average the probabilities of the views: that is the answer;
    2. offer to the memory the images that are certain and on which the source agrees; when it is full, the
       oldest image of the class with the highest count makes room;
    3. count the images of each class in the memory (a moving average over the updates);
    4. take one sharpness-aware step down the self-weighted entropy of the memory (gradients flow through w),
       with a rate that follows a cosine over ``period`` steps and back.

The answer is :math:`\log \bar p + \log \sum_c \exp \bar z_c` with :math:`\bar z` the mean logits of the views.
Its softmax is :math:`\bar p` and its energy that of :math:`\bar z`; that of :math:`\log \bar p` is always zero.

Departures:
    The published code carries no licence and was not read; it is followed as it is reported, so step by step
    only as far as that goes. Four of its choices are the defaults: the image is one of its V views
    (``STAMPOptions(original=False)``: V random views); the count moves once per update (``count="admission"``: before every
    admission); the weights sum to N also while the memory is filling, which scales the loss by :math:`N / |M|`
    (``normalise="held"``: they have mean 1); :math:`\epsilon = 10^{-5}` (``epsilon=0``).
    The paper leaves open, and this chooses: the views are random crops and flips; of classes with equal counts
    the first makes room, and before the first count the class that holds the most; the oldest image goes; an
    update whenever the memory holds an image; momentum 0.9 for SGD; batch statistics in the memory.
    As its code is reported to do, the top layers of a ResNet or a ViT stay as they are (``skip``).
    The paper scores the unknown by the entropy of the averaged prediction (``score="entropy"``). The default
    is the energy, with which open-set tables compare methods.
    The rate rises again after ``period`` steps, as a cosine does, so that a stream need not end;
    ``period=None`` keeps it.
    The paper's settings, as its scripts are reported: ``STAMP(model, classes)`` (CIFAR-10),
    ``STAMP(model, classes, sgd(0.05), alpha=0.9)`` (CIFAR-100),
    ``STAMP(model, classes, sgd(0.01), alpha=0.8, consistent=False, period=750)`` (ImageNet).

Cost: V forwards, one of the source, and two forwards and two backwards of the memory, which is counted as a
batch: a batch smaller than the memory pays more.

Reference: Yu, Sheng, He and Liang, STAMP: Outlier-Aware Test-Time Adaptation with Stable Memory Replay,
ECCV 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import share
from testtime.norm import TOP_LAYERS, batch_statistics, norm_affine
from testtime.norm.grouped import grouped
from testtime.parts import entropy, generator, random_crop_flip, sgd, sharpness_aware_gradients
from testtime.parts.augment import Augmentation
from testtime.parts.memory import ImageMemory
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving
from testtime.prediction import Prediction

__all__ = ["RBM", "STAMP", "STAMPOptions", "self_weighted_entropy"]

Count = Literal["update", "admission"]


def self_weighted_entropy(logits: Tensor, total: float | None = None, epsilon: float = 0.0) -> Tensor:
    """Mean entropy in nats, in which an image weighs ``exp(-H)``; the weights carry gradients.

    Args:
        logits: (M, C).
        total: sum of the weights; M unless given, so that they have mean 1.
        epsilon: constant inside the logarithm of the entropy.

    Returns:
        a scalar.

    >>> self_weighted_entropy(torch.zeros(3, 4)), self_weighted_entropy(torch.zeros(3, 4), total=6)  # log 4
    (tensor(1.3863), tensor(2.7726))
    """
    h = _entropy(logits, epsilon)
    scale = 1.0 if total is None else total / len(h)
    return scale * ((-h).softmax(dim=0) * h).sum()


def _entropy(logits: Tensor, epsilon: float) -> Tensor:
    """Entropy (N,) with a constant inside the logarithm."""
    if not epsilon:
        return entropy(logits)
    p = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return -(p * (p + epsilon).log()).sum(dim=1)


@final
class RBM(ImageMemory):
    """Reliable class-balanced memory: the memory of STAMP.

    Args:
        classes: C.
        capacity: largest number of images.
        decay: weight of the past in the count of each class.
        count: when the count moves, at every "update" (a call of :meth:`recount`) or before every "admission".

    Attributes:
        images: (capacity, ...) from the first batch on; empty before.
        label: (capacity,) pseudo-labels; -1 is a free place.
        arrival: (capacity,) the number of the image among those admitted.
        seen: images admitted so far.
        places: (C,) the count: the moving average of the number of places that each class holds.
    """

    arrival: Tensor
    places: Tensor

    def __init__(self, classes: int, capacity: int = 64, decay: float = 0.9, count: Count = "update") -> None:
        super().__init__(classes, capacity)
        self.decay, self.count = decay, count
        self.register_buffer("arrival", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("places", torch.zeros(classes, dtype=torch.float64))

    def add(self, x: Tensor, label: Tensor) -> None:
        """Admit images (N, ...) with pseudo-labels (N,), one after the other."""
        labels, arrivals = (b.cpu().numpy().copy() for b in (self.label, self.arrival))
        places = self.places.double().cpu().numpy().copy()
        origin, seen = np.full(self.capacity, -1), int(self.seen)
        for row, c in enumerate(label.tolist()):
            held = np.bincount(labels[labels >= 0], minlength=self.classes)
            if self.count == "admission":
                places = self.decay * places + (1 - self.decay) * held
            free = np.flatnonzero(labels < 0)
            if free.size:
                place = int(free[0])
            else:
                counted = places if places.any() else held
                candidates = np.flatnonzero(labels == np.where(held > 0, counted, -1).argmax())
                place = int(candidates[arrivals[candidates].argmin()])
            labels[place], arrivals[place], origin[place] = c, seen + row, row
        device = self.label.device
        self.label, self.arrival = torch.from_numpy(labels).to(device), torch.from_numpy(arrivals).to(device)
        self.places = torch.from_numpy(places).to(self.places)
        self.seen = self.seen + len(x)
        self.take(x, origin)

    def recount(self) -> None:
        """Move the count towards the places held now, where it moves at every update."""
        if self.count == "update":
            held = self.label[self.label >= 0].bincount(minlength=self.classes)
            self.places = self.decay * self.places + (1 - self.decay) * held.to(self.places)


@final
@dataclass(frozen=True)
class STAMPOptions:
    """Settings of STAMP that are rarely changed.

    Args:
        capacity: number of images in the memory.
        decay: weight of the past in the memory's count of the classes.
        rho: radius of the sharpness-aware step.
        score: open-set score: "energy" of the mean logits or, as in the paper, "entropy" of the mean prediction.
        chunk: number of views in one forward, each normalised by itself; a divisor of ``views``. Predictions do not depend on
            it.
        original: whether the image itself is the first of its views.
        count: time at which the memory's count of the classes moves: every "update" or before every "admission".
        normalise: sum of the weights in the loss: the "capacity" of the memory or the number of images "held".
        epsilon: constant inside the logarithm of the entropy.
        skip: parts of names of layers that are not adapted.

    Raises:
        ValueError: chunk is below 1, or there is no such ``score``, ``count`` or ``normalise``.
    """

    capacity: Positive = 64
    decay: float = 0.9
    rho: float = 0.05
    score: Literal["energy", "entropy"] = "energy"
    chunk: int = 1
    original: bool = True
    count: Count = "update"
    normalise: Literal["capacity", "held"] = "capacity"
    epsilon: float = 1e-5
    skip: Sequence[str] = TOP_LAYERS

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk counts the views of a forward and is at least 1, got {self.chunk}")
        if self.score not in ("energy", "entropy"):
            raise ValueError(f'expected score "energy" or "entropy", got {self.score!r}')
        if self.count not in ("update", "admission"):
            raise ValueError(f'expected count "update" or "admission", got {self.count!r}')
        if self.normalise not in ("capacity", "held"):
            raise ValueError(f'expected normalise "capacity" or "held", got {self.normalise!r}')


@final
class STAMP(Adapter):
    """Answer with many views, and learn from a stable memory instead of the risky batch.

    Args:
        model: any classifier with normalisation layers.
        classes: C.
        optimizer: moves gamma and beta; the rate is 0.1 (CIFAR-10), 0.05 (CIFAR-100), 0.01 (ImageNet).
        views: V, number of views that the prediction averages.
        alpha: who is certain, as a fraction of log C; 0.25 (CIFAR-10), 0.9 (CIFAR-100), 0.8 (ImageNet).
        consistent: admit only what the source model, under batch statistics, predicts alike; not on ImageNet.
        period: period in steps of the cosine schedule of the learning rate: 150, 750 (ImageNet); None keeps the rate.
        augment: makes a view within the model's invariances; ``testtime.parts.identity`` switches randomness off.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in both models.
        seed: random seed of the views.

    Raises:
        ValueError: ``views`` is not positive, or the ``chunk`` of the options does not divide it.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> stamp = STAMP(net, classes=2, views=4, alpha=1.1)
    >>> y = stamp(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.score.shape, list(y.selected)
    (torch.Size([8, 2]), torch.Size([8]), ['reliable'])
    """

    name, label = "stamp", "STAMP"
    needs = ("classifier", "norm", "views")
    answers_with = "the mean over views that are drawn at random"
    venue = "ECCV 2024"
    paper = "Yu, Sheng, He and Liang, STAMP: Outlier-Aware Test-Time Adaptation with Stable Memory Replay"
    stochastic = True
    cost = (35, 2)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = sgd(0.1),  # noqa: B008
        views: Positive = 32,
        alpha: float = 0.25,
        consistent: bool = True,
        period: Positive | None = 150,
        augment: Augmentation = random_crop_flip,
        options: STAMPOptions = STAMPOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        chunk = options.chunk
        if views % chunk:
            raise ValueError(f"expected views and a chunk that divides it, got views={views}, chunk={chunk}")
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.views, self.alpha = classes, optimizer, views, alpha
        self.consistent, self.period, self.options = consistent, period, options
        self.augment = preserving(augment, self.model)
        self.norm, self.cost = norm, (views + consistent + 2, 2)
        self.origin = share(self.model)
        self.adapt(norm_affine(self.model, options.skip), optimizer)
        self.chunked = grouped([self.model] * chunk) if chunk > 1 else None
        self.memory = RBM(classes, options.capacity, options.decay, options.count)

    def _predict_batch(self, x: Tensor) -> Prediction:
        return self._answer(*self._averaged(x), x.dtype)

    @torch.no_grad()
    def _averaged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the mean probabilities, and mean logits, over the views; (N, C) each."""
        log_p, z = [], []
        for first in range(0, self.views, self.options.chunk):
            views = [self._view(x, i) for i in range(first, first + self.options.chunk)]
            logits = (self.chunked or self.model)(torch.cat(views)).unflatten(0, (self.options.chunk, -1))
            z.append(logits.to(torch.promote_types(logits.dtype, torch.float32)))
            log_p.append(z[-1].log_softmax(dim=-1))
        return torch.cat(log_p).logsumexp(dim=0) - math.log(self.views), torch.cat(z).mean(dim=0)

    def _view(self, x: Tensor, i: int) -> Tensor:
        if self.options.original and i == 0:
            return x
        return self.augment(x, generator(self.seed, int(self.clock), f"view {i}", x.device))

    def _answer(self, log_p: Tensor, z: Tensor, dtype: torch.dtype, **selected: Tensor) -> Prediction:
        logits = log_p + z.logsumexp(dim=1, keepdim=True)
        score = (
            _entropy(log_p, self.options.epsilon) if self.options.score == "entropy" else -z.logsumexp(dim=1)
        )
        return Prediction(logits.to(dtype), score=score, selected=selected)

    def step(self, x: Tensor) -> Tensor:
        log_p, z = self._averaged(x)
        label = log_p.argmax(dim=1)
        reliable = _entropy(log_p, self.options.epsilon) < self.alpha * math.log(self.classes)
        if self.consistent:
            with torch.no_grad():
                reliable &= label == self.origin(x).argmax(dim=1)
        self.memory.add(x[reliable], label[reliable])
        images = self.memory.held()
        if len(images):
            self.memory.recount()
            total = self.options.capacity if self.options.normalise == "capacity" else len(images)

            def loss() -> Tensor:
                return self_weighted_entropy(self.model(images), total, self.options.epsilon)

            self.update(sharpness_aware_gradients(loss, self._adapted, self.options.rho), self._rate())
        return self._answer(log_p, z, x.dtype, reliable=reliable)

    def _rate(self) -> float:
        """The factor of the cosine schedule, a function of the count of steps alone."""
        return 1.0 if self.period is None else (1 + math.cos(math.pi * int(self.clock) / self.period)) / 2
