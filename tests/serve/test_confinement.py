"""What a session refuses before it takes memory, and that it neither leaves its folder nor shows it to others."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_session import images, network, tent

from testtime.errors import DataError
from testtime.serve import Session, SessionOptions
from testtime.serve.gate import GateOptions, InputGate, read_image
from testtime.serve.streams import check_stream, folder_of, name_of

SYNC = SessionOptions(snapshot_every=1, asynchronous=False)
NAMES = st.one_of(st.text(max_size=70), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True))


@given(NAMES, NAMES)
@settings(max_examples=100, deadline=None)
def test_a_name_is_one_folder_inside_or_refused(name: str, other: str) -> None:
    folders = []
    for one in (name, other):
        try:
            folders.append(folder_of(one))
        except ValueError:
            with pytest.raises(ValueError, match="expected the name of a stream"):
                check_stream(one)
            return
    for folder, one in zip(folders, (name, other), strict=True):
        assert name_of(folder) == one
        assert Path("/streams", folder).resolve().parent == Path("/streams")
        assert not folder.startswith((".", "-"))
        assert len(folder.encode()) <= 128
    assert (folders[0].casefold() == folders[1].casefold()) == (name == other)


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG file of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + packed + struct.pack(">I", 9) + b"IDAT" + bytes(40)


@pytest.mark.filterwarnings("ignore:Image size:Warning")
@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_an_image_is_measured_before_it_is_decoded(width: int, height: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
    decoded: list[tuple[int, int]] = []
    plugin = pytest.importorskip("PIL.PngImagePlugin")
    real, whole = image.Image.load, plugin.PngImageFile.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image.Image, "load", lambda self: decoded.append(self.size) or real(self))
        patch.setattr(plugin.PngImageFile, "load", lambda self: decoded.append(self.size) or whole(self))
        with pytest.raises(ValueError, match="expected (at most 4096|a PNG image)"):
            read_image(png(width, height), largest=4096)
    assert all(w * h <= 4096 for w, h in decoded)


@given(
    st.integers(1, 2**26),  # torch itself refuses 2**63 values
    st.lists(st.integers(1, 2**12), min_size=1, max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_a_request_is_measured_before_it_is_read(count: int, shape: list[int]) -> None:
    """The tensor claims more than there is: whoever copies, sums or hashes it does not come back."""
    gate = InputGate(GateOptions(most=16, largest=2**10))
    values = 1
    for size in shape:
        values *= size
    x = torch.zeros(()).expand(count, *shape)
    if count > 16 or values > 2**10:
        with pytest.raises(ValueError, match="expected at most (16 samples|1024 values)"):
            gate.check(x)
    else:
        gate.check(x)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 6))
@settings(max_examples=25, deadline=None)
def test_the_quarantine_is_bounded_and_without_pixels(kinds: list[int], most: int) -> None:
    from testtime.serve.gate import Quarantine

    options = GateOptions(quarantine=most)
    gate, quarantine = InputGate(options), Quarantine(options)
    held = 0
    for offset, kind in enumerate(kinds):
        x = images(offset, 1)
        if kind == 1:
            x[0, 0, 0, 0] = torch.nan
        elif kind == 2:
            x[:] = 0.5
        elif kind == 3:
            x[:] = 9.0
        quarantine.note(gate.screen(x, (), (0.0, 1.0)), x, "a", offset, 0.0)
        held += kind > 0
    found = quarantine.held()
    assert len(found) == min(held, most)
    assert all(one.pixels is None for one in found)


def test_no_pixels_are_written(tmp_path: Path) -> None:
    x = images(0)
    x[1], x[2] = x[0], 0.25
    with Session(tent(), tmp_path, options=SYNC) as session:
        answer = session.submit(x)
        assert answer.quarantined == (None, "repeated", "constant", None)
        assert len(session.quarantine()) == 2
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for row in x:
            assert row.numpy().tobytes()[:32] not in content, path


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_files_are_for_their_owner_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Session(tent(), tmp_path / "session", options=SYNC) as session:
            session.submit(images(0))
            session.configure(tent(lr=0.5))
    finally:
        os.umask(before)
    paths = [tmp_path / "session", *(tmp_path / "session").rglob("*")]
    assert len(paths) > 10
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def _all(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    """Each file and folder of a session is replaced by a link to itself elsewhere: nothing there is written or deleted."""
    whole, elsewhere, session_folder = (tmp_path / name for name in ("whole", "elsewhere", "session"))
    with Session(tent(), whole, options=SYNC) as session:
        session.submit(images(0), "a")
        session.submit(images(1), "a")
    outcomes = {}
    for name in _all(whole):
        for folder in (elsewhere, session_folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        shutil.copytree(whole, session_folder, dirs_exist_ok=True)
        target = elsewhere / "target"
        (session_folder / name).rename(target)
        (session_folder / name).symlink_to(target)
        before = _all(elsewhere)
        try:
            with Session.resume(network(), session_folder, options=SYNC) as session:
                session.submit(images(2), "a")
                session.forget("a")
            outcomes[name] = "went on"
        except (DataError, OSError) as error:
            outcomes[name] = type(error).__name__
        assert _all(elsewhere) == before, name
    assert {outcomes[name] for name in ("streams", "audit", "adapters", "session.json", "streams/a")} == {
        "DataError"
    }
    assert outcomes["streams/a/000000002.safetensors"] == "went on"  # from the snapshot before
