"""Snapshots of streams: safetensors with checksum, stream offset and configuration, written atomically, kept in a ring."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from testtime.errors import DataError
from testtime.files import check_shape, damaged, parse_json, read_tensors, sweep, sync_folder, write_tensors
from testtime.serve.checks import need_kinds, need_whole
from testtime.serve.streams import check_stream, folder_of, name_of

__all__ = ["FORMAT", "Retention", "Snapshot", "SnapshotInfo", "SnapshotStore", "snapshot_file"]

FORMAT = 1
KEY = "testtime.snapshot"
SUFFIX = ".safetensors"
OTHERWISE = "roll back to another snapshot, or delete the file"
SHAPE: dict[str, Any] = {
    "stream": str,
    "number": int,
    "offset": int,
    "step": int,
    "time": float,
    "healthy": bool,
    "state": str,
    "configuration": str,
    "ranges": dict,
    "counts": dict,
}


class SnapshotGone(DataError, FileNotFoundError):
    """The file of a snapshot was deleted by others than its store."""


@dataclass(frozen=True)
class SnapshotInfo:
    """What is known of a snapshot without reading its tensors.

    Attributes:
        stream: name of its stream.
        number: number of the snapshot, counted from 1 in its stream.
        offset: number of samples of the stream before it.
        step: steps of the adapter.
        time: seconds since 1970.
        bytes: size of the file.
        checksum: SHA-256 of tensors and description.
        healthy: whether, since the snapshot before, no guard undid anything (restore, partial reset, alarm) and the shipped
            model answered at most half of the samples.
        state: hash of the state, 16 hexadecimal digits.
        configuration: hash of the configuration that it belongs to.
        acknowledged: whether it is durable; False while a writer is still at work.
    """

    stream: str
    number: int
    offset: int
    step: int
    time: float
    bytes: int
    checksum: str
    healthy: bool
    state: str
    configuration: str
    acknowledged: bool = True


@dataclass(frozen=True)
class Snapshot:
    """A snapshot with its content.

    Attributes:
        info: see :class:`SnapshotInfo`.
        tensors: tensors by name.
        facts: the description, in values of JSON.
    """

    info: SnapshotInfo
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Retention:
    r"""Which snapshots are kept.

    The last ``last``, the last ``healthy`` that are marked healthy, and with ``powers`` the last two multiples of every
    :math:`2^j`: then one has an age, counted in snapshots, in every :math:`[2^j, 2^{j+1})`, and n snapshots leave at most
    about :math:`2 \log_2 n`.

    Attributes:
        last: number of the newest that are kept.
        healthy: number of the newest healthy ones that are kept.
        powers: whether one of every age, in powers of two, is kept.

    Raises:
        ValueError: a value is of another type, or out of range.

    >>> sorted(Retention(last=2, healthy=0).kept(range(1, 101), set()))
    [64, 80, 88, 96, 98, 99, 100]
    """

    last: int = 8
    healthy: int = 2
    powers: bool = True

    def __post_init__(self) -> None:
        need_whole(self, last=1, healthy=0)
        need_kinds(self, {"powers": bool})

    def kept(self, numbers: Iterable[int], healthy: set[int]) -> set[int]:
        """The numbers of the snapshots that are kept.

        Args:
            numbers: those that there are.
            healthy: those of them that are healthy.
        """
        there = sorted(numbers)
        if not there:
            return set()
        kept = set(there[-self.last :])
        kept.update(sorted(healthy & set(there))[-self.healthy :] if self.healthy else ())
        if self.powers:
            newest = there[-1]
            for j in range(int(math.log2(newest)) + 1):
                multiple = newest >> j << j
                kept.update({multiple, multiple - (1 << j)} & set(there))
        return kept


class SnapshotStore:
    """The snapshots of all streams below a folder.

    Args:
        folder: the folder; one folder per stream is made in it.
        retention: which snapshots are kept.
        clock: time in seconds since 1970.
    """

    def __init__(self, folder: str | Path, retention: Retention, clock: Callable[[], float]) -> None:
        self.folder, self.retention, self.clock = Path(folder), retention, clock
        self._known: dict[str, dict[int, SnapshotInfo | None]] = {}
        self._lock = threading.RLock()

    def streams(self) -> list[str]:
        """Names of the streams that have a folder."""
        if not self.folder.is_dir():
            return []
        found = (
            name_of(entry.name) for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)
        )
        return sorted(name for name in found if name is not None)

    def has(self, stream: str) -> bool:
        """Whether a stream has a folder."""
        home = self.folder / folder_of(stream)
        return home.is_dir() and not home.is_symlink()

    def numbers(self, stream: str) -> list[int]:
        """Numbers of the snapshots of a stream, damaged ones too, in their order."""
        with self._lock:
            return sorted(self._index(stream))

    def next_number(self, stream: str) -> int:
        """Number that the next snapshot of a stream gets."""
        return max(self.numbers(stream), default=0) + 1

    def write(
        self, stream: str, number: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> SnapshotInfo:
        """Write a snapshot; it is durable when this returns. Snapshots that are not kept any more are deleted.

        Args:
            stream: name of the stream.
            number: from :meth:`next_number`.
            tensors: tensors by name.
            facts: description in values of JSON.

        Raises:
            OSError: the disk is full or read-only; the earlier snapshots are as before.
        """
        folder = self._home(stream)
        for new in (self.folder, folder):
            if not new.is_dir():
                new.mkdir(exist_ok=True, mode=0o700)
                sync_folder(new.parent)
        described = {**facts, "stream": stream, "number": number, "time": self.clock(), "format": FORMAT}
        path = folder / snapshot_file(number)
        write_tensors(path, tensors, {KEY: json.dumps(described, allow_nan=False)}, private=True)
        with safe_open(path, framework="pt") as file:
            checksum = file.metadata()["sha256"]
        info = self._info(described, path.stat().st_size, checksum)
        with self._lock:
            self._index(stream)[number] = info
            self._prune(stream)
        return info

    def read(self, stream: str, number: int) -> Snapshot:
        """Read a snapshot.

        Raises:
            TypeError: this is no whole number.
            ValueError: there is no snapshot of this number; the message names those that there are.
            DataError: it is damaged, or of another stream; the message names the file.
            SnapshotGone: its file was deleted; the message names those that there are.
        """
        if type(number) is not int:
            raise TypeError(f"expected the number of a snapshot, got {number!r}")
        if number not in self.numbers(stream):
            raise ValueError(f"stream {stream!r} has no snapshot {number}; there are {self._named(stream)}")
        path = self._path(stream, number)
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, which is not followed; {OTHERWISE}")
        if self._gone(stream, number):
            raise SnapshotGone(
                f"snapshot {number} of stream {stream!r} is gone; there are {self._named(stream)}"
            )
        tensors, metadata = read_tensors(path, OTHERWISE)
        with damaged(path, OTHERWISE):
            if "sha256" not in metadata:
                raise ValueError("it has no checksum")
            facts = parse_json(metadata[KEY])
            check_shape(facts, {"format": int})
            if facts["format"] > FORMAT:
                raise ValueError(
                    f"format {facts['format']}, this version reads up to {FORMAT}; update testtime"
                )
            check_shape(facts, SHAPE)
            if min(facts["number"], facts["offset"], facts["step"]) < 0:
                raise ValueError("a negative count")
            if (facts["stream"], facts["number"]) != (stream, number):
                raise ValueError(f"it is snapshot {facts['number']} of stream {facts['stream']!r}")
        info = self._info(facts, path.stat().st_size, metadata["sha256"])
        with self._lock:
            self._index(stream)[number] = info
        return Snapshot(info, tensors, facts)

    def infos(self, stream: str) -> tuple[SnapshotInfo, ...]:
        """The snapshots of a stream that can be read, oldest first."""
        found = []
        with self._lock:
            known = sorted(self._index(stream).items())
        for number, info in known:
            try:
                if not self._gone(stream, number):
                    found.append(info or self.read(stream, number).info)
            except (DataError, FileNotFoundError):
                continue
        return tuple(found)

    def release(self, stream: str) -> None:
        """Keep nothing of a stream in memory."""
        with self._lock:
            self._known.pop(stream, None)

    def forget(self, stream: str) -> None:
        """Delete the snapshots of a stream."""
        with self._lock:
            self._known.pop(stream, None)
            if (home := self._home(stream)).exists():
                shutil.rmtree(home)

    def _home(self, stream: str) -> Path:
        home = self.folder / folder_of(check_stream(stream))
        if home.is_symlink():
            raise DataError(f"{home} is a symbolic link, which is not followed; replace it by the folder")
        return home

    def _path(self, stream: str, number: int) -> Path:
        return self._home(stream) / snapshot_file(number)

    def _gone(self, stream: str, number: int) -> bool:
        """Whether the file of a snapshot was deleted; that the whole folder is lost is an error of the disk instead."""
        path = self._path(stream, number)
        return path.parent.is_dir() and not path.exists()

    def _named(self, stream: str) -> str:
        """Numbers of the snapshots whose files are there, for a message."""
        there = [str(number) for number in self.numbers(stream) if not self._gone(stream, number)]
        return ", ".join(there) or "none"

    def _index(self, stream: str) -> dict[int, SnapshotInfo | None]:
        if stream not in self._known:
            home = self._home(stream)
            names = [entry.name for entry in os.scandir(home)] if home.is_dir() else []
            if names:
                sweep(home)
            numbers = [n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX)]
            self._known[stream] = {int(n): None for n in numbers if n.isdecimal()}
        return self._known[stream]

    def _prune(self, stream: str) -> None:
        index = self._index(stream)
        for number in [number for number in index if self._gone(stream, number)]:
            del index[number]
        healthy = {info.number for info in self.infos(stream) if info.healthy}
        for number in index.keys() - self.retention.kept(index, healthy):
            try:
                self._path(stream, number).unlink(missing_ok=True)
            except OSError:  # read-only: it stays, and is deleted after a later snapshot
                continue
            del index[number]

    def _info(self, facts: Mapping[str, Any], size: int, checksum: str) -> SnapshotInfo:
        names = ("stream", "number", "offset", "step", "time", "healthy", "state", "configuration")
        return SnapshotInfo(bytes=size, checksum=checksum, **{name: facts[name] for name in names})


def snapshot_file(number: int) -> str:
    """Name of the file of a snapshot in the folder of its stream."""
    return f"{number:09d}{SUFFIX}"


def packed(digests: Iterable[bytes]) -> Tensor:
    """Digests of 16 bytes as a tensor (n, 16) of uint8."""
    data = bytearray(b"".join(digests))
    return (
        torch.frombuffer(data, dtype=torch.uint8).reshape(-1, 16).clone()
        if data
        else torch.zeros(0, 16, dtype=torch.uint8)
    )


def unpacked(tensor: Tensor) -> list[bytes]:
    """The digests that :func:`packed` packed.

    Raises:
        ValueError: these are none.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 2 or tensor.shape[1] != 16:
        raise ValueError(f"digests of shape {tuple(tensor.shape)}, {tensor.dtype}")
    return [bytes(row) for row in tensor.numpy()]
