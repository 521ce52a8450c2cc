"""One cell of a grid: a method on a stream with a seed, from the weights to the files of its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.bench import sets
from testtime.bench.baseline import machine_state
from testtime.bench.cache import cached
from testtime.bench.prequential import Record, prequential
from testtime.bench.protocol import Column, Protocol, Row
from testtime.data import ImageSet
from testtime.data.imageset import Size
from testtime.files import (
    damaged,
    parse_json,
    read_array,
    read_lines,
    read_tensors,
    sweep,
    write_array,
    write_json,
    write_lines,
    write_tensors,
)
from testtime.methods import Source
from testtime.metrics import Cost, Samples, forgetting, peak_memory, state_bytes, summarise
from testtime.processor import Precision
from testtime.streams import (
    GRADUAL_SEVERITIES,
    Batch,
    CCCStream,
    Stream,
    clean,
    continual,
    correlated,
    label_shift,
    mixed,
    open_set,
)
from testtime.wrap import TimeConstrained

__all__ = ["Cell", "make_stream", "read_samples", "run_cell", "source_batches"]

SLOW = 20  # forwards a batch; a method above gets the protocol's slow_limit
SOURCE_IMAGES = 2000  # shown to methods that must see their source
WANDERING_STEPS = 2  # of a wandering stream, from one severity to the next
CHECKPOINT = 60.0  # seconds between two saved states
STATE, LINES = "state.safetensors", "batches.jsonl"

ARRIVALS: dict[str, Callable[..., Stream]] = {
    "continual": continual,
    "gradual": continual,  # with GRADUAL_SEVERITIES
    "mixed": mixed,
    "correlated": correlated,
    "mixed-correlated": partial(correlated, together=True),
    "label-shift": label_shift,
}

LATER = ("target", "pace", "speed")  # what the first protocols had not
Progress = Callable[[str, int, int], None]  # cell, batches done, batches in all


@dataclass(frozen=True)
class Cell:
    """What one run is, wholly: equal cells give equal results.

    Args:
        protocol: narrowed to what is run.
        row: the method.
        column: the setting.
        seed: of order and method.
        data: the data folder.
        device: "cpu" or "cuda".
        precision: "bfloat16" runs the networks under autocast; losses and optimizers stay in float32.
        facts: what identifies data and weights: digests by name.
    """

    protocol: Protocol
    row: Row
    column: Column
    seed: int
    data: str
    device: str
    precision: Precision = "float32"
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Everything the result depends on, in plain types."""
        p, c = self.protocol, self.column
        return {
            "closed": p.closed,
            "model": p.model,
            "method": self.row.method,
            "arguments": self.row.spoken,
            "open_set": c.open_set,
            "batch_size": c.batch_size,
            "ratio": c.ratio,
            "order": p.order,
            "corruptions": list(p.corruptions),
            "severity": p.severity,
            "rounds": p.rounds,
            "limit": p.limit,
            "slow_limit": p.slow_limit,
            "seed": self.seed,
            "device": self.device,
            "precision": self.precision,
            "facts": dict(self.facts),
            # What came later is named where it is used, so that what was run before keeps its name.
            **{name: True for name in ("reset", "returns") if getattr(p, name)},
            **{name: value for name in LATER if (value := getattr(p, name)) is not None},
        }

    @property
    def name(self) -> str:
        """Readable, and ending in a hash of the configuration."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:8]
        words = [self.row.slug, "-".join(self.column.name.lower().split()), f"s{self.seed}", digest]
        return "_".join(words)


def make_stream(protocol: Protocol, column: Column, seed: int, data: str | Path, limit: int | None) -> Stream:
    """The stream of a protocol's column.

    The corrupted images are those of one fixed set, as the published sets are; the seed draws their order,
    and which of them where there is a limit.
    """
    if protocol.order == "wandering":
        images = sets.open_data(protocol.closed, data)
        assert protocol.target is not None
        assert protocol.pace is not None
        ccc = CCCStream(
            images,
            sets.difficulty(protocol.closed, protocol.model, data),
            protocol.target,
            protocol.pace,
            column.batch_size,
            protocol.corruptions,
            WANDERING_STEPS,
            seed,
        )
        count = (limit or len(images)) * len(protocol.corruptions) * protocol.rounds
        return _opened(ccc.first(-(-count // column.batch_size)), column, data)
    severities = GRADUAL_SEVERITIES if protocol.order == "gradual" else (protocol.severity,)
    made = [
        domain
        for corruption in protocol.corruptions
        for severity in severities
        for domain in sets.domains(protocol.closed, data, (corruption,), severity)[0]
    ]
    last = [clean(sets.open_data(protocol.closed, data), made[0].size)] if protocol.returns else []
    arrive = ARRIVALS[protocol.order]
    stream = arrive(None, made * protocol.rounds + last, batch_size=column.batch_size, limit=limit, seed=seed)
    return _opened(stream, column, data)


def _opened(stream: Stream, column: Column, data: str | Path) -> Stream:
    """With the unknown images of a column, if it has any."""
    if column.open_set is None:
        return stream
    return open_set(stream, sets.open_data(column.open_set, data), column.ratio)


def run_cell(
    cell: Cell,
    folder: Path,
    cache: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a cell in its precision, see :func:`_run`.

    Args:
        cell: the cell to run.
        folder: folder of the cell.
        cache: folder of corrupted images.
        progress: called after each batch.
        say: takes lines for a person, such as that a checkpoint is damaged.
    """
    lower = torch.autocast(
        torch.device(cell.device).type, torch.bfloat16, enabled=cell.precision == "bfloat16"
    )
    with lower:
        return _run(cell, folder, cache, progress, say)


