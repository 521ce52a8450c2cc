"""A replay computes every recorded answer again, through restarts, rollbacks and changes of configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_session import images, network, tent
from torch import Tensor

from testtime.serve import GateOptions, Session, SessionOptions
from testtime.serve.replaying import replay, verify_session

SYNC = SessionOptions(snapshot_every=3, asynchronous=False)


def samples(stream: str, n: int = 20) -> Tensor:
    return torch.cat([images(1000 * ord(stream) + i) for i in range(n)])


INPUTS = {name: samples(name) for name in "ab"}


def feed(session: Session, stream: str, requests: int, **more: object) -> None:
    for _ in range(requests):
        offset = session.status(stream).offset if stream in session.streams() else 0
        session.submit(INPUTS[stream][offset : offset + 4], stream, **more)


def test_a_replay_reproduces_every_answer(tmp_path: Path) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        for _ in range(4):
            feed(session, "a", 1)
            feed(session, "b", 1)
        session.rollback("a", 1)
        feed(session, "a", 2)
        session.rollback("b")
        feed(session, "b", 1, learn=False)
        session.configure(tent(lr=0.1))
        feed(session, "b", 2)
        feed(session, "a", 2)
    with Session.resume(network(), tmp_path, options=SYNC) as session:
        feed(session, "b", 2)
        session.forget("a")
        feed(session, "a", 2)
    found = replay(tmp_path, network(), INPUTS)
    assert (found.answers, found.samples, found.differences, found.left_out) == (19, 76, [], {})
    assert verify_session(tmp_path).faults == ()
    assert verify_session(tmp_path).closed


def test_a_replay_refuses_dictionaries_by_name(tmp_path: Path) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 1)
    with pytest.raises(TypeError, match=r"samples of stream 'a' as one tensor \(N, ...\), got dict; .* no"):
        replay(tmp_path, network(), {"a": {"facts": torch.rand(4, 3)}})  # type: ignore[dict-item]


def test_a_replay_goes_back_to_what_a_killed_process_lost(tmp_path: Path) -> None:
    session = Session(tent(), tmp_path, options=SYNC)
    feed(session, "a", 5)  # the snapshot is after three
    session._audit.close()
    session._lock.release()
    with Session.resume(network(), tmp_path) as session:
        assert session.status("a").offset == 12
        feed(session, "a", 3)
    found = replay(tmp_path, network(), lambda stream, offset, count: INPUTS[stream][offset : offset + count])
    assert (found.answers, found.differences) == (8, [])


def test_a_replay_begins_at_a_snapshot(tmp_path: Path) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 8)
    found = replay(tmp_path, network(), INPUTS, start={"a": 2})
    assert (found.answers, found.differences) == (2, [])
    assert found.left_out == {"the state of its stream is not known": 6}
    with pytest.raises(ValueError, match="no snapshot 9"):
        replay(tmp_path, network(), INPUTS, start={"a": 9})


def test_a_replay_of_a_log_whose_beginning_is_gone(tmp_path: Path) -> None:
    options = SessionOptions(snapshot_every=3, asynchronous=False, audit_rotate=1500, audit_keep=3)
    with Session(tent(), tmp_path, options=options) as session:
        feed(session, "a", 16)
    assert len(list((tmp_path / "audit").iterdir())) == 3
    assert verify_session(tmp_path).faults == ()
    found = replay(tmp_path, network(), INPUTS)
    assert found.answers > 3
    assert found.differences == []


def test_a_process_that_ended_while_a_file_of_the_log_began(tmp_path: Path) -> None:
    for empty in ("000002.jsonl", "000003.jsonl"):
        with Session(tent(), tmp_path, options=SYNC) as session:
            feed(session, "a", 2)
        (tmp_path / "audit" / empty).touch()
    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 2)
    assert verify_session(tmp_path).faults == ()
    found = replay(tmp_path, network(), INPUTS)
    assert (found.answers, found.differences, found.left_out) == (6, [], {})


def test_other_inputs_and_other_answers_are_differences(tmp_path: Path) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 3)
    other = INPUTS["a"].clone()
    other[5] += 0.01
    found = replay(tmp_path, network(), {"a": other})
    assert found.answers == 1
    assert found.differences == ["record 3, stream 'a', offset 4: the samples are not those of the session"]


def test_errors_of_the_inputs_are_no_damage_of_the_log(tmp_path: Path) -> None:
    def missing(stream: str, offset: int, count: int) -> torch.Tensor:
        raise KeyError("recordings of Tuesday")

    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 3)
    with pytest.raises(ValueError, match="inputs has none of this name") as error:
        replay(tmp_path, network(), {})
    assert type(error.value) is ValueError
    with pytest.raises(ValueError, match="samples 4 to 8 of stream 'a'; give them all") as error:
        replay(tmp_path, network(), {"a": INPUTS["a"][:6]})
    assert type(error.value) is ValueError
    with pytest.raises(KeyError, match="recordings of Tuesday"):
        replay(tmp_path, network(), missing)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, r"samples of stream 'a' as one tensor \(N, \.\.\.\), got NoneType"),
        ([1.0], TypeError, r"samples of stream 'a' as one tensor .* got list"),
        (images(0).to_sparse(), TypeError, "expected a dense tensor"),
        (images(0)[0, 0, 0], ValueError, r"expected a batch \(N, \.\.\.\), got shape \(6,\)"),
        (images(0)[:3], ValueError, "samples 0 to 4 of stream 'a'; give them all"),
    ],
)
def test_what_a_function_of_inputs_returns_is_checked(
    tmp_path: Path, given: object, error: type[Exception], message: str
) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 1)
    with pytest.raises(error, match=message) as found:
        replay(tmp_path, network(), lambda stream, offset, count: given)  # type: ignore[arg-type, return-value]
    assert type(found.value) is error


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            {"start": {"a": "1"}},
            TypeError,
            "^expected the number of a snapshot of stream 'a' in start, got '1'$",
        ),
        ({"start": {"a": 1.0}}, TypeError, "the number of a snapshot of stream 'a' in start, got 1.0$"),
        ({"start": {1: 1}}, TypeError, "expected the name of a stream as a text, got int"),
        ({"start": {"../a": 1}}, ValueError, "expected the name of a stream, 1 to 64"),
        ({"start": [1]}, TypeError, r"expected start as a dictionary .* got \[1\]"),
        ({"start": {"z": 1}}, ValueError, "stream 'z' has no snapshot 1; there are none"),
        ({"inputs": None}, TypeError, "expected inputs as a dictionary .* or a function, got NoneType"),
    ],
)
def test_arguments_of_a_replay_are_checked(
    tmp_path: Path, words: dict[str, object], error: type[Exception], message: str
) -> None:
    with Session(tent(), tmp_path, options=SYNC) as session:
        feed(session, "a", 3)
    with pytest.raises(error, match=message):
        replay(tmp_path, network(), **{"inputs": INPUTS, **words})  # type: ignore[arg-type]


def test_postponed_samples_are_replayed_where_they_were_learned(tmp_path: Path) -> None:
    now = [0.0]
    options = SessionOptions(backlog=8, clock=lambda: now[0], gate=GateOptions(repeats=4))
    with Session(tent(), tmp_path, options=options) as session:
        feed(session, "a", 1)
        feed(session, "a", 3, deadline=-1.0)
        assert session.status("a").counts.shed == 12
        assert session.status("a").pending == 8  # the oldest left
        assert session.catch_up("a") == 8
        assert session.status("a").counts.caught_up == 8
        feed(session, "a", 1)
    alone = tent()
    for i in (0, 2, 3):
        alone(INPUTS["a"][4 * i : 4 * i + 4])
    found = replay(tmp_path, network(), INPUTS)
    assert (found.answers, found.differences) == (5, [])


def test_a_rollback_that_failed_leaves_postponed_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    now = [0.0]
    options = SessionOptions(backlog=64, snapshot_every=0, clock=lambda: now[0])
    with Session(tent(), tmp_path, options=options) as session:
        feed(session, "a", 1)
        session.snapshot("a")
        feed(session, "a", 1)
        feed(session, "a", 2, deadline=-1.0)
        with monkeypatch.context() as patch:
            patch.setattr("testtime.serve.snapshots.write_tensors", full)
            for to in (1, None):
                with pytest.raises(OSError, match="No space left"):
                    session.rollback("a", to=to)
        assert session.catch_up("a") == 8
        feed(session, "a", 1, deadline=-1.0)
        session.rollback("a", to=1)
        assert session.catch_up("a") == 0
        feed(session, "a", 1)
    found = replay(tmp_path, network(), INPUTS)
    assert (found.answers, found.differences, found.left_out) == (6, [], {})


def test_adapters_that_served_long_ago_are_deleted_and_a_replay_leaves_their_records_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testtime.serve.directory.ADAPTERS", 1)
    with Session(tent(), tmp_path, options=SYNC) as session:
        first = session.configuration
        feed(session, "a", 2)
        for lr in (0.02, 0.03):
            session.configure(tent(lr=lr))
            feed(session, "a", 2)
        feed(session, "b", 2)  # a stream that began after them
        kept = {path.name for path in (tmp_path / "adapters").iterdir()}
        assert session.configuration in kept
        assert first not in kept
        assert len(kept) == 2
    found = replay(tmp_path, network(), INPUTS)
    assert (found.answers, found.differences) == (2, [])
    assert found.left_out == {
        "the adapter of its configuration was deleted": 2,
        "the state of its stream is not known": 4,  # it came from that adapter
    }
