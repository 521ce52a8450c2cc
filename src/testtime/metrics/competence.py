r"""Estimates of a classifier's accuracy from how typical its features are, and from how often its predictions change.

Typicality: the features f of a sample lie near the mean :math:`\mu_c` of those of the class c that is predicted, as long as the
sample is like those the classifier was trained on. With the mean squared distance V of source samples to the mean of their
class,

.. math:: d(x) = \|f(x) - \mu_{c(x)}\|^2 / V

is about 1 for source samples, whatever the shares of the classes in a batch, and grows as they are corrupted. With the margin
of the logits and the norm of the features relative to that of the mean, a logistic regression makes one score of it, and a
table of the share of right predictions by score, never rising, turns scores into probabilities.

Consistency: a classifier that learns or that normalises by the batch is wrong on a share of the samples that is about
:math:`\kappa` times the share of predictions that change when the image is disturbed; :math:`\kappa` is measured.

Both are original to this library.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["competence_table", "errors_per_change", "logistic_weights", "never_rising"]


def never_rising(values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the sequence that never rises and is closest to the values in the mean of weighted squares.

    Args:
        values: values (N,).
        weights: weights (N,), positive.

    Reference: Ayer, Brunk, Ewing, Reid and Silverman, An Empirical Distribution Function for Sampling with Incomplete
    Information, 1955 (pool adjacent violators).

    >>> never_rising([3.0, 1.0, 2.0], [1.0, 1.0, 3.0])
    array([3.  , 1.75, 1.75])
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(np.asarray(values, float), np.asarray(weights, float), strict=True):
        mean, mass, length = float(value), float(weight), 1
        while blocks and blocks[-1][0] < mean:
            other, more, longer = blocks.pop()
            mean, mass, length = (mean * mass + other * more) / (mass + more), mass + more, length + longer
        blocks.append((mean, mass, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks] or [np.zeros(0)])


def competence_table(
    distances: ArrayLike, right: ArrayLike, bins: int = 24
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of right predictions by distance, which never rises with it.

    Args:
        distances: distances (N,).
        right: whether each prediction is right, (N,).
        bins: number of intervals of equally many samples, at most.

    Returns:
        upper ends of all intervals but the last (K - 1,), and the shares (K,), each with one wrong prediction added, so that
        an interval of few samples does not promise much.

    Raises:
        ValueError: there are no samples.

    >>> ends, shares = competence_table([1, 1, 1, 9, 9, 9], [1, 1, 1, 0, 0, 1], bins=2)
    >>> ends, shares
    (array([1.]), array([0.75, 0.25]))
    """
    d, good = np.asarray(distances, float), np.asarray(right, float)
    if not len(d):
        raise ValueError("expected distances of samples, got none")
    ends = np.unique(np.quantile(d, np.linspace(0, 1, bins + 1)[1:-1], method="lower")) if bins > 1 else d[:0]
    ends = ends[ends < d.max()]
    where = np.searchsorted(ends, d)
    count = np.bincount(where, minlength=len(ends) + 1)
    hits = np.bincount(where, good, minlength=len(ends) + 1)
    return ends, never_rising(hits / (count + 1), count + 1)


def errors_per_change(errors: ArrayLike, changed: ArrayLike, share: float = 0.9) -> float:
    """Return the number of errors, at most, that one changed prediction stands for.

    Args:
        errors: share of wrong predictions in each of some windows, (N,).
        changed: share of predictions that change under a disturbance, in the same windows, (N,).
        share: share of the windows in which the errors are no more than that.

    Returns:
        the quantile of their ratios, between 1 and 10.

    >>> round(errors_per_change([0.2, 0.3], [0.1, 0.1], share=1.0), 6)
    3.0
    """
    e, c = np.asarray(errors, float), np.asarray(changed, float)
    ratios = e / np.maximum(c, 1e-3)
    return float(np.clip(np.quantile(ratios, share), 1.0, 10.0)) if len(ratios) else 10.0


def logistic_weights(
    features: ArrayLike, right: ArrayLike, ridge: float = 0.01, steps: int = 30
) -> NDArray[np.float64]:
    r"""Return the weights of a logistic regression, by Newton's method.

    .. math:: \min_w \sum_i \log(1 + e^{-s_i w^\top (1, f_i)}) + \tfrac r2 \|w\|^2, \qquad s_i = \pm 1

    Args:
        features: features (N, K).
        right: whether the label of each sample is positive, (N,).
        ridge: r.
        steps: steps of Newton's method.

    Returns:
        weights (1 + K,), that of the constant first.

    >>> w = logistic_weights([[0.0], [1.0], [2.0], [3.0]], [1, 1, 0, 1])
    >>> bool(w[1] < 0)
    True
    """
    f, y = np.asarray(features, float), np.asarray(right, float)
    x = np.concatenate([np.ones((len(f), 1)), f], axis=1)
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (p - y) + ridge * w
        curve = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        w = w - np.linalg.solve(curve, slope)
    return w
