"""The directory of a session: its lock, its description, and the adapters that served in it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from testtime.adapter import Adapter
from testtime.errors import DataError
from testtime.files import check_shape, damaged, read_json, read_tensors, sweep, sync_folder, write_bytes
from testtime.saving import DESCRIPTION, STATE, load, save
from testtime.serve.swapping import Ranges, ranges_of, set_ranges

__all__ = ["Directory", "DirectoryLock"]

FORMAT = 1
ADVICE = "restore it from a copy, or begin in another directory"
RANGES = "ranges.json"
ADAPTERS = 32  # adapters of earlier configurations that are kept


class DirectoryLock:
    """A lock on a directory, which ends with the process that holds it, however that ends.

    Args:
        folder: the directory.

    Raises:
        RuntimeError: another session holds it.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl

        self._file: int | None = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            self._file = None
            raise RuntimeError(
                f"{folder} is in use by another session (process {holder or 'unknown'}); close it first, or choose another "
                "directory: one process owns a directory"
            ) from None
        self._owner = os.getpid()
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{self._owner}\n".encode())

    def release(self) -> None:
        """Give the directory back, also where a forked process has the file open; such a process gives nothing back."""
        import fcntl

        if self._file is not None:
            if self._owner == os.getpid():
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = None


@dataclass(frozen=True)
class Found:
    """What a directory says of its session.

    Attributes:
        configuration: hash of the configuration that serves.
        model: name of the source model; None: it has none.
        session: identity of the session; None: it was begun by a version without identities.
    """

    configuration: str
    model: str | None
    session: str | None


