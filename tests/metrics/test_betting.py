"""Intervals by betting against their equations, one mean after the other, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testtime.metrics import betting
from testtime.metrics.betting import betting_interval
from testtime.metrics.control_variates import Round
from testtime.metrics.few_labels import neyman_probabilities


def wealth(y: list[float], w: list[float], n: int, mean: float, samples: int | None) -> float:
    """The highest wealth against a mean, with the constant function 1/2; ``samples`` for a random sample of a stream."""
    up = down = 1.0
    best, past, known = 1.0, [], 0.0
    for t, (value, weight) in enumerate(zip(y, w, strict=True)):
        centre = mean if samples is None else (samples * mean - known) / (samples - t)
        most = 4.0 if samples is None else 1.0
        low, high = 0.5 - most / 2, 0.5 + most / 2
        if not low <= centre <= high:
            return math.inf
        spread = (0.25 + sum((x - np.mean(past)) ** 2 for x in past)) / (len(past) + 1)
        size = math.sqrt(2 * math.log(40) / (n * spread))
        x = 0.5 + weight * (value - 0.5)
        up *= 1 + min(size, 0.5 / max(centre - low, 1e-9)) * (x - centre)
        down *= 1 - min(size, 0.5 / max(high - centre, 1e-9)) * (x - centre)
        best, known = max(best, (up + down) / 2), known + value
        past.append(x)
    return best


@pytest.mark.parametrize("drawn", [False, True])
def test_the_interval_holds_the_means_against_which_nothing_was_won(
    drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(betting, "REFIT", 1000)  # the function stays 1/2
    rng = np.random.default_rng(0)
    y, n = (rng.uniform(size=80) < 0.95) * rng.uniform(0.8, 1, size=80), 60
    q = neyman_probabilities(rng.uniform(size=80))
    rows = rng.choice(80, n, p=q) if drawn else rng.permutation(80)[:n]
    weights = 1 / (80 * q[rows]) if drawn else np.ones(n)
    low, high = betting_interval([Round(rows, y[rows], q[rows] if drawn else None)], np.zeros((80, 0)))
    for u in (0.01, 0.3, 0.55, 0.7, 0.75, 0.8, 0.85, 0.9, 0.99, low, low + 0.002, high - 0.002, high):
        won = wealth([*y[rows]], [*weights], n, u, None if drawn else 80) >= 20
        assert won != (low < u < high or u == high == 1), u
    assert 0 < high - low < 0.6


@pytest.mark.parametrize("drawn", [False, True])
def test_the_promise_is_kept_and_signals_shorten_the_interval_of_a_random_sample(drawn: bool) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 1))
    y = (z[:, 0] + 0.2 * rng.normal(size=400) > -0.8).astype(float)
    q = neyman_probabilities(1 / (1 + np.exp(-5 * (z[:, 0] + 0.8))))
    held, widths = 0, np.zeros(2)
    for number in range(30):
        draw = np.random.default_rng(number)
        rows = draw.choice(400, 100, p=q) if drawn else draw.permutation(400)[:100]
        one = Round(rows, y[rows], q[rows] if drawn else None)
        low, high = betting_interval([one], z)
        plain = betting_interval([one], z, choice="none")
        widths += [high - low, plain[1] - plain[0]]
        held += low <= y.mean() <= high
    assert held >= 28
    assert widths[0] == widths[1] if drawn else widths[0] < 0.95 * widths[1]
    assert widths[1] < 15


def test_later_rounds_are_drawn_and_values_lie_between_0_and_1() -> None:
    one = Round(np.arange(4), np.ones(4))
    with pytest.raises(ValueError, match="one random sample, the first round"):
        betting_interval([one, one], np.zeros((10, 0)))
    with pytest.raises(ValueError, match="divide them by the largest"):
        betting_interval([Round(np.arange(2), np.array([1.0, 1.5]))], np.zeros((10, 0)))
    later = Round(np.tile([5, 9], 30), np.zeros(60), np.full(60, 0.1))
    low, high = betting_interval([one, later], np.zeros((10, 0)))
    assert 0.299 <= low < high < 0.8  # three of ten were right before the last label of the first round
