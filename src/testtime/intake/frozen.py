"""Frozen weights share their memory with the caller's model: whether that model has changed since."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Frozen", "remember"]

Original = tuple["weakref.ref[Tensor]", int]
# For a tensor of a tree: the caller's tensor, whose memory it shares, and the version that one had.
_ORIGINALS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(shared: Tensor, original: Tensor) -> None:
    """Note that a new tensor was made on the memory of another.

    Args:
        shared: the new tensor.
        original: the other; where that one in turn shares the memory of a third, it is the third that counts.
    """
    known: Original | None = _ORIGINALS.get(original)
    if known is None or not _same_memory(original, known[0]()):
        known = weakref.ref(original), original._version
    _ORIGINALS[shared] = known


def _same_memory(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.device == other.device and one.data_ptr() == other.data_ptr()


class Frozen:
    """The watch of an adapter over the weights that it shares with the model it was built on.

    torch counts the writes to every tensor (``Tensor._version``): optimizers, ``load_state_dict``, in-place operations and
    BatchNorm in training mode (``num_batches_tracked``) are counted; writes through ``Tensor.data`` are not, and are not
    seen. A model that was moved to another device, or deleted, shares nothing and may change.

    >>> from testtime.intake.sharing import share
    >>> model = nn.Linear(2, 2)
    >>> tree, frozen = share(model), Frozen()
    >>> frozen.check(tree)
    >>> _ = nn.init.zeros_(model.weight)
    >>> frozen.check(tree)
    Traceback (most recent call last):
    ...
    ValueError: network.weight of the model that this Logits was built on has changed since (by training, ...
    """

    def __init__(self) -> None:
        # name, tensor, the caller's tensor, its version
        self._watched: list[tuple[str, weakref.ref[Tensor], weakref.ref[Tensor], int]] | None = None
        self._buffers: list[tuple[str, weakref.ref[Tensor], int]] = []  # buffers among them, own version
        # The tensors of both lists and their versions at the last check, which are usually those of the next one.
        self._sources: list[weakref.ref[Tensor]] = []
        self._own: list[weakref.ref[Tensor]] = []
        self._seen: list[int | None] = []
        self._unmoved: list[int | None] = []

    def __reduce__(self) -> tuple[type[Frozen], tuple[()]]:
        return Frozen, ()  # a copy has memory of its own

    def check_buffers(self, owner: nn.Module) -> None:
        """Check that the model's own forward has not written into a buffer whose memory the adapter shares.

        Args:
            owner: the adapter, after a :meth:`check` and a forward.

        Raises:
            ValueError: it has.
        """
        if _versions(self._own) == self._unmoved:
            return
        for name, own, unmoved in self._buffers:
            tensor = own()
            if tensor is not None and tensor._version != unmoved:
                raise ValueError(
                    f"the model of this {type(owner).__name__} writes into its buffer {name} while it predicts in evaluation "
                    "mode: this changes the model that the adapter was built on, and a reset cannot take it back; write to "
                    "it only if self.training (observers of a quantization: model.apply(disable_observer))"
                )

    def check(self, owner: nn.Module) -> None:
        """Compare the model that an adapter was built on with what it was then.

        Args:
            owner: the adapter, always the same one.

        Raises:
            ValueError: the caller has written to a tensor whose memory the adapter shares.
        """
        if self._watched is None:
            tensors: list[tuple[str, Tensor, int | None]] = [
                (name, p, None) for name, p in owner.named_parameters()
            ]
            moves: list[Any] = [m for m in owner.modules() if hasattr(m, "moving")]  # sharing.Stateful
            moving = {id(t) for m in moves for t in m.moving().values()}
            constant = [
                (n, b) for n, b in owner.named_buffers() if id(b) not in moving and not b.is_inference()
            ]
            tensors += [(name, b, b._version) for name, b in constant]
            found = [(name, t, _ORIGINALS.get(t), own) for name, t, own in tensors]
            self._watched = [
                (name, weakref.ref(t), *known)
                for name, t, known, _ in found
                if known and _same_memory(t, known[0]())
            ]
            self._buffers = [
                (name, weakref.ref(t), own) for name, t, known, own in found if known and own is not None
            ]
            self._sources = [source for _, _, source, _ in self._watched]
            self._own, self._unmoved = [t for _, t, _ in self._buffers], [own for _, _, own in self._buffers]
        versions = _versions(self._sources)
        if versions == self._seen:
            return
        for name, own, original, version in self._watched:
            source = original()
            if source is None or source._version == version:
                continue
            tensor = own()
            if tensor is not None and _same_memory(tensor, source):
                raise ValueError(
                    f"{name} of the model that this {type(owner).__name__} was built on has changed since (by training, "
                    "load_state_dict, or a forward in training mode), and the adapter shares its frozen weights with that "
                    "model; build a new adapter on the changed model, or build adapters on copy.deepcopy(model)"
                )
        self._seen = versions


def _versions(tensors: Iterable[weakref.ref[Tensor]]) -> list[int | None]:
    """The counts of writes to tensors, None for one that was deleted."""
    return [None if (t := ref()) is None else t._version for ref in tensors]
