"""Leases of streams in a folder that several processes share: one owner per stream, fenced by an epoch.

Every change of owner takes the next epoch of the stream by making a file that must not exist yet, and the highest epoch owns
the stream. A snapshot is acknowledged once its file is there and its owner has then found its epoch still the highest: whoever
takes a higher epoch afterwards reads the folder after that and finds it. Names of snapshots hold the epoch, so that no process
overwrites a file of another owner. Clocks decide only when an owner is taken for dead, not what is kept.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testtime.files import read_json, sweep, sync_folder, write_bytes
from testtime.serve.directory import DirectoryLock
from testtime.serve.snapshots import snapshot_file
from testtime.serve.streams import folder_of

__all__ = ["Lease", "Leases", "StreamBusy", "StreamLost"]

ADVICE = "delete it; the stream continues from its last snapshot"
CLAIM, WANTED, SUFFIX = ".claim", ".wanted", ".safetensors"
SHAPE: dict[str, Any] = {"owner": str, "host": str, "free": bool}
KEPT = 4  # snapshots of a stream
POLL = 0.05  # seconds between two looks at a stream that another process owns


class StreamBusy(RuntimeError):
    """Another process owns a stream, is alive, and did not give the stream up in time; send the request again."""


class StreamLost(RuntimeError):
    """Another process took a stream over, because this one was silent for too long; send the request again."""


@dataclass(frozen=True)
class Lease:
    """The ownership of a stream.

    Attributes:
        stream: name of the stream.
        epoch: number of the ownership, counted from 1 in its stream.
        folder: shared folder of the stream.
    """

    stream: str
    epoch: int
    folder: Path


class Leases:
    """The leases of one process on streams of a shared folder.

    The process has a folder of its own, ``replicas/NAME``, which it holds by a :class:`DirectoryLock` as long as it lives, and
    calls :meth:`beat` several times in ``silence`` seconds.

    Args:
        root: the shared folder. Its file system makes hard links, and shows a new file to all processes at once.
        name: name of this process, unique for all time.
        silence: seconds without a beat after which a process is taken for dead; on the same host its lock tells at once.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        *,
        silence: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self.name, self.silence, self.clock = Path(root), name, silence, clock
        self._host = socket.gethostname()
        self._seen: dict[str, tuple[int, float]] = {}  # the last beat of each owner, and since when

    def beat(self) -> None:
        """Show that this process is alive.

        Raises:
            OSError: the folder cannot be written to.
        """
        path = self._home(self.name) / "alive"
        path.touch()
        os.utime(path)

    def acquire(self, stream: str, patience: float) -> Lease:
        """Become the owner of a stream: at once if no living process owns it, otherwise once its owner gives it up when asked.

        Args:
            stream: name of the stream.
            patience: seconds to wait.

        Raises:
            StreamBusy: another process owns it and is alive.
            DataError: a file of the lease is damaged.
            OSError: the folder cannot be written to.
        """
        folder, end = self.root / "streams" / folder_of(stream), self.clock() + patience
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            epoch = _epoch(folder)
            owner = self._owner(folder, epoch)
            if owner is None or owner["free"] or owner["owner"] == self.name or self._dead(owner):
                if self._claim(folder, epoch + 1):
                    return Lease(stream, epoch + 1, folder)
                continue
            if self.clock() >= end:
                raise StreamBusy(
                    f"stream {stream!r} is served by replica {owner['owner']} on {owner['host']}, which is alive and did not "
                    f"give it up in {patience:g} s; send the request again"
                )
            (folder / f"{epoch:09d}{WANTED}").touch()
            time.sleep(POLL)

    def holds(self, lease: Lease) -> bool:
        """Whether no other process has taken the stream over."""
        return _epoch(lease.folder) == lease.epoch

    def wanted(self, lease: Lease) -> bool:
        """Whether another process asks for the stream."""
        return (lease.folder / f"{lease.epoch:09d}{WANTED}").exists()

    def release(self, lease: Lease) -> None:
        """Give a stream up; without effect if it was taken over."""
        if self.holds(lease):
            write_bytes(lease.folder / f"{lease.epoch:09d}{CLAIM}", self._record(free=True), private=True)

    def publish(self, lease: Lease, path: Path, number: int) -> None:
        """Acknowledge a snapshot: from now on, whoever owns the stream next finds it. Old snapshots are deleted.

        Args:
            lease: lease of the stream.
            path: the durable file, on the same file system.
            number: number of the snapshot.

        Raises:
            StreamLost: the stream was taken over; the snapshot is not acknowledged.
            OSError: the folder cannot be written to; the snapshot is not acknowledged.
        """
        target = lease.folder / f"{lease.epoch:09d}-{snapshot_file(number)}"
        os.link(path, target)
        sync_folder(lease.folder)
        if not self.holds(lease):
            target.unlink(missing_ok=True)
            raise StreamLost(
                f"stream {lease.stream!r} was taken over by another replica, because this one was silent for "
                f"{self.silence:g} s; send the request again"
            )
        self._prune(lease)

    def snapshots(self, lease: Lease) -> list[tuple[int, Path]]:
        """The snapshots from which a stream continues, newest first: number and file.

        A file that an owner wrote after the stream was taken over, and so did not acknowledge, is left out once the next owner
        has a snapshot of its own.
        """
        chain: list[tuple[int, Path]] = []
        for _, number, path in sorted(_files(lease.folder), reverse=True):
            if not chain or number < chain[-1][0]:
                chain.append((number, path))
        return chain

    def _prune(self, lease: Lease) -> None:
        kept = {path for _, path in self.snapshots(lease)[:KEPT]}
        old = [path for epoch, _, path in _files(lease.folder) if epoch <= lease.epoch and path not in kept]
        for suffix in (CLAIM, WANTED):
            old += [
                p for p in lease.folder.glob(f"*{suffix}") if p.stem.isdecimal() and int(p.stem) < lease.epoch
            ]
        for path in old:
            with suppress(OSError):  # it stays, and is deleted later
                path.unlink()

    def _claim(self, folder: Path, epoch: int) -> bool:
        sweep(folder)
        path, made = folder / f"{epoch:09d}{CLAIM}", folder / f".{secrets.token_hex(6)}.part"
        write_bytes(made, self._record(free=False), private=True)
        try:
            os.link(made, path)
        except FileExistsError:
            return False
        finally:
            made.unlink()
        sync_folder(folder)
        if _epoch(folder) != epoch:  # others took this epoch and the next meanwhile, and deleted this one
            path.unlink(missing_ok=True)
            return False
        return True

    def _record(self, *, free: bool) -> bytes:
        return json.dumps({"owner": self.name, "host": self._host, "free": free}).encode()

    def _owner(self, folder: Path, epoch: int) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = read_json(folder / f"{epoch:09d}{CLAIM}", ADVICE, SHAPE)
        except FileNotFoundError:  # there is none, or a later owner deleted it
            return None
        return found

    def _dead(self, owner: dict[str, Any]) -> bool:
        home = self._home(owner["owner"])
        if owner["host"] == self._host:
            try:
                DirectoryLock(home).release()
            except RuntimeError:
                pass  # it lives
            except FileNotFoundError:
                return True
            else:
                return True
        try:
            beat = (home / "alive").stat().st_mtime_ns
        except FileNotFoundError:
            beat = 0
        before, since = self._seen.get(owner["owner"], (-1, 0.0))
        if beat != before:
            self._seen[owner["owner"]] = (beat, self.clock())
            return False
        return self.clock() - since >= self.silence

    def _home(self, name: str) -> Path:
        return self.root / "replicas" / name


def _epoch(folder: Path) -> int:
    stems = [entry.name.removesuffix(CLAIM) for entry in os.scandir(folder) if entry.name.endswith(CLAIM)]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """The snapshots in a folder: epoch, number and file."""
    found = []
    for entry in os.scandir(folder):
        epoch, _, number = entry.name.removesuffix(SUFFIX).partition("-")
        if entry.name.endswith(SUFFIX) and epoch.isdecimal() and number.isdecimal():
            found.append((int(epoch), int(number), folder / entry.name))
    return found
