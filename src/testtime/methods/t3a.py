r"""T3A: classify by prototypes, which the certain features of the stream adjust.

With the features z, the head's weights :math:`\omega_c`, and the supports :math:`S_c` of class c, at most K,

.. math::
    S_c^0 &= \{\omega_c / \lVert \omega_c \rVert\}, \qquad
    S_{\hat y} \leftarrow S_{\hat y} \cup \{z / \lVert z \rVert\}, \quad \hat y = \arg\max_c p_c(z) \\
    S_c &\leftarrow \text{those K of } S_c \text{ whose prediction had the lowest entropy} \\
    \mu_c &= \tfrac{1}{|S_c|} \sum_{s \in S_c} s, \qquad z_c = z^\top \mu_c

A step:
    1. predict the batch with the head, and add its features to the supports of the classes it gives;
    2. keep the K of lowest entropy of each class;
    3. answer with the products of the features and the prototypes, which hold this batch already.

``predict`` answers by the prototypes as they are. No parameter moves.

Departures:
    The published code makes the prototypes unit vectors: ``unit=True``. It finds the class of a weight vector by predicting it,
    which is its own class in all but degenerate heads; here it is its own.
    The mean of the supports is the paper's equation as this library knows it; its text was not at hand to check.
    Published code step by step: ``T3A(model, supports=K, unit=True)``, K one of 1, 5, 20, 50 and 100. Its K = -1, all supports,
    does not work as published (the list of all is overwritten), grows with the stream, and is left out.

Cost: one forward.

Reference: Iwasawa and Matsuo, Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import Stateful
from testtime.norm import source_statistics
from testtime.parts import entropy
from testtime.parts.features import head_tap, linear_head, with_features

__all__ = ["T3A", "Supports"]


@final
class Supports(Stateful):
    """The supports of every class: unit vectors, those of lowest entropy first.

    Args:
        head: the linear head; its weights (C, D) are the first supports.
        capacity: K, for each class.

    Attributes:
        features: (C, K, D).
        entropy: (C, K) in nats; infinite is a free place.

    ``update`` offers features, calling gives the sums (C, D) of the supports and their numbers (C, 1).
    """

    features: Tensor
    entropy: Tensor

    def __init__(self, head: nn.Linear, capacity: int) -> None:
        super().__init__()
        weight = head.weight.detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        classes, width = weight.shape
        self.register_buffer("features", weight.new_zeros(classes, capacity, width, dtype=wide))
        self.register_buffer("entropy", weight.new_full((classes, capacity), torch.inf, dtype=wide))
        self.features[:, 0] = F.normalize(weight.to(wide), dim=1)
        with torch.no_grad():
            self.entropy[:, 0] = entropy(head(weight)).to(wide)

    def update(self, z: Tensor, logits: Tensor) -> None:
        """Offer features (N, D) whose prediction was logits (N, C)."""
        classes, capacity, width = self.features.shape
        own = torch.arange(classes, device=z.device).repeat_interleave(capacity)
        label = torch.cat([own, logits.argmax(dim=1)])
        doubt = torch.cat([self.entropy.flatten(), entropy(logits).to(self.entropy)])
        rows = torch.cat([self.features.flatten(0, 1), F.normalize(z.to(self.features), dim=1)])
        order = doubt.argsort(stable=True)
        order = order[label[order].argsort(stable=True)]  # by class, and within it by entropy
        label = label[order]
        count = label.bincount(minlength=classes)
        rank = torch.arange(len(label), device=z.device) - (count.cumsum(0) - count)[label]
        kept = rank < capacity  # every class offers at least its own places, so that all are filled
        self.features = rows[order[kept]].view(classes, capacity, width)
        self.entropy = doubt[order[kept]].view(classes, capacity)

    def forward(self) -> tuple[Tensor, Tensor]:
        held = self.entropy.isfinite()[..., None]
        return (self.features * held).sum(dim=1), held.sum(dim=1)


@final
class T3A(Adapter):
    """Classify by prototypes, which the certain features of the stream adjust.

    Args:
        model: any classifier that ends in a linear head.
        supports: K, the most that a class keeps.
        unit: whether the prototypes are made unit vectors, as in the published code.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no linear head, or supports is below 1.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = T3A(net, supports=5)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), False)
    """

    name, label = "t3a", "T3A"
    needs = ("classifier", "linear head")
    venue = "NeurIPS 2021"
    paper = (
        "Iwasawa and Matsuo, Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization"
    )
    cost = (1, 0)

    def __init__(
        self,
        model: nn.Module,
        supports: Positive = 100,
        unit: bool = False,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.supports, self.unit, self.head, self.norm = supports, unit, head, norm
        self.memory = Supports(linear_head(self.model, head)[1], supports)
        self._tap = head_tap(self.model, head)

    def _by_prototypes(self, z: Tensor) -> Tensor:
        total, count = self.memory()
        prototypes = F.normalize(total, dim=1) if self.unit else total / count
        with torch.autocast(z.device.type, enabled=False):
            return z.to(prototypes.dtype) @ prototypes.T

    def _predict_batch(self, x: Tensor) -> Tensor:
        logits, z = with_features(self.model, self._tap, x)
        return self._by_prototypes(z).to(logits.dtype)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        logits, z = with_features(self.model, self._tap, x)
        self.memory.update(z, logits)
        return self._by_prototypes(z).to(logits.dtype)
