"""The files of a data folder: in natural order, without hidden ones; and names in lists, kept inside their folder."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from testtime.data.files import AGAIN, need_file
from testtime.errors import DataError, need_pillow

__all__ = ["SUFFIXES", "by_key", "files", "folders", "hidden", "images", "inside", "natural", "read_lines"]

_ALWAYS = "png apng jpg jpeg jpe jfif webp bmp dib tif tiff ppm pgm pbm pnm gif"
_SOMETIMES = "avif heic heif hif jp2 j2k jxl tga svg dng cr2 cr3 nef arw raf rw2"
SUFFIXES = frozenset(f".{suffix}" for suffix in _ALWAYS.split())
"""Suffixes of images that every Pillow reads, in lower case."""
OTHERS = frozenset(f".{suffix}" for suffix in _SOMETIMES.split())
"""Suffixes of images that Pillow reads only in some builds, with a plugin, or never."""
CLUTTER = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
}
"""Names, in lower case, that operating systems and tools leave in folders."""

Key = tuple[tuple[str | int, ...], str]


def natural(name: str) -> Key:
    """Return the key that sorts names with the numbers in them by value, and the rest by code point.

    >>> sorted(["frame_10.png", "frame_9.png", "frame_09.png"], key=natural)
    ['frame_09.png', 'frame_9.png', 'frame_10.png']
    >>> sorted(["10", "2", "a"], key=natural)
    ['2', '10', 'a']
    """
    parts = re.split(r"([0-9]+)", name)  # text and digits alternate, so keys compare text with text
    return tuple(int(part) if at % 2 else part for at, part in enumerate(parts)), name


def hidden(name: str) -> bool:
    """Return whether a file or folder of this name is no part of a data set.

    Hidden are names that begin with a dot (``._a.png``, ``.DS_Store``, ``.ipynb_checkpoints``) and what
    operating systems leave (``Thumbs.db``, ``desktop.ini``, ``__MACOSX``).

    >>> [hidden(name) for name in ("._1.png", "Thumbs.db", "1.png")]
    [True, True, False]
    """
    return name.startswith(".") or name.lower() in CLUTTER


def files(folder: Path, suffixes: Collection[str] | None = None, deep: bool = False) -> list[Path]:
    """Return the files of a folder in natural order, without hidden ones; folders are none, whatever their names.

    Args:
        folder: folder to list.
        suffixes: suffixes to keep, in lower case; the case in names does not matter. None keeps all files.
        deep: whether to list the folders below as well; hidden ones are left out, links are followed.

    Raises:
        DataError: if there is no such folder, or a file is a link to one that does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    return list(_walk(folder, suffixes, deep, (folder.resolve(),)))


def folders(folder: Path) -> list[Path]:
    """Return the folders directly below a folder in natural order, without hidden ones.

    Args:
        folder: folder to list.

    Raises:
        DataError: if there is no such folder, or one is a link to a folder that does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def images(folder: Path, deep: bool = False) -> list[Path]:
    """Return the image files of a folder in natural order, without hidden ones.

    Images that Pillow does not read here, such as HEIC without its plugin, are named in a warning.

    Args:
        folder: folder to list.
        deep: whether to list the folders below as well.

    Raises:
        DataError: if there is no such folder, or an image is a link to a file that does not exist.
        ImportError: if Pillow is not installed.
    """
    readable = SUFFIXES | (OTHERS & _registered())
    found = files(folder, SUFFIXES | OTHERS, deep)
    unread = [path for path in found if path.suffix.lower() not in readable]
    if unread:
        names = ", ".join(path.relative_to(folder).as_posix() for path in unread[:5])
        kinds = ", ".join(sorted({path.suffix.lower() for path in unread}))
        warnings.warn(
            f"{folder}: left out {len(unread)} of {len(found)} images, which Pillow does not read here ({kinds}): "
            f"{names}; convert them to PNG or JPEG",
            stacklevel=2,
        )
    return [path for path in found if path.suffix.lower() in readable]


def inside(root: Path, name: str) -> Path:
    """Return the path of a file that a list names, if the name stays below the folder.

    Links are followed: they are the user's own, not the list's.

    Args:
        root: folder that the names in the list are relative to.
        name: name as the list has it, with slashes.

    Raises:
        DataError: if the name is empty, absolute or leads out of the folder.

    >>> inside(Path("data"), "n01/a.png").as_posix()
    'data/n01/a.png'
    """
    parts = re.split(r"[/\\]", name)
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) is not None
    if not name or absolute or ".." in parts or "\0" in name:
        raise DataError(
            f"{root}: a list names {name!r}, which is no file below this folder; correct the list"
        )
    return root / name


def by_key(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    """Return files by the keys of samples, in their order.

    Args:
        paths: the files.
        key: the key of a file.

    Raises:
        DataError: if two files have one key, as ``1.png`` and ``1.jpg`` have by their stems.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(key(path), path)
        if other is not path:
            raise DataError(
                f"{path}: expected one picture of each name, found also {other.name}; keep one of them"
            )
    return found


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a text file, without empty ones and without white space at their ends.

    UTF-8 with or without a byte order mark, UTF-16 with one, and every kind of line end are read.

    Args:
        path: file to read.
        what: its content, for the message.

    Raises:
        DataError: if the file is missing, empty or no text.
    """
    data = need_file(path, what).read_bytes()
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected {what} as text in UTF-8, found other bytes ({error})") from error
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"{path}: expected {what}, found an empty file; {AGAIN}")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = sorted((e for e in entries if not hidden(e.name)), key=lambda e: natural(e.name))
    for (
        entry
    ) in found:  # without a suffix it may have been a folder, whose absence would move the labels of others
        if entry.is_symlink() and not os.path.splitext(entry.name)[1]:
            _need_target(Path(entry.path))
    return found


def _need_target(link: Path) -> None:
    if not link.exists():
        raise DataError(
            f"{link}: a link to {os.readlink(link)}, which does not exist; restore that file, or remove the link"
        )


def _walk(
    folder: Path, suffixes: Collection[str] | None, deep: bool, above: tuple[Path, ...]
) -> Iterator[Path]:
    """The files below a folder; ``above`` are the real folders on the way down, which a link may lead back to."""
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.is_dir():
            real = path.resolve()
            if deep and real not in above:
                yield from _walk(path, suffixes, deep, (*above, real))
        elif suffixes is None or path.suffix.lower() in suffixes:
            if entry.is_symlink():
                _need_target(path)
            if entry.is_file():
                yield path


def _registered() -> set[str]:
    """The suffixes that this Pillow opens, plugins included."""
    Image = need_pillow()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
