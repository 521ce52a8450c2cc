r"""Statistics that hold at every moment of a stream: confidence sequences for a mean, and a test that a mean stays low.

Both are valid whenever one looks: the probability that a confidence sequence *ever* misses the mean, or that the test *ever*
reaches :math:`1/\alpha` although the mean stayed low, is at most :math:`\alpha`.

The test is a bet against the hypothesis that the expectation of each value, given the past, is at most :math:`\epsilon`. A bet
of size :math:`\lambda` multiplies the wealth by :math:`1 + \lambda (x_t - \epsilon)`. Stakes are laid aside for bets that
begin later, so that a rise of the mean is found late in a stream too: with :math:`g(t) = 1/(1 + \log t)`,

.. math:: S_t = (S_{t-1} + g(t) - g(t+1)) (1 + \lambda (x_t - \epsilon)), \qquad E_t = S_t + g(t + 1)

Under the hypothesis :math:`E_t` is a supermartingale that begins at 1, and Ville's inequality bounds the probability that it
ever reaches :math:`1/\alpha`.

Reference: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 2024 (theorem 2 for the
confidence sequence, section 4 for bets); Shin, Ramdas and Rinaldo, E-detectors, 2023, for bets that begin at every moment.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BETS", "confidence_sequence", "reserve", "wealth_after"]

BETS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Sizes of the bets, as shares of the largest that cannot lose everything."""
LARGEST = 0.5  # of the tuning parameter of the confidence sequence


def confidence_sequence(
    values: ArrayLike, alpha: float = 0.05
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and the upper end of a confidence sequence for the mean of values in [0, 1], after each value.

    Args:
        values: values (N,) in [0, 1].
        alpha: probability, at most, that the mean ever lies outside.

    Raises:
        ValueError: a value is outside of [0, 1].

    Reference: Waudby-Smith and Ramdas, theorem 2 (predictable plug-in empirical Bernstein).

    >>> low, high = confidence_sequence(np.tile([0.0, 1.0], 500))
    >>> bool(low[-1] < 0.5 < high[-1]), bool(high[-1] - low[-1] < 0.25)
    (True, True)
    """
    x = np.asarray(values, float)
    if ((x < 0) | (x > 1)).any():
        raise ValueError(f"expected values in [0, 1], got some from {x.min():g} to {x.max():g}")
    n = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (n + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (n + 1)
    before = np.concatenate([[0.5], mean[:-1]])
    spread = np.concatenate([[0.25], variance[:-1]])
    size = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (spread * n * np.log(1 + n))), LARGEST)
    cost = 4 * (x - before) ** 2 * (-np.log1p(-size) - size) / 4
    total = np.cumsum(size)
    centre = np.cumsum(size * x) / total
    width = (math.log(2 / alpha) + np.cumsum(cost)) / total
    return np.maximum.accumulate(np.maximum(centre - width, 0)), np.minimum.accumulate(
        np.minimum(centre + width, 1)
    )


def reserve(count: int) -> float:
    """Return the wealth that is laid aside after ``count`` values for bets that begin later.

    >>> reserve(0), round(reserve(1000), 3)
    (1.0, 0.126)
    """
    return 1 / (1 + math.log(count + 1))


def wealth_after(
    wealth: NDArray[np.float64], count: int, values: ArrayLike, tolerance: float
) -> NDArray[np.float64]:
    """Return the wealth of the bets after more values; with :func:`reserve` it makes up the evidence E.

    Args:
        wealth: wealth S of the bets (B,) of :data:`BETS`, divided by their number; zeros in the beginning.
        count: number of values before these.
        values: values (N,) in [-1, 1].
        tolerance: expectation of a value, at most, under the hypothesis.

    >>> w = wealth_after(np.zeros(len(BETS)), 0, np.full(100, 0.3), tolerance=0.05)
    >>> bool(w.sum() + reserve(100) > 1 / 0.05)
    True
    """
    sizes = np.asarray(BETS) / (1 + tolerance)
    for i, x in enumerate(np.asarray(values, float), count):
        stake = (reserve(i) - reserve(i + 1)) / len(sizes)
        wealth = (wealth + stake) * (1 + sizes * (x - tolerance))
    return wealth
