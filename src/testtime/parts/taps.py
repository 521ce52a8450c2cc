"""Taps: the output of an inner layer of a network, for methods that read more than the logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from testtime.intake.shards import shards_of

__all__ = ["Tap", "tap", "tapped", "watched"]


class Tap(nn.Module):
    """A layer that keeps what it gives (or what it was given), while it is watched."""

    def __init__(self, layer: nn.Module, given: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.given = given
        self.open = False
        self.seen: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """What a tap does not know it asks the layer, as a transformer of torch asks its norms for ``eps``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or name.startswith("__"):
                raise
            return getattr(self.layer, name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = self.layer(x, *args, **kwargs)
        if self.open:
            self.seen = x if self.given else y
        return y


def tap(model: nn.Module, name: str, given: bool = False) -> Tap:
    """Put a tap around a layer of the tree, in place.

    Args:
        model: a tree of one's own (:func:`testtime.intake.sharing.share`).
        name: the dotted name of the layer, or where none has it the end of one (``"layer2"``), of several the first.
        given: keep the layer's input instead of its output.

    Raises:
        ValueError: there is no layer of that name.
    """
    modules = [n for n, _ in model.named_modules() if n]
    names = [name] if name in modules else [n for n in modules if f".{n}".endswith(f".{name}")]
    if not names:
        top = [n for n in modules if n.count(".") < 3]
        raise ValueError(f"the model has no layer named {name!r}; it has {', '.join(top[:20])} ...")
    whole = names[0]
    parent, _, leaf = whole.rpartition(".")
    owner = model.get_submodule(parent)
    layer = getattr(owner, leaf)
    if isinstance(layer, Tap) and layer.given == given:
        return layer
    tapped = Tap(layer, given)
    setattr(owner, leaf, tapped)
    return tapped


@contextmanager
def tapped(model: nn.Module, names: Iterable[str], given: bool = False) -> Iterator[list[Tap]]:
    """Taps around these layers of somebody else's model, which are gone again at the end."""
    taps = [tap(model, name, given) for name in names]
    try:
        yield taps
    finally:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if any(child is t for t in taps):
                    setattr(parent, name, child.layer)


def watched(model: nn.Module, taps: Iterable[Tap], x: Tensor) -> tuple[Any, Sequence[Tensor]]:
    """The model's answer to x, and what each tap saw on the way.

    Raises:
        RuntimeError: a tapped layer took no part in the forward.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> y, (z,) = watched(net, [tap(net, "1")], torch.rand(5, 1, 2, 2))
    >>> y.shape, z.shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """
    taps = list(taps)
    for t in taps:
        t.open = True
    try:
        y = model(x)
        seen = [t.seen for t in taps]
    finally:
        for t in taps:
            t.open, t.seen = False, None
    missing = [type(t.layer).__name__ for t, z in zip(taps, seen, strict=True) if z is None]
    if missing:
        raise RuntimeError(f"these tapped layers took no part in the forward: {', '.join(missing)}")
    shards, found = shards_of(model), [z for z in seen if z is not None]
    return y, found if shards is None else [shards.whole(z, len(x)) for z in found]
