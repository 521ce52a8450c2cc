"""The store: results and artefacts of units by address, shared by runs, processes and hosts; and the execution of a unit."""

from __future__ import annotations

import json
import os
import random
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from testtime.claims import claimed
from testtime.experiments.provenance import SCHEMA, provenance
from testtime.files import damaged, read_json, sweep, write_json
from testtime.plugins import resolve

__all__ = ["Made", "Outcome", "Store", "Workspace", "check_schema", "execute", "read_result"]

AGAIN = "delete it and give the same command again: it makes it again"
RESULT = {"schema": int, "unit": {"address": str, "name": str, "code": dict}, "result": dict, "made": dict}
REPORTED = 2.0  # seconds between two notes of a unit's progress


class Outcome(TypedDict, total=False):
    """What came of an attempt at a unit: in state "lost" its process was killed, "elsewhere" another one holds ``token``."""

    state: Literal["done", "failed", "elsewhere", "lost"]
    error: str
    traceback: str
    token: str


@dataclass(frozen=True)
class Made:
    """A needed unit that is done: its result, and the folder of its artefacts."""

    result: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Workspace:
    """What the function of a unit gets.

    Args:
        parameters: parameters of the unit.
        places: absolute paths on this machine.
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
        """Report how far the unit is."""
        self.report(done / total if total else 1.0)


@dataclass(frozen=True)
class Store:
    """A folder of units by address.

    ``units/ab/abcd.../result.json`` holds a result, beside it lie its artefacts; ``cache`` holds files that can be made
    again; ``logs`` has a line for every start and end of a unit, in a file for each host.
    """

    root: Path

    def folder(self, address: str) -> Path:
        """Return the folder of a unit."""
        return self.root / "units" / address[:2] / address

    def result(self, address: str) -> dict[str, Any] | None:
        """Return the content of a unit's result file; None if there is none."""
        path = self.folder(address) / "result.json"
        return read_result(path, address) if path.is_file() else None

    def share(self, address: str) -> float:
        """Return the done share of a unit that is being worked on, from 0 to 1."""
        try:
            return float((self.folder(address) / "progress").read_text())
        except (OSError, ValueError):
            return 0.0

    def log(self, event: str, described: Mapping[str, Any], **facts: Any) -> None:
        """Append a line to the log of this host."""
        path = self.root / "logs" / f"{socket.gethostname()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": time.time(), "pid": os.getpid(), "event": event, "address": described["address"]}
        text = json.dumps({**line, "name": described["name"], **facts}) + "\n"
        with open(path, "ab", buffering=0) as file:  # one write: the lines of several processes do not mix
            file.write(text.encode())


def read_result(path: Path, address: str | None = None) -> dict[str, Any]:
    """Read the file of a result.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, from a later version of this library, or not of the unit of this address.
    """
    found: dict[str, Any] = read_json(path, AGAIN, RESULT)
    with damaged(path, AGAIN):
        check_schema(found)
        if address not in (None, found["unit"]["address"]):
            raise ValueError(f"it holds the result of another unit, {found['unit']['name']}")
    return found


def check_schema(found: Mapping[str, Any]) -> None:
    """Refuse a file of a later version of this library with a ValueError."""
    if not 1 <= found["schema"] <= SCHEMA:
        raise ValueError(f"it has schema {found['schema']}, this version of testtime reads up to {SCHEMA}")


def execute(
    described: Mapping[str, Any],
    root: str,
    again: bool = False,
    report: Callable[[float], None] | None = None,
) -> Outcome:
    """Do a unit if it is not done and no other process is at it. Any process can call this, from plain values.

    Args:
        described: the unit, as :meth:`Unit.described` gives it.
        root: folder of the store.
        again: whether a result of another version of the code is made again.
        report: function that takes the done share; None writes it to a file beside the unit.
    """
    store = Store(Path(root))
    folder = store.folder(described["address"])

    def done() -> bool:
        found = store.result(described["address"])
        return found is not None and not (again and found["unit"]["code"] != described["code"])

    if done():
        return {"state": "done"}
    with claimed(folder) as (own, other):
        if own is None:
            return {"state": "elsewhere", "token": other.token if other else ""}
        if done():
            return {"state": "done"}
        store.log("started", described, **({"took_over": other.pid} if other else {}))
        begin = time.monotonic()
        try:
            content = _attempt(store, described, report or _Noted(folder / "progress"))
            content["made"]["seconds"] = round(time.monotonic() - begin, 3)
            if not own.held():
                return {"state": "elsewhere", "token": ""}
            write_json(folder / "result.json", content)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one unit must not end the run of the others
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            text, trace = f"{type(error).__name__}: {error}{notes}", traceback.format_exc()
            write_json(folder / "error.json", {"error": text, "traceback": trace, "token": own.token})
            store.log("failed", described, error=text)
            return {"state": "failed", "error": text, "traceback": trace}
        store.log("finished", described, seconds=content["made"]["seconds"])
        for name in ("error.json", "progress"):
            (folder / name).unlink(missing_ok=True)
        return {"state": "done"}


def _attempt(store: Store, described: Mapping[str, Any], report: Callable[[float], None]) -> dict[str, Any]:
    """Call the function of a unit and return the content of its result file."""
    folder, cache, kind = store.folder(described["address"]), store.root / "cache", described["kind"]
    parameters, needs = described["parameters"], {}
    sweep(folder)
    cache.mkdir(parents=True, exist_ok=True)
    for name, address in described["needs"].items():
        if (found := store.result(address)) is None:
            raise FileNotFoundError(f"{store.folder(address)}: the needed unit {name!r} has no result there")
        needs[name] = Made(found["result"], store.folder(address))
    made = provenance([], parameters.get("device", "cpu"), parameters.get("precision", "float32"))
    with _own_surroundings(described["address"]):
        result = resolve(kind)(Workspace(parameters, described["places"], needs, folder, cache, report))
    if not isinstance(result, Mapping):
        raise TypeError(f"{kind} returned {type(result).__name__}, expected a dictionary of values")
    unit = {name: value for name, value in described.items() if name != "places"}
    return {"schema": SCHEMA, "unit": unit, "result": result, "made": made}


class _Noted:
    """Writes the done share of a unit to a file, now and then."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, time.monotonic()

    def __call__(self, share: float) -> None:
        if time.monotonic() - self.last >= REPORTED:
            self.last = time.monotonic()
            self.path.write_text(f"{share:.4f}")


@contextmanager
def _own_surroundings(address: str) -> Iterator[None]:
    """Seed the global generators by the address while the block runs; they and the working folder are restored after it."""
    import torch

    seed, before, legacy = int(address[:8], 16), random.getstate(), np.random.get_state()  # noqa: NPY002
    where = Path.cwd()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            os.chdir(where)
            random.setstate(before)
            np.random.set_state(legacy)  # noqa: NPY002
