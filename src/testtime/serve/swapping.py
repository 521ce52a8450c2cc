"""The exchange of what moves in an adapter: the state of one stream goes in, that of another comes out.

``state_dict`` and ``load_state_dict`` do the same with names and checks, for states that come from elsewhere. Here both states
are the library's own. Parameters and optimizer state are placed in one block of memory per device, so that an exchange copies
blocks and not tensors; buffers are exchanged without copying them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.serve.blocks import ALIGNED, Blocks, movable
from testtime.state import AdapterState

__all__ = ["Parked", "Ranges", "Slots", "ranges_of", "set_ranges"]

Ranges = dict[str, tuple[float, float] | None]
"""Range of the inputs of each adapter in a tree of adapters, by name."""


@dataclass
class Parked:
    """A state outside of the network; its owner hands it over with an exchange.

    Attributes:
        blocks: bytes of what has a fixed shape and a fixed place: parameters, optimizer state.
        loose: values of what has a fixed shape alone: counts of steps, large tensors, those whose memory others use.
        buffers: buffers.
        others: values of parts that store their state in their own way.
    """

    blocks: list[Tensor]
    loose: list[Tensor]
    buffers: list[Tensor]
    others: list[Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        groups = (self.blocks, self.loose, self.buffers, self.others)
        return sum(v.nbytes for group in groups for v in group)

    def clone(self) -> Parked:
        """An independent copy, of normal tensors also in inference mode."""
        groups = (self.blocks, self.loose, self.buffers, self.others)
        with torch.inference_mode(False), torch.no_grad():
            return Parked(*([v.detach().clone() for v in group] for group in groups))


class Slots:
    """The places in an adapter where the state of a stream is.

    The parameters and the optimizer state of the adapter get new memory.

    Args:
        adapter: the adapter. Parts that only ``prepare`` writes are the same for all streams, and are left where they are.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._cores: list[tuple[str, AdapterState]] = []
        self._holders: list[tuple[str, Stateful, str]] = []
        self._others: list[tuple[str, Stateful, str]] = []
        for prefix, module in adapter._parts(learned=False).items():
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
        self._taught = {prefix: m for prefix, m in adapter._parts(learned=True).items() if m.learned}
        self._adapted = list({id(p): p for _, core in self._cores for p in core._adapted}.values())
        self._stamp: list[tuple[int, int]] = []
        self._place()
        self._all = [*self.names(), *self.learned()]
        self._order = sorted(range(len(self._all)), key=lambda place: self._all[place])
        self._heads: dict[int, tuple[torch.dtype, torch.Size, bytes]] = {}

    def names(self) -> list[str]:
        """Names of the entries, as ``state_dict`` has them: those on blocks, loose ones, buffers, others."""
        places = (*self._holders, *self._others)
        return [*self._fixed_names, *(f"{prefix}{name}" for prefix, _, name in places)]

    def exchange(self, parked: Parked) -> Parked:
        """Put a state in, and return the one that was there; the given one is used up."""
        with torch.inference_mode(False), torch.no_grad():
            self._check()
            loose = [v.detach().clone() for v in self._loose]
            blocks = self._blocks.exchange(parked.blocks)
            if loose:
                torch._foreach_copy_(self._loose, parked.loose)
            buffers, others = [], []
            for (_, module, name), value in zip(self._holders, parked.buffers, strict=True):
                found = module._buffers[name]
                assert found is not None
                buffers.append(found)
                module._buffers[name] = value
            for (_, module, name), value in zip(self._others, parked.others, strict=True):
                others.append(module.moving()[name].detach().clone())
                module.restore(name, value)
        return Parked(blocks, loose, buffers, others)

    def copy(self) -> Parked:
        """A copy of the state that is in the adapter."""
        with torch.inference_mode(False), torch.no_grad():
            self._check()
            return Parked(self._blocks.memory, self._loose, self._held(), self._kept()).clone()

    def named(self, parked: Parked) -> dict[str, Tensor]:
        """The tensors of a state by name; they are on its memory."""
        values = (*self._blocks.views(parked.blocks), *parked.loose, *parked.buffers, *parked.others)
        return dict(zip(self.names(), values, strict=True))

    def ranges(self) -> Ranges:
        """Range of the inputs of each adapter in the tree; it is estimated from the first images where none is declared."""
        return {name: gate.within for name, gate in self._gates.items()}

    def set_ranges(self, ranges: Ranges) -> None:
        """Set the ranges; None where they have no entry."""
        for name, gate in self._gates.items():
            gate.within = ranges.get(name)

    def weights(self) -> Tensor:
        """The parameters that adaptation moves as one vector, which may be on their memory."""
        self._check()
        if self._run is not None:
            return self._run
        values = [p.detach().reshape(-1) for p in self._adapted]
        return torch.cat(values) if values else torch.zeros(0)

    def learned(self) -> dict[str, Tensor]:
        """The live tensors that only ``prepare`` writes, by name: the same for every stream."""
        return {f"{prefix}{name}": v for prefix, m in self._taught.items() for name, v in m.moving().items()}

    def hash(self) -> str:
        """The same as :func:`testtime.state_hash` of the adapter, without a copy of the state."""
        self._check()
        rest = [*self._loose, *self._held(), *self._kept()]
        rest += [v for m in self._taught.values() for v in m.moving().values()]
        held = self._blocks.bytes()
        data = [*held, *map(_bytes, rest)]
        heads = [*self._block_heads, *(self._head(place, v) for place, v in enumerate(rest, len(held)))]
        return hashlib.sha256(
            b"".join([piece for i in self._order for piece in (heads[i], data[i])])
        ).hexdigest()

    def _head(self, place: int, value: Tensor) -> bytes:
        known = self._heads.get(place)
        if known is None or known[0] is not value.dtype or known[1] != value.shape:
            known = value.dtype, value.shape, _head(self._all[place], value)
            self._heads[place] = known
        return known[2]

    def _place(self) -> None:
        """Put what can be moved on blocks: parameters first, and so that there are few gaps."""
        names = [f"{prefix}{name}" for prefix, core in self._cores for name in _names(core)]
        live, adapted = self._live(), {id(p) for p in self._adapted}
        last = {
            id(value): i for i, value in enumerate(live)
        }  # where two cores have the same, one place counts
        moved = {i for i, value in enumerate(live) if last[id(value)] == i and movable(value)}
        moved -= {
            last[id(core.clock)] for _, core in self._cores
        }  # a step may share the memory of the count with a copy

        def place(i: int) -> tuple[bool, bool, int]:
            return id(live[i]) not in adapted, live[i].nbytes < ALIGNED, -live[i].element_size()

        self._on_blocks = sorted(moved, key=place)
        self._off_blocks = [i for i in range(len(live)) if i not in moved]
        self._fixed_names = [names[i] for i in (*self._on_blocks, *self._off_blocks)]
        self._blocks = Blocks([live[i] for i in self._on_blocks])
        count = sum(id(live[i]) in adapted for i in self._on_blocks)
        self._run = self._blocks.run(count) if count == len(adapted) else None
        views = self._blocks.views(self._blocks.memory)
        self._block_heads = [_head(names[i], v) for i, v in zip(self._on_blocks, views, strict=True)]
        self._check()

    def _check(self) -> None:
        """Take what was replaced since the last step onto the blocks; every step counts in ``clock``."""
        clocks = [core.clock for _, core in self._cores]
        stamp = [(id(clock), -1 if clock.is_inference() else clock._version) for clock in clocks]
        if stamp == self._stamp and all(version >= 0 for _, version in stamp):
            return
        live = self._live()
        self._blocks.hold([live[i] for i in self._on_blocks])
        self._loose = [live[i].detach() for i in self._off_blocks]
        self._stamp = stamp

    def _live(self) -> list[Tensor]:
        """The live tensors of fixed shape, in the order of :func:`_names`; an optimizer may have replaced its own."""
        found: list[Tensor] = []
        for _, core in self._cores:
            found.append(core.clock)
            states = core._optimizer.state if core._optimizer else {}
            for p, master in zip(core._adapted, core._masters.weights, strict=True):
                found += [p] if master is p else [p, master]
                found += states.get(master, {}).values()
        return found

    def _held(self) -> list[Tensor]:
        found = [module._buffers[name] for _, module, name in self._holders]
        return [v for v in found if v is not None]

    def _kept(self) -> list[Tensor]:
        return [module.moving()[name].detach() for _, module, name in self._others]


def _bytes(value: Tensor) -> Any:
    """The bytes of a tensor, without a copy where its memory is dense."""
    return value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def _head(name: str, value: Tensor) -> bytes:
    return f"{name}:{value.dtype}:{tuple(value.shape)}".encode()


def _names(core: AdapterState) -> list[str]:
    """Names of a core's tensors of fixed shape, in the order of :meth:`Slots._live`."""
    buffers = Stateful.moving(core)
    return [name for name in core.moving() if name not in buffers]


def ranges_of(adapter: Adapter) -> Ranges:
    """Range of the inputs of each adapter in the tree, by name."""
    return {name: m._gate.within for name, m in adapter.named_modules() if isinstance(m, Adapter)}


def set_ranges(adapter: Adapter, ranges: Ranges) -> None:
    """Set the range of the inputs of each adapter in the tree; None where they have no entry."""
    for name, module in adapter.named_modules():
        if isinstance(module, Adapter):
            module._gate.within = ranges.get(name)
