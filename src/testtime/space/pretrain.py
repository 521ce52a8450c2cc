r"""Pre-training on a space: AdamW on masked modelling, with checkpoints from which the same call goes on exactly.

.. math:: \eta(t) = \eta_{base} \frac{\text{batch}}{256} \cdot
          \begin{cases} (t + 1) / w & t < w \\ \tfrac12 (1 + \cos \pi \tfrac{t - w}{T - w}) & t \ge w \end{cases}

The objective is a module: :class:`~testtime.space.model.FourM` (TST-MM), or another that turns a
:class:`~testtime.space.model.Batch` into losses by name, whose mean is descended.

Departures from 4M: the mean of a modality is that over the tokens of the whole batch, however many parts and processes it is
taken through (there, the mean of the processes' means); tables of embeddings do not decay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from testtime.files import damaged, read_lines, write_lines
from testtime.progress import progress
from testtime.space.loader import Batches, loader
from testtime.space.masking import Masking
from testtime.space.model import Batch
from testtime.training import checkpoint

__all__ = ["PAPER", "Recipe", "pretrain"]

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a model is pre-trained (table 9 of the paper of TST-MM).

    Attributes:
        steps: of the optimizer.
        batch: samples of a step.
        base_lr: learning rate for 256 samples at its height.
        warmup: steps in which it rises.
        betas, weight_decay: of AdamW; biases, norms, embeddings and single vectors do not decay.
        inputs, targets: budgets of tokens for each sample.
        precision: "float32" or "bfloat16" (autocast).
        accumulate: parts that a batch is taken through in turn, where it does not fit.
        clip: norm that gradients are cut to; 0 leaves them.
        every: steps between two checkpoints.
    """

    steps: int
    batch: int = 4096
    base_lr: float = 1e-4
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    inputs: int = 128
    targets: int = 128
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    accumulate: int = 1
    clip: float = 0.0
    every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.every < 1:
            raise ValueError("steps, batch and every are at least 1")
        if self.inputs < 1 or self.targets < 1 or self.warmup < 0:
            raise ValueError(
                f"budgets are at least 1 and warmup at least 0, got {self.inputs}, {self.targets} and {self.warmup}"
            )
        if not 0 < self.base_lr < math.inf or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"base_lr is above 0 and betas in [0, 1), got {self.base_lr} and {self.betas}")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.clip < math.inf:
            raise ValueError(f"weight_decay and clip are at least 0, got {self.weight_decay} and {self.clip}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} is not divided by accumulate={self.accumulate}")

    def rate(self, step: int) -> float:
        """The learning rate of a step.

        >>> Recipe(steps=10, batch=512, warmup=2).rate(1)
        0.0002
        """
        height = self.base_lr * self.batch / 256
        if step < self.warmup:
            return height * (step + 1) / self.warmup
        return (
            height * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))
        )


PAPER: Mapping[str, Recipe] = {
    "S": Recipe(steps=95_367, warmup=9_537),
    "B": Recipe(steps=238_419, warmup=4_768, inputs=256, targets=256),
    "S from 4M-21": Recipe(steps=95_367, warmup=9_537, base_lr=5e-5),
    "B from 4M-21": Recipe(steps=47_684, warmup=4_768, base_lr=5e-5, inputs=256, targets=256),
}
"""The paper's schedules: 100 and 500 billion tokens from scratch, 100 from 4M-21."""


