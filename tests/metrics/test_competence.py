"""Never rising sequences, competence tables and errors per change, against definitions in numpy."""

from __future__ import annotations

import numpy as np

from testtime.metrics.competence import competence_table, errors_per_change, logistic_weights, never_rising


def test_the_closest_sequence_that_never_rises() -> None:
    """A projection onto a convex cone: no non-increasing sequence nearby is closer, and blocks keep their mean."""
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=12), rng.uniform(0.5, 2, size=12)
    found = never_rising(values, weights)
    assert (np.diff(found) <= 1e-12).all()
    assert np.isclose((weights * found).sum(), (weights * values).sum())
    best = (weights * (found - values) ** 2).sum()
    for _ in range(300):
        other = np.sort(found + rng.normal(scale=0.1, size=12))[::-1]
        assert (weights * (other - values) ** 2).sum() >= best - 1e-12


def test_the_table_is_the_share_of_right_predictions_by_distance() -> None:
    rng = np.random.default_rng(1)
    d = rng.uniform(0, 1, 20000)
    good = rng.uniform(size=20000) < 1 - 0.8 * d
    ends, shares = competence_table(d, good, bins=10)
    assert len(ends) == 9
    assert np.abs(ends - np.linspace(0.1, 0.9, 9)).max() < 0.02
    assert np.abs(shares - (1 - 0.8 * (np.arange(10) + 0.5) / 10)).max() < 0.03


def test_one_distance_for_all_is_one_interval() -> None:
    ends, shares = competence_table(np.ones(9), np.ones(9))
    assert len(ends) == 0
    assert shares.tolist() == [0.9]


def test_errors_per_change_is_a_quantile_within_bounds() -> None:
    assert errors_per_change([0.2, 0.4, 0.6], [0.1, 0.1, 0.1], 0.5) == 4.0
    assert errors_per_change([0.9], [0.0]) == 10.0
    assert errors_per_change([], []) == 10.0


def test_the_weights_of_the_logistic_regression_are_where_its_gradient_vanishes() -> None:
    rng = np.random.default_rng(3)
    f = rng.normal(size=(200, 2))
    y = rng.uniform(size=200) < 1 / (1 + np.exp(-(0.5 + 2 * f[:, 0] - f[:, 1])))
    w = logistic_weights(f, y)
    x = np.column_stack([np.ones(200), f])
    gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) + 0.01 * w
    assert np.abs(gradient).max() < 1e-8
    assert np.abs(w - [0.5, 2, -1]).max() < 0.6
