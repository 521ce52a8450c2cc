"""The audit log of a session: JSON Lines whose records are chained by hashes, in files that are rotated.

The hash of a record is the SHA-256 of the hash before it and of the record's own text, so that an edited, removed or inserted
record is found by :func:`verify`. Removed records at the end are found by the heads that snapshots hold, or by one that was
kept elsewhere: who can write the whole log can also compute the whole chain again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testtime.errors import DataError
from testtime.files import parse_json, sync_folder

__all__ = ["Audit", "Head", "Verified", "records", "verify"]

ORIGIN = "0" * 64
SUFFIX = ".jsonl"
FIRST = f"{1:06d}{SUFFIX}"  # with rotation it may be gone, and the log then begins later
LONGEST = 2**20  # bytes of a record
WAITING = 1000  # records that wait for space on the disk


@dataclass(frozen=True)
class Head:
    """The end of a log: sequence number and hash of its last record."""

    seq: int = 0
    hash: str = ORIGIN


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` found.

    Attributes:
        records: number of records.
        head: end of the log.
        faults: faults of the log, each with file and record; empty if it is whole.
        torn: whether the last line is incomplete, as a killed process leaves it.
        closed: whether the last record is that of a session that was closed.
    """

    records: int
    head: Head
    faults: tuple[str, ...]
    torn: bool
    closed: bool


class Audit:
    """The writer of a log; one process at a time.

    Args:
        folder: folder of the files, made if it is missing.
        clock: time in seconds since 1970.
        rotate: bytes after which a new file begins.
        keep: number of files that are kept; 0: all.

    Attributes:
        head: end of the log, as far as it was written.
        durable: sequence number of the last record that is known to be on the disk.
        waiting: lines that could not be written yet, because the disk is full or read-only.
        preamble: entries of the record at the beginning of every further file.
        repaired: bytes of a torn last line that were dropped when the log was opened.
        broken: faults of the newest files, down to one that has a record; empty if they are whole.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(
        self, folder: str | Path, clock: Callable[[], float], rotate: int = 2**24, keep: int = 0
    ) -> None:
        self.folder, self.clock, self.rotate, self.keep = Path(folder), clock, rotate, keep
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.head, self.repaired, self.broken = Head(), 0, ""
        self.durable = 0
        self.waiting: list[bytes] = []
        self.preamble: dict[str, Any] = {}
        self._left_out = 0
        self._lock = threading.RLock()
        self._file: Any = None
        self._size = self._number = 0
        files = _files(self.folder)
        if files:
            self._continue([path for _, path in files])
        self._open(files[-1][0] if files else 1)

    def add(self, event: str, **facts: Any) -> Head:
        """Append a record.

        Args:
            event: kind of the record.
            facts: its values, which JSON can hold; a float that is not finite becomes null.

        Returns:
            the head after it. Where it could not be written, it waits and is written with a later one; where 1,000 records
            wait, further ones are left out, and their number is recorded once there is space again.

        Raises:
            RuntimeError: the log is closed.
        """
        with self._lock:
            if self._file is None:
                raise RuntimeError("this session is closed; continue it by Session.resume(model, directory)")
            if self._size >= self.rotate and not self.waiting:
                self._next()
            if len(self.waiting) >= WAITING:
                self._left_out += 1
            else:
                self._chain(event, facts)
            self.flush()
            return self.head

    def flush(self, *, durable: bool = False) -> bool:
        """Write what waits.

        Args:
            durable: whether the file is flushed to the disk.

        Returns:
            whether all is written.
        """
        with self._lock:
            if not self._written():
                return False
            if not durable or self._file is None:
                return True
            handle, last = os.dup(self._file), self.head.seq
        try:  # without the lock: other records need not wait for the disk
            os.fsync(handle)
        except OSError:
            return False
        finally:
            os.close(handle)
        self.durable = max(self.durable, last)
        return True

    def close(self) -> None:
        """Write what waits to the disk and close the file."""
        with self._lock:
            if self._file is not None:
                self.flush(durable=True)
                os.close(self._file)
                self._file = None

    def _chain(self, event: str, facts: Mapping[str, Any]) -> None:
        record = {"seq": self.head.seq + 1, "time": self.clock(), "event": event, **facts}
        text = _text(record)
        self.head = Head(self.head.seq + 1, _chained(self.head.hash, text))
        self.waiting.append(f'{text[:-1]},"hash":"{self.head.hash}"}}\n'.encode())

    def _check_there(self) -> None:
        """Raise OSError where the file was removed or replaced: what is written to it would be lost."""
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file)):
            raise OSError(f"{self._path} was replaced by another file")

    def _written(self) -> bool:
        if self._file is None:
            return not self.waiting
        try:
            self._check_there()
            while self.waiting:
                self._append(self.waiting[0])
                self.waiting.pop(0)
                if not self.waiting and self._left_out:
                    left_out, self._left_out = self._left_out, 0
                    self._chain("left out", {"records": left_out})
        except OSError:
            return False
        return True

    def _append(self, line: bytes) -> None:
        """Write a line whole, or leave the file as it was."""
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def _next(self) -> None:
        """Begin a new file, whose first record is the preamble; where that fails, the old one is continued."""
        before = self._file
        try:
            os.fsync(before)
            self._open(self._number + 1)
        except OSError:
            return
        os.close(before)
        self._chain("continued", self.preamble)
        if self.keep and self.flush(durable=True):  # before, the chain goes on from the file before alone
            for _, path in _files(self.folder)[: -self.keep]:
                path.unlink(missing_ok=True)

    def _open(self, number: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        path = self.folder / f"{number:06d}{SUFFIX}"
        self._file, self._path = os.open(path, flags, 0o600), path
        self._number, self._size = number, os.fstat(self._file).st_size
        sync_folder(self.folder)

    def _continue(self, paths: list[Path]) -> None:
        """Find the head in the newest file that has a whole record; drop a torn last line of the last file."""
        data = paths[-1].read_bytes()
        whole = data.rfind(b"\n") + 1
        self.repaired = len(data) - whole
        if self.repaired:
            os.truncate(paths[-1], whole)
        faults: list[str] = []
        for path in reversed(paths):
            found = _scan(path.name, path.read_bytes().split(b"\n")[:-1], None)
            faults[:0] = found.faults
            self.head = found.head
            if found.records:
                break
        self.broken = "; ".join(faults)


def records(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, oldest first, without checking their chain; a torn last line is left out.

    Raises:
        DataError: a line is no record.
    """
    for _, path in _files(Path(folder)):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                yield _record(line)
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}, is no record of an audit log ({error})") from error


