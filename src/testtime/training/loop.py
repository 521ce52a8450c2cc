"""The one training loop: it resumes exactly, writes one log and raises one kind of error.

A :class:`Training` holds what is trained, its optimizer and its plan; the caller gives ``loss(step)`` and iterates:

    training = Training(model, optimizer, Plan(steps=1000, schedule=cosine), "my model", folder_files("runs/1"), described)
    for step in training.iterate(loss):
        if step % 100 == 0:
            evaluate(model)

A training that was killed and is called again ends with the same weights, bit for bit. Three things make that true: the state
(weights, buffers, optimizer, number of steps) is in the checkpoint, the schedule is a function of the step, and the global
generators are, inside ``loss``, a function of (seed, step). So ``loss`` must depend on nothing but the step and the state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from testtime.errors import NonFiniteError, WeightsError
from testtime.files import damaged, read_lines, write_lines
from testtime.parts.optimizers import master_weights
from testtime.parts.randomness import seeded
from testtime.processor import Precision
from testtime.progress import progress
from testtime.training import checkpoint

__all__ = ["Files", "Loss", "Plan", "Training", "folder_files"]

Losses = Mapping[str, Tensor]
Loss = Callable[[int], Losses | Iterable[Losses]]
"""From the number of a step to its losses by name, or to those of each part of its batch."""

RESERVED = ("step", "lr", "rate")
AGAIN = "delete it and run the same command again"


@dataclass(frozen=True)
class Plan:
    """How a training runs.

    Attributes:
        steps: number of steps of the optimizer.
        schedule: factor of the learning rate of every parameter group, as a function of the step; None leaves it alone.
        precision: "float32", or "bfloat16" for an autocast of the forward pass (``testtime.processor.resolve_precision``).
        accumulate: number of parts that a batch is computed in, one after the other.
        clip: largest norm of the gradient; 0 does not clip.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints.
        save_seconds: seconds after which a checkpoint is written in any case.

    Raises:
        ValueError: a number is out of its range.
    """

    steps: int
    schedule: Callable[[int], float] | None = None
    precision: Precision = "float32"
    accumulate: int = 1
    clip: float = 0.0
    log_every: int = 100
    save_every: int = 1000
    save_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.accumulate, self.log_every, self.save_every) < 1:
            raise ValueError(
                "expected steps of at least 0, and accumulate, log_every and save_every of at least 1, got "
                f"{self.steps}, {self.accumulate}, {self.log_every} and {self.save_every}"
            )
        if not 0 <= self.clip < math.inf or not self.save_seconds > 0:
            raise ValueError(
                f"expected clip to be 0 or more and save_seconds above 0, got {self.clip} and {self.save_seconds}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")


@dataclass(frozen=True)
class Files:
    """Files that a training writes.

    Attributes:
        checkpoint: state of the unfinished training.
        weights: weights of the finished training, which take the checkpoint's place; None keeps the checkpoint instead.
        log: JSON Lines, one for every ``log_every``-th step: the step, the losses by name, the largest learning rate of
            all parameter groups (lr) and the steps per second (rate); None writes no log.
    """

    checkpoint: Path
    weights: Path | None = None
    log: Path | None = None


def folder_files(folder: str | Path, weights: str = "model.safetensors") -> Files:
    """Return the files of a training that has a folder of its own.

    Args:
        folder: the folder.
        weights: name of the file of weights.

    >>> folder_files("run").log.name
    'losses.jsonl'
    """
    folder = Path(folder)
    return Files(folder / "checkpoint.safetensors", folder / weights, folder / "losses.jsonl")


@final
class Training:
    """A training, from its first step or from a checkpoint.

    Where the files hold the weights of the finished training, these are loaded and no step is left.

    Args:
        module: module whose state is saved; its parameters include those of the optimizer. It is on its device, and is
            trained in place.
        optimizer: optimizer, just built; parameters in half precision are moved through float32 copies.
        plan: plan of the training.
        title: name of what is trained, for progress and errors.
        files: files; None writes none.
        described: recipe, seed and data in values of JSON; files that were described otherwise are refused.
        seed: random seed of the global generators inside the loss.
        fabric: launched ``lightning.fabric.Fabric`` for several devices or nodes.
        show: whether progress is shown.

    Attributes:
        module: the module to call in the loss; with ``fabric``, as it was set up.
        done: number of steps that are done.
        rank: index of this process.
        ranks: number of processes.

    Raises:
        WeightsError: the files belong to another training or to another model.
        DataError: a file is damaged.
        ValueError: ``fabric`` scales losses (precision "16-mixed"), which the check for gradients that are not finite forbids.

    >>> net, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    >>> training = Training(net, torch.optim.SGD(net.parameters(), lr=0.25), Plan(steps=40), "net", show=False)
    >>> training.run(lambda step: {"error": (net(x) - 3).square().sum()})
    >>> training.done, round(net.weight.item(), 4)
    (40, 3.0)
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        title: str,
        files: Files | None = None,
        described: Mapping[str, Any] | None = None,
        seed: int = 0,
        fabric: Any = None,
        show: bool = True,
    ) -> None:
        self.plan, self.title, self.files, self.seed, self.show = plan, title, files, seed, show
        self.described = dict(described or {})
        self.rank: int = 0 if fabric is None else fabric.global_rank
        self.ranks: int = 1 if fabric is None else fabric.world_size
        if getattr(getattr(getattr(fabric, "strategy", None), "precision", None), "scaler", None) is not None:
            raise ValueError(
                f"{title}: this Fabric scales losses; launch it with precision 'bf16-mixed' or '32-true'"
            )
        self.done, self._saved = 0, 0
        self._own, self._optimizer, self._fabric = module, optimizer, fabric
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._masters = master_weights(optimizer)
        trained = {id(p) for p in self._masters.parameters}
        self._trained = [p for p in module.parameters() if id(p) in trained]
        pairs = zip(self._masters.parameters, self._masters.weights, strict=True)
        copies = nn.ParameterList(w for p, w in pairs if w is not p)
        self._kept = nn.ModuleDict({"module": module, "masters": copies}) if copies else module
        self._resume()
        set_up: Any = (module, optimizer) if fabric is None else fabric.setup(module, optimizer)
        self.module: nn.Module = set_up[0]
        self._optimizing: Any = set_up[1]

    def run(self, loss: Loss) -> None:
        """Take all steps that are left; see :meth:`iterate`."""
        for _ in self.iterate(loss):
            pass

    def iterate(self, loss: Loss) -> Iterator[int]:
        """Take the steps that are left, and hand back control after each.

        Args:
            loss: function of the step that returns losses by name, as scalars. The loss named "loss" is the objective and the
                others are only logged; where there is none of that name, the objective is their sum. With ``accumulate``
                above 1, the function returns an iterable of as many dictionaries, each computed when it is asked for; their
                mean is the objective.

        Yields:
            number of the step that was taken. What the caller then changes in the module is part of the next checkpoint.

        Raises:
            NonFiniteError: a loss, a gradient or a weight is not finite. The weights have not taken that step, and the last
                checkpoint is kept.
            ValueError: the loss gives other parts than ``accumulate``, or uses a name of the log.
        """
        steps = range(self.done, self.plan.steps)
        if not steps:
            return
        self._truncate_log()
        shown = self.show and self.rank == 0
        begin = saved = time.monotonic()
        first = self.done
        for step in progress(steps, self.plan.steps, self.title, first) if shown else steps:
            losses = self._step(step, loss)
            self.done = step + 1
            last = self.done == self.plan.steps
            if step % self.plan.log_every == 0 or last:
                self._log(step, losses, (self.done - first) / max(time.monotonic() - begin, 1e-9))
            yield step
            due = self.done % self.plan.save_every == 0 or time.monotonic() - saved >= self.plan.save_seconds
            if due and not last:
                self._save()
                saved = time.monotonic()
        self._finish()

    def _step(self, step: int, loss: Loss) -> dict[str, Tensor]:
        if self.plan.schedule is not None:
            factor = self.plan.schedule(step)
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
        self._clear()
        device = next(self._own.parameters()).device
        purpose = f"model/{self.rank}" if self.rank else "model"
        with torch.enable_grad(), seeded(self.seed, step, purpose, device):
            losses = self._backward(step, loss, device)
        problem = self._problem(losses["loss"])
        if problem is not None:
            self._clear()
            raise self._error(problem, step)
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self._trained, self.plan.clip)
        with self._masters.stepping([p.grad for p in self._masters.parameters]):
            self._optimizing.step()
        self._clear()
        return losses

    def _backward(self, step: int, loss: Loss, device: torch.device) -> dict[str, Tensor]:
        """Accumulate the gradients of all parts of a batch, and return its losses, "loss" among them."""
        half: Any = nullcontext()
        if self.plan.precision == "bfloat16":
            half = torch.autocast(device.type, torch.bfloat16)
        share, summed, parts = self.plan.accumulate, dict[str, Tensor](), 0
        with half:
            given = loss(step)
        remaining = iter((given,) if isinstance(given, Mapping) else given)
        while True:
            with half:
                part = next(remaining, None)
            if part is None:
                break
            if wrong := [name for name in RESERVED if name in part]:
                raise ValueError(
                    f"{self.title}: the log has its own {wrong[0]!r}; give that loss another name"
                )
            total = part["loss"] if "loss" in part else torch.stack(list(part.values())).sum()
            total = total / share
            total.backward() if self._fabric is None else self._fabric.backward(total)
            here = {"loss": total.detach()}
            here |= {name: value.detach() / share for name, value in part.items() if name != "loss"}
            summed = {name: summed[name] + v for name, v in here.items()} if summed else here
            parts += 1
        if parts != share:
            raise ValueError(f"{self.title}: loss({step}) gave {parts} parts, expected accumulate={share}")
        return summed

    def _problem(self, total: Tensor) -> str | None:
        """What is not finite, on any process; None if all is."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        largest = [torch.linalg.vector_norm(g, math.inf).to(total.device) for g in gradients]
        finite = [torch.isfinite(total), torch.isfinite(torch.stack(largest or [total])).all()]
        wrong = 1 - torch.stack(finite).float()
        if self.ranks > 1:
            wrong = self._fabric.all_reduce(wrong, reduce_op="sum")
        in_loss, in_gradients = wrong.tolist()
        if in_loss:
            here = bool(torch.isfinite(total))
            return "the loss of another process is not finite" if here else f"the loss is {total.item()}"
        return "a gradient is not finite" if in_gradients else None

    def _error(self, problem: str, step: int) -> NonFiniteError:
        rate = max(float(group["lr"]) for group in self._optimizer.param_groups)
        kept = ""
        if self.files is not None and self._saved:
            kept = f"; {self.files.checkpoint} keeps the state after {self._saved} steps"
        return NonFiniteError(
            f"{self.title}, step {step}: {problem}; check that inputs and labels are finite, or lower the learning rate (it "
            f"is {rate:g}){kept}"
        )

    def _clear(self) -> None:
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                p.grad = None  # Optimizer.zero_grad imports torch._dynamo, which takes a second
        self._own.zero_grad(set_to_none=True)

    def _resume(self) -> None:
        files, steps = self.files, self.plan.steps
        if files is None:
            return
        if files.weights is not None and files.weights.exists():
            checkpoint.require(files.weights, self.described)
            checkpoint.load(files.weights, self._own)
            self.done = steps
        elif files.checkpoint.exists():
            checkpoint.require(files.checkpoint, self.described)
            self.done = self._saved = checkpoint.load(files.checkpoint, self._kept, self._optimizer)
            if self.done > steps:
                raise WeightsError(
                    f"{files.checkpoint} is of a training of {self.done} steps, more than the {steps} asked for; choose "
                    "another file, or delete it"
                )

    def _save(self) -> None:
        self._check_weights()
        if self.files is not None and self.rank == 0:
            checkpoint.save(self.files.checkpoint, self._kept, self._optimizer, self.done, self.described)
        self._saved = self.done

    def _finish(self) -> None:
        if self.files is None or self.files.weights is None:
            self._save()
        else:
            self._check_weights()
            if self.rank == 0:
                checkpoint.save(self.files.weights, self._own, None, self.done, self.described)
                self.files.checkpoint.unlink(missing_ok=True)
        if self._fabric is not None:
            self._fabric.barrier()

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self._own.parameters()):
            raise self._error("a weight is not finite", self.done - 1)

    def _log(self, step: int, losses: Mapping[str, Tensor], rate: float) -> None:
        if self.files is None or self.files.log is None:
            return
        values = torch.stack([value.float() for value in losses.values()])
        if self.ranks > 1:
            values = self._fabric.all_reduce(values, reduce_op="mean")
        if self.rank == 0:
            line = {"step": step, **dict(zip(losses, values.tolist(), strict=True))}
            line |= {
                "lr": max(float(g["lr"]) for g in self._optimizer.param_groups),
                "rate": float(f"{rate:.4g}"),
            }
            with self.files.log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _truncate_log(self) -> None:
        """Keep the lines of the steps that are done; those that a killed process wrote later are written again."""
        if self.rank or self.files is None or self.files.log is None:
            return
        path = self.files.log
        lines = read_lines(path, AGAIN, torn=True) if path.exists() else []
        with damaged(path, AGAIN):
            write_lines(path, [line for line in lines if line["step"] < self.done])
