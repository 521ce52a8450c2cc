"""Measures over windows of samples, and the comparison of two runs of one stream.

A run is an array (N,) of int8 in the order of the stream: 1 where the prediction was right, 0 where it was wrong, -1 where the
image has no class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MARGIN", "Answers", "accuracy", "damage_onset", "window_of", "worst_window"]

Answers = NDArray[np.int8]
WINDOW = 10_000  # samples of a window of the promise
MARGIN = 1.0  # points below the shipped model that the promise allows in a window


def window_of(samples: int) -> int:
    """Return the length of a window in samples: 10,000, or a fifth of the stream if that is shorter."""
    return min(WINDOW, max(1, samples // 5))


def accuracy(answers: Answers) -> float:
    """Return the share of right answers in percent; NaN where no image has a class."""
    known = int((answers >= 0).sum())
    return 100 * int((answers == 1).sum()) / known if known else float("nan")


def worst_window(answers: Answers, window: int, other: Answers | None = None) -> float:
    """Return the lowest accuracy in percent over all windows, or the lowest difference to another run in points.

    Args:
        answers: run.
        window: number of samples in a window.
        other: run of the same stream that is subtracted.

    >>> worst_window(np.array([1, 1, 0, 1, 0, 0], np.int8), 2), worst_window(np.array([1, 0], np.int8), 2, np.array([1, 1]))
    (0.0, -50.0)
    """
    right, known = answers == 1, answers >= 0
    gained = right.astype(np.int64) - (0 if other is None else other == 1)
    gains, knowns = (np.concatenate([[0], np.cumsum(values)]) for values in (gained, known))
    inside = (knowns[window:] - knowns[:-window]).astype(float)
    inside[inside == 0] = np.nan
    return float(100 * np.nanmin((gains[window:] - gains[:-window]) / inside))


def damage_onset(answers: Answers, source: Answers, window: int) -> int | None:
    """Return the sample from which a run loses most against the shipped model, None if that is within the promise.

    The number of right answers more than the shipped model's, and the point in a hundred that the promise allows,
    rise and fall along the stream; the damage is their largest fall. One below a point of a window is none.

    >>> damage_onset(np.array([1, 1, 1, 0, 0, 0], np.int8), np.ones(6, np.int8), 5)
    3
    """
    gained = (answers == 1).astype(float) - (source == 1) + MARGIN / 100
    gains = np.concatenate([[0.0], np.cumsum(gained)])
    falls = np.maximum.accumulate(gains) - gains
    end = int(falls.argmax())
    if falls[end] <= MARGIN / 100 * window:
        return None
    return end - int(gains[: end + 1][::-1].argmax())
