"""A grid of cells, in a pool of processes: it resumes where it stopped and says how far it is."""

from __future__ import annotations

import multiprocessing
import os
import platform
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from testtime import __version__
from testtime.bench import sets
from testtime.bench.baseline import measure_baseline
from testtime.bench.cache import missing, render
from testtime.bench.cell import Cell, make_stream, run_cell
from testtime.bench.protocol import Protocol
from testtime.bench.protocols import PROTOCOLS
from testtime.data import sha256_of
from testtime.files import damaged, read_json, write_json, write_text
from testtime.processor import Precision, PrecisionChoice, need_device, resolve_precision
from testtime.progress import remaining
from testtime.streams import GRADUAL_SEVERITIES
from testtime.workers import start_worker, worker_pool

__all__ = ["Grid", "cells", "run_grid"]

AGAIN = "delete its folder and run the same testtime bench command again: it runs the cell again"
DAMAGED = (
    "delete it and run the same testtime bench command again: it writes it anew, and keeps what is finished"
)

SETTINGS = (
    "protocol",
    "corruptions",
    "severity",
    "rounds",
    "order",
    "reset",
    "returns",
    "limit",
    "slow_limit",
    "target",
    "pace",
    "speed",
)  # of a whole folder


def cells(protocol: Protocol, data: str, device: str = "cpu", precision: Precision = "float32") -> list[Cell]:
    """The cells of a protocol whose method exists, in the order in which they run: seed, column, method.

    Raises:
        DataError: a data set or the weights are not there.
    """
    weights = sets.find_weights(protocol.model, data)
    facts = {
        "weights": "packaged" if weights is None else sha256_of(weights),
        protocol.closed: sets.open_data(protocol.closed, data).digest(),
        "corruptions": sets.domains(protocol.closed, data, protocol.corruptions, protocol.severity)[1],
    }
    for column in protocol.columns:
        if column.open_set is not None:
            facts[column.open_set] = sets.open_data(column.open_set, data).digest()

    def about(column: str | None) -> tuple[tuple[str, str], ...]:
        names = {"weights", "corruptions", protocol.closed, column}
        return tuple((name, fact) for name, fact in sorted(facts.items()) if name in names)

    return [
        Cell(protocol, row, column, seed, data, device, precision, about(column.open_set))
        for seed in protocol.seeds
        for column in protocol.columns
        for row in protocol.rows
        if row.available
    ]


