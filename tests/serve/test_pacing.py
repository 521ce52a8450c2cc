"""Deadlines: adaptation is shed first, prediction last, and what was shed can be learned later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_session import images, network, tent

from testtime.methods import Tent
from testtime.serve import Session, SessionOptions
from testtime.serve.pacing import Pacer, due
from testtime.wrap import Window

FORWARD, STEP = 1.0, 4.0


class Clock:
    """Time that passes only where the network computes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def timed(clock: Clock, monkeypatch: pytest.MonkeyPatch, slow: float = 1.0) -> Tent:
    """Tent, whose steps take 4 s and whose predictions take 1 s of the clock."""
    adapter = tent()
    forward, look = Tent.forward, Tent.predict

    def step(self: Tent, x: torch.Tensor) -> object:
        clock.now += STEP * slow
        return forward(self, x)

    def predict(self: Tent, x: torch.Tensor) -> object:
        clock.now += FORWARD * slow
        return look(self, x)

    monkeypatch.setattr(Tent, "forward", step)
    monkeypatch.setattr(Tent, "predict", predict)
    return adapter


@pytest.mark.parametrize("deadline", [2.0, 4.5, 8.0])
def test_no_prediction_is_missed_at_three_times_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadline: float
) -> None:
    """Requests come three times as often as steps can be taken; each is answered in time, or one forward later."""
    clock = Clock()
    options = SessionOptions(snapshot_every=0, clock=clock)
    with Session(timed(clock, monkeypatch), tmp_path, options=options) as session:
        session.submit(images(0))  # once without a deadline: the times are known
        begin, delays, adapted = clock.now, [], 0
        for i in range(300):
            arrived = begin + i * STEP / 3
            clock.now = max(clock.now, arrived)
            answer = session.submit(images(i + 1), deadline=arrived + deadline - clock.now)
            assert answer.predicted.min() >= 0
            assert answer.adapted == (answer.skipped != "deadline")
            delays.append(clock.now - arrived)
            adapted += answer.adapted
        delays.sort()
        assert delays[int(0.99 * len(delays))] <= deadline + FORWARD
        assert delays[-1] <= deadline + FORWARD
        counts = session.status().counts
        assert counts.requests == 301
        assert counts.shed == 4 * (300 - adapted)
        assert counts.learned == 4 * (1 + adapted)
        assert (adapted > 30) == (deadline >= STEP)


def test_without_overload_nothing_is_shed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with Session(timed(clock, monkeypatch), tmp_path, options=SessionOptions(clock=clock)) as session:
        session.submit(images(0))
        assert all(session.submit(images(i), deadline=STEP).adapted for i in range(1, 20))
        assert session.status().counts.shed == 0


def test_what_was_shed_is_learned_when_there_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, alone = Clock(), tent()
    want = [alone(images(i)).logits for i in range(3)]
    options = SessionOptions(clock=clock, backlog=8)
    with Session(timed(clock, monkeypatch), tmp_path, options=options) as session:
        assert torch.equal(session.submit(images(0)).logits, want[0])
        late = session.submit(images(1), deadline=0.5)
        assert (late.skipped, late.adapted) == ("deadline", False)
        assert session.catch_up(budget=STEP / 2) == 0
        assert session.catch_up(budget=STEP) == 4
        assert session.catch_up() == 0
        assert torch.equal(session.submit(images(2)).logits, want[2])  # as if it had been learned in time
        session.submit(images(3), deadline=0.5)
        session.pause()
        assert session.catch_up() == 0
        session.rollback()
        assert session.status().pending == 0


def test_a_step_that_was_slow_once_is_tried_again() -> None:
    pacer = Pacer(4.0, lambda: 0.0)
    pacer.took(8, 1.0, learning=False)
    assert pacer.fits(8, 5.0)
    pacer.took(8, 100.0, learning=True)
    assert [pacer.fits(8, 5.0) for _ in range(32)] == [False] * 32
    assert pacer.fits(8, 5.0)


def test_expected_times_by_size() -> None:
    pacer = Pacer(3.0, lambda: 0.0)
    assert pacer.expected(4, learning=True) is None
    pacer.took(4, 1.0, learning=False)
    assert pacer.expected(4, learning=True) == 3.0
    assert pacer.expected(8, learning=False) == 2.0
    pacer.took(16, 5.0, learning=True)
    assert pacer.expected(8, learning=True) == 5.0
    assert pacer.expected(32, learning=True) == 10.0
    for size in range(1, 500):
        pacer.took(size, 1.0, learning=False)
    assert len(pacer._times) <= 128


def test_a_window_learns_only_when_it_is_due(tmp_path: Path) -> None:
    window = Window(Tent(network()), size=4)
    assert not due(window, 1)
    assert due(window, 4)
    with Session(window, tmp_path) as session:
        assert [session.submit(images(i, 1)).learned for i in range(8)] == [False] * 3 + [True] + [
            False
        ] * 3 + [True]
        assert session.status().counts.learned == 2


def test_deadlines_are_checked(tmp_path: Path) -> None:
    with Session(tent(), tmp_path) as session:
        with pytest.raises(ValueError, match="got NaN"):
            session.submit(images(0), deadline=float("nan"))
        with pytest.raises(TypeError, match="number of seconds"):
            session.submit(images(0), deadline="soon")  # type: ignore[arg-type]
