r"""SoTTA: sharpness-aware entropy minimisation on a memory of confident images, balanced over the classes.

With the memory :math:`M`, the confidence threshold :math:`C_0` and the radius :math:`\rho`,

.. math::
    x \in M &\Rightarrow \max_c p_c(x) \ge C_0 \\
    \min_\theta\; & L\big(\theta + \epsilon(\theta)\big), \qquad
    \epsilon(\theta) = \rho\, \frac{\nabla L(\theta)}{\lVert \nabla L(\theta) \rVert_2}, \qquad
    L = \tfrac1{|M|} \sum_{x \in M} H(f_\theta(x))

A step:
    1. predict the images with the running statistics: that is the answer;
    2. offer those of confidence C_0 or more to the memory; when it is full, a newcomer takes the place of a
       random image of the largest class (of its own, where that is among the largest);
    3. after every ``frequency`` images, within a batch or across, minimise the entropy of the memory once,
       sharpness aware, while the running statistics move towards the memory's. The images that follow are
       answered by the updated model, those of the same batch included.

Departures:
    The published code predicts image by image; under running statistics one forward gives the same numbers.
    The published loss smooths the logarithm: ``loss=partial(smoothed_entropy, over_classes="sum")``.
    The published statistics move in both forwards of SAM; here once per memory, unless ``SoTTAOptions(observe_twice=True)``.
    As published, the top layers of a ResNet or a ViT stay as they are (``SoTTAOptions.skip``).
    The published code has images wait until ``frequency`` are there; here a batch is answered when it comes.
    Published code step by step: ``SoTTA(model, classes, loss=partial(smoothed_entropy, over_classes="sum"),
    options=SoTTAOptions(observe_twice=True))``, up to the draws; ``threshold=0.66`` (CIFAR-100), ``0.33`` (ImageNet).

Cost: one forward of the batch; for every ``frequency`` images two forwards and two backwards of the memory.
``cost`` counts batches of a multiple of ``frequency``; a smaller one that completes it pays for the memory
all the same.

Reference: Gong, Kim, Lee, Chottananurak and Lee, SoTTA: Robust Test-Time Adaptation on Noisy Data
Streams, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.norm import TOP_LAYERS, advance, norm_affine, observing, running_statistics
from testtime.parts import adam, entropy, generator, sharpness_aware_gradients
from testtime.parts.memory import ImageMemory
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["HUS", "SoTTA", "SoTTAOptions", "mean_entropy", "smoothed_entropy"]


def mean_entropy(logits: Tensor) -> Tensor:
    """The mean entropy of logits (N, C) in nats, a scalar."""
    return entropy(logits).mean()


def smoothed_entropy(logits: Tensor, over_classes: Literal["mean", "sum"] = "mean") -> Tensor:
    """The losses of two published codes: ``-p log(p + 1e-6)``, averaged over the images, a scalar.

    Args:
        logits: (N, C).
        over_classes: "mean", the loss of NOTE's code, or "sum", that of SoTTA's, which is C times as large.

    >>> z = torch.zeros(3, 4)  # the entropy is log 4
    >>> smoothed_entropy(z), smoothed_entropy(z, "sum")
    (tensor(0.3466), tensor(1.3863))
    """
    if over_classes not in ("mean", "sum"):
        raise ValueError(f'expected over_classes "mean" or "sum", got {over_classes!r}')
    p = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    h = -p * (p + 1e-6).log()
    return h.mean() if over_classes == "mean" else h.sum(dim=1).mean()


@final
class HUS(ImageMemory):
    """High-confidence uniform-class sampling: the memory of SoTTA.

    Args:
        classes: C.
        capacity: largest number of images.

    Attributes:
        images: (capacity, ...) from the first batch on; empty before.
        label: (capacity,) pseudo-labels; -1 is a free place.
        arrival: (capacity,) the number of the image in the stream.
        seen: images processed so far, kept or not.

    Reference: Gong et al., NeurIPS 2023.
    """

    arrival: Tensor

    def __init__(self, classes: int, capacity: int = 64) -> None:
        super().__init__(classes, capacity)
        self.register_buffer("arrival", torch.zeros(capacity, dtype=torch.int64))

    def add(self, x: Tensor, label: Tensor, reliable: Tensor, draws: Tensor) -> None:
        """Meet images (N, ...) one after the other, and keep the reliable ones.

        Args:
            x: (N, ...).
            label: (N,) pseudo-labels.
            reliable: (N,) bool.
            draws: (N, 2) in [0, 1): which of the largest classes, and which of its images, makes room.
        """
        labels, arrivals = (b.cpu().numpy().copy() for b in (self.label, self.arrival))
        origin, seen = np.full(self.capacity, -1), int(self.seen)
        chosen, of_class = draws.tolist(), label.tolist()
        for row in reliable.nonzero().flatten().tolist():
            place = self._place(of_class[row], chosen[row], labels, arrivals)
            labels[place], arrivals[place], origin[place] = of_class[row], seen + row, row
        device = self.label.device
        self.label, self.arrival = torch.from_numpy(labels).to(device), torch.from_numpy(arrivals).to(device)
        self.seen = self.seen + len(x)
        self.take(x, origin)

    def _place(
        self, c: int, draws: Sequence[float], labels: NDArray[np.int64], arrivals: NDArray[np.int64]
    ) -> int:
        """Where an image of class c goes."""
        free = np.flatnonzero(labels < 0)
        if free.size:
            return int(free[0])
        counts = np.bincount(labels, minlength=self.classes)
        largest = np.flatnonzero(counts == counts.max())
        if c not in largest:
            c = int(largest[int(draws[0] * largest.size)])
        places = np.flatnonzero(labels == c)
        places = places[np.argsort(arrivals[places])]
        return int(places[int(draws[1] * places.size)])


@final
@dataclass(frozen=True)
class SoTTAOptions:
    """Settings of SoTTA that are rarely changed.

    Args:
        observe_twice: whether the running statistics move in both forwards of an update, as in the published code.
        skip: parts of names of layers that are not adapted.
    """

    observe_twice: bool = False
    skip: Sequence[str] = TOP_LAYERS


@final
class SoTTA(Adapter):
    """Sharpness-aware entropy minimisation on a memory of confident images, balanced over the classes.

    Args:
        model: any classifier with normalisation layers.
        classes: C.
        optimizer: moves gamma and beta.
        capacity: largest number of images in the memory.
        frequency: number of images between two updates.
        threshold: C_0, 0.99 (CIFAR-10), 0.66 (CIFAR-100), 0.33 (ImageNet).
        rho: the radius of the sharpness-aware step.
        loss: loss of the memory's logits, :func:`mean_entropy` or, as published, :func:`smoothed_entropy`
            with the sum over classes.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers; the momentum is the weight of a new memory.
        seed: random seed of the removal from the memory.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> sotta = SoTTA(net, classes=2, capacity=8, frequency=8, threshold=0.5)
    >>> y = sotta(torch.rand(8, 3, 8, 8))
    >>> y.updated, int(y.selected["reliable"].sum())
    (True, 8)
    """

    name, label = "sotta", "SoTTA"
    needs = ("classifier", "norm", "tensor")
    venue = "NeurIPS 2023"
    paper = "Gong, Kim, Lee, Chottananurak and Lee, SoTTA: Robust Test-Time Adaptation on Noisy Data Streams"
    stochastic = True
    cost: tuple[float, float] = (3, 2)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008
        capacity: Positive = 64,
        frequency: Positive = 64,
        threshold: float = 0.99,
        rho: float = 0.05,
        loss: Callable[[Tensor], Tensor] = mean_entropy,
        options: SoTTAOptions = SoTTAOptions(),
        norm: Callable[[nn.Module], nn.Module] = partial(running_statistics, momentum=0.2),  # noqa: B008
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.capacity, self.frequency = classes, optimizer, capacity, frequency
        self.threshold, self.rho, self.loss = threshold, rho, loss
        self.options, self.norm = options, norm
        self.cost = (1 + 2 * capacity / frequency, 2 * capacity / frequency)
        self.adapt(norm_affine(self.model, options.skip), optimizer)
        self.memory = HUS(classes, capacity)

    def step(self, x: Tensor) -> Tensor:
        rng = generator(self.seed, int(self.clock), "eviction")
        draws = torch.rand(len(x), 2, dtype=torch.float64, generator=rng)
        first = self.frequency - int(self.memory.seen) % self.frequency
        answers, reliable = [], []
        for start, stop in pairwise([0, *range(first, len(x), self.frequency), len(x)]):
            with torch.no_grad():
                logits = self.model(x[start:stop])
            p = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
            confidence, label = p.max(dim=1)
            answers.append(logits)
            reliable.append(confidence >= self.threshold)
            self.memory.add(x[start:stop], label, reliable[-1], draws[start:stop])
            if int(self.memory.seen) % self.frequency == 0:
                self._replay()
        return Prediction(torch.cat(answers), selected={"reliable": torch.cat(reliable)})

    def _replay(self) -> None:
        """Learn from the memory once."""
        images = self.memory.held()
        if len(images) == 0:
            return

        def loss() -> Tensor:
            if self.options.observe_twice:
                advance(self.model)
            with observing(self.model):
                return self.loss(self.model(images))

        self.update(sharpness_aware_gradients(loss, self._adapted, self.rho))
        advance(self.model)  # each memory is an observed batch
