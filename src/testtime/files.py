"""Files that appear whole or not at all, strict JSON, and names that are safe in a path.

A writer puts its data into a file of a unique name beside the target, which takes the target's name when everything has
arrived. A process that is killed, or a disk that is full, leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from testtime.errors import DataError, need_pillow

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "array_header",
    "check_shape",
    "damaged",
    "make_folder",
    "parse_json",
    "read_array",
    "read_json",
    "read_lines",
    "read_tensors",
    "replacing",
    "slug",
    "sweep",
    "sync_folder",
    "write_array",
    "write_bytes",
    "write_image",
    "write_json",
    "write_lines",
    "write_tensors",
    "write_text",
]

DEEPEST = 64  # levels of a JSON document
LARGEST = 2**28  # bytes of a JSON document
INTERPRETING: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
)
ARRAY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
STALE = 3600.0  # seconds after which a partial file belongs to a process that was killed


@contextmanager
def replacing(path: str | Path, *, private: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that takes its name when the block ends, and leaves nothing when the block raises.

    A symbolic link at the path is replaced, not followed. Missing folders are made.

    Args:
        path: the target.
        private: whether only the owner may read the file (mode 0600); otherwise the umask decides.
        durable: whether file and folder are flushed to the disk, so that a power failure leaves the old file or the new one.
            False suits many small files that are easily made again.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the message names the target.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(partial, flags, 0o600 if private else 0o666), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(
                error.errno, f"{error.strerror or error}; free some space on the disk", str(path)
            ) from error
        if isinstance(error, OSError) and error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if durable:
        sync_folder(path.parent)


def make_folder(folder: str | Path) -> Path:
    """Make a folder, and those that it is in, unless they exist.

    Raises:
        FileExistsError: it, or one that it is in, is a file; nothing is made.
        OSError: it cannot be made.
    """
    folder = Path(folder)
    for part in (folder, *folder.parents):
        if part.is_file():
            raise FileExistsError(
                f"{part} is a file; expected a folder, which is made where it is missing: give another name, or remove the file"
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync_folder(folder: str | Path) -> None:
    """Flush a folder to the disk, so that a power failure does not lose the names of new files; nothing outside of POSIX."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: str | Path) -> None:
    """Remove the partial files that killed processes left in a folder: those untouched for an hour."""
    for partial in Path(folder).glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > STALE:
                partial.unlink()


def write_bytes(path: str | Path, data: bytes, *, private: bool = False, durable: bool = True) -> Path:
    """Write bytes, see :func:`replacing`."""
    with replacing(path, private=private, durable=durable) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write text as UTF-8, see :func:`replacing`."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any, indent: int | None = 1, sort_keys: bool = False) -> Path:
    """Write a value as JSON. NaN and infinity become null, numpy numbers become plain ones; see :func:`replacing`."""
    text = json.dumps(_plain(content), indent=indent, sort_keys=sort_keys, allow_nan=False)
    return write_text(path, text + "\n")


def write_lines(path: str | Path, records: Iterable[Any]) -> Path:
    """Write values as JSON Lines, see :func:`write_json`."""
    return write_text(path, "".join(json.dumps(_plain(r), allow_nan=False) + "\n" for r in records))


def write_array(path: str | Path, array: NDArray[Any], *, durable: bool = True) -> Path:
    """Write an array as ``.npy``, see :func:`replacing`."""
    with replacing(path, durable=durable) as file:
        np.save(file, array, allow_pickle=False)
    return Path(path)


