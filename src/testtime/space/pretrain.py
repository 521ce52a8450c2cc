r"""Pre-training on a space: AdamW on masked modelling, with checkpoints from which the same call continues exactly.

.. math:: \eta(t) = \eta_{base} \frac{\text{batch}}{256} \cdot
          \begin{cases} (t + 1) / w & t < w \\ \tfrac12 (1 + \cos \pi \tfrac{t - w}{T - w}) & t \ge w \end{cases}

The objective is a module: :class:`~testtime.space.model.FourM` (TST-MM), or another that turns a
:class:`~testtime.space.model.Batch` into losses by name, whose mean is minimised.

Departures from 4M: the loss of a modality is the mean over the tokens of the whole batch, whatever the number of parts and
processes (there, the mean of the means of the processes); tables of embeddings have no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from testtime.space.loader import Batches, loader
from testtime.space.masking import Masking
from testtime.space.model import Batch
from testtime.training.loop import Plan, Training, folder_files

__all__ = ["PAPER", "Recipe", "pretrain"]


@dataclass(frozen=True)
class Recipe:
    """Recipe of pre-training (table 9 of the paper of TST-MM).

    Attributes:
        steps: number of steps of the optimizer.
        batch: number of samples of a step.
        base_lr: largest learning rate for 256 samples.
        warmup: number of steps in which the learning rate rises.
        betas: betas of AdamW.
        weight_decay: weight decay of AdamW; biases, norms, embeddings and single vectors have none.
        inputs: number of input tokens of each sample.
        targets: number of target tokens of each sample.
        precision: "float32" or "bfloat16" (autocast).
        accumulate: number of parts that a batch is computed in, where it does not fit into memory.
        clip: largest norm of the gradient; 0 does not clip.
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
        """Return the learning rate of a step.

        Args:
            step: number of the step.

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
) -> nn.Module:
    """Pre-train a model; see :class:`testtime.training.loop.Training`.

    The folder holds a checkpoint, from which the same call continues, the log (``losses.jsonl``, every tenth step) and at the
    end the weights (``model.safetensors``), which the same call loads.

    Args:
        model: module that returns the losses of a batch by name; trained in place, from the weights that it has. A method
            ``advance(step, steps)`` is called after every step (for a teacher that follows the student). A method
            ``counts(batch)`` returns the number of tokens behind each loss, by which the parts of a batch are weighted;
            without it all parts have the same weight.
        batches: batches by step; every process takes its share.
        recipe: recipe of the training.
        folder: folder of this run alone.
        device: device of the training; not used with ``fabric``.
        workers: number of processes that prepare batches; 0 prepares them in this one.
        fabric: launched ``lightning.fabric.Fabric`` for several devices or nodes.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: the folder belongs to another run, batches and model or recipe do not fit, or processes do not divide the
            batch.
        NonFiniteError: a loss, a gradient or a weight is not finite; the last checkpoint is kept.
    """
    described = {
        "recipe": asdict(recipe),
        "seed": batches.seed,
        "repeat": batches.repeat,
        "parts": _parts(batches),
        "masking": _masking(batches.masking),
    }
    _fitting(model, batches, recipe)
    ranks = 1 if fabric is None else fabric.world_size
    if (recipe.batch // recipe.accumulate) % ranks:
        raise ValueError(
            f"{recipe.batch} samples in {recipe.accumulate} parts cannot be shared by {ranks} processes"
        )
    model.to(device if fabric is None else fabric.device).train()
    # The schedule gives absolute rates.
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=1.0, betas=recipe.betas)
    plan = Plan(
        recipe.steps,
        recipe.rate,
        recipe.precision,
        recipe.accumulate,
        recipe.clip,
        log_every=10,
        save_every=recipe.every,
    )
    files, title = folder_files(folder), f"pre-training {Path(folder).name}"
    training = Training(model, optimizer, plan, title, files, described, batches.seed, fabric)
    source = loader(batches, training.done, recipe.steps, workers)
    advance: Callable[[int, int], None] | None = getattr(model, "advance", None)
    for step in training.iterate(lambda _: _losses(model, training, next(source))):
        if advance is not None:
            advance(step, recipe.steps)
    return model.eval()


def _losses(model: nn.Module, training: Training, batch: Batch) -> Iterator[dict[str, Tensor]]:
    """Yield the losses of every part of a batch, weighted so that their mean is the loss of the whole batch."""
    counts: Callable[[Batch], dict[str, Tensor]] | None = getattr(model, "counts", None)
    rank, ranks, device = training.rank, training.ranks, next(model.parameters()).device
    parts = training.plan.accumulate * ranks
    whole = counts(batch) if counts is not None and parts > 1 else None
    for part in range(training.plan.accumulate):
        own = batch.part(rank + ranks * part, parts).to(device)
        losses: dict[str, Tensor] = training.module(own)
        if counts is not None and whole is not None:
            here = counts(own)
            losses = {k: v * (parts * here[k] / whole[k].clamp(min=1)) for k, v in losses.items()}
        yield {"loss": torch.stack(list(losses.values())).mean(), **losses}


def _fitting(model: nn.Module, batches: Batches, recipe: Recipe) -> None:
    masking = batches.masking
    if batches.batch != recipe.batch:
        raise ValueError(f"the batches are of {batches.batch} samples, the recipe of {recipe.batch}")
    if (masking.inputs, masking.targets) != (recipe.inputs, recipe.targets):
        raise ValueError(
            f"the masking has {masking.inputs} input and {masking.targets} target tokens, the recipe {recipe.inputs} "
            f"and {recipe.targets}"
        )
    streams = getattr(model, "streams", masking.streams)
    if streams != masking.streams:
        raise ValueError(
            f"the model is made for {', '.join(s.name for s in streams)}, in this order and of these lengths; the masking for "
            f"{', '.join(s.name for s in masking.streams)}"
        )


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices of linear layers with weight decay, all other parameters without."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    learning = [p for p in model.parameters() if p.requires_grad]
    heavy = [p for p in learning if p.dim() > 1 and id(p) not in tables]
    light = [p for p in learning if p.dim() <= 1 or id(p) in tables]
    return [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]


def _parts(batches: Batches) -> list[dict[str, Any]]:
    return [{"share": p.share, "only": p.only, **p.shards.about} for p in batches.parts]


def _masking(masking: Masking) -> dict[str, Any]:
    return {
        "streams": [asdict(s) for s in masking.streams],
        "components": [asdict(c) for c in masking.components],
    }
