r"""Shards of a batch: a model runs on one share of it in each process, and every process gets the outputs of the whole.

Every process holds the whole batch x and the same weights :math:`\theta`. Process r runs the network on rows :math:`x_r`, the
outputs are gathered, and everything after them (losses, filters, memories) is computed in every process on the same numbers.
With L the loss, equal everywhere, and :math:`y_r(\theta)` the outputs of process r,

.. math::
    \frac{\partial L}{\partial \theta} = \sum_r \frac{\partial L}{\partial y_r} \frac{\partial y_r}{\partial \theta}

so the gradient of each use of a parameter in the network is summed over the processes in the backward, as are the statistics of
BatchNorm layers in the forward and their gradients in the backward. Sums are taken in the order of the ranks, so that all
processes get the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from testtime.intake.trees import modules_of

__all__ = ["Group", "Shards", "current_shards", "shards_of"]

_CURRENT: ContextVar[Shards | None] = ContextVar("shards", default=None)


class Group(Protocol):
    """Processes that exchange tensors; equal calls in equal order in each of them."""

    rank: int
    size: int

    def gather(self, value: Tensor) -> list[Tensor]:
        """The tensors of all processes in the order of their ranks; all have one shape."""


def current_shards() -> Shards | None:
    """The shards of the forward that is under way in this thread, None outside of one."""
    return _CURRENT.get()


def shards_of(model: nn.Module) -> Shards | None:
    """The shards that the batches of a model are run in, None where it runs them whole."""
    found = (getattr(m, "shards", None) for m in modules_of(model, nn.Module))
    return next((shards for shards in found if isinstance(shards, Shards)), None)


@final
class Shards:
    """How the batches of a model are shared out over a group of processes.

    Args:
        group: the processes.

    Attributes:
        rows: number of rows that this process runs in the forward under way, and that all processes run; (0, N) where it
            has none: it then runs one row that counts for nothing.
        used: whether this process has ever shared out a batch.
    """

    used: ClassVar[bool] = False

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rows = (0, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shards:
        return self  # processes are not copied

    def run(self, network: nn.Module, call: Callable[[Any], Any], x: Any) -> Any:
        """Run a network on this process's rows of a batch, and gather the outputs of all.

        Args:
            network: network whose parameters take gradients.
            call: runs the network on rows (M, ...) and returns its logits (M, ...), or a dictionary of outputs by task.
            x: batch (N, ...), the same in every process.

        Returns:
            the outputs (N, ...) of the whole batch.
        """
        rows = self._rows(len(x))
        start, count = sum(rows[: self.group.rank]), rows[self.group.rank]
        if not len(x):
            return call(x)
        mine = _Part.apply(x, self.group, rows) if x.requires_grad else x[start : start + count]
        with self._under_way(count, len(x)), self._summed(network):
            y = call(mine if count else x[:1])
        if isinstance(y, Mapping):
            return {name: self.whole(value, len(x)) for name, value in y.items()}
        return self.whole(y, len(x))

    def whole(self, part: Tensor, n: int) -> Tensor:
        """What a forward of a batch of n rows left in each process, (M, ...), for the whole batch (n, ...)."""
        rows = self._rows(n)
        return _Gathered.apply(part[: rows[self.group.rank]], self.group, rows)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes; its gradient is summed too. That of an idle process counts as zero."""
        return _Sum.apply(value if self.rows[0] else value * 0, self.group)

    def values(self, x: Tensor) -> int:
        """Number of values of a channel in the whole batch, of which this process has x (M, C, ...)."""
        return x.numel() // x.shape[1] // max(1, self.rows[0]) * self.rows[1]

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of (N, C, ...) over the whole batch and its places."""
        over = [0, *range(2, x.dim())]
        n = self.values(x)
        mean = self.sum(x.sum(dim=over)) / n
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return mean, self.sum((x - mean.view(shape)).square().sum(dim=over)) / n

    def _rows(self, n: int) -> list[int]:
        """Number of rows of each process."""
        each, more = divmod(n, self.group.size)
        return [each + (rank < more) for rank in range(self.group.size)]

    @contextmanager
    def _under_way(self, mine: int, all_: int) -> Iterator[None]:
        self.rows = mine, all_
        Shards.used = True
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    @contextmanager
    def _summed(self, network: nn.Module) -> Iterator[None]:
        """Let the network use its parameters through a function that sums their gradients over the processes."""
        moving = {n: p for n, p in network.named_parameters(remove_duplicate=False) if p.requires_grad}
        if not moving or not torch.is_grad_enabled():
            yield
            return
        different = list({id(p): p for p in moving.values()}.values())
        used = dict(zip(map(id, different), _Summed.apply(self.group, *different), strict=True))
        places = [
            (network.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2], p) for n, p in moving.items()
        ]
        for module, name, p in places:
            module._parameters[name] = used[id(p)]  # as torch.func.functional_call does
        try:
            yield
        finally:
            for module, name, p in places:
                module._parameters[name] = p


def _sum(value: Tensor, group: Group) -> Tensor:
    return torch.stack(group.gather(value.contiguous())).sum(dim=0)


def _whole(part: Tensor, group: Group, rows: list[int]) -> Tensor:
    """The rows of all processes, of which each gives its own."""
    padded = part.new_zeros(max(rows), *part.shape[1:])
    padded[: len(part)] = part
    return torch.cat([other[:n] for other, n in zip(group.gather(padded), rows, strict=True)])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _sum(value.detach(), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0], ctx.group), None


class _Summed(torch.autograd.Function):
    """Parameters as they are; their gradients are summed over the processes, in one exchange."""

    @staticmethod
    def forward(ctx: Any, group: Group, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.set_materialize_grads(False)
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        found = [g for g in gradients if g is not None]  # the same in every process: their graphs are equal
        flat = _Sum.apply(torch.cat([g.reshape(-1) for g in found]), ctx.group)
        parts = iter(flat.split([g.numel() for g in found]))
        return None, *(None if g is None else next(parts).view_as(g) for g in gradients)


class _Gathered(torch.autograd.Function):
    """The rows of all processes; the gradient of a process is that of its own rows."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group, rows: list[int]) -> Tensor:
        ctx.mine = slice(sum(rows[: group.rank]), sum(rows[: group.rank + 1]))
        return _whole(part.detach(), group, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0][ctx.mine], None, None


class _Part(torch.autograd.Function):
    """The rows of this process; the gradient is that of the whole batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, rows: list[int]) -> Tensor:
        ctx.group, ctx.rows = group, rows
        return x.detach()[sum(rows[: group.rank]) : sum(rows[: group.rank + 1])].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _whole(gradients[0].detach(), ctx.group, ctx.rows), None, None
