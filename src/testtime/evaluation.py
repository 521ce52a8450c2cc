"""A prequential run in a folder: it keeps every prediction, and goes on exactly from its last checkpoint.

``batches.jsonl`` has a line for each batch, ``samples.safetensors`` the prediction of every image; a checkpoint holds the state
of the adapter and the predictions so far in one file.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, from_numpy, nn

from testtime.adapter import Adapter
from testtime.files import damaged, parse_json, read_tensors, write_lines, write_tensors
from testtime.metrics import Cost, Samples, peak_memory
from testtime.prequential import Record, prequential
from testtime.streams import Batch, Stream

__all__ = ["LINES", "STATE", "Progress", "evaluate", "finish", "read_samples", "resume", "save"]

LINES = "batches.jsonl"
"""File with a line for each batch."""
STATE = "state.safetensors"
"""File of the checkpoint."""
SAMPLES = "samples.safetensors"
CHECKPOINT = 60.0  # seconds between two checkpoints
COLUMNS = [f.name for f in fields(Samples) if f.name != "selected"]
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What of a run is done.

    Attributes:
        parts: predictions of the batches.
        lines: their lines in ``batches.jsonl``.
        used: images that went forward and backward, and the peak of memory (0 where it is not measured).
    """

    parts: list[Samples] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=lambda: {"forwards": 0, "backwards": 0, "peak_memory": 0})

    @property
    def done(self) -> int:
        """Number of batches."""
        return len(self.lines)


def evaluate(
    adapter: Adapter,
    stream: Stream,
    folder: Path,
    network: nn.Module,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    reset: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Progress:
    """Give the adapter what it has not seen of the stream, and keep every prediction in a folder.

    Args:
        adapter: adapter on ``device``, as it was when the run began.
        stream: the whole stream.
        folder: folder of the run; a run that was interrupted goes on from its last checkpoint there.
        network: network whose forwards and backwards are counted.
        device: device of the images.
        memory_format: memory format of the images.
        reset: whether the adapter is reset before each visit of a domain.
        report: function that takes the number of batches that are done and of all.
    """
    progress = resume(folder, adapter)
    earlier, saved = dict(progress.used), time.monotonic()
    batches = _reset_by_visit(adapter, stream, progress.done) if reset else stream.since(progress.done)
    with Cost(network) as cost, (folder / LINES).open("a") as lines:
        for record in prequential(adapter, batches, device=device, memory_format=memory_format):
            progress.parts.append(record.samples)
            progress.lines.append(_line(record))
            progress.used = {
                "forwards": earlier["forwards"] + cost.forwards,
                "backwards": earlier["backwards"] + cost.backwards,
                "peak_memory": max(earlier["peak_memory"], peak_memory(device) or 0),
            }
            lines.write(json.dumps(progress.lines[-1]) + "\n")
            lines.flush()
            report(progress.done, len(stream))
            if time.monotonic() - saved > CHECKPOINT:
                save(folder, adapter, progress)
                saved = time.monotonic()
    return progress


def finish(folder: Path, progress: Progress) -> Samples:
    """Write and return the predictions of a run that is finished, and remove its checkpoint."""
    samples = Samples.join(progress.parts)
    write_tensors(folder / SAMPLES, _tensors(samples))
    (folder / STATE).unlink(missing_ok=True)
    return samples


def save(folder: Path, adapter: Adapter, progress: Progress) -> None:
    """Write a checkpoint, whole or not at all."""
    state = {f"state.{name}": value for name, value in adapter.state_dict().items()}
    facts = json.dumps({"lines": progress.lines, "used": progress.used})
    write_tensors(folder / STATE, {**state, **_tensors(Samples.join(progress.parts))}, {"testtime": facts})


def resume(folder: Path, adapter: Adapter) -> Progress:
    """Load the last checkpoint; start from nothing, with a warning in the log, where there is none that can be used."""
    path = folder / STATE
    progress = Progress()
    if path.is_file():
        try:
            tensors, metadata = read_tensors(path, "the unit starts again")
            with damaged(path, "the unit starts again"):
                facts = parse_json(metadata["testtime"])
                progress = Progress([_samples(tensors)], facts["lines"], facts["used"])
            adapter.load_state_dict(
                {name.removeprefix("state."): v for name, v in tensors.items() if name.startswith("state.")}
            )
        except (OSError, ValueError) as error:
            log.warning("%s starts again, its checkpoint cannot be used: %s", folder.name, error)
            path.unlink()
            progress = Progress()
    write_lines(folder / LINES, progress.lines)
    return progress


def read_samples(folder: Path) -> Samples:
    """Read what :func:`finish` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged.
    """
    tensors, _ = read_tensors(folder / SAMPLES)
    with damaged(folder / SAMPLES):
        return _samples(tensors)


def _tensors(samples: Samples) -> dict[str, Tensor]:
    masks = {f"selected.{name}": from_numpy(mask) for name, mask in samples.selected.items()}
    return {f"samples.{name}": from_numpy(getattr(samples, name)) for name in COLUMNS} | masks


def _samples(tensors: dict[str, Tensor]) -> Samples:
    masks = {n.removeprefix("selected."): v.numpy() for n, v in tensors.items() if n.startswith("selected.")}
    return Samples(**{name: tensors[f"samples.{name}"].numpy() for name in COLUMNS}, selected=masks)


def _reset_by_visit(adapter: Adapter, stream: Stream, start: int) -> Iterator[Batch]:
    """Pass on the batches from a number on; before the first of each visit the adapter is reset."""
    before = stream.plans[start - 1].visit if start else None
    for batch in stream.since(start):
        if batch.visit != before:
            adapter.reset()
        before = batch.visit
        yield batch


def _line(record: Record) -> dict[str, Any]:
    s = record.samples
    known, took = s.known, s.selected
    return {
        "batch": record.index,
        **{name: getattr(record, name) for name in ("visit", "domain", "updated", "failed")},
        "known": int(known.sum()),
        "unknown": int((~known).sum()),
        "correct": int(s.correct.sum()),
        "ms": round(record.milliseconds, 3),
        "selected": {name: [int((m & known).sum()), int((m & ~known).sum())] for name, m in took.items()},
    }