def pretrain(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    folder: str | Path,
    device: str | torch.device = "cpu",
    workers: int = 0,
    fabric: Any = None,
    say: Callable[[dict[str, float]], None] | None = None,
) -> nn.Module:
    """Pre-train a model.

    The folder holds a checkpoint, from which the same call continues as if it had never stopped, the losses of every tenth step
    (``losses.jsonl``), and at the end the weights (``model.safetensors``), from which the same call takes the answer.

    Args:
        model: gives the losses of a batch by name; trained in place, on its way from whatever weights it has. One that has
            a method ``advance(step, steps)`` (a teacher that follows) is called after every step. One that has a method
            ``counts(batch)`` says how many tokens each loss is the mean of, so that parts of a batch are weighed rightly;
            without it all parts weigh alike.
        batches: by step; every process takes its share.
        recipe: how.
        folder: of this run alone.
        device: where to train; not used with ``fabric``.
        workers: processes that make batches ahead; 0 makes them here.
        fabric: a launched ``lightning.fabric.Fabric`` for several devices or nodes.
        say: is told the losses of every tenth step.

    Raises:
        ValueError: the folder belongs to another run, batches and model or recipe do not fit, or processes do not divide the
            batch.
        ArithmeticError: the loss or a weight is not finite; the last checkpoint is kept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "recipe": asdict(recipe),
        "seed": batches.seed,
        "repeat": batches.repeat,
        "parts": _parts(batches),
        "masking": _masking(batches.masking),
    }
    _fitting(model, batches, recipe)
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    if (recipe.batch // recipe.accumulate) % ranks:
        raise ValueError(
            f"{recipe.batch} samples in {recipe.accumulate} parts cannot be shared by {ranks} processes"
        )
    if (folder / WEIGHTS).exists():
        _own(folder / WEIGHTS, described)
        checkpoint.load(folder / WEIGHTS, model)
        return model.eval()
    model.to(device if fabric is None else fabric.device).train()
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.rate(0), betas=recipe.betas)
    start = 0
    if (folder / CHECKPOINT).exists():
        _own(folder / CHECKPOINT, described)
        start = checkpoint.load(folder / CHECKPOINT, model, optimizer)
    if rank == 0:
        _keep(folder / "losses.jsonl", start)
    wrapped, optimizing = (model, optimizer) if fabric is None else fabric.setup(model, optimizer)
    where = next(model.parameters()).device
    half: Any = (
        torch.autocast(where.type, torch.bfloat16) if recipe.precision == "bfloat16" else nullcontext()
    )
    advance: Callable[[int, int], None] | None = getattr(model, "advance", None)
    counts: Callable[[Batch], dict[str, Tensor]] | None = getattr(model, "counts", None)
    parts = recipe.accumulate * ranks
    source = loader(batches, start, recipe.steps, workers)
    with torch.enable_grad():
        for step, batch in enumerate(
            progress(source, recipe.steps, f"pre-training {folder.name}", start) if rank == 0 else source,
            start,
        ):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            optimizing.zero_grad(set_to_none=True)
            whole = counts(batch) if counts is not None and parts > 1 else None
            told: dict[str, Tensor] = {}
            for part in range(recipe.accumulate):
                own = batch.part(rank + ranks * part, parts).to(where)
                with half:
                    losses: dict[str, Tensor] = wrapped(own)
                if counts is not None and whole is not None:
                    here = counts(own)
                    losses = {k: v * (parts * here[k] / whole[k].clamp(min=1)) for k, v in losses.items()}
                loss = torch.stack(list(losses.values())).mean() / recipe.accumulate
                if not bool(torch.isfinite(loss)):
                    raise ArithmeticError(
                        f"step {step}: the loss is {loss.item()}; lower base_lr (it is {recipe.base_lr})"
                    )
                loss.backward() if fabric is None else fabric.backward(loss)
                for name, value in losses.items():
                    share = value.detach() / recipe.accumulate
                    told[name] = told[name] + share if part else share
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizing.step()
            if advance is not None:
                advance(step, recipe.steps)
            last = step + 1 == recipe.steps
            if step % 10 == 0 or last:
                values = torch.stack(list(told.values()))
                values = values if fabric is None else fabric.all_reduce(values, reduce_op="mean")
                line = {"step": step, "loss": values.mean().item()}
                line |= dict(zip(told, values.tolist(), strict=True))
                if rank == 0:
                    with (folder / "losses.jsonl").open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    if say is not None:
                        say(line)
            if (step + 1) % recipe.every == 0 or last:
                if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
                    raise ArithmeticError(
                        f"step {step}: a weight is not finite; lower base_lr (it is {recipe.base_lr})"
                    )
                if rank == 0 and not last:
                    checkpoint.save(folder / CHECKPOINT, model, optimizer, step + 1, described)
    if rank == 0:
        checkpoint.save(folder / WEIGHTS, model, None, recipe.steps, described)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    if fabric is not None:
        fabric.barrier()
    return model.eval()


def _fitting(model: nn.Module, batches: Batches, recipe: Recipe) -> None:
    masking = batches.masking
    if batches.batch != recipe.batch:
        raise ValueError(f"the batches are of {batches.batch} samples, the recipe of {recipe.batch}")
    if (masking.inputs, masking.targets) != (recipe.inputs, recipe.targets):
        raise ValueError(
            f"the masking shows {masking.inputs} tokens and asks for {masking.targets}, the recipe says {recipe.inputs} "
            f"and {recipe.targets}"
        )
    streams = getattr(model, "streams", masking.streams)
    if streams != masking.streams:
        raise ValueError(
            f"the model is made for {', '.join(s.name for s in streams)}, in this order and of these lengths; the masking for "
            f"{', '.join(s.name for s in masking.streams)}"
        )


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices of linear layers decay; biases, norms, embeddings and single vectors do not."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    learning = [p for p in model.parameters() if p.requires_grad]
    heavy = [p for p in learning if p.dim() > 1 and id(p) not in tables]
    light = [p for p in learning if p.dim() <= 1 or id(p) in tables]
    return [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]


def _parts(batches: Batches) -> list[dict[str, Any]]:
    return [{"share": p.share, "only": p.only, **p.shards.about} for p in batches.parts]


def _own(path: Path, described: Mapping[str, Any]) -> None:
    if not checkpoint.belongs(path, described):
        raise ValueError(
            f"{path} belongs to another recipe, seed or data; choose another folder, or delete it"
        )


def _masking(masking: Masking) -> dict[str, Any]:
    return {
        "streams": [asdict(s) for s in masking.streams],
        "components": [asdict(c) for c in masking.components],
    }


def _keep(path: Path, start: int) -> None:
    """Keep the lines of a run up to a step; what a killed run wrote after its checkpoint is written again."""
    lines = read_lines(path, "delete it", torn=True) if path.exists() else []
    with damaged(path, "delete it and run the same command again"):
        write_lines(path, [line for line in lines if line["step"] < start])
