"""The store: results and artefacts of units by address, shared by runs, processes and hosts; and the execution of a unit."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from testtime.experiments.claims import claimed, held, holder
from testtime.experiments.provenance import SCHEMA, provenance
from testtime.files import read_json, sweep, write_json

__all__ = ["Made", "Outcome", "Store", "Workspace", "execute"]

AGAIN = "delete it and give the same command again: it makes it again"
RESULT = {"schema": int, "unit": {"address": str, "name": str, "code": dict}, "result": dict, "made": dict}
REPORTED = 2.0  # seconds between two notes of a unit's progress


class Outcome(TypedDict, total=False):
    """What came of an attempt at a unit.

    "done": there is a result; "failed": with ``error`` and ``traceback``; "elsewhere": another process holds the claim with
    this ``token``; "lost": the process was killed.
    """

    state: Literal["done", "failed", "elsewhere", "lost"]
    error: str
    traceback: str
    token: str


@dataclass(frozen=True)
class Made:
    """A needed unit that is done: its result, and the folder with its artefacts."""

    result: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Workspace:
    """What the function of a unit gets.

    Attributes:
        parameters: those of the unit.
        places: paths on this machine.
        needs: the needed units by name.
        folder: own folder, for artefacts and checkpoints; what a killed attempt left is still there.
        cache: folder that all units share, for files that each writes whole and can make again.
        report: function that takes the done share of the work, from 0 to 1.
    """

    parameters: Mapping[str, Any]
    places: Mapping[str, str]
    needs: Mapping[str, Made]
    folder: Path
    cache: Path
    report: Callable[[float], None]

    def progress(self, done: float, total: float) -> None:
        """Say how far the unit is."""
        self.report(done / total if total else 1.0)


@dataclass(frozen=True)
class Store:
    """A folder of units by address.

    ``units/ab/abcdef.../result.json`` holds a result, beside it lie its artefacts; ``cache`` holds files that can be made
    again; ``logs`` has a line for every start and end of a unit, in a file for each host.

    Args:
        root: the folder.
    """

    root: Path

    @property
    def cache(self) -> Path:
        """The folder of files that can be made again."""
        return self.root / "cache"

    def folder(self, address: str) -> Path:
        """The folder of a unit."""
        return self.root / "units" / address[:2] / address

    def result(self, address: str) -> dict[str, Any] | None:
        """Return the content of a unit's result file, or None.

        Raises:
            DataError: the file is damaged.
        """
        try:
            return read_result(self.folder(address) / "result.json")
        except FileNotFoundError:
            return None

    def share(self, address: str) -> float:
        """Return the done share of a unit that is being worked on, from 0 to 1."""
        try:
            return float(json.loads((self.folder(address) / "progress.json").read_text())["share"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0.0

    def log(self, event: str, described: Mapping[str, Any], **facts: Any) -> None:
        """Append a line to this host's log."""
        path = self.root / "logs" / f"{socket.gethostname()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": time.time(), "pid": os.getpid(), "event": event, "address": described["address"]}
        line |= {"name": described["name"], **facts}
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(
                descriptor, (json.dumps(line) + "\n").encode()
            )  # one write: lines of processes do not mix
        finally:
            os.close(descriptor)

    def remove(self, address: str) -> None:
        """Remove a unit with its artefacts."""
        shutil.rmtree(self.folder(address), ignore_errors=True)


def read_result(path: Path) -> dict[str, Any]:
    """Read the file of a result.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, or of a later version of this library.
    """
    found: dict[str, Any] = read_json(path, AGAIN, RESULT)
    return found


def execute(
    described: Mapping[str, Any],
    root: str,
    again: bool = False,
    report: Callable[[float], None] | None = None,
) -> Outcome:
    """Do a unit if it is not done, unless another process is at it. Any process can call this, from plain values.

    Args:
        described: the unit, as :meth:`Unit.described` gives it.
        root: folder of the store.
        again: whether a result of another version of the code is made again.
        report: function that takes the done share; None writes it to a file beside the unit.
    """
    store, address = Store(Path(root)), described["address"]

    def done() -> bool:
        found = store.result(address)
        return found is not None and not (again and found["unit"]["code"] != described["code"])

    if done():
        return {"state": "done"}
    folder = store.folder(address)
    with claimed(folder) as (own, before):
        if own is None:
            other = holder(folder)
            return {"state": "elsewhere", "token": other.token if other else ""}
        if done():
            return {"state": "done"}
        store.log("started", described, **({"took_over": before.pid} if before is not None else {}))
        try:
            return _attempt(store, described, lambda: held(own), report)
        except Exception as error:  # noqa: BLE001 - one unit must not end the run of the others; it is reported
            failure = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            write_json(folder / "error.json", {**failure, "token": own.token})
            store.log("failed", described, error=failure["error"])
            return {"state": "failed", **failure}  # type: ignore[typeddict-item]


def _attempt(
    store: Store,
    described: Mapping[str, Any],
    still_held: Callable[[], bool],
    report: Callable[[float], None] | None,
) -> Outcome:
    folder = store.folder(described["address"])
    sweep(folder)
    needs = {}
    for name, address in described["needs"].items():
        found = store.result(address)
        if found is None:
            raise FileNotFoundError(f"{store.folder(address)}: the needed unit {name!r} has no result there")
        needs[name] = Made(found["result"], store.folder(address))
    store.cache.mkdir(parents=True, exist_ok=True)
    work = Workspace(
        described["parameters"], described["places"], needs, folder, store.cache, report or _Noted(folder)
    )
    begin = time.monotonic()
    parameters = described["parameters"]
    made = provenance([], parameters.get("device", "cpu"), parameters.get("precision", "float32"))
    with _own_randomness(described["address"]):
        result = resolve(described["kind"])(work)
    seconds = round(time.monotonic() - begin, 3)
    if not still_held():
        return {"state": "elsewhere", "token": ""}
    content = {"schema": SCHEMA, "unit": _portable(described), "result": result}
    write_json(folder / "result.json", {**content, "made": {**made, "seconds": seconds}})
    store.log("finished", described, seconds=seconds)
    for name in ("error.json", "progress.json"):
        (folder / name).unlink(missing_ok=True)
    return {"state": "done"}


def _portable(described: Mapping[str, Any]) -> dict[str, Any]:
    """The description without paths of this machine."""
    return {name: value for name, value in described.items() if name != "places"}


def resolve(path: str) -> Callable[..., Any]:
    """Return what an import path "package.module:name" names.

    Raises:
        ImportError: there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ImportError(f"{path}: {error}") from error
    return found


class _Noted:
    """Writes the done share of a unit to a file, now and then."""

    def __init__(self, folder: Path) -> None:
        self.path, self.last = folder / "progress.json", time.monotonic()

    def __call__(self, share: float) -> None:
        if time.monotonic() - self.last >= REPORTED:
            self.last = time.monotonic()
            self.path.write_text(json.dumps({"share": share}))


@contextmanager
def _own_randomness(address: str) -> Iterator[None]:
    """Seed the global generators by the address while the block runs, whatever ran before in this process."""
    import torch

    seed = int(address[:8], 16)
    before, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a unit may use
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(legacy)  # noqa: NPY002
