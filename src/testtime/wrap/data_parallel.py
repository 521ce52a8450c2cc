"""One adapter on the batches of several processes, as if they were one batch in one process."""

from __future__ import annotations

import copy
import datetime
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, final

import torch
import torch.distributed as dist
from torch import Tensor

from testtime.adapter import Adapter, state_hash
from testtime.errors import RankError
from testtime.gate import batch_of
from testtime.intake.named import Inputs, NamedTensors, layout, packed, unpacked
from testtime.intake.outputs import Logits
from testtime.intake.shards import Group, Shards

__all__ = ["DataParallel"]

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
"""Types of a share; the last is that of a dictionary whose samples are packed into bytes."""
REFUSED = -1  # in place of a number of samples: this process got a batch that it cannot take
DIMENSIONS = 8


@final
class DataParallel:
    r"""Adapt one model to one stream whose batches are spread over several processes.

    Every process calls it with its own share of a batch, and gets the predictions of that share. The shares are gathered; the
    network runs on an equal part of the rows in each process, with BatchNorm statistics of the whole batch; and the method
    computes its loss, filters and memory on all outputs in every process (:mod:`testtime.intake.shards`). So any
    method gives what it gives in one process on the shares in the order of the ranks, up to rounding, and all processes hold
    equal states, bit for bit. Shares may differ in size, and all but one may be empty: ``x[:0]``.

    Args:
        adapter: an adapter of one network, built in every process on the same weights with the same arguments. Its state has
            the same names as without processes: a state saved here continues there.
        group: the processes, a group of ``torch.distributed`` (all unless given), or any
            :class:`testtime.intake.shards.Group`.
        timeout: seconds after which a process that does not answer is given up.
        check_every: steps between two comparisons of the states of the processes; 0 compares never.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialised.
        TypeError: no adapter.
        ValueError: a layer mixes the samples of a batch otherwise than by the statistics of BatchNorm (EcoTTA, ITTA,
            NHL, :func:`testtime.norm.unmix_tns`, several models in one pass).
        RankError: the processes hold different states, so that they were not built alike.

    Cost: for every forward, the outputs and two statistics for each BatchNorm layer are exchanged, and for every backward the
    gradients of the adapted parameters once. The images of a batch are exchanged once.

    Departures: ``torch.nn.SyncBatchNorm`` does not take tensors of a CPU; the statistics here are sums of autograd functions.
    """

    def __init__(
        self, adapter: Adapter, group: Any = None, timeout: float = 60.0, check_every: int = 100
    ) -> None:
        if not isinstance(adapter, Adapter):
            raise TypeError(
                f"DataParallel runs an adapter, got {type(adapter).__name__}; build one: Tent(model)"
            )
        if not timeout > 0 or check_every < 0:
            raise ValueError(
                f"timeout is a number of seconds above 0 and check_every counts steps, got {timeout} and {check_every}"
            )
        _refuse(adapter)
        self.adapter = adapter
        self.check_every = check_every
        self.processes: Group = group if hasattr(group, "gather") else _Processes(group, timeout)
        self.check()

    def __call__(self, x: Tensor | Mapping[str, Tensor]) -> Any:
        """Adapt to the batch of all processes, and predict the share of this one.

        Args:
            x: share of this process (N_r, C, H, W), floating point, token ids (N_r, T), or a dictionary of tensors (N_r, ...)
                of the same names, types and lengths everywhere; N_r may be 0, but not in all processes.

        Returns:
            predictions of the N_r samples, as those of the adapter.

        Raises:
            TypeError, ValueError: a share is no batch that fits the others; raised in every process, which names the rank. The
                state is as before.
            RankError: a process was lost or is late. The state is that before the step; start the processes again from a
                saved state.
        """
        return self._shared(self.adapter, x)

    def predict(self, x: Tensor | Mapping[str, Tensor]) -> Any:
        """Predict the shares without learning. Arguments, results and errors as of a call."""
        return self._shared(self.adapter.predict, x)

    def prepare(self, source: Iterable[Any]) -> None:
        """Prepare the adapter from source batches.

        Args:
            source: batches as the adapter's ``prepare`` takes them, the same in every process; the network's passes are
                shared out, the batches are not.
        """
        with self._sharing():
            self.adapter.prepare(source)

    def reset(self) -> None:
        """Return to the initial state, in every process."""
        self.adapter.reset()

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's state, the same in every process."""
        state: dict[str, Tensor] = self.adapter.state_dict()
        return state

    def load_state_dict(self, state: Any) -> None:
        """Continue from a saved state, loaded in every process.

        Raises:
            ValueError: the state does not fit the adapter.
            RankError: the processes loaded different states.
        """
        self.adapter.load_state_dict(state)
        self.check()

    def check(self) -> None:
        """Compare the states of the processes.

        Raises:
            RankError: they differ.
        """
        own = torch.frombuffer(bytearray.fromhex(state_hash(self.adapter)), dtype=torch.uint8)
        others = self.processes.gather(own)
        if different := [rank for rank, other in enumerate(others) if not torch.equal(other, others[0])]:
            raise RankError(
                f"the states of ranks {different} differ from that of rank 0; build the adapter in every process on the same "
                "weights with the same arguments and seed, or load one saved state in all"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = memo[id(self)] = copy.copy(self)
        other.adapter = copy.deepcopy(self.adapter, memo)
        return other

    def _shared(self, call: Any, x: Any) -> Any:
        whole, mine = self._whole(x)
        with self._sharing():
            y = call(whole)
        if self.check_every and int(self.adapter.clock) % self.check_every == 0:
            self.check()
        return y.at(torch.arange(len(whole))[mine].to(whole.device))

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        networks = [m for m in self.adapter.modules() if isinstance(m, Logits)]
        for network in networks:
            network.shards = Shards(self.processes)
        try:
            yield
        finally:
            for network in networks:
                network.shards = None

    def _whole(self, x: Any) -> tuple[Inputs, slice]:
        """The batch of all processes, and which rows are this one's."""
        mine = _share(x)
        own, device = torch.zeros(DIMENSIONS + 2, dtype=torch.int64), torch.device("cpu")
        if mine is None:
            own[0] = REFUSED
        else:
            value = packed(mine) if isinstance(mine, NamedTensors) else mine
            form = [len(value), TYPES.index(value.dtype), value.dim(), *value.shape[1:]]
            own[: len(form)], device = torch.tensor(form), value.device
            if isinstance(mine, NamedTensors):
                own[-1] = int.from_bytes(hashlib.sha256(layout(mine).encode()).digest()[:7], "big")
        forms = [form.tolist() for form in self.processes.gather(own.to(device))]
        if bad := [rank for rank, form in enumerate(forms) if form[0] == REFUSED]:
            got = f"; this one is rank {self.processes.rank} and got {_shown(x)}" if mine is None else ""
            raise TypeError(
                f"ranks {bad} got no batch: images (N, C, H, W), token ids (N, T) or a dictionary of tensors (N, ...){got}"
            )
        if len({tuple(form[1:]) for form in forms}) > 1:
            shapes = ", ".join(f"rank {r}: {_described(form)}" for r, form in enumerate(forms))
            raise ValueError(
                f"the shares of a batch have one type and one shape but for the number of samples, got {shapes}; this one is "
                f"rank {self.processes.rank} and has {_shown(x)}"
            )
        rows = [form[0] for form in forms]
        if not sum(rows):
            raise ValueError("expected a sample in one of the processes at least, got empty shares in all")
        padded = value.new_zeros(max(rows), *value.shape[1:])
        padded[: len(value)] = value.detach()
        parts = [part[:n] for part, n in zip(self.processes.gather(padded), rows, strict=True)]
        start, whole = sum(rows[: self.processes.rank]), torch.cat(parts)
        found = unpacked(whole, mine) if isinstance(mine, NamedTensors) else whole
        return found, slice(start, start + len(value))


def _share(x: Any) -> Inputs | None:
    """The share of a process as a batch; None where it is none, which all processes have to know."""
    if isinstance(x, Mapping):
        try:
            return batch_of(x)
        except (TypeError, ValueError):
            return None
    fits = isinstance(x, Tensor) and x.dtype in TYPES[:-1] and 1 <= x.dim() <= DIMENSIONS
    return x if fits and (x.is_floating_point() or x.dim() <= 2) else None  # or token ids


def _described(form: list[int]) -> str:
    """The form of a share as it was exchanged."""
    shape, kind = tuple(form[0:1] + form[3 : 2 + form[2]]), TYPES[form[1]]
    return (
        f"{shape}, {kind}" if kind != torch.uint8 else f"a dictionary of {form[0]} samples of {form[3]} bytes"
    )


def _refuse(adapter: Adapter) -> None:
    """Refuse a network whose layers mix samples otherwise than by the statistics of BatchNorm.

    Raises:
        ValueError: it holds such a layer.
    """
    for name, module in adapter.named_modules():
        if getattr(module, "mixes_samples", False):
            raise ValueError(
                f"{type(adapter).__name__} cannot share its batches out: its layer {name} ({type(module).__name__}) mixes the "
                "samples of a batch in a way that is not summed over processes; use another method or norm policy, and "
                "batched=False where a method runs several models in one pass"
            )


def _shown(x: Any) -> str:
    if isinstance(x, Mapping) and all(isinstance(value, Tensor) for value in x.values()):
        return layout(NamedTensors(x)) or "an empty dictionary"
    return f"{tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


@final
class _Processes:
    """A group of ``torch.distributed`` whose failures are one kind of error."""

    def __init__(self, group: Any, timeout: float) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "DataParallel needs processes: start them with torchrun, and call "
                'torch.distributed.init_process_group("gloo") (CPU) or ("nccl") first'
            )
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.group = dist.new_group(
            ranks, timeout=datetime.timedelta(seconds=timeout), use_local_synchronization=True
        )
        self.rank, self.size = dist.get_rank(self.group), len(ranks)

    def gather(self, value: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks.

        Raises:
            RankError: a process was lost, or did not answer in time.
        """
        found = [torch.empty_like(value) for _ in range(self.size)]
        try:
            dist.all_gather(found, value, group=self.group)
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.size} lost another process ({str(error).splitlines()[0][:200]}); the state is that "
                "before the step: start all processes again from a saved state"
            ) from error
        return found
