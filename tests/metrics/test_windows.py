"""Windows, the worst of them, and the onset of damage."""

import numpy as np
import pytest

from testtime.metrics.windows import accuracy, damage_onset, window_of, worst_window


def run(text: str) -> np.ndarray:
    """Answers: "1" right, "0" wrong, "-" without a class."""
    return np.array([-1 if c == "-" else int(c) for c in text], np.int8)


def test_a_window_is_the_promise_or_a_fifth() -> None:
    assert [window_of(n) for n in (1, 1000, 50_000, 1_000_000)] == [1, 200, 10_000, 10_000]


def test_accuracy_is_of_images_with_a_class() -> None:
    assert accuracy(run("10--1")) == pytest.approx(200 / 3)
    assert np.isnan(accuracy(run("--")))


def test_the_worst_window_is_found_at_any_position() -> None:
    assert worst_window(run("1111000111"), 4) == 25
    assert worst_window(run("11-0-011"), 3) == 0
    assert worst_window(run("1--11"), 2) == 100  # a window without classes does not count


def test_the_worst_difference_is_not_the_difference_of_the_worst() -> None:
    ours, source = run("11110000"), run("00001111")
    assert worst_window(ours, 4) - worst_window(source, 4) == 0
    assert worst_window(ours, 4, source) == -100


def test_damage_begins_where_the_largest_fall_does() -> None:
    source = run("1" * 10)
    assert damage_onset(run("1101110000"), run("1100101111"), 10) == 6
    assert damage_onset(source, source, 10) is None
    assert damage_onset(run("1111111110"), source, 100) is None  # one of a hundred is within the promise
    assert damage_onset(run("1111111100"), source, 100) == 8


def test_a_loss_within_the_promise_is_no_damage_however_long() -> None:
    allowed, beyond = (np.arange(5000) % every == 0 for every in (100, 40))
    source = np.ones(5000, np.int8)
    assert damage_onset(np.where(allowed, 0, source), source, 1000) is None
    assert damage_onset(np.where(beyond, 0, source), source, 1000) == 0


def test_gains_before_the_damage_do_not_hide_it() -> None:
    assert damage_onset(run("1111100000"), run("0000011111"), 10) == 5
