"""The exchange of what moves in an adapter: the state of one stream goes in, that of another comes out.

``state_dict`` and ``load_state_dict`` do the same with names and checks, for states that come from elsewhere. Here both states
are the library's own, and the exchange writes parameters and optimizer state in place, in two calls of torch, and exchanges
buffers without copying them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.state import AdapterState

__all__ = ["Parked", "Ranges", "Slots", "ranges_of", "set_ranges"]

PLAIN = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)  # types that numpy has
Ranges = dict[str, tuple[float, float] | None]
"""Range of the inputs of each adapter in a tree of adapters, by name."""


@dataclass
class Parked:
    """A state outside of the network; its owner hands it over with an exchange.

    Attributes:
        fixed: values of what has a fixed shape: count of steps, parameters, optimizer state.
        buffers: buffers.
        others: values of parts that store their state in their own way.
    """

    fixed: list[Tensor]
    buffers: list[Tensor]
    others: list[Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(v.nbytes for group in (self.fixed, self.buffers, self.others) for v in group)

    def clone(self) -> Parked:
        """An independent copy."""
        groups = (self.fixed, self.buffers, self.others)
        return Parked(*([v.detach().clone() for v in group] for group in groups))


class Slots:
    """The places in an adapter where the state of a stream is.

    Args:
        adapter: the adapter. Parts that only ``prepare`` writes are the same for all streams, and are left where they are.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._cores: list[tuple[str, AdapterState]] = []
        self._holders: list[tuple[str, Stateful, str]] = []
        self._others: list[tuple[str, Stateful, str]] = []
        for prefix, module in _parts(adapter):
            plain = type(module).moving is Stateful.moving and type(module).restore is Stateful.restore
            core = isinstance(module, AdapterState) and type(module).moving is AdapterState.moving
            if core and type(module).restore is AdapterState.restore:
                assert isinstance(module, AdapterState)
                self._cores.append((prefix, module))
                self._holders += [(prefix, module, name) for name in Stateful.moving(module)]
            elif plain:
                self._holders += [(prefix, module, name) for name in module.moving()]
            else:
                self._others += [(prefix, module, name) for name in module.moving()]
        self._gates = {name: m._gate for name, m in adapter.named_modules() if isinstance(m, Adapter)}
        self._fixed_names = [f"{prefix}{name}" for prefix, core in self._cores for name in _names(core)]
        self._taught = {prefix: m for prefix, m in adapter._parts(learned=True).items() if m.learned}
        self._all = [*self.names(), *self.learned()]
        self._order = sorted(range(len(self._all)), key=lambda place: self._all[place])
        self._heads: dict[int, tuple[torch.dtype, torch.Size, bytes]] = {}

    def names(self) -> list[str]:
        """Names of the entries, as ``state_dict`` has them: fixed, buffers, others."""
        places = (*self._holders, *self._others)
        return [*self._fixed_names, *(f"{prefix}{name}" for prefix, _, name in places)]

    def exchange(self, parked: Parked) -> Parked:
        """Put a state in, and return the one that was there; the given one is used up."""
        with torch.inference_mode(False), torch.no_grad():
            live = list(self._fixed())
            out = [torch.empty_like(v) for v in live]
            torch._foreach_copy_(out, live)
            torch._foreach_copy_(live, parked.fixed)
            buffers, others = [], []
            for (_, module, name), value in zip(self._holders, parked.buffers, strict=True):
                found = module._buffers[name]
                assert found is not None
                buffers.append(found)
                module._buffers[name] = value
            for (_, module, name), value in zip(self._others, parked.others, strict=True):
                others.append(module.moving()[name].detach().clone())
                module.restore(name, value)
        return Parked(out, buffers, others)

    def copy(self) -> Parked:
        """A copy of the state that is in the adapter."""
        with torch.inference_mode(False), torch.no_grad():
            return Parked(list(self._fixed()), self._held(), self._kept()).clone()

    def named(self, parked: Parked) -> dict[str, Tensor]:
        """The tensors of a state by name."""
        return dict(zip(self.names(), (*parked.fixed, *parked.buffers, *parked.others), strict=True))

    def parked(self, state: Mapping[str, Tensor]) -> Parked:
        """The tensors of a state that :meth:`named` gave, in their order."""
        values = [state[name] for name in self.names()]
        fixed, held = len(self._fixed_names), len(self._holders)
        return Parked(values[:fixed], values[fixed : fixed + held], values[fixed + held :])

    def ranges(self) -> Ranges:
        """Range of the inputs of each adapter in the tree; it is estimated from the first images where none is declared."""
        return {name: gate.within for name, gate in self._gates.items()}

    def set_ranges(self, ranges: Ranges) -> None:
        """Set the ranges; None where they have no entry."""
        for name, gate in self._gates.items():
            gate.within = ranges.get(name)

    def adapted(self) -> list[Tensor]:
        """The live parameters that adaptation moves."""
        return [p.detach() for _, core in self._cores for p in core._adapted]

    def learned(self) -> dict[str, Tensor]:
        """The live tensors that only ``prepare`` writes, by name: the same for every stream."""
        return {f"{prefix}{name}": v for prefix, m in self._taught.items() for name, v in m.moving().items()}

    def hash(self) -> str:
        """The same as :func:`testtime.state_hash` of the adapter, without a copy of the state."""
        digest = hashlib.sha256()
        values = [*self._values(), *(v for m in self._taught.values() for v in m.moving().values())]
        for place in self._order:
            value = values[place]
            digest.update(self._head(place, value.dtype, value.shape))
            digest.update(_buffer(value))
        return digest.hexdigest()

    def _head(self, place: int, dtype: torch.dtype, shape: torch.Size) -> bytes:
        known = self._heads.get(place)
        if known is None or known[:2] != (dtype, shape):
            known = dtype, shape, f"{self._all[place]}:{dtype}:{tuple(shape)}".encode()
            self._heads[place] = known
        return known[2]

    def _values(self) -> list[Tensor]:
        return [*self._fixed(), *self._held(), *self._kept()]

    def _fixed(self) -> Iterator[Tensor]:
        """The live tensors of fixed shape, in the order of their names; an optimizer may have replaced its own."""
        for _, core in self._cores:
            yield core.clock
            states = core._optimizer.state if core._optimizer else {}
            for p, master in zip(core._adapted, core._masters.weights, strict=True):
                yield p.detach()
                if master is not p:
                    yield master.detach()
                yield from states.get(master, {}).values()

    def _held(self) -> list[Tensor]:
        found = [module._buffers[name] for _, module, name in self._holders]
        return [v for v in found if v is not None]

    def _kept(self) -> list[Tensor]:
        return [module.moving()[name].detach() for _, module, name in self._others]


def _parts(adapter: Adapter) -> list[tuple[str, Stateful]]:
    return list(adapter._parts(learned=False).items())


def _buffer(value: Tensor) -> Any:
    """The bytes of a tensor, without a copy where its memory is dense."""
    value = value.detach()
    if value.device.type == "cpu" and value.dtype in PLAIN and value.is_contiguous():
        return value.numpy().data
    return value.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def _names(core: AdapterState) -> list[str]:
    """Names of a core's tensors of fixed shape, in the order of :meth:`Slots._fixed`."""
    buffers = Stateful.moving(core)
    return [name for name in core.moving() if name not in buffers]


def ranges_of(adapter: Adapter) -> Ranges:
    """Range of the inputs of each adapter in the tree, by name."""
    return Slots(adapter).ranges()


def set_ranges(adapter: Adapter, ranges: Ranges) -> None:
    """Set the range of the inputs of each adapter in the tree."""
    Slots(adapter).set_ranges(ranges)
