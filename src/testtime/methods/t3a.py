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

from collections.abc import Callable, Mapping
from typing import Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import Stateful
from testtime.norm import source_statistics
from testtime.parts import entropy
from testtime.parts.features import head_tap, headless, linear_head, with_features

__all__ = ["T3A", "Supports"]


@final
class Supports(Stateful):
    """The supports of every class: unit vectors, those of lowest entropy first.

    Memory is in proportion to the supports that are held, and an update touches those of the classes in the batch.

    Args:
        head: the linear head; its weights (C, D) are the first supports.
        capacity: K, for each class.

    ``update`` offers features, calling gives the sums (C, D) of the supports and their numbers (C,). The state has the entries

    - features: (M, D), of all supports, by class and within it by entropy;
    - entropy: (C, K) in nats; infinite is a free place.
    """

    replaced = ("_held", "_given")

    def __init__(self, head: nn.Linear, capacity: int) -> None:
        super().__init__()
        weight = head.weight.detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.capacity = capacity
        with torch.no_grad():
            rows, doubt = F.normalize(weight.to(wide), dim=1), entropy(head(weight)).to(wide)
        self._held = _by_class(rows[doubt.isfinite()], doubt[:, None])
        self._given: dict[str, Tensor] | None = None
        self._summed: list[tuple[Tensor, Tensor]] = []  # what the sums and the numbers are of
        self._sums = self._counts = rows.new_empty(0)

    @property
    def held(self) -> list[tuple[Tensor, Tensor]]:
        """The supports (k, D) of each class and their entropies (k,)."""
        if self._given is not None:
            self._held, self._given = _by_class(self._given["features"], self._given["entropy"]), None
        return self._held

    @property
    def features(self) -> Tensor:
        """All supports, (M, D)."""
        return self.moving()["features"]

    @property
    def entropy(self) -> Tensor:
        """The entropies (C, K); infinite is a free place."""
        return self.moving()["entropy"]

    def moving(self) -> dict[str, Tensor]:
        if self._given is not None:
            return self._given
        rows, doubts = zip(*self._held, strict=True)
        free = [F.pad(d, (0, self.capacity - len(d)), value=torch.inf) for d in doubts]
        return {"features": torch.cat(rows), "entropy": torch.stack(free)}

    def _moving_elsewhere(self) -> dict[str, Tensor]:
        return {}  # it is replaced and never written to

    def restore(self, name: str, value: Tensor) -> None:
        self._given = self.moving() | {name: value.clone()}

    def present(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A saved state in the present form; until 2026 its features were (C, K, D), free places too."""
        features, doubt = saved["features"], saved["entropy"]
        form, width = (len(self.held), self.capacity), self.held[0][0].shape[1]
        if doubt.shape != form or features.shape[-1:] != (width,):
            raise ValueError(
                f"the saved state has entropies {tuple(doubt.shape)} of features {tuple(features.shape)}, expected {form} and "
                f"(..., {width}); build the adapter with the same model and supports= as the one that was saved"
            )
        if features.dim() == 3 and features.shape[:2] == doubt.shape:
            features = features[doubt.isfinite()]
        if len(features) != int(doubt.isfinite().sum()):
            raise ValueError(
                f"the saved state has {len(features)} supports and {int(doubt.isfinite().sum())} entropies of supports; "
                "expected as many"
            )
        return {**saved, "features": features}

    def grows(self, name: str) -> bool:
        """The number of supports does; the entropies have a place for each that there may be, free ones are infinite."""
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._held = [(fn(rows), fn(doubt)) for rows, doubt in self.held]
        self._summed = []
        return super()._apply(fn, recurse)

    def update(self, z: Tensor, logits: Tensor) -> None:
        """Offer features (N, D) whose prediction was logits (N, C)."""
        held, like = list(self.held), self.held[0][0]
        unit, doubt = F.normalize(z.to(like), dim=1), entropy(logits).to(like)
        label = torch.where(doubt.isfinite(), logits.argmax(dim=1), -1)
        for c in label.unique().tolist():
            if c >= 0:
                own = label == c
                rows, doubts = torch.cat([held[c][0], unit[own]]), torch.cat([held[c][1], doubt[own]])
                kept = doubts.argsort(stable=True)[: self.capacity]
                held[c] = rows[kept], doubts[kept]
        self._held = held

    def forward(self) -> tuple[Tensor, Tensor]:
        held, known = self.held, self._summed
        if len(known) != len(held):
            known, self._sums = [], held[0][0].new_empty(len(held), held[0][0].shape[1])
            self._counts = self._sums.new_empty(len(held))
        for c in [c for c, own in enumerate(held) if not known or own is not known[c]]:
            torch.sum(held[c][0], dim=0, out=self._sums[c])
            self._counts[c] = len(held[c][0])
        self._summed = held
        return self._sums, self._counts


def _by_class(features: Tensor, doubt: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows (M, D) and the finite entropies of (C, K) of each class."""
    finite = doubt.isfinite()
    counts = finite.sum(dim=1).tolist()
    return list(zip(features.split(counts), doubt[finite].split(counts), strict=True))


class Prototypes(nn.Module):
    """A network that classifies by prototypes, as a module.

    Args:
        features: network from a batch to features (N, D).
        prototypes: sums (C, D) of the features of a class.
        length: length or count (C,) that the logits are divided by, in the order of T3A, so that they are equal to its own.
    """

    prototypes: Tensor
    length: Tensor

    def __init__(self, features: nn.Module, prototypes: Tensor, length: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("length", length)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, C)."""
        z = self.features(x)
        return (z.to(self.prototypes.dtype) @ self.prototypes.T / self.length).to(z.dtype)


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
        length = total.norm(dim=1).clamp_min(1e-12) if self.unit else count
        with torch.autocast(z.device.type, enabled=False):
            return z.to(total.dtype) @ total.T / length

    def _predict_batch(self, x: Tensor) -> Tensor:
        logits, z = with_features(self.model, self._tap, x)
        return self._by_prototypes(z).to(logits.dtype)

    def _answering(self) -> nn.Module:
        total, count = self.memory()
        length = total.norm(dim=1).clamp_min(1e-12) if self.unit else count
        return Prototypes(headless(self.model, head=self.head), total.clone(), length.clone())

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        logits, z = with_features(self.model, self._tap, x)
        self.memory.update(z, logits)
        return self._by_prototypes(z).to(logits.dtype)
