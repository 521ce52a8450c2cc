"""The settings of a guard, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

__all__ = ["GuardEvent", "GuardOptions", "Kind", "Serving"]

Kind = Literal["skip", "restore", "partial_reset", "fallback", "recover", "alarm"]
"""Kinds of events of a guard."""
Serving = Literal["adapter", "bn", "source"]
"""Whose answer a batch gets."""


@final
@dataclass(frozen=True)
class GuardEvent:
    """What a guard did in a step.

    Attributes:
        kind: "skip" (nothing was learned from the batch), "restore" (of the last healthy state), "partial_reset" (of the upper
            half of the layers), "fallback" (to the shipped model), "recover" (from it) or "alarm".
        reason: sentence for people.
        step: number of the step, from 0.
    """

    kind: Kind
    reason: str
    step: int


@final
@dataclass(frozen=True)
class GuardOptions:
    """Settings of Guarded.

    Args:
        window: samples after which the weight of a sample as evidence is halved.
        check: share of the batches that are checked where the adapter is trusted; all are where it is not.
        exposure: predictions on which the guard prefers another one, for each sample that the shipped model probably knows,
            up to which the adapter is trusted.
        margin: estimated accuracy that a candidate must have beyond the shipped model's to be served.
        patience: checks in a row that find the adapter unhealthy, before it is restored.

    Raises:
        ValueError: one of them is out of range.
    """

    window: int = 256
    check: float = 0.02
    exposure: float = 0.01
    margin: float = 0.05
    patience: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.patience < 1:
            raise ValueError(
                f"window counts samples and patience checks, 1 at least, got {self.window} and {self.patience}"
            )
        if not 0 < self.check <= 1 or not 0 < self.exposure < 1 or not 0 <= self.margin < 1:
            raise ValueError(
                "check is in (0, 1], exposure in (0, 1) and margin in [0, 1), got "
                f"{self.check}, {self.exposure} and {self.margin}"
            )
