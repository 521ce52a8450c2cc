"""Estimates with control variates: unbiased over all samples that can be drawn, equations in numpy, coverage over draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from testtime.metrics import control_variates
from testtime.metrics.control_variates import (
    Round,
    estimate_mean,
    fit_sparse,
    standardise,
    student_quantile,
    wilson_interval,
)
from testtime.metrics.repeated_draws import repeat_draws

Floats = NDArray[np.float64]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose variates from two labels on, so that the choice differs from sample to sample."""
    monkeypatch.setattr(control_variates, "LABELS_PER_VARIATE", 2)
    monkeypatch.setattr(control_variates, "RARE_PER_VARIATE", 1)
    monkeypatch.setattr(control_variates, "PRICE", 0.0)


def world(samples: int, signals: int, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(samples, signals))
    return z, (z[:, 0] + rng.normal(scale=0.7, size=samples) > -0.5).astype(float)


@pytest.mark.parametrize("choice", ["sparse", "all", "none"])
@pytest.mark.usefixtures("eager")
def test_the_mean_over_all_random_samples_is_the_mean_of_the_stream(choice: str) -> None:
    z, y = world(6, 2)
    y[0] = 0.3
    table = standardise(z)
    means = [
        estimate_mean([Round(np.array(rows), y[[*rows]])], table, choice=choice).mean  # type: ignore[arg-type]
        for rows in itertools.permutations(range(6), 4)
    ]
    assert np.std(means) > 0.01
    assert np.mean(means) == pytest.approx(y.mean(), abs=1e-12)


@pytest.mark.usefixtures("eager")
def test_the_expectation_over_all_draws_of_known_probability_is_the_mean_of_the_stream() -> None:
    z, y = world(4, 1, seed=3)
    q, table, total = np.array([0.4, 0.3, 0.2, 0.1]), standardise(z), 0.0
    for rows in itertools.product(range(4), repeat=4):
        at = np.array(rows)
        total += q[at].prod() * estimate_mean([Round(at, y[at], q[at])], table).mean
    assert total == pytest.approx(y.mean(), abs=1e-12)


@pytest.mark.usefixtures("eager")
def test_a_second_round_may_depend_on_the_labels_of_the_first() -> None:
    z, y = world(4, 1, seed=3)
    table, first, total = standardise(z), [*itertools.permutations(range(4), 2)], 0.0
    for before in first:
        a = Round(np.array(before), y[[*before]])
        q = np.array([0.1, 0.1, 0.1, 0.7]) if a.values.sum() > 1 else np.array([0.3, 0.4, 0.2, 0.1])
        for rows in itertools.product(range(4), repeat=2):
            at = np.array(rows)
            chance = q[at].prod() / len(first)
            total += chance * estimate_mean([a, Round(at, y[at], q[at])], table, choice="all").mean
    assert total == pytest.approx(y.mean(), abs=1e-12)


def least_squares(z: Floats, y: Floats, w: Floats) -> tuple[float, Floats]:
    x = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    b = np.linalg.solve(x.T @ (w[:, None] ** 2 * x), x.T @ (w**2 * y))
    return b[0], b[1:]


def test_mean_variance_and_interval_of_a_random_sample_are_those_of_the_equations() -> None:
    z, y = world(300, 2)
    rows = np.random.default_rng(1).permutation(300)[:43]
    found = estimate_mean([Round(rows, y[rows])], z, choice="all")
    mean, errors = 0.0, []
    for fold in np.array_split(np.arange(43), 5):
        inside, others = rows[fold], np.delete(rows, fold)
        a, b = least_squares(z[others], y[others], np.ones(len(others)))
        rest = np.setdiff1d(np.arange(300), others)
        e = y[inside] - a - z[inside] @ b
        part = (y[others].sum() + (300 - len(others)) * ((a + z[rest] @ b).mean() + e.mean())) / 300
        mean += len(fold) / 43 * part
        errors += [*e]
    variance = (1 - 43 / 300) * np.var(errors, ddof=1) / 43
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.error == pytest.approx(math.sqrt(variance), abs=1e-12)
    s = y[rows].var(ddof=1)
    labels = 43 / ((1 - 43 / 300) * (43**2 * variance / (1 - 43 / 300) + 1) / (43 * s + 1))
    assert (found.low, found.high) == pytest.approx(
        wilson_interval(mean, labels, student_quantile(0.975, 42))
    )
    assert found.worth == pytest.approx(43 * (1 - 43 / 300) * s / 43 / variance)
    other = estimate_mean([Round(rows, y[rows])], z, choice="all", interval="student")
    assert other.high - other.low == pytest.approx(2 * student_quantile(0.975, 42) * math.sqrt(variance))