class Grid:
    """The folder of a run.

    ``run.json`` says what was run, ``cells/<name>/result.json`` what came out, ``batches.jsonl`` and
    ``samples/*.npy`` beside it everything on the way.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def of(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / cell.name

    def finished(self, cell: Cell) -> bool:
        """Whether the cell has its result."""
        return (self.of(cell) / "result.json").is_file()

    def outdated(self, cell: Cell) -> bool:
        """Whether the file of the cell's method has changed since it finished."""
        result = read_json(self.of(cell) / "result.json", AGAIN)
        return bool(result.get("code", "") != cell.row.code)

    def write(self, protocol: Protocol, plan: list[Cell], command: list[str]) -> None:
        """Write ``run.json``: what is needed to run it again. An earlier run of the protocol there is added to.

        Raises:
            ValueError: the folder holds a run of another protocol or with other settings.
        """
        import numpy

        facts: dict[str, str] = {}
        for cell in plan:
            facts.update(cell.facts)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._add(
            plan,
            {
                "protocol": protocol.name,
                "title": protocol.title,
                "source": protocol.source,
                "note": protocol.note,
                "closed": protocol.closed,
                "model": protocol.model,
                "corruptions": list(protocol.corruptions),
                "severity": protocol.severity,
                "rounds": protocol.rounds,
                "order": protocol.order,
                "reset": protocol.reset,
                "returns": protocol.returns,
                "limit": protocol.limit,
                "slow_limit": protocol.slow_limit,
                "target": protocol.target,
                "pace": protocol.pace,
                "speed": protocol.speed,
                "seeds": list(protocol.seeds),
                "rows": [
                    {
                        "label": row.label,
                        "method": row.method,
                        "available": row.available,
                        "arguments": row.spoken,
                    }
                    for row in protocol.rows
                ],
                "columns": [asdict(column) for column in protocol.columns],
                "published": {label: dict(by) for label, by in protocol.published.items()},
                "latency": dict(protocol.latency),
                "facts": facts,
                "precision": plan[0].precision if plan else "float32",
                "baselines": [],
                "cells": [cell.name for cell in plan],
                "command": command,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": {
                    "testtime": __version__,
                    "torch": torch.__version__,
                    "numpy": numpy.__version__,
                    "python": platform.python_version(),
                },
                "machine": {
                    "system": platform.system(),
                    "processor": platform.machine(),
                    "cores": os.cpu_count(),
                },
            },
        )

    def _add(self, plan: list[Cell], about: dict[str, Any]) -> None:
        """Write ``run.json`` with what an earlier run of the same settings left in this folder."""
        path = self.folder / "run.json"
        if path.is_file():
            before = read_json(path, DAMAGED)
            for name in SETTINGS:
                if (before.get(name) or None) != (about[name] or None):  # earlier versions had fewer
                    raise ValueError(
                        f"{self.folder} holds a run with {name} {before.get(name)}, this one has {about[name]}; "
                        "give it another folder with --out"
                    )
            with damaged(path, DAMAGED):
                self._join(plan, about, before)
        write_json(path, about)

    def _join(self, plan: list[Cell], about: dict[str, Any], before: dict[str, Any]) -> None:
        """Add to a description what an earlier one says."""
        again = {(cell.row.label, cell.column.name, cell.seed) for cell in plan}
        about["cells"] += [
            name for name in before["cells"] if name not in about["cells"] and self._what(name) not in again
        ]
        for name, key in (("rows", "label"), ("columns", "name")):
            new = {entry[key] for entry in about[name]}
            about[name] += [entry for entry in before[name] if entry[key] not in new]
            known = getattr(PROTOCOLS.get(about["protocol"]), name, ())
            order = [getattr(entry, key) for entry in known]
            about[name].sort(key=lambda e, k=key, o=order: o.index(e[k]) if e[k] in o else len(o))
        about["seeds"] = sorted({*before["seeds"], *about["seeds"]})
        about["facts"] = {**before["facts"], **about["facts"]}
        about["published"] = {**before["published"], **about["published"]}
        about["started"] = before["started"]
        about["baselines"] = before.get("baselines", [])

    def precision(self) -> Precision | None:
        """The precision that the run in this folder began with; None where there is none."""
        path = self.folder / "run.json"
        about = read_json(path, DAMAGED) if path.is_file() else {}
        cells = self.folder.glob("cells/*/cell.json")  # an earlier version wrote it there alone
        found = (read_json(cell, AGAIN, {"precision": str})["precision"] for cell in cells)
        precision: Precision | None = about.get("precision") or next(found, None)
        return precision

    def measure(self, protocol: Protocol, data: str, device: str, precision: Precision, threads: int) -> None:
        """Add the plain forward of this machine to ``run.json``, if it is not there."""
        path = self.folder / "run.json"
        about = read_json(path, DAMAGED, {"baselines": [dict]})
        found = measure_baseline(about["baselines"], protocol, data, device, precision, threads)
        write_json(path, {**about, "baselines": found})

    def _what(self, name: str) -> tuple[str, str, int] | None:
        """Method, setting and seed of a cell that was begun in this folder."""
        path = self.folder / "cells" / name / "cell.json"
        if not path.is_file():
            return None
        with damaged(path, AGAIN):
            cell = read_json(path, AGAIN)
            return cell["label"], cell["column"], cell["seed"]


