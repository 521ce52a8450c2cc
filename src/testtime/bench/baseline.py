"""The time of a plain forward of the source model, measured once for all cells that ran on one machine in one state.

A cell records its own times in milliseconds. The report divides them by the plain forward of the run, so that two cells
are compared by one divisor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from testtime.bench import sets
from testtime.bench.protocol import Protocol
from testtime.metrics import milliseconds
from testtime.models import model_card
from testtime.processor import Precision, machine_load, processor_name

__all__ = ["machine_state", "measure_baseline", "plain_milliseconds"]

WARM, LEAST, SECONDS = 3, 5, 0.5  # forwards before the clock counts, forwards at least, and for how long

STATE = ("processor", "device", "precision", "threads")


def machine_state(device: str, precision: Precision, threads: int) -> dict[str, Any]:
    """Return what a time depends on beside the method and the batch.

    Args:
        device: device of the networks.
        precision: precision of their forwards.
        threads: threads of torch.
    """
    named = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor_name()
    return dict(zip(STATE, (named, device, precision, threads), strict=True))


def measure_baseline(
    before: list[dict[str, Any]],
    protocol: Protocol,
    data: str,
    device: str,
    precision: Precision,
    threads: int,
) -> list[dict[str, Any]]:
    """Return the baselines of a run with those added that its cells need.

    Args:
        before: baselines that the run has; what was measured in the same state is not measured again.
        protocol: protocol of the run.
        data: data folder with the weights.
        device: device of the cells.
        precision: precision of the cells.
        threads: threads of torch in each cell.

    Returns:
        for each state of the machine its :func:`machine_state`, the load, and ``ms`` by batch size.
    """
    state = machine_state(device, precision, threads)
    here = next((one for one in before if _same(one, state)), None)
    found = dict(here["ms"]) if here else {}
    wanted = [n for n in sorted({c.batch_size for c in protocol.columns}) if str(n) not in found]
    if not wanted:
        return before
    load = here["load"] if here else machine_load()
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in wanted:
            found[str(count)] = _measured(protocol.model, data, device, precision, count)
    finally:
        torch.set_num_threads(own)
    return [*(one for one in before if one is not here), {**state, "load": load, "ms": found}]


def plain_milliseconds(baselines: list[dict[str, Any]], result: Mapping[str, Any]) -> float:
    """Return the plain forward to which a cell's times are related; NaN if none was measured in its state.

    Args:
        baselines: baselines of the run.
        result: result of the cell.
    """
    state, count = result.get("state"), str(result["config"]["batch_size"])
    times = [one["ms"][count] for one in baselines if state and _same(one, state) and count in one["ms"]]
    return float(times[0]) if times else float("nan")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in STATE)


def _measured(name: str, data: str, device: str, precision: Precision, count: int) -> float:
    """The median time of a batch of this size in milliseconds."""
    where = torch.device(device)
    form = torch.channels_last if where.type == "cpu" else torch.contiguous_format
    model = sets.source_model(name, data)[0].to(where).to(memory_format=form)  # type: ignore[call-overload]
    side = model_card(name).size
    x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.to(where, memory_format=form)
    times: list[float] = []
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16"):
        for _ in range(WARM):
            model(x)
        began = time.monotonic()
        while len(times) < LEAST or time.monotonic() - began < SECONDS:
            times.append(milliseconds(lambda: model(x), where)[0])
    return round(median(times), 4)
