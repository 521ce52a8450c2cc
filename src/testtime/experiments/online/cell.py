"""A cell: a method on a stream with a seed, from the weights to the figures of the tables."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.experiments.online import checkpoint, sets
from testtime.experiments.online.baseline import machine_state
from testtime.experiments.online.stream import cached_stream, reset_by_visit, source_batches
from testtime.experiments.registry import find_method
from testtime.experiments.store import Workspace, resolve
from testtime.methods import Source
from testtime.metrics import Cost, Samples, forgetting, peak_memory, state_bytes, summarise
from testtime.prequential import Record, prequential
from testtime.streams import Stream
from testtime.wrap import ResetEvery, TimeConstrained

__all__ = ["SLOW", "adapt_online", "argument", "autocast", "build", "prepare", "shares"]

SLOW = 20  # forwards a batch; a method above gets the experiment's slow_limit
CLEAN_IMAGES = 1000  # on which forgetting is measured
CHECKPOINT = 60.0  # seconds between two checkpoints
CALL = re.compile(r"([\w.]+:\w+)(?:\((.*)\))?")


def argument(value: Any) -> Any:
    """Return the value of an argument of a row: what "package.module:name" names, or the result of calling it.

    >>> argument(0.5), argument(["ema"]), argument("builtins:dict()"), argument("testtime.parts:sgd(0.05)").lr
    (0.5, ('ema',), {}, 0.05)
    """
    match = CALL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return tuple(value) if isinstance(value, list) else value
    found = resolve(match[1])
    return found if match[2] is None else found(*json.loads(f"[{match[2]}]"))


def build(row: Mapping[str, Any], model: nn.Module, classes: int, seed: int) -> Adapter:
    """Build the adapter of a row.

    Args:
        row: ``method``, ``arguments``, and ``reset_every`` if the adapter is reset now and then.
        model: source model.
        classes: number of classes.
        seed: random seed of the method.
    """
    cls = find_method(row["method"])
    takes = inspect.signature(cls.__init__).parameters
    given = {k: v for k, v in {"classes": classes, "seed": seed}.items() if k in takes}
    arguments = {name: argument(value) for name, value in row["arguments"].items()}
    adapter = cls(model, **{**given, **arguments})
    return ResetEvery(adapter, row["reset_every"]) if row.get("reset_every") else adapter


def autocast(p: Mapping[str, Any]) -> torch.autocast:
    """Return the context of a unit's precision: bfloat16 for the networks, losses and optimizers stay in float32."""
    return torch.autocast(
        torch.device(p["device"]).type, torch.bfloat16, enabled=p["precision"] == "bfloat16"
    )


def prepare(adapter: Adapter, work: Workspace, stream: Stream, seed: int, form: torch.memory_format) -> None:
    """Show images of the source to a method that must see them.

    Args:
        adapter: the adapter.
        work: workspace of the unit.
        stream: stream whose size the images get.
        seed: random seed of the choice of images.
        form: memory format of the images.

    Raises:
        ValueError: there are none.
    """
    if adapter.source == "none":
        return
    p = work.parameters
    images = sets.source_images(p["closed"], work.places)
    if images is None:
        raise ValueError(
            f"{p['method']} must see images of the source; give their folder with the setting source"
        )
    batches = source_batches(images, p["batch_size"], seed, stream.domains[0].size)
    adapter.prepare([x.to(p["device"], memory_format=form) for x in batches])


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format that suits convolutions on a device."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def adapt_online(work: Workspace) -> dict[str, Any]:
    """Run a method on a stream, batch after batch; a unit that was interrupted goes on from its last checkpoint."""
    with autocast(work.parameters):
        return _run(work)


