"""Readers of variables in Matlab files: version 5 (-v6, -v7), and version 7.3 (HDF5) through h5py.

The format of version 5 is described in MathWorks' *MAT-File Format*. It is not read with SciPy because a damaged or hostile
file ends the process there; here no more memory is allocated than the file can fill.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from testtime.data.bounded import expansion
from testtime.data.files import AGAIN, need_file
from testtime.errors import DataError, missing_extra

__all__ = ["matlab", "matlab_struct", "open_hdf5", "planar"]

HEADER = 128
TEXT_73, HDF5 = b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n"
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Storage type of the numbers of an element, by its type."""
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
CELL, STRUCT, CHARACTERS, NUMERIC = 1, 2, 4, range(6, 16)
"""Classes of matrices; the others (objects, sparse matrices, functions) are not read."""
LOGICAL, COMPLEX = 0x0200, 0x0800
DEPTH = 32
"""Largest depth of nested cells and structs; in published annotations it is 4."""
PEEK = 1024
"""Number of bytes that contain the dimensions and the name of a variable."""


class _Element(NamedTuple):
    kind: int
    data: memoryview


def matlab(path: Path, key: str) -> NDArray[Any]:
    """Return a numeric variable of a Matlab file in its storage type.

    Args:
        path: path of the file.
        key: name of the variable.

    Raises:
        DataError: the file is missing, damaged, has no such variable, or declares more data than it contains.
        ImportError: the file is of version 7.3 and h5py is not installed.
    """
    if _version_73(path, key):
        with open_hdf5(path) as variables:
            return planar(variables, key, path)
    found = _variable(path, key)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected the numbers {key}, found a {type(found).__name__}; {AGAIN}")
    return found