def run_grid(
    protocol: Protocol,
    data: str,
    out: str | Path,
    device: str = "cpu",
    jobs: int = 1,
    cache: str | Path | None = None,
    command: list[str] | None = None,
    say: Callable[[str], None] = print,
    precision: PrecisionChoice = "float32",
) -> list[str]:
    """Run every cell that is not finished.

    Args:
        protocol: what to run.
        data: the data folder.
        out: folder of the run; an earlier run there is continued.
        device: of the adapters.
        jobs: processes, one torch thread each when there are several.
        cache: folder of corrupted images; None is ``cache`` beside the run.
        command: the command line, for the record.
        say: takes lines for a person.
        precision: precision of the networks' forwards and backwards; "auto" keeps that of an earlier run in the folder,
            see :func:`testtime.processor.resolve_precision`.

    Returns:
        what went wrong, a line for each failed cell; the others are finished.

    Raises:
        ValueError: there is no such device, or the folder holds another run; nothing is written.
        DataError: a data set or the weights are not there; nothing is written.
    """
    grid = Grid(out)
    precision = resolve_precision(precision, need_device(device), grid.precision(), say)
    plan = cells(protocol, data, device, precision)
    absent = [row.label for row in protocol.rows if not row.available]
    if absent:
        say(f"not in this version, left out: {', '.join(absent)}")
    grid.write(protocol, plan, command or [])
    todo = [cell for cell in plan if not grid.finished(cell)]
    if len(todo) < len(plan):
        say(f"{len(plan) - len(todo)} of {len(plan)} cells are finished already")
    changed = [cell.name for cell in plan if grid.finished(cell) and grid.outdated(cell)]
    if changed:
        say(
            f"run with another version of their method; remove their folders to run them again: {', '.join(changed)}"
        )
    if not todo:
        return []
    grid.measure(protocol, data, device, precision, 1 if jobs > 1 else torch.get_num_threads())
    tables = Path(cache) if cache is not None else Path(out).parent / "cache"
    totals = {cell.name: _batches(cell) for cell in todo}
    failures: list[str] = []
    with _bar(say) as bar:
        for name, total in totals.items():
            bar.start(name, total)
        if jobs <= 1:
            for cell in todo:
                failures += _one(cell, grid.of(cell), tables, bar.tick, say)
                bar.end(cell.name)
            return failures
        messages = multiprocessing.get_context("spawn").Queue()
        with worker_pool(jobs, _start, (messages,)) as pool:
            _render_all(todo, tables, pool, bar, say)
            waiting: set[Future[list[str]]] = set()
            names = {}
            for cell in todo:
                future = pool.submit(_in_pool, cell, grid.of(cell), tables)
                names[future] = cell.name
                waiting.add(future)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _drain(messages, bar, say)
                for future in finished:
                    failures += future.result()
                    bar.end(names[future])
    return failures


def _render_all(todo: list[Cell], tables: Path, pool: ProcessPoolExecutor, bar: Any, say: Any) -> None:
    """Corrupt the images that the cells share before they run, each table once."""
    jobs: dict[Path, tuple[Cell, int, Path]] = {}
    streams = {(cell.column, cell.seed): cell for cell in todo}
    for cell in streams.values():
        whole = make_stream(cell.protocol, cell.column, cell.seed, cell.data, cell.protocol.limit)
        for index, path in missing(whole, tables):
            jobs.setdefault(path, (cell, index, tables))
    if not jobs:
        return
    say(f"corrupting images: {len(jobs)} tables")
    bar.start("corrupting images", len(jobs))
    futures = [pool.submit(_render_in_pool, *job) for job in jobs.values()]
    for done, future in enumerate(futures, 1):
        future.result()
        bar.tick("corrupting images", done, len(jobs))
    bar.end("corrupting images")


def _render_in_pool(cell: Cell, index: int, tables: Path) -> None:
    whole = make_stream(cell.protocol, cell.column, cell.seed, cell.data, cell.protocol.limit)
    render(whole, index, tables)


