"""What a step may change, as it was before: tensors share their memory with the state until one of both is written."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from testtime.intake.sharing import Stateful

__all__ = ["LARGE", "Before", "Journal", "RowWrites", "as_it_is"]

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


@dataclass(eq=False)
class Overwritten:
    """Rows of a buffer as they were before they were written.

    Attributes:
        module: part that has the buffer.
        name: name of the buffer.
        tensor: its tensor, which may be replaced meanwhile.
        rows: indices (K,) and values (K, ...) of each write, in their order.
    """

    module: Stateful
    name: str
    tensor: Tensor
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def undo(self) -> None:
        """Give the rows their values back."""
        for rows, values in reversed(self.rows):
            self.tensor[rows] = values
        self.module._buffers[self.name] = self.tensor


class RowWrites:
    """Writes to rows of a large buffer, such as a bank of images: a step copies what it overwrites, and not the buffer.

    Args:
        name: name of the buffer, which nothing else writes to.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: weakref.WeakSet[Overwritten] = (
            weakref.WeakSet()
        )  # of a step, and of those of its wrappers

    def __reduce__(self) -> tuple[type[RowWrites], tuple[str]]:
        return RowWrites, (self.name,)

    def begin(self, module: Stateful) -> Overwritten:
        """Keep, from now on, what is overwritten, as long as the returned object lives."""
        tensor = module._buffers[self.name]
        assert tensor is not None
        kept = Overwritten(module, self.name, tensor)
        self._open.add(kept)
        return kept

    def write(self, tensor: Tensor, rows: Tensor, values: Tensor) -> None:
        """Write rows of the buffer.

        Args:
            tensor: the buffer (M, ...).
            rows: different indices (K,).
            values: new values of these rows (K, ...).
        """
        for kept in self._open:
            if kept.tensor is tensor:
                kept.rows.append((rows, tensor[rows]))
        tensor[rows] = values


@dataclass
class Before:
    """The state before a step.

    Attributes:
        places: containers of the tensors of fixed shape, each with the key of the tensor in it.
        fixed: their values.
        others: other tensors: their part, name, the live tensor and its value.
        replaced: attributes that are replaced and never written to: their part, name and value.
        rows: buffers of which rows are written.
        buffers: parts that replace their buffers and never write to them, each with these.
    """

    places: list[tuple[Any, Any]] = field(default_factory=list)
    fixed: list[Tensor] = field(default_factory=list)
    others: list[tuple[Stateful, str, Tensor, Tensor]] = field(default_factory=list)
    replaced: list[tuple[Stateful, str, Any]] = field(default_factory=list)
    rows: list[Overwritten] = field(default_factory=list)
    buffers: list[tuple[Stateful, dict[str, Tensor | None]]] = field(default_factory=list)

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
            for overwritten in self.rows:
                overwritten.undo()
            for module, kept_buffers in self.buffers:
                module._buffers.update(kept_buffers)


class Journal:
    """Takes the state of an adapter before its steps; small tensors are copied, in few calls, into memory that is kept."""

    def __init__(self) -> None:
        self._lists: list[list[tuple[Any, Any]]] = []  # the fixed places of each part
        self._places: list[tuple[Any, Any]] = []  # all of them
        self._live: list[Tensor] = []  # the tensors there
        self._types: list[torch.dtype] = []
        self._groups: list[
            tuple[Any, list[Tensor], Tensor]
        ] = []  # small ones: call, tensors, memory of their copies
        self._others: list[Tensor] = []  # small ones of more dimensions
        self._spare: list[Tensor] = []  # their copies
        self._copies: list[Tensor | None] = []  # of all tensors in the fixed places; None for a large one

    def __reduce__(self) -> tuple[type[Journal], tuple[()]]:
        return Journal, ()

    def before(self, parts: Iterable[Stateful]) -> Before:
        """Take the state of the parts of an adapter.

        Args:
            parts: all of them; the last state that was taken is used up.
        """
        taken = Before()
        with torch.inference_mode(False), torch.no_grad():
            lists = []
            for module in parts:
                if not module.writes:
                    taken.buffers.append((module, module._buffers.copy()))
                    continue
                if places := module._fixed_places():
                    lists.append(places)
                if module.row_writes is not None:
                    taken.rows.append(module.row_writes.begin(module))
                for name in module.replaced:
                    taken.replaced.append((module, name, getattr(module, name)))
                for name, v in module._moving_elsewhere().items():
                    taken.others.append((module, name, v, as_it_is(v)))
            if len(lists) != len(self._lists) or not all(map(operator.is_, lists, self._lists)):
                self._lists, self._places = lists, [place for places in lists for place in places]
            taken.places, taken.fixed = self._places, self._taken()
        return taken

    def _taken(self) -> list[Tensor]:
        """The values of the tensors in the fixed places."""
        live = [container[key] for container, key in self._places]
        types = [v.dtype for v in live]
        if types != self._types or not all(map(operator.is_, live, self._live)):
            self._live, self._types = live, types
            self._reserve()
        for call, group, memory in self._groups:
            call(group, out=memory)
        if self._others:
            torch._foreach_copy_(self._spare, self._others)
        return [as_it_is(v) if c is None else c for v, c in zip(live, self._copies, strict=True)]

    def _reserve(self) -> None:
        """Reserve memory for the copies: scalars, and vectors, of a type have one each, which a step writes in one call."""
        small = [v for v in self._live if v.numel() < LARGE]
        copies: dict[int, Tensor] = {}
        self._groups = []
        for call, dims in ((torch.stack, 0), (torch.cat, 1)):
            for kind in {(v.device, v.dtype) for v in small}:
                group = [v for v in small if (v.device, v.dtype) == kind and v.dim() == dims]
                if group:
                    memory = call([v.detach() for v in group])
                    parts = memory.unbind() if dims == 0 else memory.split([len(v) for v in group])
                    self._groups.append((call, group, memory))
                    copies.update({id(v): part for v, part in zip(group, parts, strict=True)})
        self._others = [v for v in small if v.dim() > 1]
        self._spare = [torch.empty_like(v, requires_grad=False) for v in self._others]
        copies.update({id(v): c for v, c in zip(self._others, self._spare, strict=True)})
        self._copies = [copies.get(id(v)) for v in self._live]
