"""Module trees that share their tensors: one copy of what is frozen, own copies of what moves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from testtime.outputs import Logits

__all__ = ["Birth", "Stateful", "share", "twin"]


class Stateful(nn.Module):
    """A module whose persistent buffers move: they are part of an adapter's state.

    ``learned`` says that only ``prepare`` writes them: they are saved, and a reset keeps them.
    """

    learned: bool = False

    def moving(self) -> dict[str, Tensor]:
        """The live tensors that move, by name."""
        constant = self._non_persistent_buffers_set
        return {k: v for k, v in self._buffers.items() if v is not None and k not in constant}

    def restore(self, name: str, value: Tensor) -> None:
        """Give the moving tensor ``name`` a value back; a buffer may have grown meanwhile."""
        self._buffers[name] = value.clone()


class Birth(Stateful):
    """What an adapter was born with, where ``prepare`` moved it: saved with its state, so that a reset finds it anywhere.

    Args:
        names: of the tensors that move; nothing is known of them until :meth:`remember`.
    """

    learned = True

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(name.replace(".", "/"), torch.empty(0))  # a buffer's name has no dots

    def remember(self, birth: Mapping[str, Tensor]) -> None:
        """Hold a copy of what the tensors are at birth."""
        for name in self._buffers:
            self._buffers[name] = birth[name.replace("/", ".")].clone()

    def known(self) -> dict[str, Tensor]:
        """What is held, by name; empty before any ``prepare``."""
        return {k.replace("/", "."): v for k, v in self.moving().items() if v.numel()}


def share(model: nn.Module) -> nn.Module:
    """A second tree of the model in evaluation mode, all frozen, on the memory of the first.

    The parameters are new objects over the same storage, so freezing, moving or converting the tree does not touch the
    model it came from; whoever adapts a parameter copies it first (:meth:`testtime.Adapter.adapt`).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module as the model, got {type(model).__name__}")
    with torch.inference_mode(False):
        memo: dict[int, object] = {}
        for p in model.parameters():
            data = p.clone() if p.is_inference() else p.detach()
            memo[id(p)] = nn.Parameter(data, requires_grad=False)
        for b in model.buffers():
            memo[id(b)] = b.clone() if b.is_inference() else b.detach()
        for module in model.modules():
            if isinstance(module, Stateful):
                memo.update({id(b): b.detach().clone() for b in module.moving().values()})
        tree = copy.deepcopy(model, memo)
    return (tree if isinstance(tree, Logits) else Logits(tree)).eval()


def twin(model: nn.Module, own: Iterable[Tensor] = ()) -> nn.Module:
    """A second tree over the very same tensors, except those in ``own`` and moving buffers, which it copies."""
    copied = {id(t) for t in own}
    for module in model.modules():
        if isinstance(module, Stateful):
            copied.update(id(b) for b in module.moving().values())
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in copied}
    tree = copy.deepcopy(model, dict(shared))
    for p in tree.parameters():
        if id(p) not in shared:
            p.requires_grad_(False)
    return tree
