"""Training on the source before deployment, where a method needs it: passes over batches, with a checkpoint after each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from testtime.intake.fingerprint import state_hash
from testtime.parts.optimizers import Descent
from testtime.progress import progress
from testtime.training import checkpoint

__all__ = ["passes_over"]


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
) -> Iterator[int]:
    """Train a module, and pause after every pass; parameters in half precision are trained as float32 copies.

    Args:
        batches: images, labels and what else ``loss`` takes, shown in the order they have; a loader that shuffles is one.
        passes: how often they are shown.
        module: what is saved; the optimizer's parameters are among its own.
        optimizer: moves them; a group of parameters with an entry ``times`` learns at that multiple of the rate.
        loss: of a batch, a scalar.
        rate: the learning rate of a pass, which are counted from 0.
        title: says how far the training is; None says nothing.
        file: a checkpoint after every pass, from which the same call continues; None for none.
        described: what the checkpoint belongs to, in values of JSON; that it began with the same weights is seen to here.

    Yields:
        the number of the pass that is done; what the caller changes in the module before going on is saved.

    Raises:
        ValueError: the loss or a gradient is not finite, or the file belongs to another training.
    """
    descent = Descent(optimizer)
    kept = descent.kept(module)
    start, facts = 0, {**(described or {}), "began": state_hash(module) if file else ""}
    if file is not None and file.exists():
        if not checkpoint.belongs(file, facts):
            raise ValueError(f"{file} belongs to another training; choose another file, or delete it")
        start = checkpoint.load(file, kept, optimizer)
    for done in range(start, passes):
        for group in optimizer.param_groups:
            group["lr"] = rate(done) * group.get("times", 1.0)
        shown = progress(batches, len(batches), f"{title}, pass {done + 1} of {passes}") if title else batches
        for lesson in shown:
            with torch.enable_grad():
                value = loss(*lesson)
            descent.step(value, when=f"in pass {done + 1}")
        yield done
        if file is not None:
            checkpoint.save(file, kept, optimizer, done + 1, facts)
