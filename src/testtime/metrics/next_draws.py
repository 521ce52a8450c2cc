"""Draws of the samples to label next, where it is most uncertain whether the prediction is right."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.metrics.control_variates import UNIFORM

__all__ = ["draw_next", "neyman_probabilities"]

Floats = NDArray[np.float64]


def neyman_probabilities(chances: ArrayLike) -> Floats:
    """Return the probabilities q of a draw, (N,), see :mod:`testtime.metrics.few_labels`.

    Args:
        chances: expected values p of the samples, (N,); what is outside of [0.02, 0.98] is cut.

    >>> neyman_probabilities([0.5, 1.0]).round(3)
    array([0.711, 0.289])
    """
    p = np.clip(np.asarray(chances, float), 0.02, 0.98)
    s = np.sqrt(p * (1 - p))
    return UNIFORM / len(p) + (1 - UNIFORM) * s / s.sum()


def draw_next(chances: ArrayLike, count: int, seed: int = 0) -> tuple[NDArray[np.int64], Floats]:
    """Draw the samples to label next, with replacement: a sample that is drawn twice counts twice.

    Args:
        chances: expected values of the samples, (N,).
        count: number of draws.
        seed: random seed; every round needs another one.

    Returns:
        indices of the samples (count,), and the probability of each in a draw (count,).

    Raises:
        ValueError: there is no sample, a chance is no number, or count or seed is negative.
    """
    chances = np.asarray(chances, float)
    if chances.ndim != 1 or not len(chances) or np.isnan(chances).any():
        got = "NaN" if np.isnan(chances).any() else f"the shape {chances.shape}"
        raise ValueError(f"expected the chance of each sample as a number (N,), got {got}")
    for name, value in {"number of samples to label": count, "seed": seed}.items():
        if value < 0:
            raise ValueError(f"the {name} is a whole number from 0, got {value}")
    q = neyman_probabilities(chances)
    rows = np.random.default_rng(seed).choice(len(q), count, p=q / q.sum())
    return rows, q[rows]
