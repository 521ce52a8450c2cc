"""Recomputation: what some functions need in their backward is computed again from what is saved anyway.

While a forward runs, :class:`Recipes` notes how the outputs of normalisation layers, linear layers and the views of them were
made. GELU, SiLU and attention then save the tensors at which these notes begin instead of their own inputs and outputs. Between
two normalisation layers of a transformer that is the input of the first, which its own backward needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from testtime.intake.gradients import checkpointed

__all__ = ["Recipes"]

SOURCES = (F.layer_norm, F.rms_norm, F.group_norm, F.linear)
"""Functions whose outputs are noted: what enters them is saved anyway, or smaller."""
VIEWS = (
    *(Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.unflatten, Tensor.permute, Tensor.transpose),
    *(Tensor.unbind, Tensor.chunk, Tensor.split, Tensor.__getitem__, Tensor.squeeze, Tensor.unsqueeze),
    *(Tensor.contiguous, torch.reshape, torch.flatten, torch.permute, torch.transpose, torch.unbind),
    *(torch.chunk, torch.split, torch.squeeze, torch.unsqueeze),
)
"""Functions whose outputs are noted where their input is."""
AGAIN = (F.gelu, F.silu, F.scaled_dot_product_attention, F.multi_head_attention_forward)
"""Functions that run again in the backward where one of their inputs is noted."""


@dataclass(frozen=True)
class Leaf:
    """The place of a tensor among those that are saved."""

    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a pure function; arguments may be :class:`Made` by other calls."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def values(self) -> Iterator[tuple[int | str, Any]]:
        """The arguments by position or by name."""
        yield from enumerate(self.args)
        yield from self.kwargs.items()

    def filled(self, values: Mapping[int | str, Any]) -> Any:
        """Run the function with these arguments in place of its own."""
        args = [values.get(i, a) for i, a in enumerate(self.args)]
        return self.func(*args, **{k: values.get(k, a) for k, a in self.kwargs.items()})


@dataclass(frozen=True, eq=False)
class Made:
    """How a tensor was made: by which call, as which of its outputs, and its version then."""

    call: Call
    index: int | None
    version: int


class Recipes:
    """Notes of how the tensors of a forward were made; calling it runs a function of torch and takes or uses notes."""

    def __init__(self) -> None:
        self._made: Any = WeakIdKeyDictionary()

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        if func in AGAIN and not _random(func, args, kwargs) and not checkpointed():
            call = self._noted(func, args, kwargs)
            if any(isinstance(a, Made) for _, a in call.values()):
                return _again(call, Call(func, args, kwargs))
        y = func(*args, **kwargs)
        if func in SOURCES or (func in VIEWS and self._recipe(args[0]) is not None):
            call = self._noted(func, args, kwargs)
            for index, part in enumerate(y) if isinstance(y, tuple | list) else [(None, y)]:
                if isinstance(part, Tensor) and part.requires_grad:
                    self._made[part] = Made(call, index, part._version)
        return y

    def _recipe(self, value: Any) -> Made | None:
        """How a tensor was made; None where it is not noted, or was written into since."""
        made = self._made.get(value) if isinstance(value, Tensor) else None
        return made if made is not None and made.version == value._version else None

    def _noted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        known = {k: self._recipe(a) for k, a in Call(func, args, kwargs).values()}
        args = tuple(a if known[i] is None else known[i] for i, a in enumerate(args))
        return Call(func, args, {k: a if known[k] is None else known[k] for k, a in kwargs.items()})


def _random(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws at random (dropout), or returns the weights of its attention beside its output."""
    if func is F.scaled_dot_product_attention:
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    if func is F.multi_head_attention_forward:
        return bool(kwargs.get("training", True) and args[10]) or bool(kwargs.get("need_weights", True))
    return bool(kwargs.get("inplace", False))


def _again(noted: Call, given: Call) -> Any:
    """Run a call so that it runs again in the backward, from where the notes of its arguments begin."""
    leaves: dict[int, Tensor] = {}
    plan = _planned(noted, leaves, {})
    moving = {id(a): a for _, a in given.values() if isinstance(a, Tensor) and a.requires_grad}
    places = {k: list(moving).index(id(a)) for k, a in given.values() if id(a) in moving}
    y = _Again.apply(given, plan, places, len(leaves), *leaves.values(), *moving.values())
    return (y, None) if given.func is F.multi_head_attention_forward else y


def _planned(call: Call, leaves: dict[int, Tensor], done: dict[int, Call]) -> Call:
    """The call with the place of a leaf for each tensor, so that it holds none; leaves are added."""

    def place(value: Any) -> Any:
        if isinstance(value, Made):
            return Made(_planned(value.call, leaves, done), value.index, value.version)
        if not isinstance(value, Tensor):
            return value
        leaves.setdefault(id(value), value)
        return Leaf(list(leaves).index(id(value)))

    if id(call) not in done:
        args = tuple(place(a) for a in call.args)
        done[id(call)] = Call(call.func, args, {k: place(a) for k, a in call.kwargs.items()})
    return done[id(call)]


def _value(planned: Any, leaves: Sequence[Tensor], done: dict[int, Any]) -> Any:
    """An argument of a planned call, from the leaves; ``done`` holds the results of calls."""
    if isinstance(planned, Leaf):
        return leaves[planned.index]
    if not isinstance(planned, Made):
        return planned
    call = planned.call
    if id(call) not in done:
        done[id(call)] = call.filled({k: _value(a, leaves, done) for k, a in call.values()})
    return done[id(call)] if planned.index is None else done[id(call)][planned.index]


class _Again(torch.autograd.Function):
    """A call that saves the leaves of its plan and runs again in the backward."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, plan: Call, places: dict[int | str, int], n: int, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors[:n])
        device = tensors[0].device.type
        ctx.plan, ctx.places, ctx.n = plan, places, n
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return _first(call.filled({k: tensors[n + i] for k, i in places.items()}))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        leaves, done = [t.detach() for t in ctx.saved_tensors], {}  # type: ignore[var-annotated]
        with torch.autocast(*ctx.autocast):
            with torch.no_grad():
                values = {k: _value(a, leaves, done) for k, a in ctx.plan.values()}
            moving = {i: values[k].detach().requires_grad_() for k, i in ctx.places.items()}
            with torch.enable_grad():
                y = _first(ctx.plan.filled({**values, **{k: moving[i] for k, i in ctx.places.items()}}))
        found = torch.autograd.grad(y, [moving[i] for i in sorted(moving)], gradients[0], allow_unused=True)
        return *[None] * (4 + ctx.n), *found


def _first(y: Any) -> Tensor:
    return y[0] if isinstance(y, tuple) else y
