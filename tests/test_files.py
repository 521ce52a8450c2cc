"""Files appear whole or not at all; damage is named; JSON is strict."""

import json
import os
import re
import signal
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from testtime import files
from testtime.errors import DataError
from testtime.files import (
    check_shape,
    damaged,
    parse_json,
    read_array,
    read_json,
    read_lines,
    read_tensors,
    replacing,
    slug,
    sweep,
    write_array,
    write_bytes,
    write_image,
    write_json,
    write_lines,
    write_tensors,
    write_text,
)

posix = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write_text(tmp_path / "a" / "b" / "t.txt", "grün\n").read_bytes() == "grün\n".encode()
    content = {"a": [1, 2.5, None, True], "b": {"c": "d"}}
    assert read_json(write_json(tmp_path / "a.json", content), "") == content
    assert read_lines(write_lines(tmp_path / "a.jsonl", [content, {}]), "") == [content, {}]
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    for mapped in (False, True):
        found = read_array(write_array(tmp_path / "a.npy", array), "", mapped=mapped)
        assert found.dtype == np.int16
        assert np.array_equal(found, array)
    assert read_array(write_array(tmp_path / "e.npy", np.zeros((0, 3))), "", mapped=True).shape == (0, 3)
    tensors = {"x": torch.arange(3), "y": torch.tensor(2.5, dtype=torch.bfloat16), "z": torch.zeros(0, 2)}
    found, metadata = read_tensors(write_tensors(tmp_path / "t", tensors, {"k": "v"}))
    assert metadata.pop("sha256")
    assert metadata == {"k": "v"}
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert not list(tmp_path.rglob("*.part"))


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    content = {"a": float("nan"), 3: (np.float32(0.5), np.int64(2), np.inf, np.bool_(True))}
    assert read_json(write_json(tmp_path / "a", content), "") == {"a": None, "3": [0.5, 2, None, True]}


@posix
def test_modes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "report", b"")
        write_bytes(tmp_path / "state", b"", private=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


@posix
def test_links_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a", "old")

    def fail() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a forked process")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    limits = pytest.importorskip("resource")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limits.setrlimit(limits.RLIMIT_FSIZE, (1000, 1000))
            fine = 0
            for write in (
                lambda p: write_bytes(p, bytes(5000)),
                lambda p: write_json(p, ["x" * 5000]),
                lambda p: write_array(p, np.zeros(5000)),
                lambda p: write_tensors(p, {"x": torch.zeros(5000)}),
            ):
                try:
                    write(tmp_path / "target")
                except OSError as error:
                    fine += str(tmp_path / "target") in str(error)
            status = 0 if fine == 4 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert names(tmp_path) == []


def test_a_folder_that_is_a_file_is_an_oserror(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    with pytest.raises(OSError, match="a"):
        write_text(tmp_path / "a" / "b", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path, sizes, rng = tmp_path / "a", (200_000, 300_000), np.random.default_rng(0)
    write_array(path, np.full(sizes[0], 0))
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            while True:
                for value, size in enumerate(sizes):
                    write_array(path, np.full(size, value))
        time.sleep(rng.uniform(0.002, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = read_array(path, "")
        assert len(found) == sizes[found[0]]
        assert (found == found[0]).all()


def test_what_killed_writers_left_is_swept_after_an_hour(tmp_path: Path) -> None:
    for name in (".a.0123.part", ".b.0123.part", "c.part", ".d"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".a.0123.part", (0, time.time() - files.STALE - 1))
    sweep(tmp_path)
    assert names(tmp_path) == [".b.0123.part", ".d", "c.part"]
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is no number"),
        ("[" * 100_000, "64 levels"),
        ("[" * 65 + "]" * 65, "64 levels"),
        ('{"a":' * 500 + "1" + "}" * 500, "64 levels"),
        (b"\xff\xfe", "utf-8"),
        ("[" + "1" * 5000 + "]", "digits"),
    ],
)
def test_json_is_strict(text: str | bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"a\.json is damaged \(.*{problem}.*\); do this"):
        read_json(tmp_path / "a.json", "do this", (dict, list))


def test_json_of_sixty_levels_and_lenient_numbers() -> None:
    assert json.dumps(parse_json("[" * 60 + "]" * 60)) == "[" * 60 + "]" * 60
    assert parse_json("[Infinity, 1e999]", finite=False) == [float("inf")] * 2


def test_large_json_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 100)
    (tmp_path / "a.json").write_text("[" + " " * 100 + "]")
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_json(tmp_path / "a.json", "", list)


def test_missing_files_are_missing(tmp_path: Path) -> None:
    for read in (read_json, read_lines, read_array, read_tensors):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "a", "do this")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("value", "shape", "problem"),
    [
        ([], dict, "document: expected dict, found list"),
        ({"a": 1}, {"a": str}, "a: expected str, found int"),
        ({}, {"a": {"b": int}}, "a is missing"),
        ({"a": {"b": [1, "2"]}}, {"a": {"b": [int]}}, r"a\.b\[1\]: expected int, found str"),
        ({"a": "x"}, {"a": (float, type(None))}, "a: expected float or null, found str"),
        ({"a": None}, {"a": float}, "a: expected float, found NoneType"),
        ({"a": True}, {"a": float}, "a: expected float, found bool"),
        ({"a": 10**400}, {"a": float}, "a: expected float, found int"),
        ({"a": {"b": 1, "c": None}}, {"a": {str: int}}, r"a\.c: expected int, found NoneType"),
    ],
)
def test_shapes(value: Any, shape: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        check_shape(value, shape)
    check_shape({"a": 1, "b": None, "more": 0}, {"a": float, "b": (float, type(None))})


def test_a_torn_line_ends_the_file_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": ')
    assert read_lines(path, "", torn=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"a\.jsonl is damaged .*; do this"):
        read_lines(path, "do this")
    path.write_text('{"a": 1}\n3\n')
    with pytest.raises(DataError, match="line 2 holds a value of type int"):
        read_lines(path, "do this")


def npy(shape: str, descr: str = "'<f8'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + bytes(100),
        npy("(3,)"),
        npy("(1000000000000,)") + bytes(80),
        npy("(-1,)") + bytes(80),
        npy("(10,)", "'|O'") + bytes(80),
        npy("('a',)") + bytes(80),
        npy("(((((") + bytes(80),
        npy("(10,)") + bytes(79),
        npy("(10,)") + bytes(81),
        b"\x93NUMPY\x09\x00" + bytes(100),
    ],
)
def test_damaged_arrays_are_refused_before_memory_is_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    for mapped in (False, True):
        with pytest.raises(DataError, match=r"a\.npy is damaged .*; do this"):
            read_array(tmp_path / "a.npy", "do this", mapped=mapped)
    (tmp_path / "a.npy").write_bytes(npy("(10,)") + bytes(80))
    assert np.array_equal(read_array(tmp_path / "a.npy", ""), np.zeros(10))


