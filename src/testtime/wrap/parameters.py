"""Adapted parameters of a guarded adapter: how far they moved, and those of the upper layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["copied", "distance", "upper_half"]


def copied(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return copies of the values of parameters."""
    return list(torch._foreach_add([p.detach() for p in parameters], 0)) if parameters else []


def distance(parameters: Sequence[nn.Parameter], start: Sequence[Tensor]) -> float:
    """Return the Euclidean distance of parameters from these values."""
    if not parameters:
        return 0.0
    moved = torch._foreach_sub([p.detach() for p in parameters], list(start))
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(moved))))


def upper_half(initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state that belong to the upper half of the adapted parameters, in the order of the layers."""
    names = [name for name in initial if name.startswith("model.")]
    upper = {name.removeprefix("model.") for name in names[len(names) // 2 :]}
    return {k: v for k, v in initial.items() if any(name in k for name in upper)}
