"""Synchronisation against definitions written out, and the values worked by hand."""

from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest

from testtime.metrics import cosine_similarity, delta_ttt, dtw, step_variance

BETTER = {"semseg": True, "depth": False, "normals": False}
UP = {"a": True, "b": True}


def curves(steps: int = 9, seed: int = 0) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {
        "semseg": (30 + rng.normal(1, 2, steps).cumsum()).tolist(),
        "depth": (1.2 - 0.01 * rng.random(steps).cumsum()).tolist(),
        "normals": (60 + rng.normal(-1, 2, steps).cumsum()).tolist(),
    }


def base_of(table: dict[str, list[float]]) -> dict[str, float]:
    return {name: series[0] for name, series in table.items()}


def recursive(a: list[float], b: list[float]) -> float:
    @lru_cache
    def cost(i: int, j: int) -> float:
        if i == 0 or j == 0:
            return 0.0 if i == j else np.inf
        return abs(a[i - 1] - b[j - 1]) + min(cost(i - 1, j), cost(i, j - 1), cost(i - 1, j - 1))

    return cost(len(a), len(b))


def test_delta_is_the_mean_oriented_gain():
    table = curves()
    start, end = base_of(table), {k: v[-1] for k, v in table.items()}
    gains = [(1 if BETTER[k] else -1) * (end[k] - start[k]) / start[k] for k in table]
    assert delta_ttt(end, start, BETTER) == pytest.approx(100 * np.mean(gains))
    assert delta_ttt(list(end.values()), list(start.values()), list(BETTER.values())) == pytest.approx(
        100 * np.mean(gains)
    )
    assert delta_ttt(start, start, BETTER) == 0


def test_delta_does_not_depend_on_the_order_of_keys():
    start, end = {"semseg": 10.0, "depth": 2.0}, {"depth": 1.0, "semseg": 11.0}
    assert delta_ttt(end, start, {"depth": False, "semseg": True}) == pytest.approx(30)