def _run(
    cell: Cell, folder: Path, cache: Path, progress: Progress | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run a cell and write its folder; ``result.json`` comes last, whole or not at all.

    A cell that was interrupted goes on from the adapter's last saved state.

    Returns:
        the content of ``result.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    protocol, device = cell.protocol, torch.device(cell.device)
    model, _ = sets.source_model(protocol.model, cell.data)
    form = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    model = model.to(device).to(memory_format=form)  # type: ignore[call-overload]
    classes = sets.class_count(protocol.closed, protocol.model, cell.data)
    adapter = cell.row.build(model, classes, cell.seed)
    slow = adapter.cost[0] > SLOW
    if protocol.speed is not None:
        adapter = TimeConstrained(adapter, Source(model), protocol.speed)
    adapter.to(device)
    limit = protocol.limit
    if protocol.slow_limit is not None and slow:
        limit = min(limit or protocol.slow_limit, protocol.slow_limit)
    whole = make_stream(protocol, cell.column, cell.seed, cell.data, protocol.limit)
    stream = make_stream(protocol, cell.column, cell.seed, cell.data, limit)
    stream = cached(stream, cache, whole).prefetch(1)
    write_json(folder / "cell.json", {"label": cell.row.label, "column": cell.column.name, **cell.config})

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if adapter.source != "none":
        training = sets.source_images(protocol.closed, cell.data)
        batches = source_batches(training, cell.column.batch_size, cell.seed, stream.domains[0].size)
        adapter.prepare([x.to(device, memory_format=form) for x in batches])

    def unharmed() -> Iterator[tuple[Tensor, Tensor]]:
        images = sets.open_data(protocol.closed, cell.data)
        order = np.random.default_rng(0).permutation(len(images))[:1000]
        size = stream.domains[0].size
        for part in np.array_split(order, max(1, len(order) // cell.column.batch_size)):
            yield images.batch(part, size).to(device, memory_format=form), images.targets(part)

    before = forgetting(adapter, unharmed())
    before_it = _resume(folder, adapter, protocol.reset, say)
    done, parts, lines = before_it.done, before_it.parts, before_it.lines
    saved = time.monotonic()

    def used() -> dict[str, int]:
        """What the cell has used so far, in this process and in those that were interrupted."""
        forwards, backwards = (
            before_it.used[name] + getattr(cost, name) for name in ("forwards", "backwards")
        )
        peak = max(before_it.used["peak_memory"], peak_memory(device) or 0)
        return {"forwards": forwards, "backwards": backwards, "peak_memory": peak}

    with Cost(model) as cost, (folder / LINES).open("a" if done else "w") as log:
        arriving = _reset_by_visit(adapter, stream, done) if protocol.reset else stream.since(done)
        for record in prequential(adapter, arriving, device=device, memory_format=form):
            parts.append(record.samples)
            line = _line(record)
            lines.append(line)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if progress is not None:
                progress(cell.name, record.index + 1, len(stream))
            if time.monotonic() - saved > CHECKPOINT:
                _checkpoint(folder, adapter, parts, record.index + 1, used())
                saved = time.monotonic()
    total = used()
    samples = Samples.join(parts)
    visits = {plan.visit: plan.domain for plan in stream.plans}
    taken = [line["ms"] for line in lines]
    result = {
        "label": cell.row.label,
        "column": cell.column.name,
        "seed": cell.seed,
        "config": cell.config,
        **summarise(samples, [visits[v] for v in sorted(visits)]),
        "forgetting": {"before": before, "after": forgetting(adapter, unharmed())},
        "cost": {
            "declared": list(adapter.cost),
            "forwards": total["forwards"] / max(len(samples), 1),
            "backwards": total["backwards"] / max(len(samples), 1),
            "ms": float(np.median(taken)),
            "peak_memory": total["peak_memory"] or None,
            "state_bytes": state_bytes(adapter.state_dict()),
        },
        "code": cell.row.code,
        "limit": limit,
        "images": int(samples.known.sum()),
        "unknown": int((~samples.known).sum()),
        "batches": len(stream),
        "seconds": sum(taken) / 1000,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.machine(),
        "state": machine_state(cell.device, cell.precision, torch.get_num_threads()),
    }
    write_samples(folder / "samples", samples)
    write_json(folder / "result.json", result)
    for leftover in (STATE, "partial"):
        _remove(folder / leftover)
    return result


def source_batches(images: ImageSet, batch_size: int, seed: int, size: Size | None) -> Iterator[Tensor]:
    """Batches of some images of the source, for methods that must see it."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:SOURCE_IMAGES]
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        yield images.batch(part, size)


def _reset_by_visit(adapter: Adapter, stream: Stream, start: int) -> Iterator[Batch]:
    """The batches from number ``start`` on; before the first of each visit the adapter is reset."""
    before = stream.plans[start - 1].visit if start else None
    for batch in stream.since(start):
        if batch.visit != before:
            adapter.reset()
        before = batch.visit
        yield batch


def write_samples(folder: Path, samples: Samples, durable: bool = True) -> None:
    """Write one ``.npy`` for each column and for each mask; ``durable`` as in :func:`testtime.files.replacing`."""
    for f in fields(samples):
        if f.name != "selected":
            write_array(folder / f"{f.name}.npy", getattr(samples, f.name), durable=durable)
    for name, mask in samples.selected.items():
        write_array(folder / f"selected-{name}.npy", mask, durable=durable)


def read_samples(folder: Path, count: int | None = None) -> Samples:
    """Read what `write_samples` wrote.

    Args:
        folder: folder of the files.
        count: number of images to read; None is all.

    Raises:
        FileNotFoundError: a column is missing.
        DataError: a file is damaged.
    """
    advice = "delete the cell's folder and run the same command again"
    with damaged(folder, advice):
        columns = {
            f.name: read_array(folder / f"{f.name}.npy", advice)[:count]
            for f in fields(Samples)
            if f.name != "selected"
        }
        masks = {
            path.stem.removeprefix("selected-"): read_array(path, advice)[:count]
            for path in sorted(folder.glob("selected-*.npy"))
        }
        lengths = sorted({len(column) for column in (*columns.values(), *masks.values())})
        if len(lengths) > 1:
            raise ValueError(f"columns of {lengths[0]} and of {lengths[-1]} images")
    return Samples(**columns, selected=masks)


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


def _checkpoint(
    folder: Path, adapter: Adapter, parts: list[Samples], done: int, used: dict[str, int]
) -> None:
    """Write the answers so far, and then the state that says how many of them count.

    A process that is killed in between leaves the older state; the answers that came later do not count with it.
    """
    samples = Samples.join(parts)
    write_samples(folder / "partial", samples, durable=False)
    facts = {"done": done, "images": len(samples), "used": used}
    write_tensors(folder / STATE, adapter.state_dict(), {"testtime": json.dumps(facts)})


@dataclass
class _Progress:
    """What of a cell is done.

    Attributes:
        done: batches.
        parts: their answers.
        lines: their lines in ``batches.jsonl``.
        used: images that went forward and backward, and the peak of memory (0 where it is not measured).
    """

    done: int = 0
    parts: list[Samples] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=lambda: {"forwards": 0, "backwards": 0, "peak_memory": 0})


def _resume(folder: Path, adapter: Adapter, resets: bool, say: Callable[[str], None]) -> _Progress:
    """Go on from the last checkpoint, or from nothing where there is none that can be used."""
    if not (folder / STATE).is_file():
        return _Progress()
    try:
        found = _read_checkpoint(folder, adapter, resets)
    except (OSError, ValueError) as error:
        say(f"{folder.name} starts again, its checkpoint cannot be used: {error}")
        _remove(folder / STATE)
        return _Progress()
    write_lines(folder / LINES, found.lines)
    return found


def _read_checkpoint(folder: Path, adapter: Adapter, resets: bool) -> _Progress:
    advice = "the cell starts again"
    state, metadata = read_tensors(folder / STATE, advice)
    with damaged(folder / STATE, advice):
        facts = parse_json(metadata["testtime"])
        done, images = int(facts["done"]), int(facts["images"])
        used = {name: int(facts["used"][name]) for name in _Progress().used}
        clock = int(state["clock"])
    samples = read_samples(folder / "partial", images)
    lines = read_lines(folder / LINES, advice, torn=True)[:done]
    with damaged(folder / LINES, advice):
        here = [line["visit"] for line in lines]
        if (len(samples), len(lines)) != (images, done) or int(samples.batch.max()) + 1 != done:
            raise ValueError(f"{len(samples)} answers and {len(lines)} lines of {images} and {done}")
        if clock != (here.count(here[-1]) if resets else done):
            raise ValueError(f"a state after {clock} steps")
    adapter.load_state_dict(state)
    return _Progress(done, [samples], lines, used)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            for child in path.iterdir():
                child.unlink()
            path.rmdir()
        else:
            path.unlink()
