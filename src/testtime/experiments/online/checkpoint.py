"""Checkpoints inside a cell: state and predictions so far in one file, from which an interrupted cell goes on exactly."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, from_numpy

from testtime.adapter import Adapter
from testtime.files import damaged, parse_json, read_tensors, write_lines, write_tensors
from testtime.metrics import Samples

__all__ = ["LINES", "STATE", "Progress", "finish", "read_samples", "resume", "save"]

STATE, LINES, SAMPLES = "state.safetensors", "batches.jsonl", "samples.safetensors"
COLUMNS = [f.name for f in fields(Samples) if f.name != "selected"]
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What of a cell is done.

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


def finish(folder: Path, samples: Samples) -> None:
    """Write the predictions of a finished cell and remove its checkpoint."""
    write_tensors(folder / SAMPLES, _tensors(samples))
    (folder / STATE).unlink(missing_ok=True)


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
