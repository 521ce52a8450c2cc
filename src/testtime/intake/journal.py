"""What a step may change, as it was before: tensors share their memory with the state until one of both is written."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from testtime.intake.sharing import Stateful

__all__ = ["LARGE", "Before", "Journal", "as_it_is"]

LARGE = 2**14  # elements of a tensor that is not copied before a step


def as_it_is(value: Tensor) -> Tensor:
    """The present value of a tensor, which later writes to the tensor do not change.

    Both share their memory until one is written (copy-on-write of torch). Where a memory cannot be shared so, and on other
    devices, whose streams the copy of a write would not wait for, this is a copy.

    >>> value = torch.zeros(2)
    >>> kept = as_it_is(value)
    >>> value += 1
    >>> kept
    tensor([0., 0.])
    """
    value = value.detach()
    if value.device.type != "cpu" or value.layout != torch.strided:
        return value.clone()
    try:
        return torch._lazy_clone(value)
    except RuntimeError:  # the memory is not torch's own: of an array, or of a mapped file
        return value.clone()


def _shares(one: Tensor, other: Tensor) -> bool:
    address: Any = torch._C._data_address  # type: ignore[attr-defined]
    return bool(address(one) == address(other)) and one.shape == other.shape


@dataclass
class Before:
    """The state before a step.

    Attributes:
        places: containers of the tensors of fixed shape, each with the key of the tensor in it.
        fixed: their values.
        others: other tensors: their part, name, the live tensor and its value.
        replaced: attributes that are replaced and never written to: their part, name and value.
    """

    places: list[tuple[Any, Any]] = field(default_factory=list)
    fixed: list[Tensor] = field(default_factory=list)
    others: list[tuple[Stateful, str, Tensor, Tensor]] = field(default_factory=list)
    replaced: list[tuple[Stateful, str, Any]] = field(default_factory=list)

    def undo(self) -> None:
        """Give every tensor that was written or replaced its value back."""
        with torch.inference_mode(False), torch.no_grad():
            pairs = [(c[k], kept) for (c, k), kept in zip(self.places, self.fixed, strict=True)]
            pairs = [(live, kept) for live, kept in pairs if not _shares(live, kept)]
            if pairs:
                torch._foreach_copy_([live for live, _ in pairs], [kept for _, kept in pairs])
            parts: dict[Stateful, dict[str, Tensor]] = {}
            for module, name, live, kept in self.others:
                if module._moving_elsewhere().get(name) is not live or not _shares(live, kept):
                    parts.setdefault(module, {})[name] = kept
            for module, values in parts.items():
                module.restore_all(values)
            for module, name, value in self.replaced:
                setattr(module, name, value)


class Journal:
    """Takes the state of an adapter before its steps; small tensors are copied, in one call, into memory that is kept."""

    def __init__(self) -> None:
        self._live: list[Tensor] = []
        self._spare: list[Tensor] = []
        self._types: list[torch.dtype] = []

    def __reduce__(self) -> tuple[type[Journal], tuple[()]]:
        return Journal, ()

    def before(self, parts: Iterable[Stateful]) -> Before:
        """Take the state of the parts of an adapter.

        Args:
            parts: all of them; the last state that was taken is used up.
        """
        taken = Before()
        with torch.inference_mode(False), torch.no_grad():
            for module in parts:
                taken.places += module._fixed_places()
                taken.replaced += [(module, name, getattr(module, name)) for name in module.replaced]
                for name, v in module._moving_elsewhere().items():
                    taken.others.append((module, name, v, as_it_is(v)))
            live = [container[key] for container, key in taken.places]
            small = [v for v in live if v.numel() < LARGE]
            taken.fixed = self._copied(small)
            if len(small) < len(live):
                copies = iter(taken.fixed)
                taken.fixed = [next(copies) if v.numel() < LARGE else as_it_is(v) for v in live]
        return taken

    def _copied(self, small: list[Tensor]) -> list[Tensor]:
        types = [v.dtype for v in small]
        if types != self._types or not all(map(operator.is_, small, self._live)):
            self._live, self._types = small, types
            self._spare = [torch.empty_like(v, requires_grad=False) for v in small]
        if small:
            torch._foreach_copy_(self._spare, small)
        return self._spare
