"""Module trees that share their tensors: one copy of what is frozen, own copies of what moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from testtime.intake.frozen import remember
from testtime.intake.model import DetachedCopies, check_model, copy_model
from testtime.intake.outputs import Logits

__all__ = ["AtLeastFloat32", "InitialState", "Stateful", "at_least_float32", "duplicate", "share", "twin"]


def at_least_float32(value: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor moved to a device or type, in float32 where that type is half precision.

    Args:
        value: the tensor; a scalar, such as the count of steps of an optimizer, is not moved.
        convert: the move.
    """
    if not value.dim():
        return value
    moved = convert(value)
    return value.to(moved.device, torch.float32) if moved.dtype in (torch.float16, torch.bfloat16) else moved


class AtLeastFloat32(nn.Module):
    """Layers beside a model that learn on features in float32: ``half()`` of the adapter leaves them in float32.

    >>> class Head(AtLeastFloat32, nn.Linear): ...
    >>> Head(2, 2).half().weight.dtype
    torch.float32
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(lambda value: at_least_float32(value, fn), recurse)


class Stateful(nn.Module):
    """A module whose persistent buffers move: they are part of an adapter's state.

    ``learned`` marks buffers that only ``prepare`` writes: they are saved, and a reset keeps them.
    """

    learned: bool = False
    replaced: tuple[str, ...] = ()  # attributes that hold moving tensors and are replaced, never written to
    writes: bool = True  # to its buffers, in place; where it only replaces them, a step begins without copies
    added: bool = False  # later than the first saved states, which hold nothing of this part
    row_writes: Any = None  # journal.RowWrites of a buffer that is written by rows alone

    def moving(self) -> dict[str, Tensor]:
        """The live tensors that move, by name."""
        constant = self._non_persistent_buffers_set
        if len(constant) == len(self._buffers):
            return {}
        return {k: v for k, v in self._buffers.items() if v is not None and k not in constant}

    def _fixed_places(self) -> list[tuple[Any, Any]]:
        """Where the moving tensors are that keep their shape and are written in place: a container and the key in it."""
        return []

    def _moving_elsewhere(self) -> dict[str, Tensor]:
        """The moving tensors that are in none of the :meth:`_fixed_places`, by name."""
        return self.moving()

    def present(self, saved: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A saved state of this part in its present form; overridden where an earlier version had another.

        Args:
            saved: entries of this part that were found, at least one unless it was ``added``.

        Raises:
            KeyError: an entry is missing that every version has.
        """
        return saved

    def grows(self, name: str) -> bool:
        """Whether the moving buffer ``name`` may change its shape, as a memory without a fixed size does."""
        return True

    def restore(self, name: str, value: Tensor) -> None:
        """Give the moving tensor ``name`` a value back; a buffer may have grown meanwhile."""
        self._buffers[name] = value.clone()

    def restore_all(self, values: Mapping[str, Tensor]) -> None:
        """Give several moving tensors their values back; overridden where their finding takes a walk."""
        for name, value in values.items():
            self.restore(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy after any forward, whatever tensors the model keeps of it."""
        other = memo[id(self)] = type(self).__new__(type(self))
        with DetachedCopies():
            other.__setstate__(copy.deepcopy(self.__dict__, memo))
        return other


class InitialState(AtLeastFloat32, Stateful):
    """The initial state of an adapter, as far as ``prepare`` changed it: saved with its state, for a reset in any process.

    Args:
        names: names of the tensors that move; they have no values until :meth:`remember`.
    """

    learned = True
    writes = False

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(name.replace(".", "/"), torch.empty(0))  # a buffer's name has no dots

    def remember(self, initial: Mapping[str, Tensor]) -> None:
        """Hold a copy of the initial values of the tensors."""
        for name in self._buffers:
            self._buffers[name] = initial[name.replace("/", ".")].clone()

    def known(self) -> dict[str, Tensor]:
        """What is held, by name; empty before any ``prepare``."""
        return {k.replace("/", "."): v for k, v in self.moving().items() if v.numel()}


def share(model: nn.Module) -> nn.Module:
    """A second tree of the model in evaluation mode, all frozen, on the memory of the first.

    The parameters are new objects over the same storage, so freezing, moving or converting the tree does not touch the
    model it came from; whoever adapts a parameter copies it first (:meth:`testtime.Adapter.adapt`). They count their
    writes on their own, so that adapting does not disturb a backward of the caller's; :class:`testtime.intake.frozen.Frozen`
    sees the caller's writes. Wrappers such as ``DistributedDataParallel`` are removed.

    Raises:
        TypeError, ValueError: the model is refused by :func:`testtime.intake.model.check_model`.
    """
    check_model(model)
    with torch.inference_mode(False):
        moving = {id(b) for m in model.modules() if isinstance(m, Stateful) for b in m.moving().values()}
        memo: dict[int, Any] = {}
        for t in (*model.parameters(), *model.buffers()):
            if type(t) not in (Tensor, nn.Parameter) or t.layout != torch.strided:
                continue  # copied by the rules of its class
            own = id(t) in moving or t.is_inference()
            data = t.detach().clone() if own else t.data
            memo[id(t)] = nn.Parameter(data, requires_grad=False) if isinstance(t, nn.Parameter) else data
            if not own:
                remember(memo[id(t)], t)
        tree = copy_model(model, memo).requires_grad_(False)
    return (tree if isinstance(tree, Logits) else Logits(tree)).eval()


def twin(model: nn.Module, own: Iterable[Tensor] = ()) -> nn.Module:
    """A second tree over the very same tensors, except those in ``own`` and moving buffers, which it copies."""
    copied = {id(t) for t in own}
    for module in model.modules():
        if isinstance(module, Stateful):
            copied.update(id(b) for b in module.moving().values())
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in copied}
    tree = copy_model(model, dict(shared))
    for p in tree.parameters():
        if id(p) not in shared:
            p.requires_grad_(False)
    return tree


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of the model with memory of its own, without wrappers, for what is trained on the source.

    Raises:
        TypeError, ValueError: the model is refused by :func:`testtime.intake.model.check_model`.
    """
    check_model(model)
    return copy_model(model)
