"""Matlab files written by SciPy and h5py, and files that declare more than they contain."""

import contextlib
import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from testtime.data.matlab import matlab, matlab_struct
from testtime.errors import DataError

HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(of: int, dims: tuple[int, ...], inside: bytes = b"", name: bytes = b"") -> bytes:
    """A matrix of a class: 1 cell, 2 struct, 9 uint8."""
    flags = element(6, struct.pack("<II", of, 0))
    return element(14, flags + element(5, struct.pack(f"<{len(dims)}i", *dims)) + element(1, name) + inside)


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_come_back_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.mat"
    rng = np.random.default_rng(0)
    for value in (
        rng.random((20, 30)),
        rng.integers(0, 255, (3, 4, 5), np.uint8),
        np.array([[-3, 70_000]]),
        rng.random((2, 3)).astype(np.float32),
        np.array([[True, False], [False, True]]),
        np.zeros((0, 3)),
        np.array([[np.nan, np.inf]]),
    ):
        savemat(path, {"other": {"x": 1}, "a": value, "z": "text"}, do_compression=packed)
        found = matlab(path, "a")
        assert (found.dtype.kind == "b") == (value.dtype == bool)
        assert np.array_equal(found, value, equal_nan=True)


@pytest.mark.parametrize("packed", [False, True])
def test_structs_are_namespaces(tmp_path: Path, packed: bool) -> None:
    parts = [{"part_name": "head", "mask": np.eye(4)}, {"part_name": "torso", "mask": np.zeros((4, 4))}]
    things = np.array([(15, parts[0]), (7, parts)], dtype=[("class_ind", "O"), ("parts", "O")])
    cells = np.array([1, "abc", np.ones((2, 3))], dtype=object)
    savemat(tmp_path / "a.mat", {"anno": {"objects": things, "cells": cells}}, do_compression=packed)
    anno = matlab_struct(tmp_path / "a.mat", "anno")
    assert [int(thing.class_ind) for thing in anno.objects] == [15, 7]
    assert anno.objects[0].parts.part_name == "head"
    assert np.array_equal(anno.objects[0].parts.mask, np.eye(4))
    assert [part.part_name for part in anno.objects[1].parts] == ["head", "torso"]
    assert [getattr(c, "shape", c) for c in anno.cells] == [(), "abc", (2, 3)]


def test_missing_variables_and_those_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"a": np.eye(2), "b": {"x": 1}, "c": "text"})
    with pytest.raises(
        DataError, match=r"a\.mat: expected a Matlab file with d, found otherwise \(it holds a, b, c\)"
    ):
        matlab(path, "d")
    for key in ("b", "c"):
        with pytest.raises(DataError, match=f"expected the numbers {key}"):
            matlab(path, key)
    savemat(path, {"a": np.eye(2) * 1j})
    with pytest.raises(DataError, match="complex numbers are not read"):
        matlab(path, "a")
    savemat(path, {"a": np.eye(2)}, format="4")
    with pytest.raises(DataError, match="neither version 5 nor version"):
        matlab(path, "a")


@cache
def nested(count: int) -> bytes:
    inner = matrix(9, (0, 0), element(2, b""))
    for _ in range(count):
        inner = matrix(1, (1, 1), inner)
    return matrix(1, (1, 1), inner, b"a")


LIES = {
    "cells in cells": lambda: nested(20_000),
    "a large matrix": matrix(9, (40_000, 40_000), element(2, b""), b"a"),
    "many cells": matrix(1, (2**31 - 1, 2), b"", b"a"),
    "many structs": matrix(2, (2**31 - 1, 2), element(5, struct.pack("<i", 8)) + element(1, b""), b"a"),
    "negative": matrix(9, (-1, -4), element(2, b"1234"), b"a"),
    "names of no width": matrix(2, (1, 1), element(5, struct.pack("<i", 0)) + element(1, b"abc"), b"a"),
    "an unknown class": matrix(99, (1, 1), b"", b"a"),
    "an unknown type": matrix(9, (1, 1), element(77, b"1"), b"a"),
    "four gigabytes": struct.pack("<II", 14, 2**32 - 1) + matrix(9, (1, 1), element(2, b"1"), b"a")[8:],
    "zeros": lambda: element(15, zlib.compress(matrix(9, (2**26, 2), element(2, bytes(2**27)), b"a"))),
    "half a stream": element(15, zlib.compress(bytes(range(256)) * 40)[:50]),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_files_that_declare_more_than_they_contain_are_refused(
    tmp_path: Path, lie: str, packed: bool
) -> None:
    body = LIES[lie]() if callable(LIES[lie]) else LIES[lie]
    if packed:
        body = zlib.compress(body)
        body = struct.pack("<II", 15, len(body)) + body
    (tmp_path / "a.mat").write_bytes(HEAD + body)
    with pytest.raises(DataError, match=r"a\.mat: expected a Matlab file with a"):
        matlab(tmp_path / "a.mat", "a")


def test_changed_bytes_raise_no_other_error(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "a.mat"
    bases = []
    for packed in (False, True):
        savemat(path, {"a": {"x": np.eye(3), "y": np.array([1, "b"], dtype=object)}}, do_compression=packed)
        bases.append(path.read_bytes())
    for i in range(400):
        content = bytearray(bases[i % 2])
        for at in rng.integers(124, len(content), 3):
            content[at] = rng.choice([0, 127, 255, rng.integers(256)])
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            matlab_struct(path, "a")


def test_version_7_3_is_read_and_transposed(tmp_path: Path) -> None:
    path, value = tmp_path / "a.mat", np.arange(6.0).reshape(2, 3)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["a"] = value.T  # as Matlab writes it
        file["text"] = "abc"
        file["linked"] = h5py.ExternalLink("other.mat", "a")
        file.create_dataset("empty", (10**9,), chunks=(1000,), dtype="f8")
        file.create_group("s")
    assert np.array_equal(matlab(path, "a"), value)
    for key in ("b", "text", "s"):
        with pytest.raises(
            DataError, match=rf"a\.mat: expected the numbers {key} in this file of Matlab 7\.3"
        ):
            matlab(path, key)
    with pytest.raises(DataError, match=r"empty \(1000000000,\) of Matlab 7\.3 needs 8000000000 bytes"):
        matlab(path, "empty")
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["a"] = value
    with pytest.raises(DataError, match="found a link to another file"):
        matlab(path, "linked")
    with pytest.raises(DataError, match="save it in Matlab with -v7"):
        matlab_struct(path, "s")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(700))
    with pytest.raises(DataError, match=r"a\.mat: expected a Matlab file of version 7\.3"):
        matlab(path, "a")


def test_without_h5py_the_version_and_the_extra_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(700))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"a\.mat is of Matlab's version 7\.3: .*testtime\[mat\]"):
        matlab(tmp_path / "a.mat", "a")
