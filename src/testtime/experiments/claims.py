"""Claims: of all processes that share a folder, one at a time works on a unit, and a dead one's claim passes on.

The claims of a unit are files with rising numbers, ``claim-1``, ``claim-2``, ...; the highest counts. Each is made with
O_EXCL, so that of several processes that want to take over one dead claim a single one succeeds, without removing a file
that another may just have made.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testtime.files import parse_json

__all__ = ["BEAT", "STALE", "Claim", "claimed", "held", "holder", "machine", "start_time"]

BEAT = 10.0  # seconds between two heartbeats
STALE = 90.0  # seconds without a heartbeat after which a claim of another host belongs to a dead process


@dataclass(frozen=True)
class Claim:
    """A claim file that was read.

    Attributes:
        path: the file.
        number: number of the claim.
        machine: name of the host and of its process table; empty where the file cannot be read.
        pid: process that holds it.
        started: start time of that process in the kernel's ticks, or None where the system does not tell.
        token: random word of the claim.
    """

    path: Path
    number: int
    machine: str = ""
    pid: int = 0
    started: int | None = None
    token: str = ""

    def dead(self) -> bool:
        """Whether the process that made the claim is gone: at once on this host, after a silence of a heartbeat elsewhere."""
        if self.machine == machine():
            found = start_time(self.pid)
            if found is None:
                return True
            if self.started is not None and found >= 0:
                return found != self.started
        try:
            return _now(self.path.parent) - self.path.stat().st_mtime > STALE
        except FileNotFoundError:
            return True  # its process has finished, or given up


def holder(folder: Path) -> Claim | None:
    """Return the claim of a unit's folder that counts, or None; a claim of a dead process counts until it is taken over."""
    numbers = _numbers(folder)
    if not numbers:
        return None
    path = folder / f"claim-{max(numbers)}"
    try:
        content = parse_json(path.read_bytes())
        return Claim(
            path, max(numbers), content["machine"], content["pid"], content["started"], content["token"]
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # it is being written, or its process died while it wrote
        return Claim(path, max(numbers))


@contextmanager
def claimed(folder: Path) -> Iterator[tuple[Claim | None, Claim | None]]:
    """Claim the folder of a unit while the block runs.

    Args:
        folder: folder of the unit.

    Yields:
        the own claim, None if another live process holds one; and the claim found before, None if there was none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = holder(folder)
    own = (
        None
        if before is not None and not before.dead()
        else _make(folder, before.number + 1 if before else 1)
    )
    if own is None:
        yield None, holder(folder)
        return
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(own.path, stop), daemon=True)
    beating.start()
    try:
        yield own, before
    finally:
        stop.set()
        beating.join()
        for number in _numbers(folder):
            if number <= own.number:
                (folder / f"claim-{number}").unlink(missing_ok=True)


def held(claim: Claim) -> bool:
    """Return whether a claim still counts; a process that was asleep for long may have lost it to another host."""
    found = holder(claim.path.parent)
    return found is not None and found.token == claim.token


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix("claim-") for path in folder.glob("claim-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def _make(folder: Path, number: int) -> Claim | None:
    claim = Claim(
        folder / f"claim-{number}",
        number,
        machine(),
        os.getpid(),
        start_time(os.getpid()),
        secrets.token_hex(8),
    )
    content = {"machine": claim.machine, "pid": claim.pid, "started": claim.started, "token": claim.token}
    try:
        descriptor = os.open(claim.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(content))
    return claim


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(FileNotFoundError):
            os.utime(path)


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which all hosts that share it see."""
    probe = folder / f".now-{secrets.token_hex(6)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def machine() -> str:
    """Return a name of this host, its boot and its process table; two containers have different ones."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_time(pid: int) -> int | None:
    """Return the start time of a process of this host in ticks; None if it is gone, -1 if the system does not tell."""
    path = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else int(fields[19])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return -1