def test_mean_and_variance_of_draws_are_those_of_the_equations_and_rounds_count_by_their_labels() -> None:
    z, y = world(200, 1)
    rng = np.random.default_rng(2)
    q = rng.uniform(1, 3, 200)
    q /= q.sum()
    rows = rng.choice(200, 30, p=q)
    found = estimate_mean([Round(rows, y[rows], q[rows])], z, choice="all")
    values = []
    for fold in np.array_split(np.arange(30), 5):
        inside, others = rows[fold], np.delete(rows, fold)
        a, b = least_squares(z[others], y[others], 1 / (200 * q[others]))
        values += [*((a + z @ b).mean() + (y[inside] - a - z[inside] @ b) / (200 * q[inside]))]
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(30), abs=1e-12)
    first = Round(np.arange(10) * 7, y[np.arange(10) * 7])
    alone = estimate_mean([first], z, choice="none")
    both = estimate_mean([first, Round(rows, y[rows], q[rows])], z, choice="none")
    known = np.concatenate([y[first.rows], y[rows]])
    weights = np.concatenate([np.ones(10), 1 / (200 * q[rows])])
    values = []
    for fold in np.array_split(np.arange(30), 5):
        kept = np.concatenate([np.arange(10), 10 + np.delete(np.arange(30), fold)])
        centre = (weights[kept] ** 2 @ known[kept]) / (weights[kept] ** 2).sum()
        values += [*(centre + (y[rows[fold]] - centre) * weights[10 + fold])]
    assert both.mean == pytest.approx((10 * alone.mean + 30 * np.mean(values)) / 40, abs=1e-12)
    error = math.hypot(10 * alone.error, 30 * np.std(values, ddof=1) / math.sqrt(30)) / 40
    assert both.error == pytest.approx(error, abs=1e-12)


