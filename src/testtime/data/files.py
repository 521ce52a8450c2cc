"""Checks of files, folders and arguments, with errors that name the file, what was expected and found, and the remedy."""

from collections.abc import Callable, Iterable
from pathlib import Path

from testtime.errors import DataError, did_you_mean

AGAIN = "fetch it again from its publisher"


def need_file(path: Path | Iterable[Path], what: str) -> Path:
    """Return the path of a file if it exists, of several the first that exists.

    Args:
        path: path of the file, or possible paths in order of preference.
        what: description of its content, for the message.

    Raises:
        DataError: there is no such file.
    """
    return _first([path] if isinstance(path, Path) else path, Path.is_file, f"file; expected {what}")


def need_folder(candidates: Iterable[Path], what: str) -> Path:
    """Return the first folder that exists.

    Args:
        candidates: possible paths of the folder, in order of preference.
        what: description of its content, for the message.

    Raises:
        DataError: none of the folders exists.
    """
    return _first(candidates, Path.is_dir, f"folder; expected {what}")


def _first(candidates: Iterable[Path], there: Callable[[Path], bool], expected: str) -> Path:
    tried = list(candidates)
    for path in tried:
        if there(path):
            return path
    places = " or ".join(str(path) for path in tried)
    raise DataError(
        f"{places}: no such {expected}; give the folder that holds it as root, of a command as --data"
    )


def need_size(path: Path, record: int, count: int | None) -> int:
    """Return the number of records of equal size in a file.

    Args:
        path: path of the file.
        record: size of a record in bytes.
        count: expected number of records; None for any number but zero.

    Raises:
        DataError: the size of the file differs.
    """
    size = path.stat().st_size
    wanted = f"{count} records of {record} bytes" if count else f"a multiple of {record} bytes"
    if size == 0 or size % record or (count and size != count * record):
        raise DataError(f"{path}: expected {wanted}, found {size} bytes; it is damaged: {AGAIN}")
    return size // record


def need_choice(value: str, choices: Iterable[str], what: str) -> str:
    """Return the value if it is one of the choices.

    Args:
        value: value of the argument.
        choices: allowed values.
        what: name of the argument, for the message.

    Raises:
        ValueError: the value is not one of them.
    """
    known = list(choices)
    if value not in known:
        meant = did_you_mean(value, known)
        raise ValueError(f"{what} must be one of {', '.join(known)}; got {value!r}{meant}")
    return value
