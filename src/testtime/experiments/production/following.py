"""A unit: an adapter follows a stream, with checkpoints, and is compared with the shipped model."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from testtime.adapter import Adapter
from testtime.errors import DataError
from testtime.experiments import Workspace
from testtime.experiments.production import world
from testtime.files import damaged, parse_json, read_tensors, write_tensors
from testtime.metrics import windows
from testtime.processor import autocast

__all__ = ["Trace", "follow", "read_trace"]

STATE, TRACE, CHECKPOINT = "state.safetensors", "trace.safetensors", 60.0  # seconds between two checkpoints
RESETS = ("restore", "partial_reset", "alarm")  # events of a guard that take back what was learned
SERVING = ("adapter", "bn", "source")
PARTS = 10
log = logging.getLogger(__name__)


@dataclass
class Trace:
    """What a run leaves; its size is that of the stream from the beginning.

    Attributes:
        answers: see :mod:`testtime.metrics.windows`, (samples,) int8.
        starts: first sample of each batch, (batches,) int64.
        ms: time of the processor for each batch in milliseconds, (batches,) float32.
        serving: whose answer each batch got, an index of "adapter", "bn" and "source", (batches,) int8.
        memory: resident memory in MiB after each tenth of the batches, (10,) float32.
        events: batches of each kind of event of the guard.
        done: number of batches.
    """

    answers: NDArray[np.int8]
    starts: NDArray[np.int64]
    ms: NDArray[np.float32]
    serving: NDArray[np.int8]
    memory: NDArray[np.float32]
    events: dict[str, list[int]] = field(default_factory=dict)
    done: int = 0

    @classmethod
    def empty(cls, sizes: list[int]) -> Trace:
        """Return the trace of a run that has not begun, for batches of these sizes."""
        answers, starts = np.full(sum(sizes), -1, np.int8), np.cumsum([0, *sizes[:-1]])
        ms, memory = np.zeros(len(sizes), np.float32), np.zeros(PARTS, np.float32)
        return cls(answers, starts, ms, np.zeros(len(sizes), np.int8), memory)

    def write(self, path: Path, adapter: Adapter | None = None) -> None:
        """Write the trace, with the state of the adapter for a checkpoint."""
        own = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        arrays = {f"trace.{k}": torch.from_numpy(v) for k, v in own.items()}
        state = {} if adapter is None else {f"state.{k}": v for k, v in adapter.state_dict().items()}
        facts = {"events": self.events, "done": self.done}
        write_tensors(path, {**arrays, **state}, {"testtime": json.dumps(facts)})


def read_trace(path: Path, adapter: Adapter | None = None) -> Trace:
    """Read a trace; an adapter gets the state of the checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged.
    """
    tensors, metadata = read_tensors(path)
    with damaged(path):
        found: dict[str, Any] = parse_json(metadata["testtime"])
        found |= {k.removeprefix("trace."): v.numpy() for k, v in tensors.items() if k.startswith("trace.")}
        trace = Trace(**found)
    if adapter is not None:
        state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
        adapter.load_state_dict(state)
    return trace


def follow(work: Workspace) -> dict[str, Any]:
    """Let an adapter follow a stream; a unit that was interrupted goes on from its last checkpoint."""
    p = work.parameters
    stream = world.make_stream(p, work.places, work.cache)
    with autocast(p["device"], p["precision"]):
        adapter = world.make_adapter(p, work.places)
        sizes = [len(plan.rows) for plan in stream.plans]
        trace = _resumed(work.folder / STATE, adapter) or Trace.empty(sizes)
        saved = time.monotonic()
        for batch in world.attacked(adapter, stream.since(trace.done), p["stream"], p["steps"]):
            _take(trace, adapter, batch.x.to(p["device"]), batch.y.numpy(), len(stream))
            work.progress(trace.done, len(stream))
            if time.monotonic() - saved > CHECKPOINT:
                trace.write(work.folder / STATE, adapter)
                saved = time.monotonic()
    trace.write(work.folder / TRACE)
    (work.folder / STATE).unlink(missing_ok=True)
    others = {name: read_trace(made.folder / TRACE) for name, made in work.needs.items()}
    return _compared(trace, others)


def _resumed(path: Path, adapter: Adapter) -> Trace | None:
    if path.is_file():
        try:
            return read_trace(path, adapter)
        except (DataError, ValueError) as error:
            log.warning("%s starts again, its checkpoint cannot be used: %s", path.parent.name, error)
            path.unlink()
    return None


def _take(trace: Trace, adapter: Adapter, x: torch.Tensor, y: NDArray[np.int64], batches: int) -> None:
    """Give the adapter a batch, and write down what it did."""
    index, start = trace.done, int(trace.starts[trace.done])
    began = time.process_time()
    answer = adapter(x)
    trace.ms[index] = 1000 * (time.process_time() - began)
    predicted = answer.logits.nan_to_num(nan=-torch.inf).argmax(dim=1).cpu().numpy()
    right = (predicted == y) & answer.valid.cpu().numpy()
    trace.answers[start : start + len(y)] = np.where(y < 0, -1, right)
    trace.serving[index] = SERVING.index(getattr(adapter, "serving", "adapter"))
    for event in getattr(adapter, "events", ()):
        trace.events.setdefault(event.kind, []).append(index)
    trace.memory[index * PARTS // batches] = _resident()
    trace.done += 1


def _resident() -> float:
    """The resident memory of this process in MiB; NaN where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 2**20