def test_every_bit_of_tensors_and_metadata_counts(tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(40.0), "step": torch.tensor(3)}
    path = write_tensors(tmp_path / "t", tensors, {"about": "a text"})
    whole, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 7):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found, metadata = read_tensors(path)
        except DataError:
            refused += 1
            continue
        assert "sha256" not in metadata or (
            metadata["about"] == "a text" and all(torch.equal(found[k], v) for k, v in tensors.items())
        )
    assert refused > 8 * len(whole) / 7 * 0.9


def test_tensors_without_a_checksum_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "t")
    tensors, metadata = read_tensors(tmp_path / "t")
    assert torch.equal(tensors["x"], torch.ones(2))
    assert metadata == {}
    with safe_open(write_tensors(tmp_path / "t", tensors), framework="pt") as file:
        assert list(file.metadata()) == ["sha256"]


def test_images_by_suffix(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    made = image.new("RGB", (4, 3), "red")
    for suffix, kind in ((".png", "PNG"), (".JPG", "JPEG")):
        with image.open(write_image(tmp_path / f"a{suffix}", made, quality=80)) as found:
            assert (found.format, found.size) == (kind, (4, 3))
    with pytest.raises(ValueError, match=r"a\.txt: expected the suffix of an image format"):
        write_image(tmp_path / "a.txt", made)


def test_damage_names_the_file_and_keeps_the_cause() -> None:
    message = re.escape("run.json is damaged (KeyError: 'a'); do this")
    with pytest.raises(DataError, match=message) as caught, damaged("run.json", "do this"):
        {}["a"]
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ZeroDivisionError), damaged("run.json", "do this"):
        divmod(1, 0)
    with pytest.raises(DataError, match="^inner$"), damaged("run.json", "do this"):
        raise DataError("inner")


def test_slugs() -> None:
    assert slug("S4T, released loss/2") == "s4t__released_loss_2"
    assert slug("../A+B-1.5") == ".._a+b-1.5"
