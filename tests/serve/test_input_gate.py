"""The input gate: every kind of bad input is refused or quarantined with its reason, and changes nothing."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from small_session import images, network, tent

from testtime import state_hash
from testtime.intake.named import NamedTensors
from testtime.serve import GateOptions, Session, SessionOptions, read_image
from testtime.serve.gate import InputGate, Quarantine

REFUSED = {
    "list": [1.0],
    "uint8": torch.zeros(2, 3, 6, 6, dtype=torch.uint8),
    "complex": torch.zeros(2, 3, 6, 6, dtype=torch.complex64),
    "bool": torch.zeros(2, 3, 6, 6, dtype=torch.bool),
    "sparse": torch.zeros(2, 3, 6, 6).to_sparse(),
    "meta": torch.zeros(2, 3, 6, 6, device="meta"),
    "scalar": torch.tensor(1.0),
    "one image": torch.zeros(3, 6, 6),
    "no samples": torch.zeros(0, 3, 6, 6),
    "no values": torch.zeros(2, 0, 6, 6),
    "channels": torch.zeros(2, 1, 6, 6),
    "size": torch.zeros(2, 3, 6, 7),
    "rank": torch.zeros(2, 1, 3, 6, 6),
    "many": torch.zeros(1, 1, 1, 1).expand(5000, 3, 6, 6),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_request_is_refused(tmp_path: Path, kind: str) -> None:
    with Session(tent(), tmp_path) as session:
        state = session.submit(images(0)).state
        for call in (session.submit, session.predict):
            with pytest.raises((TypeError, ValueError), match="expected"):
                call(REFUSED[kind])  # type: ignore[arg-type]
        status = session.status()
        assert (status.state, status.offset, status.counts.requests) == (state, 4, 1)


WORDS = {"input_ids": torch.ones(2, 5, dtype=torch.int64), "facts": torch.rand(2, 3)}


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            WORDS,
            "one floating-point tensor .* a dictionary with 'input_ids', 'facts'; .* call the adapter itself",
        ),
        (
            NamedTensors({"facts": WORDS["facts"]}),
            "one floating-point tensor .* a dictionary with 'facts'",
        ),
        ({}, "a dictionary with no entry"),
        (WORDS["input_ids"], "got torch.int64; a session takes no token ids: call the adapter itself"),
    ],
)
def test_words_are_refused_before_anything_is_learned_or_written(
    tmp_path: Path, x: Any, message: str
) -> None:
    def written() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    adapter = tent()
    birth = state_hash(adapter)
    with Session(adapter, tmp_path) as session:
        before = written()
        for call in (session.submit, session.predict):
            with pytest.raises(TypeError, match=message):
                call(x)
        assert session.streams() == ()
        assert state_hash(adapter) == birth
        assert written() == before


BAD = {
    "not finite": [torch.nan, torch.inf, -torch.inf],
    "out of range": [255.0, -200.0, 3e38],
}


def test_bad_values_never_reach_the_network(tmp_path: Path) -> None:
    x = images(1)
    with Session(tent(), tmp_path / "a") as one, Session(tent(), tmp_path / "b") as other:
        one.submit(images(0)), other.submit(images(0))
        want = other.submit(x)
        bad = [images(2, 1) for values in BAD.values() for _ in values]
        for sample, value in zip(bad, [v for values in BAD.values() for v in values], strict=True):
            sample[0, 1, 2, 3] = value
        got = one.submit(torch.cat([x, *bad]))
        assert torch.equal(got.logits[:4], want.logits)
        assert got.state == want.state
        assert got.refused[4:] == ("not finite",) * 3 + ("out of range",) * 3
        assert got.predicted[4:].tolist() == [-1] * 6
        assert got.logits[4:].isnan().all()
        assert got.score[4:].isnan().all()
        alone = one.submit(torch.cat(bad))
        assert not alone.adapted
        assert (alone.state, alone.logits.shape) == (want.state, (6, 3))
        assert one.status().counts.refused == 12


def test_a_copy_is_learned_once(tmp_path: Path) -> None:
    options = SessionOptions(gate=GateOptions(repeats=8))
    with Session(tent(), tmp_path, options=options) as session:
        session.submit(images(0, 8))
        assert session.submit(images(0, 8)).quarantined == ("repeated",) * 8
        session.submit(images(1, 8))
        assert session.submit(images(0, 8)).learned  # they are no longer among the last eight
    with Session.resume(network(), tmp_path, options=options) as session:
        assert session.submit(images(0, 8)).quarantined == ("repeated",) * 8


def test_the_quarantine_is_bounded_and_holds_no_pixels() -> None:
    gate = InputGate(GateOptions(quarantine=5))
    quarantine = Quarantine(gate.options)
    x = torch.full((8, 3, 2, 2), 0.5)
    found = gate.screen(x, (), None)
    for i in range(3):
        quarantine.note(found, x, "ab"[i % 2], 8 * i, 0.0)
    held = quarantine.held()
    assert [one.offset for one in held] == [19, 20, 21, 22, 23]
    assert {one.reason for one in held} == {"constant"}
    assert all(one.pixels is None and len(one.digest) == 32 for one in held)
    quarantine.forget("a")
    assert quarantine.held() == ()
    kept = Quarantine(GateOptions(pixels=True))
    kept.note(found, x, "a", 0, 0.0)
    assert torch.equal(kept.held("a")[0].pixels, x[0])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_digests_are_of_the_bytes(kind: torch.dtype) -> None:
    gate, x = InputGate(GateOptions()), images(0).to(kind)
    plain = gate.screen(x, (), None)
    assert gate.screen(x.flip(0).flip(0), (), None) == plain
    assert gate.screen(x.contiguous(memory_format=torch.channels_last), (), None) == plain
    assert gate.screen(x[:2], (), None).digests == plain.digests[:2]
    assert gate.screen(x, plain.digests, None).admitted == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, -1, "a whole number of at least 0, got -1") for name in ("repeats", "quarantine")),
        *((name, 0, "a whole number of at least 1, got 0") for name in ("most", "largest")),
        *(
            (name, 2.5, r"a whole number of at least .*, got 2\.5")
            for name in ("repeats", "most", "quarantine")
        ),
        ("largest", "x", "a whole number of at least 1, got 'x'"),
        ("repeats", True, "a whole number of at least 0, got True"),
        *((name, torch.nan, "a number from 0 to below 1, got nan") for name in ("contrast", "tiny")),
        ("contrast", 1.0, r"a number from 0 to below 1, got 1\.0"),
        ("tiny", None, "a number from 0 to below 1, got None"),
        ("constant", 1, "bool, got 1"),
        ("pixels", "no", "bool, got 'no'"),
        *(
            ("shape", wrong, r"whole numbers above 0, such as \(3, 224, 224\), or None, got ")
            for wrong in ((), (3, 0, 6), (3, -1), (3.0, 6), (True, 6), 3, "36")
        ),
    ],
)
def test_settings_are_checked(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"GateOptions: expected {name} as {expected}"):
        GateOptions(**{name: value})


def test_a_shape_may_be_a_list(tmp_path: Path) -> None:
    options = GateOptions(shape=[3, 6, 6])  # type: ignore[arg-type]
    assert options == GateOptions(shape=(3, 6, 6))
    assert GateOptions(shape=images(0).shape[1:]).shape == (3, 6, 6)
    with Session(tent(), tmp_path, options=SessionOptions(gate=options)) as session:
        assert session.submit(images(0)).refused == (None,) * 4


def test_the_shape_is_that_of_admitted_samples() -> None:
    gate = InputGate(GateOptions())
    for other in (torch.full((2, 3, 9, 9), torch.nan), torch.full((2, 3, 9, 9), 0.5)):
        gate.check(other)
        gate.answered(other, gate.screen(other, (), (0.0, 1.0)))
        assert gate.shape is None
    for x in (images(0), images(1)):
        gate.check(x)
        gate.answered(x, gate.screen(x, (), (0.0, 1.0)))
        assert gate.shape == (3, 6, 6)
    with pytest.raises(ValueError, match=r"expected samples of shape \(3, 6, 6\), got \(3, 9, 9\)"):
        gate.check(torch.rand(2, 3, 9, 9))


def test_images_are_decoded_and_damaged_files_refused() -> None:
    pil = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
    for kind in ("PNG", "JPEG"):
        file = BytesIO()
        pil.new("RGB", (5, 4), (255, 0, 51)).save(file, kind)
        x = read_image(file.getvalue())
        assert (x.shape, x.dtype) == ((3, 4, 5), torch.float32)
        assert x[:, 2, 2].tolist() == pytest.approx([1.0, 0.0, 0.2], abs=0.01)
        for data in (file.getvalue()[:30], b"", b"GIF89a"):
            with pytest.raises(ValueError, match="expected a (PNG or JPEG file|PNG image|JPEG image), found"):
                read_image(data)
        with pytest.raises(ValueError, match="has 5 x 4 pixels, expected at most 19,"):
            read_image(file.getvalue(), largest=19)
    gif = BytesIO()
    pil.new("RGB", (5, 4)).save(gif, "GIF")
    with pytest.raises(ValueError, match="PNG or JPEG"):
        read_image(gif.getvalue())
    with pytest.raises(ValueError, match="expected 3 channels .* got 2"):
        read_image(gif.getvalue(), channels=2)
