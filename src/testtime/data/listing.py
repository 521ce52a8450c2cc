"""Listing of data folders in natural order without hidden files, and names in lists, which have to stay in their folder."""

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
"""Suffixes of image formats that every build of Pillow reads, in lower case."""
OTHERS = frozenset(f".{suffix}" for suffix in _SOMETIMES.split())
"""Suffixes of image formats that Pillow reads only in some builds, with a plugin, or never."""
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
    """Return a key that sorts names by the values of the numbers in them, and otherwise by code point.

    >>> sorted(["frame_10.png", "frame_9.png", "frame_09.png"], key=natural)
    ['frame_09.png', 'frame_9.png', 'frame_10.png']
    >>> sorted(["10", "2", "a"], key=natural)
    ['2', '10', 'a']
    """
    parts = re.split(r"([0-9]+)", name)  # text and digits alternate, so keys compare text with text
    return tuple(int(part) if at % 2 else part for at, part in enumerate(parts)), name


def hidden(name: str) -> bool:
    """Return whether a file or folder with this name is not part of a data set.

    Hidden names begin with a dot (``._a.png``, ``.DS_Store``, ``.ipynb_checkpoints``) or are those of files of operating
    systems (``Thumbs.db``, ``desktop.ini``, ``__MACOSX``).

    >>> [hidden(name) for name in ("._1.png", "Thumbs.db", "1.png")]
    [True, True, False]
    """
    return name.startswith(".") or name.lower() in CLUTTER


def files(folder: Path, suffixes: Collection[str] | None = None, deep: bool = False) -> list[Path]:
    """Return the files of a folder in natural order, without hidden files.

    Args:
        folder: path of the folder.
        suffixes: suffixes of the files, in lower case; the case in names is ignored. None returns all files.
        deep: whether subfolders are listed too, without hidden folders; links are followed.

    Raises:
        DataError: there is no such folder, or a file is a broken link.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    return list(_walk(folder, suffixes, deep, (folder.resolve(),)))


def folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder in natural order, without hidden folders.

    Args:
        folder: path of the folder.

    Raises:
        DataError: there is no such folder, or a subfolder is a broken link.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def images(folder: Path, deep: bool = False) -> list[Path]:
    """Return the image files of a folder in natural order, without hidden files.

    A warning names images that the installed Pillow does not read, such as HEIC without its plugin.

    Args:
        folder: path of the folder.
        deep: whether subfolders are listed too.

    Raises:
        DataError: there is no such folder, or an image is a broken link.
        ImportError: Pillow is not installed.
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
    """Return the path of a file that is named in a list, after a check that it is inside the folder.

    Links are followed, because they were made by the user and not by the list.

    Args:
        root: folder to which the names in the list are relative.
        name: name in the list, with slashes.

    Raises:
        DataError: the name is empty, absolute or refers to a path outside of the folder.

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
    """Return files by the keys of their samples, in order.

    Args:
        paths: paths of the files.
        key: function from a file to the key of its sample.

    Raises:
        DataError: two files have the same key, such as ``1.png`` and ``1.jpg`` with their stems as keys.
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
    """Return the lines of a text file, stripped of white space, without empty lines.

    UTF-8 with or without a byte order mark, UTF-16 with one, and all line endings are supported.

    Args:
        path: path of the file.
        what: description of its content, for the message.

    Raises:
        DataError: the file is missing, empty or not text.
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
    ) in found:  # a link without a suffix may have been a class folder, whose absence would change the labels
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
    """Yield the files of a folder; ``above`` are the resolved parent folders, for the detection of cyclic links."""
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
    """Return the suffixes of the formats that the installed Pillow opens, including plugins."""
    Image = need_pillow()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
