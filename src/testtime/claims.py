"""Claims: of all processes that share a folder, one at a time works on a unit, and a dead one's claim passes on.

The claims of a unit are files with rising numbers, ``claim-1``, ``claim-2``, ...; the highest counts. Each is made with
O_EXCL, so that of several processes that take over one dead claim a single one succeeds, and none removes a file that
another has just made.
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
from functools import cache
from pathlib import Path

from testtime.files import parse_json

__all__ = ["BEAT", "STALE", "Claim", "claimed", "holder", "machine", "start_time"]

BEAT = 10.0
"""Seconds between two heartbeats of a claim."""
STALE = 90.0
"""Seconds without a heartbeat after which a claim of another host counts as that of a dead process."""
_own: set[str] = set()  # the tokens of the claims of this process


@dataclass(frozen=True)
class Claim:
    """A claim on the folder of a unit.

    Args:
        path: file of the claim.
        machine: host and process table; empty where the file cannot be read.
        pid: process that holds it.
        started: start time of that process, see :func:`start_time`.
        token: random word.
    """

    path: Path
    machine: str = ""
    pid: int = 0
    started: int | None = None
    token: str = ""

    @property
    def number(self) -> int:
        """The number of the claim."""
        return int(self.path.name.removeprefix("claim-"))

    def dead(self) -> bool:
        """Whether its process is gone: known at once on this host, elsewhere after a silence of the heartbeat."""
        if self.machine == machine() and self.started is not None:
            return start_time(self.pid) != self.started or (
                self.pid == os.getpid() and self.token not in _own
            )
        probe = self.path.with_name(
            f".now-{secrets.token_hex(6)}"
        )  # its time is by the clock that all hosts see
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime > STALE
        except FileNotFoundError:
            return True  # the claim was given back
        finally:
            probe.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether it still counts; a process that was suspended for long may have lost it to another host."""
        found = holder(self.path.parent)
        return found is not None and found.token == self.token


def holder(folder: Path) -> Claim | None:
    """Return the claim on a folder that counts, also if its process is dead; None if there is none."""
    return _read(folder / f"claim-{max(_numbers(folder), default=0)}")


def _read(path: Path) -> Claim | None:
    try:
        content = parse_json(path.read_bytes())
        return Claim(path, content["machine"], content["pid"], content["started"], content["token"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return Claim(path)  # it is being written, or its process died while it wrote


@contextmanager
def claimed(folder: Path) -> Iterator[tuple[Claim | None, Claim | None]]:
    """Claim a folder while the block runs.

    Args:
        folder: folder of a unit; it is made.

    Yields:
        the own claim, or None if a live process holds one; and the claim that was there before, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = holder(folder)
    own = (
        None
        if before and not before.dead()
        else _make(folder / f"claim-{before.number + 1 if before else 1}")
    )
    if own is None:
        yield None, holder(folder)
        return
    stop = threading.Event()
    threading.Thread(target=_beat, args=(own.path, stop), daemon=True).start()
    ended = [own.path]
    try:
        # Since the dead claim was read, another process may have taken it over, given up, and left the folder to a third.
        found = [_read(folder / f"claim-{number}") for number in _numbers(folder)]
        others = [claim for claim in found if claim is not None and claim.token != own.token]
        live = next((claim for claim in others if not claim.dead()), None)
        if live is not None:
            yield None, live
            return
        ended += [claim.path for claim in others]
        yield own, before
    finally:
        stop.set()
        _own.discard(own.token)
        for path in ended:
            path.unlink(missing_ok=True)


def _make(path: Path) -> Claim | None:
    claim = Claim(path, machine(), os.getpid(), start_time(os.getpid()), secrets.token_hex(8))
    facts = {name: getattr(claim, name) for name in ("machine", "pid", "started", "token")}
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    _own.add(claim.token)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(facts))
    return claim


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix("claim-") for path in folder.glob("claim-*"))
    return [int(name) for name in names if name.isdecimal()]


@cache
def machine() -> str:
    """Return a name of this host, its boot and its process table; two containers have different ones."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_time(pid: int) -> int | None:
    """Return when a process of this host started, in ticks; None if it is gone or the system has no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