def matlab_struct(path: Path, key: str) -> Any:
    """Return a struct of a Matlab file as a namespace of its fields; dimensions of size 1 are removed from arrays.

    Args:
        path: path of the file.
        key: name of the variable.

    Raises:
        DataError: the file is missing, damaged, of version 7.3, or has no such variable.
    """
    if _version_73(path, key):
        raise DataError(
            f"{path}: expected the struct {key} in Matlab's version 5, found version 7.3; save it in Matlab with -v7"
        )
    return _squeezed(_variable(path, key))


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a Matlab file of version 7.3, such as ``nyu_depth_v2_labeled.mat``.

    Raises:
        DataError: the file is missing or damaged.
        ImportError: h5py is not installed.
    """
    need_file(path, "a Matlab file of version 7.3")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path} is of Matlab's version 7.3: {missing_extra('h5py', 'mat')}") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: expected a Matlab file of version 7.3 (HDF5), found otherwise ({error}); {AGAIN}"
        ) from error


def planar(variables: Any, key: str, path: Path, index: int | None = None) -> NDArray[Any]:
    """Return a numeric variable of an open file of version 7.3 with the dimensions in Matlab's order.

    Args:
        variables: open file of :func:`open_hdf5`.
        key: name of the variable.
        path: path of the file, for the message.
        index: index in the last dimension of the element to read; None reads the whole variable.

    Raises:
        DataError: there is no such variable in this file, it is not numeric, or it declares more data than the file can
            contain.
    """
    import h5py

    found = variables.get(key)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf":
        there = ", ".join(sorted(variables)) or "none"
        raise DataError(
            f"{path}: expected the numbers {key} in this file of Matlab 7.3, found the variables {there}; {AGAIN}"
        )
    linked = not isinstance(variables.get(key, getlink=True), h5py.HardLink)
    if linked or found.external or found.is_virtual:
        raise DataError(f"{path}: expected the values of {key} in it, found a link to another file; {AGAIN}")
    needed = math.prod(found.shape) * found.dtype.itemsize
    if needed > expansion(path):
        raise DataError(
            f"{path}: {key} {found.shape} of Matlab 7.3 needs {needed} bytes, more than the file can hold; {AGAIN}"
        )
    return np.asarray(found[()] if index is None else found[index]).T


def _version_73(path: Path, key: str) -> bool:
    with need_file(path, f"a Matlab file with {key}").open("rb") as file:
        start = file.read(1024)
    return start.startswith((TEXT_73, HDF5)) or start[512:].startswith(HDF5)


def _variable(path: Path, key: str) -> Any:
    """Read a variable of a file of version 5."""
    try:
        with path.open("rb") as file:
            header, size = file.read(HEADER), path.stat().st_size
            order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
            if order is None:
                raise ValueError("it is of neither version 5 nor version 7.3")
            names = []
            while len(tag := file.read(8)) == 8:
                kind, length = struct.unpack(f"{order}II", tag)
                if length > size - file.tell():
                    raise ValueError(f"a variable of {length} bytes, and {size - file.tell()} are there")
                body = file.read(length)
                unpacker = zlib.decompressobj() if kind == COMPRESSED else None
                if unpacker is not None:
                    body = unpacker.decompress(body, PEEK)
                    kind, length = struct.unpack_from(f"{order}II", body)
                    body = body[8:]
                names.append(_name(body, order) if kind == MATRIX else "")
                if names[-1] != key:
                    continue
                if length > expansion(path):
                    raise ValueError(f"{key} of {length} bytes, more than the file can hold")
                if unpacker is not None and length > len(body):
                    body += unpacker.decompress(unpacker.unconsumed_tail, length - len(body))
                return _matrix(memoryview(body)[:length], order, DEPTH)
        raise ValueError(f"it holds {', '.join(filter(None, names)) or 'no variable'}")
    except (ValueError, LookupError, OSError, OverflowError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path}: expected a Matlab file with {key}, found otherwise ({error}); {AGAIN}"
        ) from error


def _elements(body: memoryview, order: str) -> Iterator[_Element]:
    """Yield the elements of a matrix, in order."""
    at = 0
    while at + 8 <= len(body):
        kind, size = struct.unpack_from(f"{order}II", body, at)
        if kind >> 16:  # a small element: type and size in four bytes, data in the next four
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size + -size % 8
        if size > len(body) - start or start + size > end:
            raise ValueError(f"an element of {size} bytes, and {len(body) - start} are there")
        yield _Element(kind, body[start : start + size])
        at = end


def _name(body: bytes, order: str) -> str:
    parts = list(islice(_elements(memoryview(body), order), 3))
    return bytes(parts[2].data).decode("latin-1") if len(parts) == 3 else ""


def _matrix(body: memoryview, order: str, depth: int) -> Any:
    """Read a matrix: numbers and cells as arrays, structs as arrays of namespaces, characters as text.

    Args:
        body: content of the matrix without its tag.
        order: byte order, "<" or ">".
        depth: largest number of further nested levels.
    """
    if not depth:
        raise ValueError(f"cells and structs in each other, more than {DEPTH} deep")
    if not body:  # an empty element of a cell
        return np.zeros((0, 0))
    flags, sizes, _, *rest = _elements(body, order)
    (word,) = struct.unpack_from(f"{order}I", flags.data)
    dims = [int(n) for n in np.frombuffer(sizes.data, f"{order}i4")]
    if word & COMPLEX:
        raise ValueError("complex numbers are not read")
    of = word & 0xFF
    if of in NUMERIC or of == CHARACTERS:
        (values,) = rest or [_Element(2, body[:0])]
        if of == CHARACTERS:
            return bytes(values.data).decode(_encoding(values.kind, order))
        numbers = np.frombuffer(values.data, order + NUMBERS[values.kind])
        return _shaped(
            numbers.astype(bool) if word & LOGICAL else numbers.astype(numbers.dtype.newbyteorder("=")), dims
        )
    if of == CELL:
        return _shaped(_objects([_matrix(part.data, order, depth - 1) for part in rest]), dims)
    if of == STRUCT:
        (width,), names = np.frombuffer(rest[0].data, f"{order}i4"), bytes(rest[1].data)
        if not 0 < width <= 64:
            raise ValueError(f"names of fields of {width} bytes")
        fields = [names[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), width)]
        held = [_matrix(part.data, order, depth - 1) for part in rest[2:]]
        step = max(1, len(fields))
        rows = [held[i : i + step] for i in range(0, len(held), step)]
        return _shaped(_objects([SimpleNamespace(**dict(zip(fields, r, strict=True))) for r in rows]), dims)
    raise ValueError(f"a matrix of class {of} is not read")


def _encoding(kind: int, order: str) -> str:
    name = TEXT[kind]
    return name if name in ("latin-1", "utf-8") else f"{name}-{'le' if order == '<' else 'be'}"


def _objects(values: list[Any]) -> NDArray[Any]:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def _shaped(values: NDArray[Any], dims: list[int]) -> NDArray[Any]:
    """Reshape values in Matlab's column-major order; negative dimensions are refused."""
    if min(dims, default=0) < 0 or math.prod(dims) != len(values):
        raise ValueError(f"a matrix of {' x '.join(map(str, dims))} of {len(values)} values")
    return values.reshape(dims, order="F")


def _squeezed(value: Any) -> Any:
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**{name: _squeezed(item) for name, item in vars(value).items()})
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object:
        items = _objects([_squeezed(item) for item in value.ravel(order="K")])
        value = items.reshape(value.shape, order="F")
        return value.item() if value.size == 1 else value.squeeze()
    return value.squeeze()