def write_image(path: str | Path, image: Any, **options: Any) -> Path:
    """Write an image of Pillow in the format of the path's suffix, see :func:`replacing`.

    Args:
        path: the target.
        image: a ``PIL.Image.Image``.
        options: those of the format, such as ``optimize=True``.

    Raises:
        ValueError: Pillow knows no format of this suffix.
    """
    path = Path(path)
    formats = need_pillow().registered_extensions()
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: expected the suffix of an image format, such as .png or .jpg")
    with replacing(path, durable=False) as file:
        image.save(file, formats[path.suffix.lower()], **options)
    return path


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    private: bool = False,
) -> Path:
    """Write tensors and metadata as safetensors, with a checksum over both; see :func:`replacing`.

    Raises:
        OSError: the disk is full or read-only.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    facts = dict(metadata or {})
    facts["sha256"] = _digest(plain, facts)
    return write_bytes(path, save(plain, facts), private=private)


def read_tensors(
    path: str | Path, advice: str = "delete it and make it again"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file; the checksum, ``sha256`` in the metadata, is verified if it is there.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    with damaged(path, advice, (SafetensorError, RuntimeError)):
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("sha256") not in (None, _digest(tensors, metadata)):
            raise ValueError("its checksum is wrong")
    return tensors, metadata


def read_json(path: str | Path, advice: str, shape: Any = dict, *, finite: bool = True) -> Any:
    """Read a JSON document.

    Args:
        path: the file.
        advice: advice about a damaged file, as the end of a sentence: "delete it and run the same command again".
        shape: its type or shape, see :func:`check_shape`.
        finite: whether ``NaN`` and ``Infinity``, which are not JSON, are refused; otherwise they are read as numbers.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not strict JSON in UTF-8, too large, too deep, or of another shape; the message names the file.
    """
    with damaged(path, advice):
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        content = parse_json(data, finite=finite)
        check_shape(content, shape)
    return content


def read_lines(path: str | Path, advice: str, *, torn: bool = False) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file.

    Args:
        path: the file.
        advice: advice of :func:`read_json`.
        torn: whether a line that cannot be read ends the file, as a killed process leaves it; otherwise it is an error.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line is no JSON object.
    """
    found: list[dict[str, Any]] = []
    for line in Path(path).read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            content = parse_json(line)
            if not isinstance(content, dict):
                raise TypeError(f"line {len(found) + 1} holds a value of type {type(content).__name__}")
        except (ValueError, TypeError) as error:
            if torn:
                break
            raise DataError(f"{path} is damaged ({error}); {advice}") from error
        found.append(content)
    return found


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, at most 256 MiB and 64 levels; see :func:`read_json`.

    Raises:
        ValueError: the text is none of that.

    >>> parse_json('{"a": [1, null]}')
    {'a': [1, None]}
    """
    if len(text) > LARGEST:
        raise ValueError(f"a JSON document of more than {LARGEST} bytes")
    constant = float if not finite else _refused
    try:
        content = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=constant,
            parse_float=float if not finite else _finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError(f"a JSON document of more than {DEEPEST} levels") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return content
    raise ValueError(f"a JSON document of more than {DEEPEST} levels")


def check_shape(value: Any, shape: Any, name: str = "") -> None:
    """Compare a JSON value with the shape that it should have.

    Args:
        value: the value.
        shape: a type, a tuple of types, ``[shape of every item]``, or ``{key: shape}`` of the keys that are needed;
            the type ``str`` stands for every key, and "key?" for a key that may be absent. A whole number that no float holds
            is not taken for a float.
        name: place of the value, for the message.

    Raises:
        TypeError: it has another; the message names the place.

    >>> check_shape({"rows": [{"label": "TENT"}, {"label": 3}]}, {"rows": [{"label": str}]})
    Traceback (most recent call last):
    ...
    TypeError: rows[1].label: expected str, found int
    """
    kinds = shape if isinstance(shape, tuple) else (type(shape) if isinstance(shape, list | dict) else shape,)
    number = float in kinds and type(value) is int and abs(value) <= sys.float_info.max
    if not isinstance(value, kinds) and not number:
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(
            f"{name.lstrip('.') or 'document'}: expected {expected}, found {type(value).__name__}"
        )
    if isinstance(shape, list):
        for i, item in enumerate(value):
            check_shape(item, shape[0], f"{name}[{i}]")
    if isinstance(shape, dict):
        for key, inner in shape.items():
            known = list(value) if key is str else [key.removesuffix("?")]
            for one in known:
                if one in value:
                    check_shape(value[one], inner, f"{name}.{one}")
                elif one == key:
                    raise TypeError(f"{name}.{key} is missing".lstrip("."))


def read_array(path: str | Path, advice: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read a ``.npy`` file. The size of the file is compared with its header before memory is allocated.

    Args:
        path: the file.
        advice: advice of :func:`read_json`.
        mapped: whether the array stays on the disk, mapped into memory.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is truncated, or no array of plain numbers.
    """
    with damaged(path, advice, (EOFError,)), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        needed = array_header(file, size)[-1]
        if file.tell() + needed != size:
            raise ValueError(f"expected {file.tell() + needed} bytes, found {size}")
        if mapped and needed:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        file.seek(0)
        return np.load(file, allow_pickle=False)


def array_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read the header of a ``.npy`` file and compare it with the size of the file.

    Args:
        file: the open file, at its beginning; it is left at the beginning of the data.
        size: size of the file in bytes.

    Returns:
        Shape, whether the order of the data is that of Fortran, dtype, and size of the data in bytes.

    Raises:
        ValueError: the header is damaged, its dtype is not numeric, or the file is shorter than it declares.
    """
    version = np.lib.format.read_magic(file)
    if version not in ARRAY_HEADERS:
        raise ValueError(f"version {version} of the format, where numbers need (1, 0) or (2, 0)")
    try:
        shape, fortran, dtype = ARRAY_HEADERS[version](file)
    except (
        SyntaxError,
        TokenError,
        TypeError,
        MemoryError,
    ) as error:  # MemoryError: too deep for Python's parser
        raise ValueError(f"its header is no description of an array ({error})") from error
    if dtype.kind not in "biufc" or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"expected numbers, found {dtype} {shape}")
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > left:
        raise ValueError(f"{dtype} {shape} needs {needed} bytes, and {left} are there")
    return shape, fortran, dtype, needed


@contextmanager
def damaged(
    path: str | Path, advice: str = "delete it and make it again", also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what goes wrong while the content of a file is interpreted into a :class:`DataError` that names the file.

    Args:
        path: the file, for the message.
        advice: advice, as the end of a sentence.
        also: exceptions of the format's reader, beside those of looking up and converting values.

    >>> with damaged("run.json", "delete it"):
    ...     {}["rows"]
    Traceback (most recent call last):
    ...
    testtime.errors.DataError: run.json is damaged (KeyError: 'rows'); delete it
    """
    try:
        yield
    except DataError:
        raise
    except INTERPRETING + also as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); {advice}") from error


def slug(name: str) -> str:
    """Turn a name into a part of a file name.

    >>> slug("Dim light/2")
    'dim_light_2'
    """
    return "".join(c if c.isalnum() or c in "+-." else "_" for c in name.lower())


def _plain(value: Any) -> Any:
    """The same in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"duplicate key {name[:40]!r}")
        found[name] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _refused(text: str) -> float:
    raise ValueError(f"{text[:20]} is no number of JSON")


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    import torch

    facts = {key: value for key, value in metadata.items() if key != "sha256"}
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