def test_signals_are_added_as_long_as_the_error_of_samples_left_out_falls() -> None:
    """Each fit without a sample is made again, and the price of a signal is that of the docstring."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(60, 6))
    y, w = z[:, 4] - 0.4 * z[:, 1] + rng.normal(scale=0.8, size=60), rng.uniform(0.5, 2, 60)

    def squares(chosen: list[int]) -> float:
        a, b = least_squares(z[:, chosen], y, w)
        return float(((w * (y - a - z[:, chosen] @ b)) ** 2).sum())

    def score(chosen: list[int]) -> float:
        total = 0.0
        for i in range(60):
            kept = np.delete(np.arange(60), i)
            a, b = least_squares(z[kept][:, chosen], y[kept], w[kept])
            total += (w[i] * (y[i] - a - z[i, chosen] @ b)) ** 2
        return total * (1 + 2 * math.log(6) / 60) ** len(chosen)

    chosen: list[int] = []
    while len(chosen) < 6:
        more = min(({*range(6)} - {*chosen}), key=lambda k: squares([*chosen, k]))
        if score([*chosen, more]) >= score(chosen):
            break
        chosen.append(more)
    found = fit_sparse(z, y, w)
    assert [*np.flatnonzero(found.weights)] == sorted(chosen) == [1, 4]
    a, b = least_squares(z[:, [1, 4]], y, w)
    assert found.offset == pytest.approx(a)
    assert found.weights[[1, 4]] == pytest.approx(b)


def test_few_errors_suffice_for_no_signal_and_a_signal_of_a_single_sample_is_not_chosen() -> None:
    z = np.random.default_rng(0).normal(size=(50, 3))
    y = np.ones(50)
    y[:4] = 0.0
    z[:, 0] = y
    assert not fit_sparse(z, y).weights.any()  # a signal for each five errors
    y[4] = 0.0
    z[:, 0] = y
    assert fit_sparse(z, y).weights.round(6).tolist() == pytest.approx([1, 0, 0])
    z[:, 0] = np.arange(50) == 0
    assert not fit_sparse(z, y).weights[0]


@pytest.mark.parametrize("degrees", [8, 24, 99, 199])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.975, 0.995])
def test_quantiles_of_student(share: float, degrees: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="pip install -e '.[dev]'")
    assert student_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), abs=1e-3)


def test_the_ends_of_an_interval_are_as_far_as_their_own_errors_allow() -> None:
    for mean, labels in ((0.9, 30.0), (0.31, 77.5)):
        for end in wilson_interval(mean, labels, 2.1):
            assert abs(mean - end) == pytest.approx(2.1 * math.sqrt(end * (1 - end) / labels))
    assert wilson_interval(1.0, 25.0, 2.0) == pytest.approx((25 / 29, 1.0))


def test_labels_without_an_error_still_have_a_width_and_a_whole_stream_has_none() -> None:
    z, y = world(400, 1)
    found = estimate_mean([Round(np.arange(25), np.ones(25))], z)
    assert (found.mean, found.high) == pytest.approx((1.0, 1.0))
    assert found.low == pytest.approx(
        wilson_interval(1.0, 25 / (1 - 25 / 400), student_quantile(0.975, 24))[0]
    )
    rows = np.random.default_rng(0).permutation(400)
    whole = estimate_mean([Round(rows, y[rows])], z)
    assert (whole.mean, whole.low, whole.high) == pytest.approx((y.mean(),) * 3)


@pytest.mark.parametrize(
    ("design", "ratio"), [("none", (0.8, 1.2)), ("sparse", (0.3, 0.75)), ("drawn", (0.2, 0.7))]
)
def test_coverage_and_variance_over_400_draws(design: str, ratio: tuple[float, float]) -> None:
    """95 % are 380; 368 are 2.8 standard deviations below."""
    z, y = world(1500, 4, seed=1)
    chances = 1 / (1 + np.exp(-3 * (z[:, 0] + 0.5)))
    found = repeat_draws(y, z, chances, 60, design, draws=400)
    assert 368 <= found["covered"] <= 398
    assert ratio[0] < found["ratio"] < ratio[1]
    assert abs(found["bias"]) < 1
    assert found["coverage"] == found["covered"] / 4


def test_coverage_of_another_quality_than_right_and_wrong() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(800, 3))
    y = 1 / (1 + np.exp(-z[:, 2] - 0.5 * rng.normal(size=800)))  # such as the mIoU of an image
    found = repeat_draws(y, z, np.full(800, 0.5), 50, "sparse", draws=300, interval="student")
    assert 275 <= found["covered"] <= 298
    assert found["ratio"] < 0.4


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (Round(np.array([1]), np.ones(1)), "at least 2 labels"),
        (Round(np.array([1, 10]), np.ones(2)), "indices from 0 to 9, got 10"),
        (Round(np.array([1, 1]), np.ones(2)), "sample 1 stands twice"),
        (Round(np.array([1, 2]), np.array([1, 2.0])), r"values in \[0, 1\].*'student'"),
        (Round(np.array([1, 2]), np.array([1, math.nan])), "finite values"),
        (Round(np.array([1, 2]), np.ones(2), np.array([0.5, 0.01])), r"from 0.25 / 10 .* to 1"),
    ],
)
def test_what_is_no_sample_is_refused(one: Round, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_mean([one], np.zeros((10, 1)))


def test_missing_labels_and_signals_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round, got none"):
        estimate_mean([], np.zeros((10, 1)))
    with pytest.raises(ValueError, match="column 1"):
        standardise([[1.0, math.nan], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"signals \(N, K\).*\(3,\)"):
        standardise([1.0, 2.0, 3.0])


@pytest.mark.parametrize("value", [0.1, -7.3, 1e17 / 3, 0.0])
def test_a_constant_signal_changes_no_estimate(value: float) -> None:
    """0.1 has a deviation of 1e-17 by rounding, by which it was divided: the accuracy of 65 % became 32.5 %."""
    rng = np.random.default_rng(0)
    right = (rng.random(1000) < 0.7).astype(float)
    rows = rng.permutation(1000)[:100]
    signals = np.full((1000, 1), value)
    assert not standardise(signals).table.any()
    drawn = Round(rows, right[rows], np.full(100, 1e-3))
    for one in (Round(rows, right[rows]), drawn):
        found = estimate_mean([one], signals, choice="all")
        assert found.mean == pytest.approx(right[rows].mean(), abs=1e-9)


def test_signals_of_any_size_are_standardised() -> None:
    with np.errstate(all="raise"):
        for size in (1e-200, 1.0, 1e200, 1e300):
            assert np.allclose(standardise(size * np.array([[1.0], [3.0]])).table[:, 0], [-1, 1])


def test_other_words_than_those_of_the_choices_are_refused() -> None:
    one, signals = Round(np.arange(4), np.array([0.0, 1, 1, 0])), np.zeros((9, 1))
    with pytest.raises(ValueError, match="interval is one of 'wilson', 'student', got 'betting'"):
        estimate_mean([one], signals, interval="betting")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choice is one of 'sparse', 'all', 'none', got 'few'"):
        estimate_mean([one], signals, choice="few")  # type: ignore[arg-type]


def test_students_interval_needs_a_variance() -> None:
    equal = Round(np.arange(20), np.ones(20))
    with pytest.raises(ValueError, match="20 labelled values .* no width"):
        estimate_mean([equal], np.zeros((100, 0)), interval="student")
    assert estimate_mean([equal], np.zeros((100, 0))).low < 0.9
    assert estimate_mean([equal], np.zeros((20, 0)), interval="student").low == 1  # all samples are labelled
