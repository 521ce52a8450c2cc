"""Files that declare more than they hold are refused before anything is allocated."""

import gzip
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from testtime.data.bounded import decompressed, numpy_array, parsed_json, read_arrays, read_json
from testtime.errors import DataError


def npy(shape: object, dtype: str = "|u1", data: bytes = b"0123456789") -> bytes:
    """A .npy file of version 1 with this header and ten bytes of data."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, ">f8", bool, np.complex64])
def test_arrays_come_back(tmp_path: Path, dtype: object) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for name, value in (
        ("c", array),
        ("f", np.asfortranarray(array)),
        ("empty", array[:0]),
        ("one", array[0, 0]),
    ):
        np.save(tmp_path / f"{name}.npy", value)
        found = numpy_array(tmp_path / f"{name}.npy", "numbers")
        assert found.dtype == value.dtype
        assert found.flags.writeable
        assert np.array_equal(found, value)
    np.savez_compressed(tmp_path / "all.npz", a=array, b=np.zeros(3))
    assert list(read_arrays(tmp_path / "all.npz")) == ["a", "b"]
    assert np.array_equal(read_arrays(tmp_path / "all.npz")["a"], array)
    mapped = numpy_array(tmp_path / "c.npy", "numbers", mapped=True)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, array)


@pytest.mark.parametrize(
    "content",
    [
        npy((10**12,)),
        npy((2**70,)),
        npy((2**32, 2**32)),
        npy((-1,)),
        npy((True,)),
        npy((1.5,)),
        npy((11,)),
        npy((1,), "|O"),
        npy((1,), "<U2"),
        npy((1,), "(1000000000000,)|u1"),
        b"\x93NUMPY\x01\x00" + (9001).to_bytes(2, "little") + b"-" * 9000 + b"1",
        b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
        b"",
        b"PK\x03\x04",
    ],
    ids=range(14),
)
@pytest.mark.parametrize("mapped", [False, True])
def test_headers_that_declare_more_than_the_file_has_are_refused(
    tmp_path: Path, content: bytes, mapped: bool
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy: expected a numpy array of depth"):
        numpy_array(path, "depth", mapped)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(DataError, match=r"a\.npz: expected an archive of arrays"):
        read_arrays(tmp_path / "a.npz")


def test_archives_that_expand_too_far_or_hold_other_things_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(2**23 + 16))
    assert path.stat().st_size < 2**17
    with pytest.raises(DataError, match="declares 67109120 bytes, where at most 67108864 are read"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(DataError, match=r"'a\.txt' is no array"):
        read_arrays(path)
    np.savez(path, a=np.arange(1000))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match="expected an archive of arrays"):
        read_arrays(path)
    with pytest.raises(DataError, match="no such file"):
        read_arrays(tmp_path / "b.npz")


def test_a_gzipped_file_that_expands_too_far_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text"))
    assert decompressed(tmp_path / "a.gz", "text") == b"text"
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb", 1) as file:
        for _ in range(70):
            file.write(bytes(2**20))
    (tmp_path / "a.gz").write_bytes(bomb.getvalue())
    with pytest.raises(DataError, match="expands to more than 67108864 bytes"):
        decompressed(tmp_path / "a.gz", "text")


def test_json_is_read_and_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff{"a": [1, 2]}'.encode())
    assert read_json(path, "facts") == {"a": [1, 2]}
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b"{", b"\xff", b"", b'{"a": ' + b"9" * 5000 + b"}"):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"a\.json: expected facts as JSON, found otherwise .*; fetch it again"
        ):
            read_json(path, "facts")
    with pytest.raises(DataError, match="expected facts as an object, found a list; make it again"):
        parsed_json("[]", path, "facts", advice="make it again")
    with pytest.raises(DataError, match="expected facts as a list, found a dict"):
        parsed_json("{}", path, "facts", list)
    assert math.isnan(parsed_json("[NaN]", path, "facts", list)[0])
