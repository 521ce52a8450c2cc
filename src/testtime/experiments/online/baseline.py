"""The plain forward of the source model, measured once for each run and state of the machine; times are related to it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import torch

from testtime.experiments.online import sets
from testtime.experiments.store import Workspace
from testtime.metrics import milliseconds
from testtime.processor import Precision, machine_load, processor_name

__all__ = ["machine_state", "measure_baseline", "plain_milliseconds"]

WARM, LEAST, SECONDS = 3, 5, 0.5  # forwards before the clock counts, forwards at least, and for how long
SIDE = 32  # of the images, where the model takes any


def machine_state(device: str, precision: Precision, threads: int) -> dict[str, Any]:
    """Return what a time depends on beside the method and the batch.

    Args:
        device: device of the networks.
        precision: precision of their forwards.
        threads: number of threads of torch.
    """
    named = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor_name()
    return {"processor": named, "device": device, "precision": precision, "threads": threads}


def measure_baseline(work: Workspace) -> dict[str, Any]:
    """Measure a plain forward, for each number of threads and each batch size among the parameters."""
    p, own = work.parameters, torch.get_num_threads()
    found = []
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
    """Return the plain forward to which the times of a cell are related; NaN if none was measured in its state.

    Args:
        baselines: baselines of the run.
        state: state of the machine of the cell.
        batch_size: number of images in a batch.
    """
    times = [
        one["ms"][str(batch_size)]
        for one in baselines
        if state and all(one[name] == value for name, value in state.items()) and str(batch_size) in one["ms"]
    ]
    return float(times[0]) if times else float("nan")


def _measured(work: Workspace, count: int) -> float:
    """The median time of a batch of this size in milliseconds."""
    p = work.parameters
    where = torch.device(p["device"])
    form = torch.channels_last if where.type == "cpu" else torch.contiguous_format
    found = sets.source_model(p["model"], work.places)
    model = found.model.to(where).to(memory_format=form)  # type: ignore[call-overload]
    side = found.side or SIDE
    x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.to(where, memory_format=form)
    times: list[float] = []
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=p["precision"] == "bfloat16"):
        for _ in range(WARM):
            model(x)
        began = time.monotonic()
        while len(times) < LEAST or time.monotonic() - began < SECONDS:
            times.append(milliseconds(lambda: model(x), where)[0])
    return round(median(times), 4)