def verify(folder: str | Path, heads: Mapping[str, Head] | None = None) -> Verified:
    """Check the chain of a log.

    Args:
        folder: folder of the log.
        heads: heads that were seen before, by where they were found; a log that does not hold them was truncated or edited.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> log = Audit(folder, lambda: 0.0)
    >>> head = [log.add("learn", count=n) for n in (3, 4, 5)][-1]
    >>> log.close(); verify(folder).faults
    ()
    >>> path = Path(folder) / "000001.jsonl"
    >>> _ = path.write_text(path.read_text().replace('"count":4', '"count":9'))
    >>> verify(folder).faults
    ('000001.jsonl: record 2 was edited',)
    """
    faults: list[str] = []
    seen: dict[int, str] = {}
    count, before, torn, closed, previous = 0, None, False, False, 0
    files = _files(Path(folder))
    for number, path in files:
        if previous and number != previous + 1:
            faults.append(f"file {previous + 1:06d}{SUFFIX} was removed")
        data = path.read_bytes()
        lines = data.split(b"\n")
        if lines[-1]:
            torn = number == files[-1][0]
            if not torn:
                faults.append(f"{path.name}: the last line is incomplete")
        found = _scan(path.name, lines[:-1], before, seen)
        faults.extend(found.faults)
        closed = found.closed if found.records else closed
        count, previous, before = count + found.records, number, found.head
    head = before or Head()
    for place, known in (heads or {}).items():
        if known.seq > head.seq:
            faults.append(
                f"the log ends at record {head.seq}; {place} knows record {known.seq}: it was truncated"
            )
        elif known.seq in seen and seen[known.seq] != known.hash:
            faults.append(f"record {known.seq} is not the one that {place} knows: the log was replaced")
    return Verified(count, head, tuple(faults), torn, closed)


def _scan(name: str, lines: list[bytes], before: Head | None, seen: dict[int, str] | None = None) -> Verified:
    """Check the lines of a file behind a head; None: the file is the first that there is."""
    faults: list[str] = []
    count, event = 0, ""
    for number, line in enumerate(lines, 1):
        try:
            record = _record(line)
        except (ValueError, TypeError) as error:
            faults.append(f"{name}: line {number} is no record ({error})")
            continue
        seq, given = record["seq"], record.pop("hash")
        count, event = count + 1, record["event"]
        if before is None and (seq == 1 or name == FIRST):
            before = Head()
            if seq != 1:
                faults.append(f"the log begins with record {seq}: earlier ones were removed")
                before = None
        if before is not None:
            if seq != before.seq + 1:
                faults.append(
                    f"{name}: record {before.seq + 1} was removed, or moved (line {number} is record {seq})"
                )
            elif _chained(before.hash, _text(record)) != given:
                faults.append(f"{name}: record {seq} was edited")
        before = Head(seq, given)
        if seen is not None:
            seen[seq] = given
    return Verified(count, before or Head(), tuple(faults), False, event == "close")


def _record(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST:
        raise ValueError(f"more than {LONGEST} bytes")
    found = parse_json(line)
    if not isinstance(found, dict):
        raise TypeError(f"expected an object, found {type(found).__name__}")
    for key, kind in (("seq", int), ("event", str), ("hash", str), ("time", int | float)):
        if not isinstance(found.get(key), kind):
            raise TypeError(f"{key} is missing, or of another type")
    return found


def _files(folder: Path) -> list[tuple[int, Path]]:
    names = sorted(p for p in folder.glob(f"*{SUFFIX}") if p.stem.isdecimal() and not p.is_symlink())
    return [(int(p.stem), p) for p in names]


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _chained(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()
