"""Batches of every world in the hands of the laws: copies as a caller gives them, joined, converted and spoilt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from testtime.intake.named import MASK, NamedTensors, joined

__all__ = ["cast", "fed", "filled", "joined", "numbers", "parts_of"]


def parts_of(x: Any) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    if isinstance(x, Tensor):
        return {"x": x}
    return dict(x) if isinstance(x, Mapping) else dict(x.entries)


def fed(x: Any) -> Any:
    """A copy of a batch as a caller gives it: a tensor, or a plain dictionary of tensors."""
    return x.clone() if isinstance(x, Tensor) else dict(x.clone().entries)  # clone() keeps the memory format


def filled(x: Any, value: float) -> Any:
    """A batch of the same form with one value everywhere; integers take its whole part, and a mask of words stays."""
    if isinstance(x, NamedTensors):
        return NamedTensors({n: t if n == MASK else filled(t, value) for n, t in x.entries.items()})
    return torch.full_like(x, value if x.is_floating_point() else int(value))


def cast(x: Any, dtype: torch.dtype) -> Any:
    """The batch with its floating-point tensors in another type."""
    return x.to(dtype) if isinstance(x, NamedTensors) or x.is_floating_point() else x


def numbers(x: Any) -> Tensor | None:
    """The floating-point tensor of a batch, which NaN can enter; None where there is none."""
    return next((t for t in parts_of(x).values() if t.is_floating_point()), None)
