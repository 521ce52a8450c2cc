"""A copy of a session's acknowledged snapshots elsewhere: a folder under any URL that fsspec knows.

The mirror is no store of states that several processes share: it lags behind, and a stream is not owned by it. It is what is
left when the disk of the machine is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from testtime.errors import DataError, missing_extra
from testtime.files import parse_json, write_bytes
from testtime.saving import STATE
from testtime.serve.directory import RANGES, Directory
from testtime.serve.snapshots import SUFFIX, Retention, SnapshotStore, snapshot_file
from testtime.serve.streams import folder_of, name_of

__all__ = ["Mirror", "check_mirror", "fetch_session"]

LOGGER = logging.getLogger("testtime.serve")
DESCRIPTION = "session.json"
LARGEST = 2**33  # bytes of a file that is fetched
PATIENCE = 60.0  # seconds that the end of a session waits for its mirror


class OtherSessionError(ValueError):
    """The mirror holds another session."""


class Mirror:
    """A thread that copies acknowledged snapshots, and what is needed to resume from them, to a URL.

    Of each stream the newest snapshot that waits is copied; what the directory does not have of that stream leaves the mirror
    then. Streams that were forgotten while the session ran without its mirror leave it when the session begins. The audit log
    stays where it is. A failure is noted, and the next snapshot tries again, also what was to be deleted.

    A mirror belongs to one session, which its description names. Sessions of versions without identities are not distinguished.

    Args:
        url: URL of the folder, such as ``s3://bucket/cameras`` or ``file:///mnt/backup``.
        files: the directory of the session.
        note: function that adds a record to the audit log.

    Attributes:
        error: the last failure; empty if the last attempt succeeded and nothing is left to be deleted.
        copied: number of snapshots that were copied.

    Raises:
        ImportError: fsspec, or what it needs for this URL, is not installed.
        ValueError: fsspec does not know this kind of URL, it is the directory itself, or the mirror holds another session.
    """

    def __init__(self, url: str, files: Directory, note: Callable[..., Any]) -> None:
        self._system, self._root = check_mirror(url, files.folder)
        self._url, self._files, self._note = url, files, note
        self.error, self.copied = "", 0
        self._changed = threading.Condition()
        self._waiting: dict[tuple[str, str], Callable[[], None]] = {}
        self._busy, self._ending, self._described = False, False, False
        self._forgotten: set[str] = set()  # folders of streams that are to be deleted
        self._checked = self._strays = False
        try:
            self._check()
        except OtherSessionError:
            raise
        except Exception as error:  # noqa: BLE001 - the store is away; the thread checks before it writes
            LOGGER.warning("the mirror cannot be read: %s", error)
        self._thread = threading.Thread(target=self._work, name="testtime-mirror", daemon=True)
        self._thread.start()

    def describe(self) -> None:
        """Copy the description of the session and its configurations, later."""
        self._described = False
        self._later("describe", "", self._describe)

    def offer(self, stream: str, number: int) -> None:
        """Copy an acknowledged snapshot, later."""
        self._later("snapshot", stream, lambda: self._copy(stream, number))

    def forget(self, stream: str) -> None:
        """Delete the snapshots of a stream, later."""
        with self._changed:
            self._waiting.pop(("snapshot", stream), None)
            self._forgotten.add(folder_of(stream))
        self._later("forget", stream, lambda: None)  # it is deleted after each job

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until nothing waits; False if the time is over.

        Args:
            timeout: seconds; None: without a limit.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def close(self) -> None:
        """Copy what waits, for a minute at most, and end."""
        self.settle(PATIENCE)
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _later(self, kind: str, stream: str, job: Callable[[], None]) -> None:
        with self._changed:
            self._waiting.pop((kind, stream), None)
            self._waiting[kind, stream] = job
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if self._ending:
                    return
                (kind, stream), job = next(iter(self._waiting.items()))
                del self._waiting[kind, stream]
                self._busy = True
            try:
                self._check()
                job()
                self._clean()
                self.error = ""
            except Exception as error:  # noqa: BLE001 - each system of files has errors of its own; they are noted
                self.error = f"{type(error).__name__}: {error}"[:500]
                LOGGER.warning("the mirror failed: %s", self.error)
                if not self._ending:
                    self._note("mirror failed", stream=stream, what=kind, error=self.error)

    def _check(self) -> None:
        """Raise ValueError where the mirror holds another session."""
        if self._checked:
            return
        own, held = self._files.found(), _description(self._system, self._root)
        session = None if own is None else own.session
        if held is not None and held.get("session") != session:
            raise OtherSessionError(
                f"the mirror {self._url} holds another session; choose another URL, delete what is there, or continue that "
                "session: fetch_session(url, directory) copies it to a new directory"
            )
        self._checked, self._strays = True, held is not None and session is not None

    def _describe(self) -> None:
        for folder in sorted(self._files.adapters.iterdir()):
            if folder.name.isalnum() and folder.is_dir() and not folder.is_symlink():
                for name in (STATE, RANGES):
                    self._put(folder / name, f"adapters/{folder.name}", name)
        self._described = self._put(self._files.folder / DESCRIPTION, "", DESCRIPTION)
        if self._strays and self._files.streams.is_dir():  # otherwise that folder was lost
            for place in _names(self._system, f"{self._root}/streams"):
                if name_of(place) is not None and not (self._files.streams / place).exists():
                    self._forgotten.add(place)
        self._strays = False

    def _copy(self, stream: str, number: int) -> None:
        if not self._described:
            self._describe()
        folder, name = folder_of(stream), snapshot_file(number)
        local = self._files.streams / folder
        if folder in self._forgotten:
            self._delete(folder)
        if not self._put(local / name, f"streams/{folder}", name):
            return
        self.copied += 1
        kept = {path.name for path in local.iterdir()}
        for one in _names(self._system, f"{self._root}/streams/{folder}"):
            if one not in kept and _number(one) >= 0:
                self._system.rm_file(f"{self._root}/streams/{folder}/{one}")

    def _clean(self) -> None:
        """Delete the forgotten streams; one that cannot be deleted is tried again after the next job."""
        with self._changed:
            folders = sorted(self._forgotten)
        for folder in folders:
            self._delete(folder)

    def _delete(self, folder: str) -> None:
        self._system.invalidate_cache()
        with suppress(FileNotFoundError):  # exists() would take every failure for an absence
            self._system.rm(f"{self._root}/streams/{folder}", recursive=True)
        with self._changed:
            self._forgotten.discard(folder)

    def _put(self, path: Path, folder: str, name: str) -> bool:
        """Copy a file; False if it is gone."""
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link, which is not followed")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return False
        target = f"{self._root}/{folder}".rstrip("/")
        self._system.makedirs(target, exist_ok=True)
        self._system.pipe_file(f"{target}/{name}", data)
        return True


def fetch_session(url: str, directory: str | Path) -> dict[str, int]:
    """Copy the session that a mirror holds to a new directory, from which :meth:`Session.resume` continues it.

    Snapshots that are damaged, or were copied in part, are left out. The audit log is not in a mirror: that of the directory
    begins again, and :func:`verify_session` says that the one before is missing as long as snapshots know of it.

    Args:
        url: URL of the mirror (``SessionOptions.mirror``).
        directory: a new or empty directory.

    Returns:
        offset of the last good snapshot of each stream, by its name: the samples from there on are to be sent again.

    Raises:
        FileExistsError: the directory is not empty.
        FileNotFoundError: there is no session under the URL.
        ImportError: fsspec, or what it needs for the URL, is not installed.
        ValueError: the URL is not one that fsspec knows.
    """
    system, root = _opened(url)
    folder = Path(directory)
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; give a new directory")
    if not system.exists(f"{root}/{DESCRIPTION}"):
        raise FileNotFoundError(f"{url} holds no session; expected the mirror of one, with {DESCRIPTION}")
    files = Directory(folder)
    for configuration in _names(system, f"{root}/adapters"):
        if configuration.isalnum():
            for name in (STATE, RANGES):
                _get(system, f"{root}/adapters/{configuration}/{name}", files.adapters / configuration / name)
    store, offsets = SnapshotStore(files.streams, Retention(), time.time), {}
    for place in _names(system, f"{root}/streams"):
        stream = name_of(place)
        if stream is None:
            continue
        for name in _names(system, f"{root}/streams/{place}"):
            if (number := _number(name)) > 0 and name == snapshot_file(number):
                _get(system, f"{root}/streams/{place}/{name}", files.streams / place / name)
        for number in store.numbers(stream):
            try:
                offsets[stream] = store.read(stream, number).info.offset
            except DataError:
                (files.streams / place / snapshot_file(number)).unlink()
    _get(system, f"{root}/{DESCRIPTION}", folder / DESCRIPTION)
    return offsets


def check_mirror(url: str, directory: str | Path) -> tuple[Any, str]:
    """Check the URL of a mirror, before anything is written to it.

    Args:
        url: URL of the folder.
        directory: directory of the session.

    Returns:
        the file system of fsspec, and the path in it.

    Raises:
        ImportError: fsspec, or what it needs for the URL, is not installed.
        ValueError: fsspec does not know this kind of URL, or the mirror and the directory lie in each other.
    """
    system, root = _opened(url)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    if "file" in protocols:
        mirror, home = Path(root).resolve(), Path(directory).resolve()
        if mirror.is_relative_to(home) or home.is_relative_to(mirror):
            raise ValueError(
                f"the mirror {url} and the directory {directory} lie in each other; choose another folder, on another disk"
            )
    return system, root


def _opened(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise missing_extra("fsspec", "fsspec") from error
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise ValueError(
            f"fsspec cannot open {url!r} ({error}); expected a URL as s3://bucket/folder or file:///folder"
        ) from error
    return system, str(root).rstrip("/")


def _description(system: Any, root: str) -> dict[str, Any] | None:
    """The description of the session in a mirror; None where there is none, or one that was copied in part."""
    system.invalidate_cache()
    try:
        data = system.cat_file(f"{root}/{DESCRIPTION}")
    except FileNotFoundError:
        return None
    try:
        found = parse_json(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _names(system: Any, folder: str) -> list[str]:
    """Names of what is in a folder; none where it does not exist."""
    system.invalidate_cache()
    try:
        found = system.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)


def _number(name: str) -> int:
    """Number of the snapshot in a file of this name; -1 if it is none."""
    digits = name.removesuffix(SUFFIX)
    return int(digits) if name.endswith(SUFFIX) and digits.isascii() and digits.isdecimal() else -1


def _get(system: Any, source: str, target: Path) -> None:
    if (system.size(source) or 0) > LARGEST:
        raise DataError(f"{source} has more than {LARGEST} bytes; it is no file of a session")
    for folder in (target.parent.parent, target.parent):
        folder.mkdir(exist_ok=True, mode=0o700)
    write_bytes(target, system.cat_file(source), private=True)
