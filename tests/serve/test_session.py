"""A session answers as its adapter does, keeps streams apart, and continues after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_session import images, network, tent

from testtime.adapter import state_hash
from testtime.errors import DataError
from testtime.serve import Session, SessionOptions


def test_a_session_answers_as_the_adapter_alone(tmp_path: Path) -> None:
    alone = tent()
    with Session(tent(), tmp_path) as session:
        for i in range(5):
            want, got = alone(images(i)), session.submit(images(i))
            assert torch.equal(got.logits, want.logits)
            assert torch.equal(got.score, want.score)
            assert torch.equal(got.predicted, want.argmax(1))
            assert torch.equal(got.confidence, want.logits.softmax(1).amax(1))
            assert (got.offset, got.learned, got.adapted, got.serving) == (4 * i, True, True, "adapter")
            assert got.state == state_hash(alone)[:16]


def test_predict_changes_nothing(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        before = session.submit(images(0))
        got = session.predict(images(1))
        assert (got.state, got.offset, got.adapted) == (before.state, 4, False)
        assert session.predict(images(1), "other").offset == 0
        assert session.streams() == ("default",)


def test_interleaved_streams_equal_each_alone(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        got = {name: [] for name in "abc"}
        for i in range(6):
            for j, name in enumerate(got):
                got[name].append(session.submit(images(100 * j + i), name))
    for j, name in enumerate(got):
        alone = tent()
        for i, answer in enumerate(got[name]):
            assert torch.equal(answer.logits, alone(images(100 * j + i)).logits)
            assert answer.state == state_hash(alone)[:16]


def test_a_session_continues_from_its_last_snapshot(tmp_path: Path) -> None:
    session = Session(tent(), tmp_path, options=SessionOptions(snapshot_every=2, asynchronous=False))
    answers = [session.submit(images(i)) for i in range(5)]
    assert [s.offset for s in session.snapshots()] == [8, 16]
    session._audit.close()
    session._lock.release()  # as a killed process leaves it
    with Session.resume(network(), tmp_path) as resumed:
        assert resumed.status().offset == 16
        again = resumed.submit(images(4))
        assert torch.equal(again.logits, answers[4].logits)
        assert again.state == answers[4].state


def test_a_closed_session_continues_where_it_was(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        last = [session.submit(images(i), "x") for i in range(3)][-1]
    with pytest.raises(RuntimeError, match="closed"):
        session.submit(images(3), "x")
    with Session(tent(), tmp_path) as resumed:
        assert resumed.streams() == ("x",)
        status = resumed.status("x")
        assert (status.offset, status.step, status.state) == (12, 3, last.state)
        assert status.counts.learned == 12


def test_rollback_to_a_snapshot_and_to_the_shipped_model(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        states = []
        for i in range(3):
            states.append(session.submit(images(i)).state)
            session.snapshot()
        restored = session.rollback(to=1)
        assert restored is not None
        assert (restored.number, restored.state) == (1, states[0])
        assert session.status().state == states[0]
        assert session.status().offset == 12
        assert session.rollback() is None
        assert session.status().state == state_hash(tent())[:16]
        assert session.snapshots()[-1].state == session.status().state
        with pytest.raises(ValueError, match="no snapshot 77; there are 1, 2, 3"):
            session.rollback(to=77)


def test_one_process_owns_a_directory(tmp_path: Path) -> None:
    with Session(tent(), tmp_path), pytest.raises(RuntimeError, match="in use by another session"):
        Session(tent(), tmp_path)
    Session(tent(), tmp_path).close()


def test_a_directory_of_another_configuration_is_refused(tmp_path: Path) -> None:
    Session(tent(), tmp_path).close()
    with pytest.raises(ValueError, match="another configuration"):
        Session(tent(lr=0.5), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no session"):
        Session.resume(network(), tmp_path / "elsewhere")


def test_configuration_changes_while_streams_go_on(tmp_path: Path) -> None:
    from testtime.methods import Source

    with Session(tent(), tmp_path) as session:
        before = session.submit(images(0)).state
        session.configure(tent(lr=0.5))
        assert session.predict(images(1)).state == before  # the state fits the same method
        with pytest.raises(ValueError, match="another source model"):
            session.configure(Source(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))))
        session.configure(Source(network()))
        assert torch.equal(session.submit(images(1)).logits, network()(images(1)).detach())
        assert session.status().offset == 8
    with Session.resume(network(), tmp_path) as resumed:
        assert torch.equal(
            resumed.submit(images(1)[:2] + 0.01).logits, network()(images(1)[:2] + 0.01).detach()
        )


def test_bad_samples_do_not_change_what_the_others_get(tmp_path: Path) -> None:
    x = images(0, 6)
    bad = x.clone()
    bad[1, 0, 0, 0], bad[3] = torch.nan, 0.25
    bad[5] = bad[4]
    with Session(tent(), tmp_path / "a") as one, Session(tent(), tmp_path / "b") as other:
        got, want = one.submit(bad), other.submit(x[[0, 2, 4]])
        assert got.state == want.state
        assert torch.equal(got.logits[[0, 2, 4]], want.logits)
        assert got.refused == (None, "not finite", None, None, None, None)
        assert got.quarantined == (None, None, None, "constant", None, "repeated")
        assert got.predicted[1] == -1
        assert got.logits[1].isnan().all()
        assert got.logits[[3, 5]].isfinite().all()
        assert [held.reason for held in one.quarantine()] == ["not finite", "constant", "repeated"]
        again = one.submit(bad)  # a stuck camera
        assert not again.adapted
        assert again.state == got.state


def test_learning_is_switched_off_and_on(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        before = session.submit(images(0))
        session.pause()
        got = session.submit(images(1))
        assert (got.adapted, got.skipped, got.state, got.offset) == (False, "paused", before.state, 4)
    with Session.resume(network(), tmp_path) as session:
        assert session.status().paused
        session.unpause()
        assert session.submit(images(2)).learned
        assert session.submit(images(3), learn=False).skipped == "asked"


def test_forgetting_a_stream_deletes_it(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        first = session.submit(images(0), "a")
        session.snapshot("a")
        session.forget("a")
        assert session.streams() == ()
        assert list((tmp_path / "streams").iterdir()) == []
        assert session.submit(images(0), "a").state == first.state


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a" * 65, "a\n", "é", 3])
def test_names_of_streams_are_checked(tmp_path: Path, name: str) -> None:
    with Session(tent(), tmp_path) as session:
        with pytest.raises((ValueError, TypeError), match="expected the name of a stream"):
            session.submit(images(0), name)
        assert session.streams() == ()


def test_a_refused_request_leaves_nothing(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        with pytest.raises(ValueError, match="does not take a batch"):
            session.submit(torch.rand(2, 5, 6, 6))
        with pytest.raises(TypeError, match="floating-point"):
            session.submit(torch.zeros(2, 3, 6, 6, dtype=torch.uint8))
        assert session.streams() == ()
        session.submit(images(0))
        with pytest.raises(ValueError, match=r"expected samples of shape \(3, 6, 6\)"):
            session.submit(torch.rand(2, 3, 7, 7))
        assert session.status().offset == 4


def test_damaged_snapshots_are_passed_over(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        for i in range(3):
            good = session.submit(images(i)).state
            session.snapshot()
        session.submit(images(3))
    newest = sorted((tmp_path / "streams" / "default").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with Session.resume(network(), tmp_path) as resumed:
        assert (resumed.status().state, resumed.status().offset) == (good, 12)
        assert "is damaged" in next(r["error"] for r in _events(tmp_path) if r["event"] == "damaged")
    for file in (tmp_path / "streams" / "default").iterdir():
        file.write_bytes(b"no")
    with Session.resume(network(), tmp_path) as resumed, pytest.raises(DataError, match="none can be used"):
        resumed.submit(images(0))


def _events(directory: Path) -> list[dict]:
    from testtime.serve.audit import records

    return list(records(directory / "audit"))


def test_a_guard_is_heard(tmp_path: Path) -> None:
    """Diagnostics, events and whose answer it is come from the guard, and its state travels with the stream."""
    from testtime.wrap import Guarded

    def guarded() -> Guarded:
        adapter = Guarded(tent())
        adapter.prepare([images(900 + i, 16) for i in range(8)])
        return adapter

    alone = guarded()
    options = SessionOptions(snapshot_every=2, asynchronous=False)
    session = Session(guarded(), tmp_path, options=options)
    answers = []
    for i in range(4):
        want = alone(images(i, 8))
        answers.append(session.submit(images(i, 8)))
        session.submit(images(50 + i, 8), "other")
        assert torch.equal(answers[-1].logits, want.logits)
        assert answers[-1].serving == alone.serving
        assert set(session.history()[-1]["diagnostics"]) == set(alone.diagnostics)
    session._audit.close()
    session._lock.release()
    with Session.resume(network(), tmp_path) as resumed:
        assert resumed.status().offset == 32
        want = alone(images(4, 8))
        again = resumed.submit(images(4, 8))
        assert torch.equal(again.logits, want.logits)
        assert again.state == state_hash(alone)[:16]


def test_requests_of_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Session(tent(), tmp_path, options=SessionOptions(snapshot_every=2)) as session:

        def serve(name: str) -> list[str]:
            return [session.submit(images(1000 * ord(name) + i), name).state for i in range(6)]

        with ThreadPoolExecutor(4) as pool:
            states = dict(zip("abcd", pool.map(serve, "abcd"), strict=True))
    for name, found in states.items():
        alone = tent()
        for i, state in enumerate(found):
            alone(images(1000 * ord(name) + i))
            assert state_hash(alone)[:16] == state


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    import stat

    directory = tmp_path / "session"
    with Session(tent(), directory) as session:
        session.submit(images(0))
    for path in (directory, *directory.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