def test_delta_skips_what_was_never_measured_and_reports_what_diverged():
    nan = float("nan")
    better = {"a": True, "b": True}
    assert delta_ttt({"a": 2.0, "b": nan}, {"a": 1.0, "b": nan}, better) == 100
    for bad in (nan, float("inf")):
        with pytest.raises(ValueError, match="base|finite"):
            delta_ttt({"a": 2.0, "b": bad}, {"a": 1.0, "b": 1.0}, better)
    with pytest.raises(ValueError, match="positive base"):
        delta_ttt({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, better)
    with pytest.raises(ValueError, match="none of the tasks"):
        delta_ttt({"a": nan, "b": nan}, {"a": nan, "b": nan}, better)
    with pytest.raises(ValueError, match="of the tasks"):
        delta_ttt({"a": 2.0}, {"a": 1.0}, better)
    with pytest.raises(ValueError, match="or neither"):
        delta_ttt([2.0], {"a": 1.0}, better)


def test_step_variance_is_a_population_deviation():
    table = np.zeros((8, 4))
    for task, peak in enumerate((3, 1, 2, 6)):
        table[peak, task] = 1
    assert step_variance(table, [True] * 4) == pytest.approx(1.8708, abs=5e-5)
    assert step_variance(-table, [False] * 4) == pytest.approx(1.8708, abs=5e-5)
    assert step_variance(table, [True] * 4) == pytest.approx(np.std([3, 1, 2, 6]))


def test_the_first_of_equal_peaks_counts():
    assert step_variance({"a": [0, 5, 5, 5], "b": [0, 5, 1, 5]}, UP) == 0


def test_step_zero_counts_only_if_asked():
    table = {"a": [9, 1, 2], "b": [0, 1, 0]}
    assert step_variance(table, UP) == pytest.approx(np.std([2, 1]))
    assert step_variance(table, UP, include_zero=True) == pytest.approx(np.std([0, 1]))


def test_steps_may_be_recorded_sparsely():
    table = {"a": [0, 1, 2], "b": [0, 3, 0]}
    assert step_variance(table, UP, steps=[0, 10, 20]) == 5
    # Without a row of step 0 none is left out.
    assert step_variance(table, UP, steps=[10, 20, 30]) == pytest.approx(np.std([30, 20]))
    with pytest.raises(ValueError, match="3 rows and 2 steps"):
        step_variance(table, UP, steps=[0, 10])
    with pytest.raises(ValueError, match="no step after"):
        step_variance({"a": [1], "b": [1]}, UP)


def test_dtw_by_hand():
    one, tenth = np.array([0, 1, 2, 1.5]), np.array([0, 0.1, 0.2, 0.15])
    assert dtw({"a": one, "b": tenth}, None, UP, scale="raw") == pytest.approx(4.05)
    base = {"a": 20.0, "b": 3.0}
    table = {"a": 20 * (1 + one / 100), "b": 3 * (1 + tenth / 100)}
    assert dtw(table, base, UP) == pytest.approx(4.05)
    assert dtw(table, None, UP, scale="minmax") == pytest.approx(0, abs=1e-9)
    assert dtw(table, None, UP, scale="zscore") == pytest.approx(0, abs=1e-9)
    late = {"a": [0, 1, 2, 3], "b": [0, 0, 1, 2]}
    assert dtw(late, None, UP, scale="raw") == 1
    # Steps 1 to 3 alone: (1, 2, 3) and (0, 1, 2).
    assert dtw(late, None, UP, scale="raw", include_zero=False) == 2


@pytest.mark.parametrize("scale", ["gain", "minmax", "zscore", "raw"])
def test_dtw_is_its_recurrence_averaged_over_pairs(scale):
    table = curves()
    scaled = {}
    for name, series in table.items():
        y, sign = np.array(series), 1 if BETTER[name] else -1
        scaled[name] = {
            "gain": 100 * sign * (y - y[0]) / y[0],
            "minmax": (sign * y - (sign * y).min()) / (y.max() - y.min()),
            "zscore": sign * (y - y.mean()) / y.std(),
            "raw": y,
        }[scale].tolist()
    expected = np.mean([recursive(scaled[i], scaled[j]) for i, j in combinations(table, 2)])
    assert dtw(table, base_of(table), BETTER, scale) == pytest.approx(expected)


def test_a_constant_curve_is_flat_in_every_scale():
    table = {"a": [0.1, 0.1, 0.1], "b": [0.3, 0.3, 0.3]}
    for scale in ("gain", "minmax", "zscore"):
        assert dtw(table, base_of(table), UP, scale) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mode", ["trajectory", "pointwise_mean", "paper_sum"])
def test_cosine_similarity_is_written_out(mode):
    table, total = curves(), []
    for i, j in combinations(table, 2):
        a, b = (np.diff(table[k]) * (1 if BETTER[k] else -1) for k in (i, j))
        steps = [x * y / (abs(x) * abs(y)) for x, y in zip(a, b, strict=True)]
        total.append(
            {
                "trajectory": a @ b / np.sqrt((a @ a) * (b @ b)),
                "pointwise_mean": np.mean(steps),
                "paper_sum": np.sum(steps),
            }[mode]
        )
    assert cosine_similarity(table, BETTER, mode) == pytest.approx(np.mean(total))


def test_cosine_similarity_is_that_of_relative_gains():
    table = curves()
    gains = {k: ((np.array(v) - v[0]) / v[0]).tolist() for k, v in table.items()}
    assert cosine_similarity(gains, BETTER) == pytest.approx(cosine_similarity(table, BETTER))


def test_improving_together_is_similar_whatever_the_direction():
    table = {"semseg": [30, 40, 45, 46], "depth": [1.2, 1.1, 1.05, 1.04]}
    better = {"semseg": True, "depth": False}
    assert cosine_similarity(table, better) == pytest.approx(1)
    assert cosine_similarity(table, better, "paper_sum") == 3
    assert cosine_similarity(table, better, "paper_sum", include_zero=False) == 2
    assert cosine_similarity(table, better, "pointwise_mean") == 1
    assert cosine_similarity(table, {"semseg": True, "depth": True}, "pointwise_mean") == -1


def test_a_constant_task_has_similarity_0():
    still = {"a": [1, 2, 3], "b": [5, 5, 5]}
    for mode in ("trajectory", "pointwise_mean", "paper_sum"):
        assert cosine_similarity(still, UP, mode) == 0
    assert cosine_similarity({"a": [1, 2, 3], "b": [5, 5, 6]}, UP, "paper_sum") == 1


def test_missing_steps_are_errors_and_absent_tasks_do_not_count():
    nan = float("nan")
    table = {"a": [1.0, 2.0, 3.0], "b": [1.0, 3.0, 2.0], "c": [nan] * 3}
    better = {**UP, "c": False}
    two = {k: table[k] for k in "ab"}
    assert step_variance(table, better) == step_variance(two, UP) == 0.5
    assert dtw(table, {"a": 1, "b": 1, "c": nan}, better) == dtw(two, {"a": 1, "b": 1}, UP)
    assert cosine_similarity(table, better) == cosine_similarity(two, UP)
    table["c"] = [1.0, nan, 1.0]
    for call in (
        lambda: step_variance(table, better),
        lambda: dtw(table, {"a": 1, "b": 1, "c": 1}, better),
        lambda: cosine_similarity(table, better),
    ):
        with pytest.raises(ValueError, match="'c'.*not finite"):
            call()


def test_wrong_calls_are_refused():
    table = {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    with pytest.raises(ValueError, match="needs the metrics before"):
        dtw(table, None, UP)
    with pytest.raises(ValueError, match="scale must be"):
        dtw(table, None, UP, scale="log")
    with pytest.raises(ValueError, match="mode must be"):
        cosine_similarity(table, UP, mode="sum")
    with pytest.raises(ValueError, match="between tasks"):
        cosine_similarity({"a": [1.0, 2.0]}, {"a": True})
    with pytest.raises(ValueError, match="two steps"):
        cosine_similarity(table, UP, include_zero=False)
    with pytest.raises(ValueError, match="differ in length"):
        step_variance({"a": [1.0], "b": [1.0, 2.0]}, UP)
    with pytest.raises(ValueError, match="a column for each direction"):
        step_variance([[1.0, 2.0, 3.0]], [True, False])
