r"""A confidence interval for the mean over a stream that holds for any number of labels, by betting.

The values y of a stream of N samples lie in [0, 1]; n of them are labelled in random order, without replacement or by draws
of known probability (:class:`testtime.metrics.control_variates.Round`). A linear function :math:`m_t` of signals that need no
label is fitted on the labels before t and cut to [0, 1]. If the mean is :math:`\mu`,

.. math:: x_t = \overline{m_t} + w_t (y_t - m_t(z_t)), \qquad \mathrm E[x_t \mid \text{past}] = c_t(\mu)

with :math:`w_t = 1/(N q_t)`, means over the stream and :math:`c_t = \mu` for draws; for a random sample :math:`w_t = 1`, the
mean is over the samples without a label, and :math:`c_t = (N \mu - \sum_{s<t} y_s) / (N - t + 1)`. Bets for and against
:math:`\mu` multiply their wealth by

.. math:: K_t^\pm = K_{t-1}^\pm \bigl(1 \pm \lambda_t^\pm (x_t - c_t(\mu))\bigr), \qquad
    \lambda_t = \sqrt{2 \log(2/\alpha) / (n \hat\sigma_{t-1}^2)}

cut to half of the largest bet that cannot lose everything. Both are martingales at the true mean, so that the means at which
:math:`(K^+ + K^-)/2` has never reached :math:`1/\alpha` hold it with probability :math:`1 - \alpha` (Ville's inequality), for
every N, n and distribution of the values.

References: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 2024 (hedged capital,
sections 4 and 5); Shekhar, Xu, Lipton, Liang and Ramdas, Risk-limiting financial audits via weighted sampling without
replacement, UAI 2023, for weights and control variates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.metrics.control_variates import UNIFORM, Choice, Linear, Round, Signals, fit_rounds, standardise

__all__ = ["betting_interval"]

Floats = NDArray[np.float64]
GRID = 1000  # intervals between the means that are tried
REFIT = 10  # labels from one fit to the next
CUT = 0.5  # of the largest bet that cannot lose everything


class _Step(NamedTuple):
    """A value x with its lowest and highest possible ones; under the mean u its expectation is slope * u - shift."""

    x: float
    low: float
    high: float
    slope: float
    shift: float


def betting_interval(
    rounds: Sequence[Round],
    signals: ArrayLike | Signals,
    *,
    choice: Choice | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the ends of an interval that holds the mean with at least this probability, see the module.

    Args:
        rounds: labelled samples, whose values are in [0, 1], in random order; a random sample can only be the first round.
        signals: signals of all samples of the stream, (N, K).
        choice: choice of variates, see :func:`testtime.metrics.control_variates.fit_sparse`; None is "sparse" for a
            random sample alone and "none" where a round was drawn by probabilities: x of a sample that is surely right can then
            be off by four, which keeps bets small, and smaller with signals.
        level: probability that the interval holds the mean.

    Raises:
        ValueError: a value is outside of [0, 1], or a random sample follows another round.

    Cost: a fit for each ten labels.

    >>> rows = np.random.default_rng(0).permutation(1000)[:100]
    >>> low, high = betting_interval([Round(rows, (rows < 900) * 1.0)], np.zeros((1000, 0)))
    >>> bool(low < 0.9 < high), bool(high - low < 0.25)
    (True, True)
    """
    if any(((one.values < 0) | (one.values > 1)).any() for one in rounds):
        raise ValueError("expected values in [0, 1]; divide them by the largest that is possible")
    if any(one.probabilities is None for one in rounds[1:]):
        raise ValueError("expected one random sample, the first round; draw later ones with probabilities")
    if choice is None:
        choice = "sparse" if all(one.probabilities is None for one in rounds) else "none"
    total, alpha = sum(len(one.rows) for one in rounds), 1 - level
    mean = np.linspace(0, 1, GRID + 1)
    up, down, alive = np.zeros(GRID + 1), np.zeros(GRID + 1), np.ones(GRID + 1, bool)
    past: list[float] = []
    z = signals if isinstance(signals, Signals) else standardise(signals)
    for step in _steps(rounds, z, choice):
        spread = (0.25 + len(past) * float(np.var(past)) if past else 0.25) / (len(past) + 1)
        size = math.sqrt(2 * math.log(2 / alpha) / (total * spread))
        centre = step.slope * mean - step.shift
        below, above = centre - step.low, step.high - centre
        alive &= (below >= -1e-12) & (above >= -1e-12)  # others are impossible
        gain = step.x - centre
        up += np.log1p(np.where(alive, np.minimum(size, CUT / np.maximum(below, 1e-9)) * gain, 0))
        down += np.log1p(np.where(alive, -np.minimum(size, CUT / np.maximum(above, 1e-9)) * gain, 0))
        alive &= np.logaddexp(up, down) < math.log(2 / alpha)
        past.append(step.x)
    left = mean[alive]
    if not len(left):  # of probability alpha at most
        return 0.0, 1.0
    return max(float(left[0]) - 1 / GRID, 0.0), min(float(left[-1]) + 1 / GRID, 1.0)


def _steps(rounds: Sequence[Round], z: Signals, choice: Choice) -> Iterator[_Step]:
    """Yield the values x of all labels in their order; each is known before its function is fitted again."""
    samples, seen = len(z.table), 0
    guesses = np.full(samples, 0.5)
    for number, one in enumerate(rounds):
        weights, total = one.weights(samples), 0.0
        for t, (row, value) in enumerate(zip(one.rows, one.values, strict=True)):
            if seen and seen % REFIT == 0:
                known = [*rounds[:number], *([one.part(np.arange(t))] if t else [])]
                m: Linear = fit_rounds(known, z, choice)
                guesses = np.clip(m(z.table), 0, 1)
            if one.probabilities is None:
                left, most = samples - t, 1.0
                mean = float(guesses.sum() - guesses[one.rows[:t]].sum()) / left
                slope, shift = samples / left, total / left
            else:
                mean, most, slope, shift = float(guesses.mean()), 1 / UNIFORM, 1.0, 0.0
            low, high = mean - most * float(guesses.max()), mean + most * (1 - float(guesses.min()))
            yield _Step(mean + weights[t] * (value - guesses[row]), low, high, slope, shift)
            seen, total = seen + 1, total + value
