"""Parts of the laws: an adapter built in a world, its predictions, and comparisons with the size of a difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.laws.batches import cast, fed
from testtime.laws.worlds import World, ambient
from testtime.prediction import Prediction, TaskPredictions

__all__ = ["Law", "LawBroken", "Make"]

Make = Callable[[nn.Module], Adapter]
"""From a model to an adapter: a class, or a function."""
Law = Callable[[Make, World], None]
"""A law: tries an adapter in a world and raises :class:`LawBroken`."""


class LawBroken(AssertionError):
    """A law does not hold; the message is what was measured."""


def require(truth: object, measured: str | Callable[[], str]) -> None:
    """Raise :class:`LawBroken` with what was measured, unless it is true; a function is called in that case alone."""
    if not truth:
        raise LawBroken(measured if isinstance(measured, str) else measured())


def built(make: Make, world: World, network: nn.Module | None = None) -> Adapter:
    """A fresh adapter on the world's network, prepared if it needs source data."""
    network = world.network() if network is None else network
    with ambient():
        adapter = make(network)
        require(
            isinstance(adapter, Adapter),
            f"make(model) returned {type(adapter).__name__}, not a testtime.Adapter",
        )
        if adapter.source != "none":
            adapter.prepare(fed(cast(x, dtype_of(network))) for x in world.source())
    return adapter


def flat(y: Any) -> Prediction:
    """An answer as one row of numbers per image: the outputs of all tasks side by side."""
    if isinstance(y, TaskPredictions):
        rows = torch.cat([output[:, None].flatten(1) for output in y.values()], dim=1)
        return Prediction(rows, valid=y.valid, selected=y.selected, updated=y.updated)
    if isinstance(y, Mapping):
        return Prediction(torch.cat([output[:, None].flatten(1) for output in y.values()], dim=1))
    return y


def answers(adapter: Adapter, batches: Iterable[Any]) -> list[Prediction]:
    """What the adapter answers to the batches; the state of the global generator is the same at the first."""
    with ambient():
        return [flat(adapter(fed(x))) for x in batches]


def grown(make: Make, world: World, batches: Iterable[Any], network: nn.Module | None = None) -> Adapter:
    """A fresh adapter after the batches."""
    adapter = built(make, world, network)
    answers(adapter, batches)
    return adapter


def predicted(adapter: Adapter, x: Any) -> Prediction:
    """The prediction of the adapter without learning."""
    with ambient():
        return flat(adapter.predict(fed(x)))


def deviation(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where forms, types or the places of NaN differ."""
    a, b = a.detach().as_subclass(Tensor), b.detach().as_subclass(Tensor)
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    if a.numel() == 0 or torch.equal(a.nan_to_num(), b.nan_to_num()):
        return 0.0
    return float((a.double() - b.double()).nan_to_num(posinf=math.inf).abs().max())


def same(a: Tensor, b: Tensor, what: str, within: float = 0.0) -> None:
    """Require two tensors to be equal, bitwise unless a tolerance is given."""
    distance = deviation(a, b)
    require(distance <= within, f"{what} differs by {distance:.3g} (allowed: {within:g})")


def same_answers(a: Sequence[Tensor], b: Sequence[Tensor], what: str, within: float = 0.0) -> None:
    """Require two runs to answer alike."""
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        same(one, other, f"{what}: answer {i}", within)


def saved(adapter: Adapter) -> bytes:
    """The state as a safetensors file."""
    return safetensors.torch.save({k: v.contiguous() for k, v in adapter.state_dict().items()})


def load(adapter: Adapter, file: bytes) -> None:
    """Continue from a safetensors file."""
    adapter.load_state_dict(safetensors.torch.load(file))


def inner(adapter: Adapter) -> list[Adapter]:
    """The adapter and those inside it, the outermost first."""
    return [m for m in adapter.modules() if isinstance(m, Adapter)]


def adapted(adapter: Adapter) -> list[nn.Parameter]:
    """The parameters that the adapter declared to move."""
    return [p for a in inner(adapter) for p in a._adapted]


def still(adapter: Adapter) -> Adapter:
    """The same adapter with an optimizer that does not move: a learning rate of zero, also under a schedule."""
    for optimizer in (a._optimizer for a in inner(adapter) if a._optimizer is not None):
        vars(optimizer)["step"] = lambda: None
    return adapter


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of the network's weights."""
    return next(network.parameters()).dtype
