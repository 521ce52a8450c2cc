"""Confidence sequences cover at every moment, and the bets keep their error rate and find a late rise of the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testtime.metrics.sequences import BETS, confidence_sequence, reserve, wealth_after


def test_the_confidence_sequence_by_hand() -> None:
    """Theorem 2 of Waudby-Smith and Ramdas, value by value."""
    x, alpha = [0.2, 0.9, 0.4], 0.1
    mean, variance, sizes, weighted, cost = 0.5, 0.25, 0.0, 0.0, 0.0
    ends = []
    for t, value in enumerate(x, 1):
        size = min(math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t))), 0.5)
        cost += (value - mean) ** 2 * (-math.log(1 - size) - size)
        sizes, weighted = sizes + size, weighted + size * value
        mean = (0.5 + sum(x[:t])) / (t + 1)
        means = [(0.5 + sum(x[:i])) / (i + 1) for i in range(1, t + 1)]
        variance = (0.25 + sum((v - m) ** 2 for v, m in zip(x, means, strict=False))) / (t + 1)
        width = (math.log(2 / alpha) + cost) / sizes
        ends.append((max(weighted / sizes - width, 0), min(weighted / sizes + width, 1)))
    low, high = confidence_sequence(x, alpha)
    assert np.allclose(low, np.maximum.accumulate([a for a, _ in ends]))
    assert np.allclose(high, np.minimum.accumulate([b for _, b in ends]))


def test_it_covers_at_every_moment() -> None:
    rng, missed = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = confidence_sequence(rng.beta(2, 6, 1000), 0.05)
        missed += bool(((low > 0.25) | (high < 0.25)).any())
    assert missed <= 10
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        confidence_sequence([1.5])


def test_the_wealth_is_the_sum_of_bets_that_begin_at_every_moment() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, 12)
    expected = np.zeros(len(BETS))
    for begin in range(12):
        stake = (reserve(begin) - reserve(begin + 1)) / len(BETS)
        for j, bet in enumerate(BETS):
            expected[j] += stake * np.prod(1 + bet / 1.1 * (x[begin:] - 0.1))
    assert np.allclose(
        wealth_after(wealth_after(np.zeros(len(BETS)), 0, x[:5], 0.1), 5, x[5:], 0.1), expected
    )


def test_without_a_rise_the_expected_evidence_is_one() -> None:
    rng = np.random.default_rng(2)
    ends = [
        wealth_after(np.zeros(len(BETS)), 0, rng.choice([-1.0, 1.0], 30), 0.0).sum() + reserve(30)
        for _ in range(1000)
    ]
    assert abs(np.mean(ends) - 1) < 0.3
