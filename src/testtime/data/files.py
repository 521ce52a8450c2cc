"""Finding files, and saying what is wrong with them: the file, what was expected, what was found, the
remedy."""

from collections.abc import Iterable
from pathlib import Path

from testtime.errors import DataError, did_you_mean

AGAIN = "fetch it again from its publisher"


def need_file(path: Path, what: str) -> Path:
    """Return the path of a file that has to exist.

    Args:
        path: the file.
        what: what it holds, for the message.

    Raises:
        DataError: if there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {what}; give the folder that holds it as root")
    return path


def need_folder(candidates: Iterable[Path], what: str) -> Path:
    """Return the first folder that exists.

    Args:
        candidates: where it may be, in order.
        what: what it holds, for the message.

    Raises:
        DataError: if none exists.
    """
    tried = list(candidates)
    for path in tried:
        if path.is_dir():
            return path
    places = " or ".join(str(path) for path in tried)
    raise DataError(f"{places}: no such folder; expected {what}; give the folder that holds it as root")


def need_size(path: Path, record: int, count: int | None) -> int:
    """Return how many records of one size a file holds.

    Args:
        path: the file.
        record: bytes of a record.
        count: the number of records expected, or None for any number but zero.

    Raises:
        DataError: if the file's size is not that.
    """
    size = path.stat().st_size
    wanted = f"{count} records of {record} bytes" if count else f"a multiple of {record} bytes"
    if size == 0 or size % record or (count and size != count * record):
        raise DataError(f"{path}: expected {wanted}, found {size} bytes; it is damaged: {AGAIN}")
    return size // record


def need_choice(value: str, choices: Iterable[str], what: str) -> str:
    """Return the value if it is one of the choices.

    Args:
        value: what was asked for.
        choices: what there is.
        what: the name of the argument, for the message.

    Raises:
        ValueError: if it is not among them.
    """
    known = list(choices)
    if value not in known:
        meant = did_you_mean(value, known)
        raise ValueError(f"{what} must be one of {', '.join(known)}; got {value!r}{meant}")
    return value
