"""Readers of JSON, numpy and compressed files whose memory is bounded by the size of the file.

Such a file declares how much memory it needs, by the shape of an array, the length of an archive's member or nested brackets.
Each declaration is compared with the size of the file before memory is allocated.
"""

from __future__ import annotations

import codecs
import gzip
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from testtime.data.files import AGAIN, need_file
from testtime.errors import DataError
from testtime.files import array_header, parse_json

__all__ = [
    "decompressed",
    "expansion",
    "numpy_array",
    "parsed_json",
    "read_arrays",
    "read_json",
]

SMALL = 2**26
"""Bytes that every archive may expand to, however well it compresses: 64 MiB."""
RATIO = 100
"""Largest ratio of the sizes of content and archive beyond that; those of weights and images are below 10."""


def read_json(path: Path, what: str, kind: type = dict, advice: str = AGAIN) -> Any:
    """Return the value of a JSON file.

    Args:
        path: file to read.
        what: description of its content, for the message.
        kind: expected type of the value: dict or list.
        advice: advice about a damaged file, for the message.

    Raises:
        DataError: the file is missing, damaged, nested too deeply, or holds another kind of value.
    """
    data = need_file(path, what).read_bytes()
    return parsed_json(data, path, what, kind, advice)


def parsed_json(data: bytes | str, path: Path, what: str, kind: type = dict, advice: str = AGAIN) -> Any:
    """Return the value of JSON text that was read from a file; see :func:`read_json`."""
    try:
        value = parse_json(
            data.removeprefix(codecs.BOM_UTF8) if isinstance(data, bytes) else data, finite=False
        )
    except ValueError as error:
        raise DataError(f"{path}: expected {what} as JSON, found otherwise ({error}); {advice}") from error
    if not isinstance(value, kind):
        named = "a list" if kind is list else "an object"
        raise DataError(f"{path}: expected {what} as {named}, found a {type(value).__name__}; {advice}")
    return value


def numpy_array(path: Path, what: str, mapped: bool = False) -> NDArray[Any]:
    """Return the array of numbers in a .npy file; never a pickle.

    Args:
        path: file to read.
        what: description of its content, for the message.
        mapped: whether to return the array memory-mapped and read-only, without reading it.

    Raises:
        DataError: the file is missing or damaged, holds anything but numbers, or is shorter than its shape needs.
    """
    need_file(path, what)
    try:
        with path.open("rb") as file:
            if not mapped:
                return _array(file, path.stat().st_size)
            array_header(file, path.stat().st_size)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise DataError(
            f"{path}: expected a numpy array of {what}, found otherwise ({error}); {AGAIN}"
        ) from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of numbers in a .npz file by name; never a pickle.

    Args:
        path: file to read.

    Raises:
        DataError: the file is missing or damaged, holds anything but arrays of numbers, or expands to more than
            100 times its size (and 64 MiB).
    """
    need_file(path, "arrays")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total, limit = sum(m.file_size for m in members), expansion(path)
            if total > limit:
                raise ValueError(f"it declares {total} bytes, where at most {limit} are read")
            found = {}
            for member in members:
                if not member.filename.endswith(".npy"):
                    raise ValueError(f"the member {member.filename!r} is no array")
                with archive.open(member) as file:
                    found[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
            return found
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        OSError,
        EOFError,
        RecursionError,
        NotImplementedError,  # a way of compression that zipfile lacks
        RuntimeError,  # a password
    ) as error:
        raise DataError(
            f"{path}: expected an archive of arrays, found otherwise ({error}); {AGAIN}"
        ) from error


def decompressed(path: Path, what: str) -> bytes:
    """Return the bytes of a gzipped file.

    Args:
        path: file to read.
        what: description of its content, for the message.

    Raises:
        DataError: the file is missing or damaged, or expands to more than 100 times its size (and 64 MiB).
    """
    limit = expansion(need_file(path, what))
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"it expands to more than {limit} bytes")
        return data
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected {what}, gzipped, found otherwise ({error}); {AGAIN}") from error


def expansion(path: Path) -> int:
    """Return how many bytes the content of a compressed file may have."""
    return max(SMALL, RATIO * path.stat().st_size)


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """The array of a .npy file of so many bytes."""
    shape, fortran, dtype, needed = array_header(file, size)
    data = bytearray(needed)
    if file.readinto(data) != needed:  # type: ignore[attr-defined]
        raise EOFError(f"the data of {dtype} {shape} end early")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
