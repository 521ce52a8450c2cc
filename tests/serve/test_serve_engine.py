"""The engine: states in any mode of autograd, a request that fails changes nothing, distances, and whose the adapter is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_session import images, network, tent
from torch import Tensor, nn

from testtime.adapter import state_hash
from testtime.errors import DataError
from testtime.methods import Source, Tent
from testtime.parts import adam
from testtime.serve import Session, SessionOptions, replay, verify_session
from testtime.wrap import Episodic


def weights(adapter: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in adapter._adapted])


@pytest.mark.parametrize("begun", ["inside", "outside"])
def test_streams_that_began_in_inference_mode_are_as_others(begun: str, tmp_path: Path) -> None:
    with torch.inference_mode(begun == "inside"):
        session = Session(tent(), tmp_path)
    alone = {name: tent() for name in "abc"}
    with session:
        for i in range(3):
            for name, adapter in alone.items():
                with torch.inference_mode(name != "a"):
                    got = session.submit(images(i), name)
                assert torch.equal(got.logits, adapter(images(i)).logits)
                assert got.state == state_hash(adapter)[:16]
        with torch.inference_mode():
            session.configure(tent(0.1))
            session.submit(images(5), "a")
            session.rollback("b")
        assert session.submit(images(6), "a").learned


class OneByOne(nn.Module):
    """A network that loses the dimension of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze()


def test_a_request_that_fails_behind_its_step_leaves_the_stream_as_it_was(tmp_path: Path) -> None:
    with Session(Tent(OneByOne(), adam(0.01)), tmp_path) as session:
        first = session.submit(images(0, 8))
        again = torch.cat([images(1, 7), images(0, 8)[:1]])  # the last is repeated, and answered apart
        for _ in range(2):
            with pytest.raises(ValueError, match="1 sample"):
                session.submit(again)
            status = session.status()
            assert (status.step, status.state, status.offset) == (1, first.state, 8)
        after = session.submit(images(1, 8))
    alone = Tent(OneByOne(), adam(0.01))
    alone(images(0, 8))
    assert torch.equal(after.logits, alone(images(1, 8)).logits)
    assert verify_session(tmp_path).faults == ()


def test_the_distance_is_from_the_shipped_model_also_if_the_adapter_had_learned(tmp_path: Path) -> None:
    shipped, given = weights(tent()), tent(0.1)
    for i in range(3):
        given(images(i))
    learned = weights(given).clone()
    with Session(given, tmp_path) as session:
        assert torch.equal(weights(session.adapter), learned)
        for before in (session.submit(images(7)), None):
            if before is None:
                session.rollback()
                session.submit(images(8))
            distance = float((weights(session.adapter).double() - shipped.double()).norm())
            assert session.history()[-1]["distance"] == pytest.approx(distance, rel=1e-6)
        assert session.submit(images(7), "other").logits.equal(before_of(learned_on=3).logits)


def before_of(learned_on: int) -> Any:
    """The answer to images(7) of an adapter that had learned so many batches."""
    adapter = tent(0.1)
    for i in range(learned_on):
        adapter(images(i))
    return adapter(images(7))


def test_a_step_that_fails_later_leaves_its_samples_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(tent(), tmp_path, options=SessionOptions(backlog=16)) as session:
        session.submit(images(0), deadline=0.0)
        with monkeypatch.context() as patch:

            def no_memory(self: Tent, x: Tensor) -> Tensor:
                raise MemoryError("no memory is left")

            patch.setattr(Tent, "step", no_memory)
            with pytest.raises(MemoryError):
                session.catch_up()
        assert (session.status().pending, session.status().counts.learned) == (4, 0)
        assert session.catch_up() == 4
        assert (session.status().pending, session.status().counts.caught_up) == (0, 4)
        with pytest.raises(TypeError, match="budget is a number of seconds or None, got 'x'"):
            session.catch_up(budget="x")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="budget is a number of seconds, got NaN"):
            session.catch_up(budget=float("nan"))


def test_what_moves_nothing_later_does_not_count_as_learned(tmp_path: Path) -> None:
    with Session(Source(network()), tmp_path, options=SessionOptions(backlog=16)) as session:
        session.submit(images(0), deadline=0.0)
        assert session.catch_up() == 0
        counts = session.status().counts
        assert (session.status().pending, counts.shed, counts.learned, counts.caught_up) == (0, 4, 0, 0)


