"""Optimizers as values: what to build, said before there are parameters to build it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["OptimizerFactory", "adam", "born", "sgd"]


class OptimizerFactory(Protocol):
    """Anything that makes an optimizer of a list of parameters."""

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class adam:
    """Adam (Kingma and Ba, ICLR 2015), to be built on the parameters that an adapter moves.

    >>> adam(1e-3)
    adam(lr=0.001, beta1=0.9, beta2=0.999, weight_decay=0.0)
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class sgd:
    """Stochastic gradient descent, to be built on the parameters that an adapter moves.

    >>> sgd(2.5e-4)
    sgd(lr=0.00025, momentum=0.9, weight_decay=0.0, nesterov=False)
    """

    lr: float = 2.5e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def born(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Bring the optimizer's state into being before its first step, all zero, so that it can be saved and restored.

    Raises:
        TypeError: the optimizer keeps something other than tensors per parameter.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for name, value in list(state.items()):
            if value is None:
                del state[name]
            elif isinstance(value, Tensor):
                value.zero_()
            else:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps {name!r} as {type(value).__name__}, which cannot be saved as a "
                    "tensor; use testtime.adam, testtime.sgd or an optimizer of torch.optim"
                )
    return optimizer
