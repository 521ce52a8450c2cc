"""Coverage and variance of an estimate from few labels, over many draws from a stream whose labels are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.errors import check_name
from testtime.metrics.control_variates import Choice, Interval, Round, Signals, estimate_mean, standardise
from testtime.metrics.few_labels import Predictions
from testtime.metrics.next_draws import neyman_probabilities

__all__ = ["DESIGNS", "SETTINGS", "check_numbers", "repeat_draws", "repeat_for"]

Floats = NDArray[np.float64]
Role = Literal["method", "base", "control"]
DESIGNS: dict[str, tuple[str, Role]] = {
    "none": ("plain sampling", "base"),
    "all": ("all signals", "control"),
    "sparse": ("few signals", "method"),
    "drawn": ("few signals, drawn by confidence", "method"),
}
"""Designs by name, with label and role in a table: random samples with no signals, all, or few; draws by confidence."""
SETTINGS: dict[str, Any] = {
    **{"deployed": "TENT", "beside": ["Source", "BN-adapt"]},
    **{"labels": [25, 50, 100, 200], "draws": 2000},
}
"""Settings of the experiments on estimates from few labels."""


def check_numbers(labels: Sequence[int], draws: int, samples: int | None = None) -> None:
    """Refuse numbers of labels or of draws that cannot be, before a stream is predicted.

    Args:
        labels: numbers of labels of a draw.
        draws: number of draws.
        samples: number of samples of the stream, where it is known.

    Raises:
        ValueError: a number is below 2, or there are more labels than samples.

    >>> check_numbers([25, 200], 2000, samples=120)
    Traceback (most recent call last):
        ...
    ValueError: expected at most 120 labels, as many as the stream has samples, got 200; ask for fewer, or raise the limit
    """
    if min(labels, default=0) < 2 or draws < 2:
        raise ValueError(f"labels and draws are whole numbers from 2, got {labels} and {draws}")
    if samples is not None and (most := max(labels)) > samples:
        raise ValueError(
            f"expected at most {samples} labels, as many as the stream has samples, got {most}; ask for fewer, or raise the "
            "limit"
        )


def repeat_draws(
    values: ArrayLike,
    signals: ArrayLike | Signals,
    chances: ArrayLike,
    labels: int,
    design: str,
    *,
    draws: int = 2000,
    seed: int = 0,
    interval: Interval = "wilson",
) -> dict[str, Any]:
    """Draw samples again and again, and compare the estimates with the mean of all values.

    Args:
        values: values of all samples of the stream, (N,).
        signals: signals of all samples, (N, K).
        chances: expected values without labels, by which the design "drawn" draws, (N,).
        labels: number of labels n of a draw.
        design: a key of :data:`DESIGNS`.
        draws: number of draws.
        seed: random seed.
        interval: see :func:`testtime.metrics.control_variates.estimate_mean`.

    Returns:
        ``covered``: number of draws whose interval holds the mean; ``coverage``: their share in percent; ``ratio``: variance
        of the estimates over that of the mean of a plain random sample, :math:`(1 - n/N) S^2 / n`; ``bias`` of the estimates
        and mean ``width`` of the intervals, both times 100.

    Raises:
        ValueError: there is no such design.

    >>> found = repeat_draws(np.arange(100) % 2, np.zeros((100, 0)), np.full(100, 0.5), 20, "none", draws=200)
    >>> found["covered"] > 180, 0.7 < found["ratio"] < 1.3
    (True, True)
    """
    y = np.asarray(values, float)
    z = signals if isinstance(signals, Signals) else standardise(signals)
    q = neyman_probabilities(chances)
    check_name("design", design, DESIGNS)
    choice: Choice = "all" if design == "all" else "none" if design == "none" else "sparse"
    found = []
    for number in range(draws):
        rng = np.random.default_rng((seed, labels, number))
        if design == "drawn":
            rows = rng.choice(len(y), labels, p=q / q.sum())
            one = Round(rows, y[rows], q[rows])
        else:
            rows = rng.choice(len(y), labels, replace=False)
            one = Round(rows, y[rows])
        e = estimate_mean([one], z, choice=choice, interval=interval)
        found.append((e.mean, e.low, e.high))
    mean, low, high = np.array(found).T
    plain = (1 - labels / len(y)) * y.var(ddof=1) / labels
    return {
        "covered": (covered := int(((low <= y.mean()) & (y.mean() <= high)).sum())),
        "coverage": 100 * covered / draws,
        "ratio": float(mean.var(ddof=1) / plain),
        "bias": 100 * float(mean.mean() - y.mean()),
        "width": 100 * float((high - low).mean()),
    }


def repeat_for(
    right: ArrayLike,
    predictions: Predictions,
    settings: Mapping[str, Any],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Repeat the draws of a design for several numbers of labels.

    Args:
        right: whether each prediction is right, (N,).
        predictions: predictions of the stream.
        settings: ``design``, ``labels`` (numbers of labels), ``draws`` and ``seed``.
        report: function of the count of numbers of labels that are done, and of the count of all.

    Returns:
        ``labels``: results of :func:`repeat_draws` by number of labels; the true ``accuracy`` in percent and the number of
        ``samples``.
    """
    y = np.asarray(right, float)
    signals, p = standardise(predictions.table), settings
    found: dict[str, Any] = {}
    for done, n in enumerate(p["labels"], 1):
        draw = {"draws": p["draws"], "seed": p["seed"]}
        found[str(n)] = repeat_draws(y, signals, predictions.chances, n, p["design"], **draw)
        report(done, len(p["labels"]))
    return {"accuracy": 100 * float(y.mean()), "samples": len(y), "labels": found}