def test_an_adapter_serves_one_session(tmp_path: Path) -> None:
    adapter = tent()
    with Session(adapter, tmp_path / "a") as session:
        for other in (adapter, Episodic(adapter)):
            with pytest.raises(ValueError, match="a session serves with this adapter, or with one inside it"):
                Session(other, tmp_path / "b")
            with pytest.raises(ValueError, match="a session serves with this adapter"):
                session.configure(other)
        assert not (tmp_path / "b").exists()
        session.configure(tent(0.1))
        with Session(adapter, tmp_path / "c") as freed:
            assert freed.submit(images(0)).learned
    with Session(adapter, tmp_path / "d") as later:
        assert later.submit(images(0)).learned


def test_notes_of_a_caller_cannot_be_taken_for_those_of_the_session(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        session.submit(images(0))
        head = session.head
        for event, facts, kind, message in (
            ("learn", {"stream": "default"}, ValueError, "'learn' is an event that the session notes itself"),
            ("deployed", {"hash": "abc"}, ValueError, "every record has its own 'hash'"),
            ("deployed", {"time": 3}, ValueError, "every record has its own 'time'"),
            ("deployed", {"weights": torch.zeros(2)}, TypeError, "facts that JSON can hold"),
            ("deployed", {"loss": float("nan")}, TypeError, "facts that JSON can hold"),
            ("deployed", {"text": "x" * 2**20}, ValueError, "at most 524288 characters"),
            (7, {}, TypeError, "name of an event as a text, got int"),
        ):
            with pytest.raises(kind, match=message):
                session.note(event, **facts)  # type: ignore[arg-type]
        assert session.head == head
        session.note("deployed", version="1.2")
        session.submit(images(1))
    assert verify_session(tmp_path).faults == ()
    replayed = replay(tmp_path, network(), lambda stream, offset, count: images(offset // 4))
    assert (replayed.answers, replayed.differences) == (2, [])


def test_a_closed_session_forgets_nothing_and_a_name_that_is_new_is_not_paused(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        session.submit(images(0), "a")
        for change in (session.pause, session.unpause):
            with pytest.raises(ValueError, match="there is no stream 'typo'; there are a"):
                change("typo")
        assert session.streams() == ("a",)
    with Session.resume(network(), tmp_path) as other:
        with pytest.raises(RuntimeError, match="this session is closed"):
            session.forget("a")
        assert other.streams() == ("a",)
        assert other.status("a").offset == 4


def test_a_rollback_whose_folder_is_refused_leaves_the_stream_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(tent(), tmp_path) as session:
        before = session.submit(images(0))

        def refuse(*given: Any) -> None:
            raise DataError("the folder of the stream is a link")

        with monkeypatch.context() as patch:
            patch.setattr(session._keeper.store, "write", refuse)
            with pytest.raises(DataError, match="is a link"):
                session.rollback()
        assert session.status().state == before.state
        alone = tent()
        alone(images(0))
        assert torch.equal(session.submit(images(1)).logits, alone(images(1)).logits)


def test_copies_that_waited_are_learned_once(tmp_path: Path) -> None:
    x = images(0, 1)
    with Session(tent(), tmp_path, options=SessionOptions(backlog=16)) as session:
        for _ in range(3):
            session.submit(x, deadline=0.0)
        session.submit(images(1), deadline=0.0)
        assert (session.status().pending, session.catch_up(), session.status().pending) == (7, 5, 0)
        counts = session.status().counts
        assert (counts.learned, counts.caught_up, counts.quarantined, counts.shed) == (5, 5, 2, 7)
        state = session.status().state
    alone = tent()
    for batch in (x, images(1)):
        alone(batch)
    assert state == state_hash(alone)[:16]
    given = torch.cat([x, x, x, images(1)])
    replayed = replay(tmp_path, network(), {"default": given})
    assert (replayed.answers, replayed.differences) == (4, [])


def test_a_refused_session_leaves_nothing_behind(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        session.submit(images(0))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for rate in (0.1, 0.2, 0.1):
        with pytest.raises(ValueError, match="holds a session of another configuration"):
            Session(tent(rate), tmp_path)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    with Session(tent(), tmp_path) as again:
        assert again.status().offset == 4


def test_a_refused_first_request_does_not_fix_the_shape(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    with Session(Tent(net.eval()), tmp_path) as session:
        assert set(session.submit(torch.full((2, 3, 9, 9), torch.nan)).refused) == {"not finite"}
        assert session.submit(images(0)).refused == (None,) * 4
