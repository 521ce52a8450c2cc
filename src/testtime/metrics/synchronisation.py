r"""Synchronisation of the tasks of a multi-task model during adaptation: :math:`\Delta_{TTT}` and three metrics of S4T.

A *table* contains one metric per task and recorded step, :math:`y_i^{(\tau)}`: a mapping from the task to its series, or an
array (steps, tasks). Its first row is step 0, the model before adaptation; ``include_zero`` states whether that row counts.
The paper counts steps 1 to T. Directions are a mapping by task, or a sequence in the order of the columns. With
:math:`l_i = 1` where lower is better, :math:`o_i = (-1)^{l_i}` orients a metric so that higher is better.

A task that was never measured (NaN at every step) does not count. A metric that is missing or infinite at single steps is an
error: omitting the step would hide that a method diverged.

Reference: Jeong, Cho, Yoon and Yoon, Synchronizing Task Behavior: Aligning Multiple Tasks during Test-Time Training, ICCV
2025, section 4.1 and appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["cosine_similarity", "delta_ttt", "dtw", "step_variance"]

Floats = NDArray[np.float64]
Table = ArrayLike | Mapping[str, Sequence[float]]
Values = Mapping[str, float] | Sequence[float]
Directions = Mapping[str, bool] | Sequence[bool]


def delta_ttt(metrics: Values, base: Values, higher_is_better: Directions) -> float:
    r"""Return the mean relative gain over tasks in percent.

    .. math:: \Delta_{TTT} = \frac{100}{n} \sum_i (-1)^{l_i} \frac{M_i - B_i}{B_i}

    Args:
        metrics: metrics of the adapted model, by task.
        base: metrics of the same model (the same seed) before adaptation, by task.
        higher_is_better: direction of the metric, by task.

    Returns:
        The gain in percent; a task whose metric cannot change (the edge RMSE of S4T's tables) reduces it.

    Raises:
        ValueError: the tasks differ, no task was measured, a base is not positive, or a metric is not finite although its
            base is finite.

    >>> better = {"semseg": True, "depth": False}
    >>> delta_ttt({"semseg": 44.0, "depth": 0.9}, {"semseg": 40.0, "depth": 1.0}, better)
    10.0
    """
    names, table, signs = _read(_row(metrics), higher_is_better)
    start = _base(base, names)
    gains = 100 * signs * (table[0] - start) / start
    return float(gains.mean())


def step_variance(
    table: Table,
    higher_is_better: Directions,
    include_zero: bool = False,
    steps: Sequence[int] | None = None,
) -> float:
    r"""Return the standard deviation of the steps at which the tasks are best.

    .. math:: SV = \sqrt{\tfrac1n \sum_i (\tau_i^{peak} - \bar\tau^{peak})^2}

    Equation 9 of S4T, which calls this population standard deviation a variance.

    Args:
        table: metrics by step and task, see the module.
        higher_is_better: direction of the metric, by task.
        include_zero: whether step 0 may be the best. If not, a task that only gets worse peaks at its first step.
        steps: step of each row; None is 0, 1, 2 ... It is needed when not every step was recorded.

    Returns:
        The standard deviation in steps, 0 if all tasks peak at once; the first of equal values is the peak. Lower is more
        synchronous.

    Raises:
        ValueError: a metric is missing at some step, or no step is left.

    >>> step_variance({"semseg": [30, 40, 50, 45], "depth": [1.2, 1.1, 1.3, 1.4]}, {"semseg": True, "depth": False})
    0.5
    """
    _, values, signs = _read(table, higher_is_better)
    numbers = np.arange(len(values)) if steps is None else np.asarray(steps)
    if len(numbers) != len(values):
        raise ValueError(f"there are {len(values)} rows and {len(numbers)} steps")
    counted = np.ones(len(values), dtype=bool) if include_zero else numbers != 0
    if not counted.any():
        raise ValueError("the table has no step after step 0; record one, or include_zero=True")
    return float(numbers[counted][(signs * values[counted]).argmax(0)].std())


def dtw(
    table: Table,
    base: Values | None,
    higher_is_better: Directions,
    scale: Literal["gain", "minmax", "zscore", "raw"] = "gain",
    include_zero: bool = True,
) -> float:
    r"""Return the distance of the tasks' curves by dynamic time warping, averaged over pairs of tasks.

    .. math::
        DTW &= \binom{n}{2}^{-1} \sum_{i < j} D_{ij}(T, T) \\
        D_{ij}(\tau, \kappa) &= | y_i^{(\tau)} - y_j^{(\kappa)} |
            + \min \{ D(\tau - 1, \kappa), D(\tau, \kappa - 1), D(\tau - 1, \kappa - 1) \}

    Equation 10 of S4T: no window, not divided by the length of the path, D(0, 0) = 0 and infinite elsewhere outside. (The paper
    prints C(n, r) without a definition of r; here the sum is over pairs.)

    Args:
        table: metrics by step and task, see the module.
        base: metrics before adaptation by task, needed for ``scale="gain"``; otherwise None.
        higher_is_better: direction of the metric, by task.
        scale: scale of the compared curves, which the paper leaves open; mIoU, metres and degrees are not comparable. "gain":
            the oriented gain over the base in percent; "minmax" and "zscore": the oriented curve of each task scaled to [0, 1],
            or to mean 0 and standard deviation 1 (a constant becomes 0); "raw": the metrics unchanged, as in equation 10.
        include_zero: whether row 0 is part of the curves; those of the paper begin at step 1.

    Returns:
        The distance in the unit of the scale, lower is more synchronous.

    Raises:
        ValueError: fewer than two tasks, a metric missing at some step, or no base where one is needed.

    >>> courses = {"a": [1.0, 1.01, 1.02, 1.015], "b": [1.0, 1.001, 1.002, 1.0015]}
    >>> up = {"a": True, "b": True}
    >>> round(dtw(courses, {"a": 1.0, "b": 1.0}, up), 2), round(dtw(courses, None, up, scale="minmax"), 2)
    (4.05, 0.0)
    """
    names, values, signs = _read(table, higher_is_better, include_zero)
    if scale == "gain":
        if base is None:
            raise ValueError('scale="gain" needs the metrics before adaptation as base')
        start = _base(base, names)
        values = 100 * signs * (values - start) / start
    elif scale == "minmax":
        values = signs * values
        values = (values - values.min(0)) / _nonzero(np.ptp(values, axis=0))
    elif scale == "zscore":
        spread = np.where(np.ptp(values, axis=0) > 0, values.std(0), 1.0)
        values = signs * (values - values.mean(0)) / spread
    elif scale != "raw":
        raise ValueError(f'scale must be "gain", "minmax", "zscore" or "raw", not {scale!r}')
    return float(np.mean([_warped(values[:, i], values[:, j]) for i, j in _pairs(names)]))


def cosine_similarity(
    table: Table,
    higher_is_better: Directions,
    mode: Literal["trajectory", "pointwise_mean", "paper_sum"] = "trajectory",
    include_zero: bool = True,
) -> float:
    r"""Return the cosine similarity of the tasks' increments from step to step, averaged over pairs of tasks.

    With the oriented increments :math:`\Delta_i^\tau = o_i (y_i^{(\tau + 1)} - y_i^{(\tau)})`:

    - "trajectory": :math:`\Delta_i \cdot \Delta_j / (\|\Delta_i\| \|\Delta_j\|)`, the cosine between whole curves, in [-1, 1].
      The only mode in which large steps count more than small ones; recommended.
    - "paper_sum": equations 11 and 12 of S4T. Their cosine is between scalars, so each step contributes the product of two
      signs, and steps are summed: with T rows the range is ±(T - 1). (Equation 12 prints the same norm twice and does not
      orient the metrics, so that a rising mIoU and a falling RMSE would count as opposed; both are corrected here.)
    - "pointwise_mean": "paper_sum" divided by T - 1: in [-1, 1], and comparable between lengths.

    A task that does not change has similarity 0 with every other. No base is needed, since the cosine does not depend on the
    unit; it is the same for relative gains.

    Args:
        table: metrics by step and task, see the module.
        higher_is_better: direction of the metric, by task.
        mode: name of the variant.
        include_zero: whether the increment from row 0 to row 1 counts; the first in the paper is from step 1 to step 2.

    Returns:
        The similarity, higher is more synchronous.

    Raises:
        ValueError: fewer than two tasks or two steps, or a metric missing at some step.

    >>> cosine_similarity({"semseg": [30, 40, 50], "depth": [1.2, 1.1, 1.0]}, {"semseg": True, "depth": False})
    1.0
    """
    names, values, signs = _read(table, higher_is_better, include_zero)
    if len(values) < 2:
        raise ValueError("the table needs at least two steps")
    moves = signs * np.diff(values, axis=0)
    if mode == "trajectory":
        moves = moves / _nonzero(np.abs(moves).max(0))
        similar = (moves / _nonzero(np.linalg.norm(moves, axis=0))).clip(-1, 1)
    elif mode in ("paper_sum", "pointwise_mean"):
        similar = np.sign(moves)
    else:
        raise ValueError(f'mode must be "trajectory", "pointwise_mean" or "paper_sum", not {mode!r}')
    mean = float(np.mean([similar[:, i] @ similar[:, j] for i, j in _pairs(names)]))
    return mean / len(moves) if mode == "pointwise_mean" else mean


def _row(metrics: Values) -> Table:
    """Return a table of one row."""
    return {k: [v] for k, v in metrics.items()} if isinstance(metrics, Mapping) else [list(metrics)]


def _read(
    table: Table, higher_is_better: Directions, include_zero: bool = True
) -> tuple[list[str], Floats, Floats]:
    """Return the names (or indices) of the measured tasks, their values (steps, tasks), and their orientations +1 or -1."""
    if isinstance(table, Mapping) != isinstance(higher_is_better, Mapping):
        raise ValueError("key both the metrics and higher_is_better by task, or neither")
    if isinstance(table, Mapping) and isinstance(higher_is_better, Mapping):
        names = list(table)
        _same(names, list(higher_is_better), "higher_is_better")
        if len({len(series) for series in table.values()}) > 1:
            raise ValueError(f"the series differ in length: { {k: len(v) for k, v in table.items()} }")
        values = np.array([table[name] for name in names], dtype=float).T
        directions = [bool(higher_is_better[name]) for name in names]
    else:
        values = np.asarray(table, dtype=float)
        directions = [bool(d) for d in higher_is_better]
        if values.ndim != 2 or values.shape[1] != len(directions):
            raise ValueError(
                f"expected a table (steps, {len(directions)}), a column for each direction; got {values.shape}"
            )
        names = [str(i) for i in range(len(directions))]
    seen = ~np.isnan(values).all(0)
    if not seen.any():
        raise ValueError(f"none of the tasks {names} was measured")
    names = [name for name, there in zip(names, seen, strict=True) if there]
    values = values[:, seen][0 if include_zero else 1 :]
    if not len(values):
        raise ValueError("the table has no step after step 0")
    for name, whole in zip(names, np.isfinite(values).all(0), strict=True):
        if not whole:
            raise ValueError(
                f"task {name!r} has a value that is not finite; a task is measured at every step or at none"
            )
    return names, values, np.where(np.array(directions)[seen], 1.0, -1.0)


def _base(base: Values, names: list[str]) -> Floats:
    """Return the base of these tasks; further tasks may have a base if they were never measured."""
    by_name = dict(base) if isinstance(base, Mapping) else {str(i): v for i, v in enumerate(base)}
    _same(names, [name for name in by_name if name in names or np.isfinite(by_name[name])], "base")
    start = np.array([by_name[name] for name in names], dtype=float)
    if not (np.isfinite(start) & (start > 0)).all():
        raise ValueError(f"a relative gain needs a finite, positive base, got {dict(by_name)}")
    return start


def _same(names: list[str], others: list[str], what: str) -> None:
    if set(names) != set(others):
        raise ValueError(f"the metrics are of the tasks {sorted(names)}, {what} of {sorted(others)}")


def _pairs(names: list[str]) -> list[tuple[int, int]]:
    if len(names) < 2:
        raise ValueError(f"synchronisation is between tasks, and only {names} was measured")
    return list(combinations(range(len(names)), 2))


def _nonzero(spread: Floats) -> Floats:
    return np.where(spread > 0, spread, 1.0)


def _warped(a: Floats, b: Floats) -> float:
    """Return the cost of the best alignment of two curves."""
    cost = np.full((len(a) + 1, len(b) + 1), np.inf)
    cost[0, 0] = 0
    for i, j in np.ndindex(len(a), len(b)):
        cost[i + 1, j + 1] = abs(a[i] - b[j]) + min(cost[i, j + 1], cost[i + 1, j], cost[i, j])
    return float(cost[-1, -1])
