"""A cell: a method on a stream with a seed; and the plain forward that its time is related to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.build import build_method
from testtime.data.places import images_of, source_batches
from testtime.evaluation import Progress, evaluate, finish
from testtime.experiments import Workspace
from testtime.experiments.online.stream import cached_stream, source_model
from testtime.methods import Source
from testtime.metrics import Samples, forgetting, median_milliseconds, score_shares, state_bytes, summarise
from testtime.processor import Precision, autocast, machine_load, processor_name
from testtime.streams import Stream
from testtime.wrap import TimeConstrained

__all__ = ["SLOW", "adapt_online", "machine_state", "measure_baseline", "plain_milliseconds"]

SLOW = 20  # forwards a batch; a method above gets the experiment's slow_limit
CLEAN_IMAGES = 1000  # on which forgetting is measured
SECONDS = 0.5  # for which a plain forward is measured
SIDE = 32  # of images for the baseline, where the model takes any
STATE = ("processor", "device", "precision", "threads")


def _form(device: torch.device) -> torch.memory_format:
    """The memory format that suits convolutions."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    moved: nn.Module = model.to(device).to(memory_format=_form(device))  # type: ignore[call-overload]
    return moved


def adapt_online(work: Workspace) -> dict[str, Any]:
    """Run a method on a stream, batch after batch; a unit that was interrupted goes on from its last checkpoint."""
    p, device = work.parameters, torch.device(work.parameters["device"])
    found, images = source_model(p["model"], work.places), images_of(p["closed"], work.places)
    model, form = _moved(found.model, device), _form(device)
    adapter = build_method(p, model, found.check_classes(images), p["seed"])
    limit = p["limit"]
    if p["slow_limit"] is not None and adapter.cost[0] > SLOW:
        limit = min(limit or p["slow_limit"], p["slow_limit"])
    if p.get("speed"):
        adapter = TimeConstrained(adapter, Source(model), p["speed"])
    adapter.to(device)
    stream = cached_stream(work, limit)
    size = stream.domains[0].size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def clean_batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng(0).permutation(len(images))[:CLEAN_IMAGES]
        for part in np.array_split(order, max(1, len(order) // p["batch_size"])):
            yield images.batch(part, size).to(device, memory_format=form), images.targets(part)

    with autocast(p["device"], p["precision"]):
        if adapter.source != "none":
            batches = source_batches(p["closed"], work.places, p["batch_size"], p["seed"], size)
            adapter.prepare([x.to(device, memory_format=form) for x in batches])
        before = forgetting(adapter, clean_batches())
        reset = bool(p.get("reset"))
        progress = evaluate(adapter, stream, work.folder, model, device, form, reset, work.progress)
        after = forgetting(adapter, clean_batches())
    samples = finish(work.folder, progress)
    return {
        **_figures(samples, stream),
        "forgetting": {"before": before, "after": after},
        "steps": _steps(progress),
        "cost": _cost(progress, adapter, len(samples)),
        "limit": limit,
        "state": machine_state(p["device"], p["precision"], torch.get_num_threads()),
    }


def _figures(samples: Samples, stream: Stream) -> dict[str, Any]:
    """What the tables and pages show of the predictions."""
    visits = {plan.visit: plan.domain for plan in stream.plans}
    opened = bool((~samples.known).any())
    return {
        **summarise(samples, [visits[v] for v in sorted(visits)]),
        "scores": score_shares(samples.score[samples.known], samples.score[~samples.known]) if opened else {},
        "images": int(samples.known.sum()),
        "unknown": int((~samples.known).sum()),
        "batches": len(stream),
    }


def _steps(progress: Progress) -> dict[str, Any]:
    """How many steps moved the parameters, how many were taken back, and what of those was not finite."""
    failed = [line["failed"] for line in progress.lines if line.get("failed")]
    moved = sum(line["updated"] for line in progress.lines)
    counts = {"batches": progress.done, "updated": moved, "failed": len(failed)}
    return {**counts, "not_finite": sorted({*failed})}


def _cost(progress: Progress, adapter: Adapter, images: int) -> dict[str, Any]:
    taken = [line["ms"] for line in progress.lines]
    return {
        "declared": list(adapter.cost),
        **{name: progress.used[name] / max(images, 1) for name in ("forwards", "backwards")},
        "ms": float(np.median(taken)),
        "seconds": sum(taken) / 1000,
        "peak_memory": progress.used["peak_memory"] or None,
        "state_bytes": state_bytes(adapter.state_dict()),
    }


def machine_state(device: str, precision: Precision, threads: int) -> dict[str, Any]:
    """Return what a time depends on beside the method and the batch: processor, device, precision, threads of torch."""
    named = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor_name()
    return dict(zip(STATE, (named, device, precision, threads), strict=True))


def measure_baseline(work: Workspace) -> dict[str, Any]:
    """Measure a plain forward, for each number of threads and each batch size among the parameters."""
    p, own, found = work.parameters, torch.get_num_threads(), []
    try:
        for threads in p["threads"]:
            torch.set_num_threads(threads)
            times = {str(count): _measured(work, count) for count in p["batch_sizes"]}
            state = machine_state(p["device"], p["precision"], threads)
            found.append({**state, "load": machine_load(), "ms": times})
    finally:
        torch.set_num_threads(own)
    return {"baselines": found}


def plain_milliseconds(
    baselines: Iterable[Mapping[str, Any]], state: Mapping[str, Any], batch_size: int
) -> float:
    """Return the plain forward to which the times of a cell are related; NaN if none was measured in its state."""
    alike = [one for one in baselines if all(one[name] == state.get(name) for name in STATE)]
    times = [one["ms"][str(batch_size)] for one in alike if str(batch_size) in one["ms"]]
    return float(times[0]) if times else float("nan")


def _measured(work: Workspace, count: int) -> float:
    """The median time of a batch of this size in milliseconds."""
    p, device = work.parameters, torch.device(work.parameters["device"])
    found = source_model(p["model"], work.places)
    model, side = _moved(found.model, device), found.side or SIDE
    x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.to(device, memory_format=_form(device))
    with torch.no_grad(), autocast(p["device"], p["precision"]):
        return round(median_milliseconds(lambda: model(x), device, SECONDS), 4)
