"""SGD of torch, in few calls for all small parameters, without copies of large ones."""

from __future__ import annotations

import inspect
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from testtime.intake.journal import LARGE

__all__ = ["OneCallSGD"]


class OneCallSGD(torch.optim.SGD):
    r"""torch's SGD with the state and the numbers of torch's SGD, bit by bit.

    Parameters with fewer than 16,384 elements take their step together. A larger one and its momentum are written to new
    memory, so that their values before the step, which :class:`testtime.intake.journal.Journal` holds, need not be
    copied. On other devices the step is that of ``torch.optim.SGD``.

    Args:
        parameters: parameters, as of ``torch.optim.SGD``.
        kwargs: lr, momentum, weight_decay, dampening and nesterov of ``torch.optim.SGD``.

    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> OneCallSGD([p], lr=0.1).step()
    >>> p.data
    tensor([0.9000, 1.2000])
    """

    # As torch decorates it, it imports torch._dynamo, which takes a second.
    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step along ``grad`` of the parameters that have one."""
        if closure is not None or not all(self._takes(group) for group in self.param_groups):
            return super().step(closure)
        for group in self.param_groups:
            chosen = [p for p in group["params"] if p.grad is not None]
            starts = [group["momentum"] and self.state[p].get("momentum_buffer") is None for p in chosen]
            for p in compress(chosen, starts):
                self._start(p, group)
            moving = [p for p, start in zip(chosen, starts, strict=True) if not start]
            small = [p for p in moving if p.numel() < LARGE]
            if small:
                self._together(small, group)
            large = [p for p in moving if p.numel() >= LARGE]
            for p in large:
                self._replace(p, group)
            increment_version(large)
        return None

    def _takes(self, group: dict[str, Any]) -> bool:
        if group["maximize"] or group["differentiable"] or isinstance(group["lr"], Tensor):
            return False
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.device.type != "cpu" or p.grad.dtype != p.dtype or p.grad.layout != torch.strided:
                return False
        return True

    def _start(self, p: Tensor, group: dict[str, Any]) -> None:
        """Take the first step of a parameter, whose gradient becomes its momentum."""
        gradient = p.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        average = self.state[p]["momentum_buffer"] = gradient.clone()
        taken = gradient.add(average, alpha=group["momentum"]) if group["nesterov"] else average
        p.add_(taken, alpha=-group["lr"])

    def _together(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Take the step of small parameters in place, in the order of operations of ``torch.optim.SGD``."""
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["momentum"]:
            averages: list[Tensor] = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(averages, group["momentum"])
            torch._foreach_add_(averages, gradients, alpha=1 - group["dampening"])
            if group["nesterov"]:
                gradients = list(torch._foreach_add(gradients, averages, alpha=group["momentum"]))
            else:
                gradients = averages
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])

    def _replace(self, p: Tensor, group: dict[str, Any]) -> None:
        """Take the step of a parameter into new memory."""
        gradient = p.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        if group["momentum"]:
            average = self.state[p]["momentum_buffer"] * group["momentum"]
            average.add_(gradient, alpha=1 - group["dampening"])
            self.state[p]["momentum_buffer"] = average
            gradient = gradient.add(average, alpha=group["momentum"]) if group["nesterov"] else average
        p.data = p.data.add(gradient, alpha=-group["lr"])