class Directory:
    """The files of a session except streams and audit log.

    Args:
        folder: the directory.
        make: whether it is made if it is missing, for its owner alone; otherwise that is an error.

    Attributes:
        folder: the directory, as an absolute path.
        streams, audit, adapters: folders in it.

    Raises:
        ValueError: the path is empty.
        FileNotFoundError: it holds no session.
        DataError: one of its folders, or its description, is a symbolic link.
    """

    def __init__(self, folder: str | Path, *, make: bool = True) -> None:
        if not os.fspath(folder):
            raise ValueError("expected a directory, got an empty path; '.' is the working directory")
        self.folder = Path(folder).absolute()  # the working directory may change
        if make:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif not (self.folder / "session.json").exists():
            raise FileNotFoundError(f"{folder} holds no session")
        self.streams, self.audit, self.adapters = (
            self.folder / name for name in ("streams", "audit", "adapters")
        )
        self._description = self.folder / "session.json"
        for path in (self.streams, self.audit, self.adapters, self._description):
            if path.is_symlink():
                raise DataError(f"{path} is a symbolic link, which is not followed; {ADVICE}")

    def found(self) -> Found | None:
        """The description; None in a new directory.

        Raises:
            DataError: it is damaged, or of a newer version.
        """
        if not self._description.exists():
            return None
        shape = {"format": int, "configuration": str, "model": (str, type(None)), "session?": str}
        content = read_json(self._description, ADVICE, shape)
        if content["format"] > FORMAT:
            raise DataError(
                f"{self._description} has format {content['format']}, this version reads up to {FORMAT}; update testtime"
            )
        return Found(content["configuration"], content["model"], content.get("session"))

    def describe(self, configuration: str, model: str | None) -> None:
        """Write the description; of earlier adapters, those that served last are kept, for replays.

        A session gets its identity when its directory is described first.
        """
        found = self.found()
        session = secrets.token_hex(8) if found is None else found.session
        content = {"format": FORMAT, "configuration": configuration, "model": model}
        if session is not None:
            content["session"] = session
        write_bytes(self._description, (json.dumps(content, indent=1) + "\n").encode(), private=True)
        there = (path for path in self.adapters.iterdir() if path.name.isalnum() and not path.is_symlink())
        earlier = sorted(
            (path for path in there if path.name != configuration), key=lambda p: p.stat().st_mtime
        )
        for path in earlier[:-ADAPTERS]:
            shutil.rmtree(path, ignore_errors=True)

    def keep(self, adapter: Adapter) -> str:
        """Write an adapter as it is now, and return the hash of this configuration, 16 hexadecimal digits.

        Raises:
            ValueError: an argument of the adapter cannot be written to a file; the message names it.
            OSError: the disk is full or read-only.
        """
        self.adapters.mkdir(exist_ok=True, mode=0o700)
        for old in self.adapters.glob(".new-*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = self.adapters / f".new-{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        try:
            save(adapter, folder)
            (folder / DESCRIPTION).unlink()
            text = json.dumps(ranges_of(adapter), sort_keys=True)
            write_bytes(folder / RANGES, text.encode(), private=True)
            digest = hashlib.sha256((_metadata(folder)["sha256"] + text).encode()).hexdigest()[:16]
            if not (self.adapters / digest).is_dir():
                os.rename(folder, self.adapters / digest)
                sync_folder(self.adapters)
            os.utime(self.adapters / digest)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return digest

    def adapter(
        self,
        configuration: str,
        model: nn.Module,
        classes: Iterable[type[Adapter]] | Mapping[str, type[Adapter]] = (),
        functions: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = (),
    ) -> Adapter:
        """Build the adapter of a configuration, as it was when it began to serve.

        Raises:
            DataError: its files are damaged or missing.
            ValueError: the model is not the one that it was built on.
        """
        folder = self.adapters / configuration
        if not configuration.isalnum() or folder.is_symlink() or not folder.is_dir():
            raise DataError(f"{folder} is missing; {ADVICE}")
        adapter = load(folder, model, classes, functions)
        self._set_ranges(adapter, folder)
        return adapter

    def given(self, adapter: Adapter) -> tuple[Adapter, str]:
        """An adapter as it begins to serve here, and the hash of its configuration.

        In an existing directory it gets the state in which the configuration of the directory began to serve.

        Raises:
            ValueError: an argument of the adapter cannot be written to a file, or the directory belongs to another
                configuration.
            DataError: the files are damaged.
        """
        before = {path.name for path in self.adapters.glob("*")}
        configuration, found = self.keep(adapter), self.found()
        if found is None or found.configuration == configuration:
            return adapter, configuration
        same = self.same(found.configuration, configuration)
        if configuration not in before:  # it does not serve
            shutil.rmtree(self.adapters / configuration, ignore_errors=True)
        if not same:
            raise ValueError(
                f"{self.folder} holds a session of another configuration; continue it by Session.resume(model, "
                "directory) and change it by configure(adapter), or choose another directory"
            )
        self.begin_as(found.configuration, adapter)
        return adapter, found.configuration

    def serving(
        self,
        model: nn.Module | None,
        classes: Iterable[type[Adapter]] | Mapping[str, type[Adapter]] = (),
        functions: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = (),
    ) -> tuple[Adapter, str]:
        """The adapter of the configuration that serves, as it was when it began to, and the hash of that.

        Args:
            model: the source model; None: the one that the directory names.
            classes, functions: your own, as :func:`testtime.load` takes them.

        Raises:
            ValueError: the model is not the one that it was built on, or none is named.
            DataError: the files are damaged.
        """
        found = self.found()
        if found is None:
            raise FileNotFoundError(f"{self._description} is missing; {ADVICE}")
        if model is None and found.model is None:
            raise ValueError(
                f"{self.folder} does not name its model; pass it: Session.resume(model, directory), or begin sessions with "
                "SessionOptions(model=name)"
            )
        if model is None:
            from testtime.models import load_model

            model = load_model(str(found.model))
        return self.adapter(found.configuration, model, classes, functions), found.configuration

    def begin_as(self, configuration: str, adapter: Adapter) -> None:
        """Give an adapter of the same class, arguments and model the state in which a configuration began to serve.

        Raises:
            DataError: its files are damaged.
        """
        folder = self.adapters / configuration
        adapter.load_state_dict(read_tensors(folder / STATE, ADVICE)[0])
        self._set_ranges(adapter, folder)

    def _set_ranges(self, adapter: Adapter, folder: Path) -> None:
        content = read_json(folder / RANGES, ADVICE)
        with damaged(folder / RANGES, ADVICE):
            ranges = ranges_read(content)
        set_ranges(adapter, ranges)

    def same(self, one: str, other: str) -> bool:
        """Whether two configurations have the same class, arguments and model, whatever their states."""
        texts = [_metadata(self.adapters / name)["testtime"] for name in (one, other)]
        return texts[0] == texts[1]

    def sweep(self) -> None:
        """Remove what killed processes left."""
        sweep(self.folder)


def ranges_read(content: Any) -> Ranges:
    """The ranges that a file holds.

    Raises:
        TypeError, ValueError: it holds something else.
    """
    check_shape(content, dict)
    found: Ranges = {}
    for name, pair in content.items():
        check_shape(pair, (list, type(None)), name)
        if pair is None:
            found[name] = None
            continue
        check_shape(pair, [float], name)
        low, high = pair
        if not low < high:
            raise ValueError(f"the range {pair}")
        found[name] = (float(low), float(high))
    return found


def _metadata(folder: Path) -> dict[str, str]:
    """The description of a saved adapter, unread but for its parts."""
    if folder.is_symlink() or not (folder / STATE).is_file():
        raise DataError(f"{folder / STATE} is missing; {ADVICE}")
    with (
        damaged(folder / STATE, ADVICE, (SafetensorError,)),
        safe_open(folder / STATE, framework="pt") as file,
    ):
        found = dict(file.metadata() or {})
        check_shape(found, {"testtime": str, "sha256": str})
    return found
