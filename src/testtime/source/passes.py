"""Training on the source before deployment, where a method needs it: passes over batches, with a checkpoint after each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.files import read_tensors, write_tensors
from testtime.intake.fingerprint import state_hash
from testtime.labels import IGNORE
from testtime.training import checkpoint
from testtime.training.loop import Files, Plan, Training

__all__ = ["class_loss", "passes_over"]


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a classifier, or over the labelled pixels of a segmenter.

    Args:
        logits: (N, C), or (N, C, H, W).
        labels: class indices (N,), or (N, H, W), where 255 is ignored.

    Raises:
        ValueError: labels of a segmenter do not fit its logits, or one is neither a class nor ignored.

    >>> class_loss(torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]]))  # log 4
    tensor(1.3863)
    """
    if logits.dim() == 2:
        return F.cross_entropy(logits, labels)
    n, classes, *size = logits.shape
    if tuple(labels.shape) != (n, *size):
        raise ValueError(
            f"expected labels {(n, *size)} for logits {tuple(logits.shape)}, got {tuple(labels.shape)}; resize the labels to "
            "the logits (nearest neighbour), or the logits to the labels in the model"
        )
    wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(
            f"label {wrong[0].item()} is none of the {classes} classes and not ignored ({IGNORE})"
        )
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp_min(1)


def passes_over(
    batches: Collection[tuple[Any, ...]],
    passes: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[..., Tensor],
    rate: Callable[[int], float],
    title: str | None = None,
    file: Path | None = None,
    described: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Train a module, and pause after every pass; see :class:`testtime.training.loop.Training`.

    Args:
        batches: batches of images, labels and what else ``loss`` takes, in the order in which they are used. A loader that
            shuffles by the global generator shuffles by ``seed`` here.
        passes: number of passes over the batches.
        module: module that is saved; its parameters include those of the optimizer.
        optimizer: optimizer, just built; a parameter group with an entry ``times`` learns at that multiple of the rate.
        loss: scalar loss of a batch.
        rate: learning rate of a pass; passes count from 0.
        title: title of the progress; None shows none.
        file: checkpoint that is written after every pass, and from which the same call continues; a log of the losses
            (``.jsonl``) lies beside it. None writes none.
        described: description of the training in values of JSON; the initial weights are added to it.
        seed: random seed of the global generators inside ``batches`` and ``loss``.

    Yields:
        number of the pass that is done; what the caller then changes in the module is saved.

    Raises:
        NonFiniteError: a loss or a gradient is not finite.
        WeightsError: the file belongs to another training.
        ValueError: there are no batches, or their number is not ``len(batches)``.
    """
    count = len(batches)
    if count == 0:
        raise ValueError("expected batches of the source to train on, got none")
    for group in optimizer.param_groups:
        group["lr"] = group.get("times", 1.0)
    files, facts = None, dict[str, Any](described or {})
    if file is not None:
        files = Files(file, log=file.with_suffix(".jsonl"))
        facts |= {"batches": count, "initial_weights": checkpoint.digest(module)}
        _convert(file, module, dict(described or {}), facts)
    plan = Plan(
        count * passes,
        lambda step: rate(step // count),
        log_every=count,
        save_every=count,
        save_seconds=math.inf,
    )
    name = title or f"training of {type(module).__name__}"
    training = Training(module, optimizer, plan, name, files, facts, seed, show=title is not None)
    remaining: Iterator[tuple[Any, ...]] = iter(())

    def of_batch(step: int) -> dict[str, Tensor]:
        nonlocal remaining
        if step % count == 0:
            remaining = iter(batches)
        batch = next(remaining, None)
        if batch is None:
            raise ValueError(
                f"{name}: expected {count} batches in every pass, as len(batches) says, got {step % count}"
            )
        return {"loss": loss(*batch)}

    for step in training.iterate(of_batch):
        if (step + 1) % count == 0:
            yield step // count


def _convert(file: Path, module: nn.Module, described: dict[str, Any], facts: dict[str, Any]) -> None:
    """Give a file of version 0.1, which counted passes, the description and the number of steps that it has today."""
    if not file.exists() or "began" not in checkpoint.described_in(file):
        return
    checkpoint.require(file, {**described, "began": state_hash(module)})
    tensors, metadata = read_tensors(file)
    steps = int(metadata["step"]) * facts["batches"]
    write_tensors(file, tensors, {"step": str(steps), "described": json.dumps(facts)})
