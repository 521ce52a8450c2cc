"""Adam of torch, in one call for all small parameters, without copies of large ones."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from testtime.intake.journal import LARGE

__all__ = ["OneCallAdam"]


class OneCallAdam(torch.optim.Adam):
    r"""torch's Adam with the state of torch's Adam, as fast as the arithmetic on a CPU.

    Parameters with fewer than 16,384 elements take their step together, in torch's fused kernel. A larger one is written to
    new memory, so that its value before the step, which :class:`testtime.intake.journal.Journal` holds, need not be
    copied. On other devices the step is that of ``torch.optim.Adam``.

    Args:
        parameters: parameters, as of ``torch.optim.Adam``.
        kwargs: lr, betas, eps and weight_decay of ``torch.optim.Adam``.

    Reference: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.

    >>> p = torch.nn.Parameter(torch.ones(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> OneCallAdam([p], lr=0.1).step()
    >>> p.data
    tensor([0.9000, 1.1000])
    """

    # As torch decorates it, it imports torch._dynamo, which takes a second.
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step along ``grad`` of the parameters that have one."""
        plain = closure is None and all(self._takes(group) for group in self.param_groups)
        if not plain:
            return super().step(closure)
        for group in self.param_groups:
            chosen = [p for p in group["params"] if p.grad is not None]
            self._fused([p for p in chosen if p.numel() < LARGE], group)
            for p in chosen:
                if p.numel() >= LARGE:
                    self._replace(p, group)
            increment_version(chosen)  # neither way of writing counts as one
        return None

    def _takes(self, group: dict[str, Any]) -> bool:
        if group["amsgrad"] or group["maximize"] or group["capturable"] or isinstance(group["lr"], Tensor):
            return False
        for p in group["params"]:
            state, grad = self.state.get(p), p.grad
            if grad is None:
                continue
            if not state or p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64):
                return False
            if grad.dtype != p.dtype or grad.layout != torch.strided:
                return False
        return True

    def _fused(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Take the step of small parameters of one type in one call, in place."""
        for dtype in {p.dtype for p in parameters}:
            chosen = [p for p in parameters if p.dtype == dtype]
            states = [self.state[p] for p in chosen]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                chosen,
                [p.grad for p in chosen if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _replace(self, p: Tensor, group: dict[str, Any]) -> None:
        """Take the step of a parameter into new memory, in the order of operations of ``torch.optim.Adam``."""
        (beta1, beta2), state, grad = group["betas"], self.state[p], p.grad
        assert grad is not None
        if group["weight_decay"]:
            grad = grad.add(p, alpha=group["weight_decay"])
        step = state["step"] + 1
        average = state["exp_avg"].lerp(grad, 1 - beta1)
        square = (state["exp_avg_sq"] * beta2).addcmul_(grad, grad, value=1 - beta2)
        taken = step.item()
        spread = square.sqrt().div_(math.sqrt(1 - beta2**taken)).add_(group["eps"])
        p.data = p.data.addcdiv(average, spread, value=-group["lr"] / (1 - beta1**taken))
        state.update(step=step, exp_avg=average, exp_avg_sq=square)
