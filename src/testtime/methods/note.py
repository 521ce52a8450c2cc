r"""NOTE: let instances correct the statistics, and learn from a memory that is balanced although the stream is not.

With the memory :math:`M` of capacity N, filled by prediction-balanced reservoir sampling, n_c images of pseudo-label c so
far and m_c of them held,

.. math::
    P(\text{an image of a largest class } c \text{ replaces one of its own}) = m_c / n_c, \qquad
    \min_{\gamma, \beta} \; \tfrac1{|M|} \sum_{x \in M} H(f_\theta(x))

A step:
    1. predict the images with instance-aware statistics (:mod:`testtime.norm.instance_aware`): that is the answer;
    2. offer each to the memory. While there is room it stays; then, where its class is none of the largest, it takes the place
       of a random image of these; else, with the probability above, that of a random image of its own class;
    3. after every ``frequency`` images, within a batch or across, minimise the entropy of the memory once, while the running
       statistics move towards the memory's. The images that follow are answered by the updated model.

Departures:
    The paper's source models are trained with instance-aware layers; here they replace the BatchNorm layers of any model.
    The published code predicts image by image; under running statistics one forward gives the same numbers.
    The published loss is the entropy divided by C, with a smoothed logarithm: ``loss=smoothed_entropy``
    (:func:`testtime.methods.sotta.smoothed_entropy`). Adam is indifferent to the factor, but for its epsilon.
    The published code adapts BatchNorm alone; this adapts what else there is of normalisation too.
    Published code step by step: ``NOTE(model, classes, loss=smoothed_entropy)``, up to the draws, on models whose only
    normalisation is BatchNorm.

Cost: one forward of the batch; for every ``frequency`` images one forward and one backward of the memory. ``cost`` counts
batches of a multiple of ``frequency``; a smaller one that completes it pays for the memory all the same.

Reference: Gong, Jeong, Kim, Kim, Shin and Lee, NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation,
NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.methods.sotta import mean_entropy
from testtime.norm import advance, iabn, norm_affine, observing
from testtime.parts import adam, generator
from testtime.parts.memory import ImageMemory
from testtime.parts.optimizers import OptimizerFactory

__all__ = ["NOTE", "PBRS"]


@final
class PBRS(ImageMemory):
    """Prediction-balanced reservoir sampling: the memory of NOTE.

    Args:
        classes: C.
        capacity: N, how many images it holds.

    Attributes:
        images: (N, ...) from the first batch on; empty before.
        label: (N,) pseudo-labels; -1 is a free place.
        met: (C,) images processed so far, by pseudo-label.
        seen: their number.

    Reference: Gong et al., NeurIPS 2022, algorithm 1.
    """

    met: Tensor

    def __init__(self, classes: int, capacity: int = 64) -> None:
        super().__init__(classes, capacity)
        self.register_buffer("met", torch.zeros(classes, dtype=torch.int64))

    def add(self, x: Tensor, label: Tensor, draws: Tensor) -> None:
        """Meet images (N, ...) one after the other.

        Args:
            x: (N, ...).
            label: (N,) pseudo-labels.
            draws: (N, 2) in [0, 1): which of the largest classes makes room, or whether the image's own does; and which of
                its images leaves.
        """
        labels, met = self.label.cpu().numpy().copy(), self.met.cpu().numpy().copy()
        origin = np.full(self.capacity, -1)
        for row, (c, drawn) in enumerate(zip(label.tolist(), draws.tolist(), strict=True)):
            met[c] += 1
            place = self._place(c, drawn, labels, int(met[c]))
            if place is not None:
                labels[place], origin[place] = c, row
        device = self.label.device
        self.label, self.met = torch.from_numpy(labels).to(device), torch.from_numpy(met).to(device)
        self.seen = self.seen + len(x)
        self.take(x, origin)

    def _place(self, c: int, draws: Sequence[float], labels: NDArray[np.int64], met: int) -> int | None:
        """Where an image of class c goes, if anywhere."""
        free = np.flatnonzero(labels < 0)
        if free.size:
            return int(free[0])
        counts = np.bincount(labels, minlength=self.classes)
        largest = np.flatnonzero(counts == counts.max())
        if c not in largest:
            c = int(largest[int(draws[0] * largest.size)])
        elif draws[0] > counts[c] / met:
            return None
        places = np.flatnonzero(labels == c)
        return int(places[int(draws[1] * places.size)])


@final
class NOTE(Adapter):
    """Let instances correct the statistics, and learn from a memory that is balanced although the stream is not.

    Args:
        model: any classifier with normalisation layers.
        classes: C.
        optimizer: moves gamma and beta; the paper's is ``adam(1e-4)``.
        capacity: N, of the memory.
        frequency: number of images between two updates.
        loss: loss of the memory's logits, :func:`testtime.methods.sotta.mean_entropy` or, as published,
            :func:`testtime.methods.sotta.smoothed_entropy`.
        norm: the policy of the BatchNorm layers; its momentum is the weight of a new memory.
        seed: random seed of the entry into and removal from the memory.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> note = NOTE(net, classes=2, capacity=8, frequency=8)
    >>> note(torch.rand(7, 3, 8, 8)).updated, note(torch.rand(1, 3, 8, 8)).updated
    (False, True)
    """

    name, label = "note", "NOTE"
    needs = ("classifier", "norm", "tensor")
    venue = "NeurIPS 2022"
    paper = (
        "Gong, Jeong, Kim, Kim, Shin and Lee, NOTE: Robust Continual Test-time Adaptation Against Temporal "
        "Correlation"
    )
    stochastic = True
    cost: tuple[float, float] = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-4),  # noqa: B008 - a frozen value
        capacity: Positive = 64,
        frequency: Positive = 64,
        loss: Callable[[Tensor], Tensor] = mean_entropy,
        norm: Callable[[nn.Module], nn.Module] = iabn,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.capacity, self.frequency = classes, optimizer, capacity, frequency
        self.loss, self.norm = loss, norm
        self.cost = (1 + capacity / frequency, capacity / frequency)
        self.adapt(norm_affine(self.model), optimizer)
        self.memory = PBRS(classes, capacity)

    def step(self, x: Tensor) -> Tensor:
        rng = generator(self.seed, int(self.clock), "reservoir")
        draws = torch.rand(len(x), 2, dtype=torch.float64, generator=rng)
        first = self.frequency - int(self.memory.seen) % self.frequency
        answers = []
        for start, stop in pairwise([0, *range(first, len(x), self.frequency), len(x)]):
            with torch.no_grad():
                answers.append(self.model(x[start:stop]))
            self.memory.add(x[start:stop], answers[-1].argmax(dim=1), draws[start:stop])
            if int(self.memory.seen) % self.frequency == 0:
                self._replay()
        return torch.cat(answers)

    def _replay(self) -> None:
        """Learn from the memory once."""
        with observing(self.model):
            self.update(self.loss(self.model(self.memory.held())))
        advance(self.model)  # each memory is an observed batch
