r"""AdaNPC: let the nearest remembered features vote, and remember the sure ones of the stream with their answer.

With unit features z, a memory of pairs :math:`(z_j, y_j)`, the set :math:`N_k(z)` of the k nearest to z, and a temperature T,

.. math::
    p_c(z) = \sum_{j \in N_k(z)} w_j\, [y_j = c], \qquad
    w = \operatorname{softmax}_{j \in N_k(z)} \big( z^\top z_j / T \big)

A step, after ``prepare(batches)`` has filled the memory with the source:
    1. take the features of the batch, with the source's statistics;
    2. let the k nearest of the memory vote on each: the answer is :math:`\log p`;
    3. put the features whose p reaches the threshold :math:`\beta` into the memory, with their answer as label.

Departures:
    The paper remembers the source with its labels. ``prepare`` takes them with the images, ``prepare([(images, labels),
    ...])``; where only images are given, the model's own predictions are remembered as labels.
    The published memory grows with the stream (``capacity=None``); here the last ``capacity`` images of the stream are held
    beside the source.
    The published code takes a softmax of p, which is a distribution already, before it compares with :math:`\beta`
    (``softmax=True``): with ten classes that is never above 0.232, and no image enters at the usual thresholds. Here p itself
    is compared.
    As in that code, p is :math:`10^{-5}` at least. The score is the energy of the model's own logits.
    Published code step by step: ``AdaNPC(model, k, T, beta, capacity=None, softmax=True)`` prepared with labelled batches.
    k, T and :math:`\beta` were tuned on each data set (k from 1 to 200, T from 0.01 to 0.5); the defaults are this library's.

Cost: one forward; every step compares the batch with all that is remembered. ``prepare`` costs one forward a batch, once.

Reference: Zhang, Wang, Jin, Yuan, Zhang, Wang, Jin and Tan, AdaNPC: Exploring Non-Parametric Classifier for Test-Time
Adaptation, ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Natural
from testtime.intake.sharing import Stateful
from testtime.norm import source_statistics
from testtime.parts.features import WithFeatures, head_tap, linear_head, with_features
from testtime.prediction import Prediction, energy
from testtime.source.branches import labelled_images_of, labels_or_predictions

__all__ = ["AdaNPC", "FeatureMemory", "vote"]


def vote(likeness: Tensor, label: Tensor, classes: int, neighbours: int, temperature: float) -> Tensor:
    """What the nearest vote: p (N, C).

    Args:
        likeness: (N, M) of each feature to each remembered one.
        label: (M,) of the remembered ones.
        classes: C.
        neighbours: k; all M where there are fewer.
        temperature: T.

    >>> vote(torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([0, 1, 1]), 2, 2, 0.1)
    tensor([[0.5000, 0.5000]])
    """
    nearest = likeness.topk(min(neighbours, len(label)), dim=1)
    weight = (nearest.values / temperature).softmax(dim=1)
    return weight.new_zeros(likeness.shape[0], classes).scatter_add_(1, label[nearest.indices], weight)


@final
class FeatureMemory(Stateful):
    """Unit features with labels.

    Args:
        like: a weight (..., D) of the type of the features.
        capacity: number of rows; beyond it the oldest are removed. None keeps all.

    Attributes:
        rows: (capacity, D).
        label: (capacity,); -1 is a free place.
        met: number of features that have entered so far.
    """

    rows: Tensor
    label: Tensor
    met: Tensor

    def __init__(self, like: Tensor, capacity: int | None = 0) -> None:
        super().__init__()
        self.bounded, capacity = capacity is not None, capacity or 0
        wide = torch.promote_types(like.dtype, torch.float32)
        self.register_buffer("rows", like.new_zeros(capacity, like.shape[-1], dtype=wide).detach())
        self.register_buffer("label", torch.full((capacity,), -1, device=like.device))
        self.register_buffer("met", torch.zeros((), dtype=torch.int64))

    def fill(self, z: Tensor, label: Tensor) -> None:
        """Hold these features (N, D), and no others."""
        self.rows, self.label = z.to(self.rows), label.clone()
        self.met = torch.full_like(self.met, len(z))

    def update(self, z: Tensor, label: Tensor) -> None:
        """Remember features (N, D), of which the last find room."""
        if not self.bounded:
            self.fill(torch.cat([self.rows, z.to(self.rows)]), torch.cat([self.label, label]))
            return
        capacity = len(self.rows)
        enter = min(len(z), capacity)
        if enter:
            places = (int(self.met) + torch.arange(len(z) - enter, len(z), device=z.device)) % capacity
            self.rows = self.rows.index_copy(0, places, z[-enter:].to(self.rows))
            self.label = self.label.index_copy(0, places, label[-enter:])
        self.met = self.met + len(z)

    def forward(self) -> tuple[Tensor, Tensor]:
        held = min(int(self.met), len(self.label)) if self.bounded else len(self.label)
        return self.rows[:held], self.label[:held]  # places are taken in their order


class Voting(nn.Module):
    """A network whose classes the nearest of fixed features vote on, as a module.

    Args:
        network: network from a batch to logits (N, C) and features (N, D).
        rows: unit features (M, D).
        label: their labels (M,).
        neighbours: k.
        temperature: T.
    """

    rows: Tensor
    label: Tensor

    def __init__(
        self, network: WithFeatures, rows: Tensor, label: Tensor, neighbours: int, temperature: float
    ) -> None:
        super().__init__()
        self.network, self.neighbours, self.temperature = network, neighbours, temperature
        self.register_buffer("rows", rows)
        self.register_buffer("label", label)

    def forward(self, x: Tensor) -> Tensor:
        """Return log p (N, C)."""
        logits, z = self.network(x)
        likeness = F.normalize(z.to(self.rows.dtype), dim=1) @ self.rows.T
        p = vote(likeness, self.label, logits.shape[1], self.neighbours, self.temperature)
        return _floored(p).log().to(logits.dtype)


@final
class AdaNPC(Adapter):
    """Let the nearest remembered features vote, and remember the sure ones of the stream with their answer.

    ``prepare`` takes source batches of images, or pairs of images and labels.

    Args:
        model: any classifier that ends in a linear head.
        neighbours: k.
        temperature: T.
        threshold: beta, of the vote.
        capacity: images of the stream that are remembered; None for all.
        softmax: whether the threshold is compared with a softmax of the vote, as in the published code.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no linear head, neighbours is below 1, or temperature is not above 0.
        RuntimeError: it is called before ``prepare``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> adanpc = AdaNPC(net, neighbours=5)
    >>> adanpc.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> adanpc(torch.rand(8, 3, 8, 8)).shape
    torch.Size([8, 2])
    """

    name, label = "adanpc", "AdaNPC"
    needs = ("classifier", "linear head")
    venue = "ICML 2023"
    paper = (
        "Zhang, Wang, Jin, Yuan, Zhang, Wang, Jin and Tan, AdaNPC: Exploring Non-Parametric Classifier for "
        "Test-Time Adaptation"
    )
    source = "data"
    labelled_source = True
    cost = (1, 0)

    def __init__(
        self,
        model: nn.Module,
        neighbours: int = 50,
        temperature: float = 0.1,
        threshold: float = 0.9,
        capacity: Natural | None = 1024,
        softmax: bool = False,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
    ) -> None:
        super().__init__(norm(model))
        if neighbours < 1 or temperature <= 0:
            raise ValueError(
                f"neighbours is at least 1 and temperature above 0, got {neighbours} and {temperature}"
            )
        self.neighbours, self.temperature, self.threshold = neighbours, temperature, threshold
        self.capacity, self.softmax, self.head, self.norm = capacity, softmax, head, norm
        weight = linear_head(self.model, head)[1].weight
        self.of_source, self.of_stream = FeatureMemory(weight), FeatureMemory(weight, capacity)
        self.of_source.learned = True
        self._tap = head_tap(self.model, head)

    @torch.no_grad()
    def _prepare(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> None:
        images, labels = labelled_images_of(batches)
        seen = [with_features(self.model, self._tap, x) for x in images]
        z = torch.cat([z for _, z in seen]).to(self.of_source.rows.dtype)
        label = labels_or_predictions(labels, torch.cat([y for y, _ in seen]))
        self.of_source.fill(F.normalize(z, dim=1), label)

    def _known(self) -> None:
        if not len(self.of_source.label):
            raise RuntimeError(
                "AdaNPC has not seen its source: call adapter.prepare(batches) with unlabelled source batches first"
            )

    def _vote(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The model's logits (N, C), unit features (N, D) and the memory's vote (N, C) for a batch."""
        self._known()
        logits, z = with_features(self.model, self._tap, x)
        z = F.normalize(z.to(self.of_source.rows.dtype), dim=1)
        (rows, label), (more, labels) = self.of_source(), self.of_stream()
        with torch.autocast(z.device.type, enabled=False):
            likeness = torch.cat([z @ rows.T, z @ more.to(rows.dtype).T], dim=1)
        label = torch.cat([label, labels])
        p = vote(likeness, label, logits.shape[1], self.neighbours, self.temperature)
        return logits, z, p

    def _answer(self, logits: Tensor, p: Tensor, selected: dict[str, Tensor] | None = None) -> Prediction:
        return Prediction(_floored(p).log().to(logits.dtype), score=energy(logits), selected=selected)

    def _predict_batch(self, x: Tensor) -> Tensor:
        logits, _, p = self._vote(x)
        return self._answer(logits, p)

    def _answering(self) -> nn.Module:
        self._known()
        (rows, label), (more, labels) = self.of_source(), self.of_stream()
        remembered = torch.cat([rows, more.to(rows.dtype)]), torch.cat([label, labels])
        network = WithFeatures(self.model, self.head)
        return Voting(network, *remembered, self.neighbours, self.temperature)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        logits, z, p = self._vote(x)
        confidence, label = (_floored(p).softmax(dim=1) if self.softmax else p).max(dim=1)
        sure = confidence >= self.threshold
        self.of_stream.update(z[sure], label[sure])
        return self._answer(logits, p, {"remembered": sure})


def _floored(p: Tensor) -> Tensor:
    return (p + 1e-5).clamp_max(1)
