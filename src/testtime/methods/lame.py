r"""LAME: leave the model as it is, and let images with like features share their answer.

With the prediction :math:`p_i`, its corrected assignment :math:`z_i` on the simplex, and the affinity :math:`w_{ij}` of the
normalised features,

.. math::
    \min_z \; \sum_i \operatorname{KL}(z_i \,\|\, p_i) - \lambda \sum_{i, j} w_{ij}\, z_i^\top z_j,
    \qquad z_i^{(n+1)} \propto p_i \odot \exp\Big(\lambda \sum_j w_{ij}\, z_j^{(n)}\Big)

where every step of the concave-convex procedure on the right solves the problem with its concave part made linear.

A step:
    1. predict the batch with the source's statistics, and keep the features that the linear head is given;
    2. begin at the prediction, and repeat the update until the objective hardly changes: the answer is :math:`\log z`.

Departures:
    The answer is the logarithm of the assignments, which the softmax of a caller gives back; the paper's are the assignments.
    The score is the energy of the model's own logits, for that of :math:`\log z` is zero.
    Written from the method as described; the published code, whose licence is non-commercial, was not read. The width of the
    radial affinity is the mean distance to the ``neighbours``-th of the other images; an image is its own neighbour in the
    radial and the linear affinity, and not among the nearest. In the published code the image itself is the first of the k
    of the radial width: ``LAME(model, "radial", neighbours=k - 1)``.
    An image alone has no neighbours, and keeps its prediction.
    The published setting: ``LAME(model)`` on batches of 16 from correlated streams. On a shuffled stream neighbours are of
    other classes, and it fails as published.

Cost: one forward.

Reference: Boudiaf, Mueller, Ben Ayed and Bertinetto, Parameter-free Online Test-time Adaptation, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.norm import source_statistics
from testtime.parts.features import WithFeatures, head_tap, with_features
from testtime.prediction import Prediction, energy

__all__ = ["LAME", "affinities", "laplacian_adjusted"]

Affinity = Literal["nearest", "radial", "linear"]


def affinities(features: Tensor, affinity: Affinity = "nearest", neighbours: int = 5) -> Tensor:
    """How much each image listens to each: w (N, N), of features (N, D) of any length.

    Args:
        features: features of the batch, (N, D).
        affinity: "nearest" (1 for the ``neighbours`` nearest others), "radial" (a Gaussian of the distance) or "linear" (the
            cosine).
        neighbours: k, a number of other images.

    >>> affinities(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), neighbours=1)
    tensor([[0., 1., 0.],
            [1., 0., 0.],
            [0., 1., 0.]])
    """
    f = F.normalize(features, dim=1)
    if affinity == "linear":
        return f @ f.T
    n = f.shape[0]  # len(f) would be a constant in an exported graph
    w = f.new_zeros(n, n)
    k = torch.sym_min(neighbours, n - 1)
    if k < 1:
        return w
    distance = (2 - 2 * f @ f.T).clamp_min(0).sqrt()
    itself = torch.eye(n, dtype=torch.bool, device=f.device)
    nearest = distance.masked_fill(itself, torch.inf).topk(k, dim=1, largest=False)
    if affinity == "nearest":
        return w.scatter_(1, nearest.indices, 1.0)
    width = nearest.values[:, -1].mean().clamp_min(torch.finfo(f.dtype).eps)
    return (-0.5 * (distance / width).square()).exp()


def laplacian_adjusted(
    log_p: Tensor, w: Tensor, weight: float = 1.0, iterations: int = 100, tolerance: float = 1e-8
) -> Tensor:
    """The log-assignments (N, C) that the concave-convex procedure ends at.

    Args:
        log_p: (N, C), of the model.
        w: (N, N) affinities.
        weight: lambda.
        iterations: largest number of iterations.
        tolerance: relative change of the objective below which the procedure stops.

    >>> laplacian_adjusted(torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log(), 1 - torch.eye(2)).exp().argmax(1)
    tensor([1, 1])
    """
    exported = torch.compiler.is_exporting()  # a graph has all iterations; those after the end change nothing
    log_z, near, before = log_p, w @ log_p.exp(), log_p.new_full((), torch.inf)
    ended = torch.zeros_like(before, dtype=torch.bool)
    for _ in range(iterations):
        pulled = torch.add(log_p, near, alpha=weight)
        next_z = pulled.log_softmax(dim=1)
        # What normalises a row is the same in all its columns, so that the divergence needs no further matrix (N, C):
        # log z - log p = lambda near - normaliser, and the assignments of a row add up to 1.
        normaliser = pulled[:, 0] - next_z[:, 0]
        log_z = torch.where(ended, log_z, next_z) if exported else next_z
        z, last = next_z.exp(), near
        near = w @ z
        now = weight * (z.flatten() @ last.flatten() - z.flatten() @ near.flatten()) - normaliser.sum()
        ended = ended | (((now - before).abs() <= tolerance * before.abs()) & (before != torch.inf))
        if not exported and bool(ended):
            break
        before = now
    return log_z


@final
@dataclass(frozen=True)
class Assignments:
    """The assignments of a batch as a function of its logits and features.

    Args:
        affinity, neighbours: arguments of :func:`affinities`.
        weight, iterations, tolerance: arguments of :func:`laplacian_adjusted`.
    """

    affinity: Affinity
    neighbours: int
    weight: float
    iterations: int
    tolerance: float

    def __call__(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return the log-assignments (N, C), in the type of the logits."""
        w = affinities(features.double(), self.affinity, self.neighbours)
        log_p = logits.double().log_softmax(dim=1)
        return laplacian_adjusted(log_p, w, self.weight, self.iterations, self.tolerance).to(logits.dtype)


class Assigned(nn.Module):
    """A network whose samples share their predictions, as a module.

    Args:
        network: network from a batch to logits (N, C) and features (N, D).
        assignments: function of them.
    """

    def __init__(self, network: WithFeatures, assignments: Assignments) -> None:
        super().__init__()
        self.network, self.assignments = network, assignments

    def forward(self, x: Any) -> Tensor:
        """Return the log-assignments (N, C)."""
        return self.assignments(*self.network(x))


@final
class LAME(Adapter):
    """Leave the model as it is, and let images with like features share their answer.

    Args:
        model: any classifier that ends in a linear head.
        affinity: "nearest", "radial" or "linear".
        neighbours: k, a number of other images.
        weight: lambda, of the neighbours.
        iterations, tolerance: when the procedure stops.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no linear head, or neighbours or iterations are below 1.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = LAME(net)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), False)
    """

    name, label = "lame", "LAME"
    needs = ("classifier", "linear head")
    venue = "CVPR 2022"
    paper = "Boudiaf, Mueller, Ben Ayed and Bertinetto, Parameter-free Online Test-time Adaptation"
    cost = (1, 0)

    def __init__(
        self,
        model: nn.Module,
        affinity: Affinity = "nearest",
        neighbours: Positive = 5,
        weight: float = 1.0,
        iterations: Positive = 100,
        tolerance: float = 1e-8,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.affinity, self.neighbours, self.weight = affinity, neighbours, weight
        self.iterations, self.tolerance, self.head, self.norm = iterations, tolerance, head, norm
        self._tap = head_tap(self.model, head)

    @property
    def _assignments(self) -> Assignments:
        return Assignments(self.affinity, self.neighbours, self.weight, self.iterations, self.tolerance)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        logits, features = with_features(self.model, self._tap, x)
        return Prediction(self._assignments(logits, features), score=energy(logits))

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self.step(x)

    def _answering(self) -> nn.Module:
        return Assigned(WithFeatures(self.model, self.head), self._assignments)