def _run(work: Workspace) -> dict[str, Any]:
    p, device = work.parameters, torch.device(work.parameters["device"])
    found = sets.source_model(p["model"], work.places)
    form = memory_format(device)
    model = found.model.to(device).to(memory_format=form)  # type: ignore[call-overload]
    images = sets.images_of(p["closed"], work.places)
    adapter = build(p, model, sets.check_classes(images, found), p["seed"])
    limit = p["limit"]
    if p["slow_limit"] is not None and adapter.cost[0] > SLOW:
        limit = min(limit or p["slow_limit"], p["slow_limit"])
    if p.get("speed"):
        adapter = TimeConstrained(adapter, Source(model), p["speed"])
    adapter.to(device)
    stream = cached_stream(work, limit)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    prepare(adapter, work, stream, p["seed"], form)

    def clean_batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng(0).permutation(len(images))[:CLEAN_IMAGES]
        for part in np.array_split(order, max(1, len(order) // p["batch_size"])):
            x = images.batch(part, stream.domains[0].size)
            yield x.to(device, memory_format=form), images.targets(part)

    before = forgetting(adapter, clean_batches())
    progress = _stream_through(work, adapter, model, stream)
    samples = Samples.join(progress.parts)
    result = {
        **_figures(samples, stream),
        "forgetting": {"before": before, "after": forgetting(adapter, clean_batches())},
        "cost": _cost(progress, adapter, len(samples)),
        "limit": limit,
        "state": machine_state(p["device"], p["precision"], torch.get_num_threads()),
    }
    checkpoint.write_samples(work.folder, samples)
    (work.folder / checkpoint.STATE).unlink(missing_ok=True)
    return result


def _stream_through(
    work: Workspace, adapter: Adapter, model: nn.Module, stream: Stream
) -> checkpoint.Progress:
    """Give the adapter what it has not seen of the stream, with a checkpoint now and then."""
    p, device = work.parameters, torch.device(work.parameters["device"])
    resets = bool(p.get("reset"))
    progress = checkpoint.resume(work.folder, adapter)
    earlier, saved = dict(progress.used), time.monotonic()
    batches = reset_by_visit(adapter, stream, progress.done) if resets else stream.since(progress.done)
    with Cost(model) as cost, (work.folder / checkpoint.LINES).open("a") as log:
        for record in prequential(adapter, batches, device=device, memory_format=memory_format(device)):
            progress.parts.append(record.samples)
            progress.lines.append(_line(record))
            progress.used = {
                "forwards": earlier["forwards"] + cost.forwards,
                "backwards": earlier["backwards"] + cost.backwards,
                "peak_memory": max(earlier["peak_memory"], peak_memory(device) or 0),
            }
            log.write(json.dumps(progress.lines[-1]) + "\n")
            log.flush()
            work.progress(progress.done, len(stream))
            if time.monotonic() - saved > CHECKPOINT:
                checkpoint.save(work.folder, adapter, progress)
                saved = time.monotonic()
    return progress


def _line(record: Record) -> dict[str, Any]:
    s = record.samples
    return {
        "batch": record.index,
        "visit": record.visit,
        "domain": record.domain,
        "known": int(s.known.sum()),
        "unknown": int((~s.known).sum()),
        "correct": int(s.correct.sum()),
        "updated": record.updated,
        "ms": round(record.milliseconds, 3),
        "selected": {
            name: [int((mask & s.known).sum()), int((mask & ~s.known).sum())]
            for name, mask in s.selected.items()
        },
    }


def _figures(samples: Samples, stream: Stream) -> dict[str, Any]:
    """What the tables and pages show of the predictions."""
    visits = {plan.visit: plan.domain for plan in stream.plans}
    known, unknown = shares(samples.score[samples.known], samples.score[~samples.known])
    return {
        **summarise(samples, [visits[v] for v in sorted(visits)]),
        "scores": {"known": known, "unknown": unknown} if (~samples.known).any() else {},
        "images": int(samples.known.sum()),
        "unknown": int((~samples.known).sum()),
        "batches": len(stream),
    }


def _cost(progress: checkpoint.Progress, adapter: Adapter, images: int) -> dict[str, Any]:
    taken = [line["ms"] for line in progress.lines]
    return {
        "declared": list(adapter.cost),
        "forwards": progress.used["forwards"] / max(images, 1),
        "backwards": progress.used["backwards"] / max(images, 1),
        "ms": float(np.median(taken)),
        "seconds": sum(taken) / 1000,
        "peak_memory": progress.used["peak_memory"] or None,
        "state_bytes": state_bytes(adapter.state_dict()),
    }


def shares(
    known: NDArray[np.floating], unknown: NDArray[np.floating], bins: int = 40
) -> tuple[list[float], list[float]]:
    """Return the shares of two samples in common bins.

    The bins lie between the 1st and the 99th percentile of both samples; what is outside counts at the edges.
    """
    both = np.concatenate([known, unknown])
    both = both[np.isfinite(both)]
    if not len(both):
        return [], []
    low, high = np.percentile(both, [1, 99])
    edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
    found = []
    for part in (known, unknown):
        seen = np.clip(part[np.isfinite(part)], edges[0], edges[-1])
        counts = np.histogram(seen, edges)[0]
        found.append((counts / max(counts.sum(), 1)).round(5).tolist())
    return found[0], found[1]
