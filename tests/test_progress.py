"""Progress as lines: counts at once, an estimate only when it means something."""

import pytest

from testtime import progress as module
from testtime.progress import progress, remaining


@pytest.mark.parametrize(
    ("done", "seconds", "text"),
    [
        (0, 60.0, ""),
        (1, 4.9, ""),
        (2, 0.1, ""),
        (1, 5.0, ", 0.2/s, 0:45 left"),
        (3, 0.3, ", 10/s, 0:01 left"),
        (3, 0.001, ", 3000/s, 0:00 left"),
        (10, 1.0, ", 10/s, 0:00 left"),
    ],
)
def test_an_estimate_after_three_units_or_five_seconds(done: int, seconds: float, text: str) -> None:
    assert remaining(done, 10, seconds) == text


def test_lines_count_what_was_done_before_and_estimate_by_what_was_done_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert list(progress("abc", 13, "letters", done=4, every=0.0)) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [
        "letters: 5/13",
        "letters: 6/13",
        "letters: 7/13, 1/s, 0:06 left",
    ]


def test_a_meter_shows_parts_of_a_work_and_what_is_being_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with module.Meter("units", 8.5) as meter:
        meter.update(1 / 3)
        meter.update(2.5, "TENT, CoTTA")
        meter.update(3.0)
    assert capsys.readouterr().err.splitlines() == ["units: 2.5/8.5, 0.25/s, 0:24 left  TENT, CoTTA"]


def test_counts_stand_in_place_of_sizes_and_their_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 2.0, 6.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with module.Meter("run", 3.4, every=1.0) as meter:
        meter.update(0.1, "images", "1/5 units")
        meter.update(1.7, "TENT", "3/5 units")
    assert capsys.readouterr().err.splitlines() == [
        "run: 1/5 units  images",
        "run: 3/5 units, 0:06 left  TENT",
    ]