def _batches(cell: Cell) -> int:
    images = cell.protocol.limit or len(sets.open_data(cell.protocol.closed, cell.data))
    known = max(1, round(cell.column.batch_size / (1 + (cell.column.ratio if cell.column.open_set else 0))))
    steps = len(GRADUAL_SEVERITIES) if cell.protocol.order == "gradual" else 1
    visits = len(cell.protocol.corruptions) * cell.protocol.rounds * steps + cell.protocol.returns
    return -(-images // known) * visits


_messages: Any = None  # of a worker: lines and ticks for the parent


def _start(messages: Any) -> None:
    global _messages
    start_worker()
    torch.set_num_threads(1)
    _messages = messages


def _in_pool(cell: Cell, folder: Path, tables: Path) -> list[str]:
    return _one(cell, folder, tables, lambda *tick: _messages.put(tick), _messages.put)


def _one(
    cell: Cell,
    folder: Path,
    tables: Path,
    tick: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> list[str]:
    path = folder / "error.txt"
    try:
        run_cell(cell, folder, tables, tick, say)
    except Exception as error:  # noqa: BLE001 - one method must not end the run of the others; it is reported
        see = f"see {path}"
        try:
            write_text(path, traceback.format_exc())
        except OSError as problem:
            see = f"{path} could not be written: {problem}"
        return [f"{cell.name}: {type(error).__name__}: {error} ({see})"]
    path.unlink(missing_ok=True)
    return []


def _drain(messages: Any, bar: Any, say: Callable[[str], None]) -> None:
    while True:
        try:
            message = messages.get_nowait()
        except queue.Empty:
            return
        if isinstance(message, str):
            say(message)
        else:
            bar.tick(*message)


class _Plain:
    """Progress as lines, for logs: one every ten seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.total, self.done = say, 0, 0
        self.by_cell: dict[str, tuple[int, int]] = {}
        self.ended: set[str] = set()
        self.began = self.spoke = time.monotonic()

    def start(self, name: str, total: int) -> None:
        self.total += total
        self.by_cell[name] = (0, total)

    def tick(self, name: str, done: int, total: int) -> None:
        if name in self.ended:
            return
        before, planned = self.by_cell[name]
        self.total += total - planned
        self.done += done - before
        self.by_cell[name] = (done, total)
        if time.monotonic() - self.spoke > 10:
            self.spoke = time.monotonic()
            self.say(f"{self.line()}  {name}")

    def end(self, name: str) -> None:
        done, total = self.by_cell[name]
        self.done += total - done
        self.ended.add(name)
        self.say(f"{self.line()}  finished {name}")

    def line(self) -> str:
        return f"{self.done}/{self.total} batches{remaining(self.done, self.total, time.monotonic() - self.began)}"


class _Rich:
    """Progress as a bar, for people."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.plain = _Plain(lambda line: None)
        self.task = self.bar.add_task("starting", total=0, left="")

    def start(self, name: str, total: int) -> None:
        self.plain.start(name, total)
        self.bar.update(self.task, total=self.plain.total)

    def tick(self, name: str, done: int, total: int) -> None:
        self.plain.tick(name, done, total)
        left = remaining(self.plain.done, self.plain.total, time.monotonic() - self.plain.began)
        self.bar.update(
            self.task,
            completed=self.plain.done,
            total=self.plain.total,
            description=name,
            left=left.removeprefix(", "),
        )

    def end(self, name: str) -> None:
        self.plain.end(name)
        self.bar.update(self.task, completed=self.plain.done, total=self.plain.total)


@contextmanager
def _bar(say: Callable[[str], None]) -> Iterator[_Plain | _Rich]:
    if sys.stderr.isatty():
        try:
            rich = _Rich()
        except ImportError:
            pass
        else:
            with rich.bar:
                yield rich
            return
    yield _Plain(say)
