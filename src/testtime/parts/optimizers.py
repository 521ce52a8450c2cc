"""Optimizers as values, to be built on parameters later; float32 copies of parameters in half precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from testtime.intake.sharing import at_least_float32
from testtime.moved import renamed
from testtime.parts.one_call_adam import OneCallAdam

__all__ = [
    "MasterWeights",
    "OptimizerFactory",
    "adam",
    "adamw",
    "initialised",
    "master_weights",
    "scaled",
    "sgd",
]

HALF = (torch.float16, torch.bfloat16)

__getattr__ = renamed(__name__, {"born": "initialised"})


class OptimizerFactory(Protocol):
    """A function that makes an optimizer of a list of parameters."""

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class adam:
    """Adam (Kingma and Ba, ICLR 2015), to be built on the adapted parameters.

    >>> adam(1e-3)
    adam(lr=0.001, beta1=0.9, beta2=0.999, weight_decay=0.0)
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return OneCallAdam(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class sgd:
    """Stochastic gradient descent, to be built on the adapted parameters.

    >>> sgd(2.5e-4)
    sgd(lr=0.00025, momentum=0.9, weight_decay=0.0, nesterov=False)
    """

    lr: float = 2.5e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        from testtime.parts.one_call_sgd import OneCallSGD  # not loaded with methods that use Adam

        return OneCallSGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True)
class adamw:
    """AdamW (Loshchilov and Hutter, ICLR 2019), Adam with decoupled weight decay, to be built on the adapted parameters.

    >>> adamw(5e-3)
    adamw(lr=0.005, beta1=0.9, beta2=0.999, weight_decay=0.01)
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay)


def initialised(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Return an optimizer whose state exists before its first step, so that it can be saved and restored.

    The parameters keep their values. Entries have the initial values of the optimizer (the step sizes of Rprop, the
    accumulators of Adagrad); those that only its step creates are zero.

    Args:
        optimizer: optimizer, just built.
        parameters: its parameters.

    Raises:
        TypeError: this is no optimizer, its step needs a closure or sparse gradients, or its state per parameter holds
            something other than tensors.
    """
    advice = "use testtime.parts.adam, testtime.parts.sgd or functools.partial(torch.optim.AdamW, lr=1e-3)"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer= made a {type(optimizer).__name__}, expected a torch.optim.Optimizer; {advice}"
        )
    values = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    first = _first_state(optimizer)
    try:
        optimizer.step()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{type(optimizer).__name__} takes no step with dense gradients alone ({error}); {advice}"
        ) from error
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.grad = None
            p.copy_(value)
    for p, state in optimizer.state.items():
        for name, value in list(state.items()):
            if value is None:
                del state[name]
            elif isinstance(value, Tensor):
                state[name] = first.get((p, name), torch.zeros_like(value))
            else:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps {name!r} as {type(value).__name__}, which cannot be saved as a "
                    f"tensor; {advice}"
                )
    return optimizer


@contextmanager
def scaled(optimizer: torch.optim.Optimizer, rate: float) -> Iterator[None]:
    """Inside, every learning rate of the optimizer is multiplied by ``rate``; afterwards they are as before.

    >>> p = nn.Parameter(torch.ones(1))
    >>> p.grad, optimizer = torch.ones(1), torch.optim.SGD([p], lr=0.5)
    >>> with scaled(optimizer, 0.25):
    ...     optimizer.step()
    >>> p.item(), optimizer.param_groups[0]["lr"]
    (0.875, 0.5)
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, whole in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = whole * rate
        yield
    finally:
        for group, whole in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = whole


def _first_state(optimizer: Any) -> dict[tuple[Tensor, str], Tensor]:
    """Return the state before a step: that of the constructor, or of ``_init_group`` of torch's own optimizers."""
    if hasattr(optimizer, "_init_group"):
        for group in optimizer.param_groups:
            lists = len(inspect.signature(optimizer._init_group).parameters) - 1
            optimizer._init_group(group, *([] for _ in range(lists)))
    entries = [(p, name, value) for p, state in optimizer.state.items() for name, value in state.items()]
    return {(p, name): value.clone() for p, name, value in entries if isinstance(value, Tensor)}


class MasterWeights:
    """The weights of an optimizer: the parameters themselves, and float32 copies of those in half precision.

    A step of 1e-3 is rounded away in bfloat16, and Adam's 1e-8 is 0 in float16. A copy takes the value of a parameter that was
    changed by anything but the optimizer.

    Args:
        parameters: adapted parameters.

    >>> p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    >>> masters = MasterWeights([p])
    >>> for _ in range(8):
    ...     with masters.stepping([torch.ones_like(p)]):
    ...         torch.optim.SGD(masters.weights, lr=1e-3).step()
    >>> p, masters.weights[0]
    (Parameter containing:
    tensor([0.9922, 0.9922], dtype=torch.bfloat16, requires_grad=True), Parameter containing:
    tensor([0.9920, 0.9920], requires_grad=True))
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.weights = [nn.Parameter(p.detach().float()) if p.dtype in HALF else p for p in parameters]

    @contextmanager
    def stepping(self, gradients: Sequence[Tensor | None]) -> Iterator[None]:
        """Give the weights the gradients inside the context; afterwards remove them, and copy the weights to the parameters.

        Args:
            gradients: gradient of each parameter, or None.
        """
        pairs = list(zip(self.parameters, self.weights, strict=True))
        for (p, w), g in zip(pairs, gradients, strict=True):
            w.grad = g if g is None else g.to(w.dtype)
            if w is not p:
                w.data = torch.where(w.data.to(p.dtype) == p.data, w.data, p.data.to(w.dtype))
        yield
        for p, w in pairs:
            w.grad = None
            if w is not p:
                p.data.copy_(w.data)

    def follow(self, convert: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        """Convert the copies after the parameters were moved to another device or type.

        Args:
            convert: conversion of a tensor.
            optimizer: optimizer of the weights.
        """
        for i, (p, w) in enumerate(zip(self.parameters, self.weights, strict=True)):
            if w is not p:
                w.data = at_least_float32(w.data, convert)
            if (p.dtype in HALF) == (w is not p):
                continue
            if p.dtype in HALF:
                self.weights[i] = nn.Parameter(p.detach().float())
            else:
                self.weights[i], p.data = p, w.data
            if optimizer is not None:
                _replace(optimizer, w, self.weights[i])


def _replace(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor) -> None:
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]


def master_weights(optimizer: torch.optim.Optimizer) -> MasterWeights:
    """Return the weights of an optimizer, which from now on moves float32 copies of parameters in half precision.

    Args:
        optimizer: optimizer, just built on the parameters to train.

    >>> p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    >>> optimizer = torch.optim.Adam([p], lr=1e-4)
    >>> masters = master_weights(optimizer)
    >>> for _ in range(10):
    ...     with masters.stepping([torch.ones_like(p)]):
    ...         optimizer.step()
    >>> p
    Parameter containing:
    tensor([0.9990, 0.9990], dtype=torch.float16, requires_grad=True)
    """
    masters = MasterWeights([p for group in optimizer.param_groups for p in group["params"]])
    for p, w in zip(masters.parameters, masters.weights, strict=True):
        if w is not p:
            _replace(optimizer, p, w)
    return masters
