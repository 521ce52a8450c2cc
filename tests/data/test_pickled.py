import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testtime.data import read_pickled
from testtime.errors import DataError


def python2_batch(data: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """A CIFAR-10 batch as pickled by Python 2: protocol 2, byte strings, old numpy names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
        + text(b"b")
        + b"\x87Rq\x03"
        b"(K\x01" + b"".join(b"M" + struct.pack("<H", n) for n in data.shape) + b"\x86"
        b"cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + b"".join(text(b"image_%d.png" % i) for i in range(len(labels))) + b"e"
    items = [
        (b"batch_label", text(b"testing batch 1 of 1")),
        (b"labels", numbers),
        (b"data", array),
        (b"filenames", names),
    ]
    return b"\x80\x02}q\x00(" + b"".join(text(key) + value for key, value in items) + b"u."


def test_the_stream_of_python_2_is_read_as_pickle_reads_it(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (300, 3072), dtype=np.uint8)
    stream = python2_batch(data, list(range(10)) * 30)
    (tmp_path / "batch").write_bytes(stream)
    expected = pickle.loads(stream, encoding="latin1")
    found = read_pickled(tmp_path / "batch")
    assert found.keys() == expected.keys()
    assert np.array_equal(found["data"], expected["data"])
    assert found["data"].dtype == np.uint8
    for key in ("labels", "filenames", "batch_label"):
        assert found[key] == expected[key]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, ">i4", bool])
def test_every_protocol_of_python_3_is_read(tmp_path: Path, protocol: int, dtype: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    table = {
        b"data": array,
        "fortran": np.asfortranarray(array),
        "labels": [1, 300, 70_000, -1, 2**40],
        "rest": [None, True, False, 0.5, (1,), (1, 2, 3, 4), {"a": [b"x", "y"]}, []],
    }
    (tmp_path / "table").write_bytes(pickle.dumps(table, protocol=protocol))
    found = read_pickled(tmp_path / "table")
    assert np.array_equal(found["data"], array)
    assert found["data"].dtype == array.dtype
    assert np.array_equal(found["fortran"], array)
    assert found["labels"] == table["labels"]
    assert found["rest"] == table["rest"]


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "table",
    [
        {"a": Call(print, "executed")},
        {"a": Call(eval, "1 + 1")},
        {"a": Path("x")},
        {"a": np.array([{}], dtype=object)},
        [1, 2],
        {"a": {1, 2}},
    ],
    ids=["print", "eval", "path", "objects", "list", "set"],
)
def test_anything_else_is_refused_and_not_executed(
    tmp_path: Path, table: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for protocol in (2, 4):
        (tmp_path / "evil").write_bytes(pickle.dumps(table, protocol=protocol))
        with pytest.raises(DataError, match="nothing was executed"):
            read_pickled(tmp_path / "evil")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "stream", [b"", b"\x80\x02}", b"\x80\x02u.", b"garbage", b"\x80\x02K\x01b.", b"\x80\x02h\x05."]
)
def test_damaged_streams_are_refused(tmp_path: Path, stream: bytes) -> None:
    (tmp_path / "batch").write_bytes(stream)
    with pytest.raises(DataError, match="batch: expected a pickled dict"):
        read_pickled(tmp_path / "batch")


def test_an_array_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    stream = python2_batch(np.zeros((2, 3), np.uint8), [1, 2])
    (tmp_path / "batch").write_bytes(stream.replace(b"M\x02\x00M\x03\x00", b"M\x02\x00M\xff\xff"))
    with pytest.raises(DataError):
        read_pickled(tmp_path / "batch")


def test_no_name_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(python2_batch(np.zeros((1, 4), np.uint8), [1]))
    code = f"""
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "pickle.find_class" else None)
from testtime.data import read_pickled
assert read_pickled({str(tmp_path / "batch")!r})["labels"] == [1]
assert not seen, seen
"""
    subprocess.run([sys.executable, "-c", code], check=True)


U1 = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"


def array_of(state: bytes) -> bytes:
    """A table with one array of this state, in protocol 0."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return b"(dS'data'\n" + made + state + b"bs."


def doubled(step: bytes, times: int) -> bytes:
    """A value that is stored under 0, 1, ... and combined with itself a number of times."""
    return b"".join(b"q" + bytes([i]) + step.replace(b"?", bytes([i])) for i in range(times))


HOSTILE = {
    "lists in lists": b"\x80\x02}U\x04data" + b"(" * 40 + b"]" + doubled(b"h?l", 40) + b"s.",
    "tuples in tuples": b"\x80\x02}U\x04data)" + doubled(b"h?\x86", 40) + b"s.",
    "dicts in dicts": b"\x80\x02}U\x01a}" + doubled(b"}(U\x01ah?U\x01bh?u", 60) + b"s.",
    "a list in itself": b"\x80\x02}U\x01a]q\x00h\x00as.",
    "nested tuples as a key": b"\x80\x02}K\x01" + doubled(b"h?\x86", 60) + b"K\x02s.",
    "nested tuples as a name": b"\x80\x02}U\x01a)" + doubled(b"h?\x86", 60) + b"U\x01b\x93s.",
    "nested tuples called": b"\x80\x02}U\x01a)" + doubled(b"h?\x86", 60) + b")Rs.",
    "nested tuples as a type": b"\x80\x02}U\x01acnumpy\ndtype\n)" + doubled(b"h?\x86", 60) + b"K\x00K\x01\x87Rs.",
    "marks": b"\x80\x02}U\x01a" + b"(" * 100_000 + b"l" * 100_000 + b"s.",
    "bytes of a number": array_of(b"(I1\n(I1\nt" + U1 + b"I00\nI34359738368\nt"),
    "bytes of a large number": array_of(b"(I1\n(I1\nt" + U1 + b"I00\nL1180591620717411303424L\nt"),
    "a shape without bytes": array_of(b"(I1\n(I6000000000\nt" + U1 + b"I00\nS'x'\nt"),
    "a shape beyond integers": array_of(b"(I1\n(L1180591620717411303424L\nt" + U1 + b"I00\nS'x'\nt"),
    "a type with a shape": array_of(b"(I1\n(I1\nt" + U1.replace(b"'|'", b"'(9,)'") + b"I00\nS'x'\nt"),
    "text encoded again and again": (
        b"\x80\x02}U\x01a(c_codecs\nencode\nq\x01X\x40\x0d\x03\x00" + b"x" * 200_000
        + b"X\x06\x00\x00\x00latin1\x86q\x020" + b"h\x01h\x02R" * 20_000 + b"ls."
    ),
    "a literal longer than the file": b"\x80\x02}U\x01a\x8d" + struct.pack("<Q", 2**62) + b"xs.",
    "a name as data": b"\x80\x02}U\x01acos\nsystem\ns.",
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_bounded_time(tmp_path: Path, kind: str) -> None:
    (tmp_path / "batch").write_bytes(HOSTILE[kind])
    with pytest.raises(DataError, match="batch: expected a pickled dict"):
        read_pickled(tmp_path / "batch")


def test_parts_that_are_shared_a_few_times_are_read(tmp_path: Path) -> None:
    shared = ["a long text of many bytes, so that the file is longer than the table"] * 3
    (tmp_path / "table").write_bytes(pickle.dumps({"x": shared, "y": shared}))
    assert read_pickled(tmp_path / "table") == {"x": shared, "y": shared}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch: no such file"):
        read_pickled(tmp_path / "batch")