def _compared(trace: Trace, others: dict[str, Trace]) -> dict[str, Any]:
    """The figures of a run, and those that compare it with the runs that it needs."""
    answers, window = trace.answers, windows.window_of(len(trace.answers))
    parts = np.array_split(np.arange(len(trace.ms)), PARTS)
    found: dict[str, Any] = {
        **{"samples": len(answers), "batches": len(trace.ms), "window": window},
        "accuracy": windows.accuracy(answers),
        "last_fifth": windows.accuracy(answers[-max(1, len(answers) // 5) :]),
        "worst_window": windows.worst_window(answers, window),
        "less": {name: _less(answers, other.answers, window) for name, other in others.items()},
        "served": {name: float((trace.serving == i).mean()) for i, name in enumerate(SERVING)},
        "events": {kind: len(batches) for kind, batches in trace.events.items()},
        "tenths": {
            "accuracy": [windows.accuracy(part) for part in np.array_split(answers, PARTS)],
            "median_ms": [float(np.median(trace.ms[part])) for part in parts if len(part)],
            "p99_ms": [float(np.quantile(trace.ms[part], 0.99)) for part in parts if len(part)],
            "memory": [round(float(mib), 1) for mib in trace.memory],
        },
    }
    if "unguarded" in others:
        found |= _reaction(trace, others["unguarded"], others["Source"], window)
    return found


def _less(answers: windows.Answers, other: windows.Answers, window: int) -> dict[str, float]:
    """The difference in points to another run: the mean, and that of the worst window."""
    mean = windows.accuracy(answers) - windows.accuracy(other)
    return {"mean": mean, "worst": windows.worst_window(answers, window, other)}


def _reaction(trace: Trace, unguarded: Trace, source: Trace, window: int) -> dict[str, Any]:
    """When the guard acted on the damage of the unguarded run, in batches, and how often it acted without any.

    The delay counts from the onset of the damage to the first batch that got another answer than the adapter's (a fallback) or
    at which the guard took back what was learned; where there is none, to the end of the stream.
    """
    onset = windows.damage_onset(unguarded.answers, source.answers, window)
    acted = sorted(batch for kind in RESETS for batch in trace.events.get(kind, ()))
    if onset is None:
        return {"onset": None, "delay": None, "false_resets": len(acted)}
    first = int(np.searchsorted(trace.starts, onset, side="right")) - 1
    reacting = [*acted, *np.flatnonzero(trace.serving != 0).tolist(), len(trace.ms)]
    delay = min(batch for batch in reacting if batch >= first) - first
    return {"onset": first, "delay": delay, "false_resets": sum(batch < first for batch in acted)}
