"""Calibration of a classifier's confidences: expected calibration error, negative log likelihood, Brier score."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.labels import class_labels
from testtime.metrics.open_set import answers

ROUNDING = 1e-3  # rounding error of probabilities in low precision

__all__ = ["CalibrationError", "brier", "calibration_error", "nll"]


class CalibrationError:
    r"""Expected calibration error in percent, in bins of equal width, accumulated over batches.

    .. math:: 100 \sum_b \frac{n_b}{n} \, | \mathrm{acc}_b - \mathrm{conf}_b |

    Args:
        bins: number of bins of (0, 1]; a confidence on an edge belongs to the bin below.

    Raises:
        ValueError: the number of bins is below 1.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3 (15 bins).

    >>> error = CalibrationError()
    >>> error.update([0.9, 0.9], [True, False])
    >>> round(error.value(), 6)
    40.0
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.count, self.confidence, self.correct = np.zeros((3, bins))

    def update(self, confidence: ArrayLike, correct: ArrayLike) -> None:
        """Add a batch.

        Args:
            confidence: highest probability of each image, (N,).
            correct: whether each prediction is correct, (N,) bool, or float with NaN for an image of unknown class.

        Images whose confidence or correctness is NaN do not count.

        Raises:
            ValueError: a confidence is not in [0, 1], or the shapes differ.
        """
        p, right = np.asarray(confidence, dtype=float), answers(correct)
        if p.shape != right.shape:
            raise ValueError(f"expected a confidence for each answer, got {p.shape} and {right.shape}")
        wrong = p[(p < 0) | (p > 1 + ROUNDING)]
        if wrong.size:
            raise ValueError(f"expected confidences that are probabilities in [0, 1], got {wrong[0]:g}")
        seen = ~(np.isnan(p) | np.isnan(right))
        p, right = p[seen], right[seen]
        bins = len(self.count)
        at = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
        np.add.at(self.count, at, 1)
        np.add.at(self.confidence, at, p)
        np.add.at(self.correct, at, right)

    def value(self) -> float:
        """Return the error in percent; NaN before the first image."""
        total = self.count.sum()
        return float(100 * np.abs(self.correct - self.confidence).sum() / total) if total else float("nan")

    def compute(self) -> float:
        """Former name of :meth:`value`."""
        warnings.warn(
            "CalibrationError.compute is now CalibrationError.value; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.value()


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error of one array in percent; see `CalibrationError`.

    >>> calibration_error([1.0, 1.0], [True, True])
    0.0
    """
    error = CalibrationError(bins)
    error.update(confidence, correct)
    return error.value()


def nll(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    r"""Return the negative log likelihood of the true class of each image in nats, :math:`-\log p_y`.

    Args:
        logits: logits of the classifier, (N, C).
        labels: class indices, (N,) integers in [0, C), -1 where the class is unknown.

    Returns:
        (N,), NaN where the class is unknown; ``np.nanmean`` is the mean over the known classes.

    Raises:
        ValueError: a label is not in [-1, C).

    >>> nll([[0.0, 0.0], [0.0, 0.0]], [1, -1]).round(4).tolist()
    [0.6931, nan]
    """
    logp = _log_softmax(logits)
    y = class_labels(labels, len(logp), logp.shape[1], "logits")
    return np.where(y < 0, np.nan, -logp[np.arange(len(y)), y])


def brier(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    r"""Return the Brier score of each image, :math:`\sum_c (p_c - [c = y])^2`, from 0 (best) to 2 (confident and wrong).

    Args:
        logits: logits of the classifier, (N, C).
        labels: class indices, (N,) integers in [0, C), -1 where the class is unknown.

    Returns:
        (N,), NaN where the class is unknown; ``np.nanmean`` is the mean over the known classes.

    Raises:
        ValueError: a label is not in [-1, C).

    Reference: Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.

    >>> brier([[0.0, 0.0], [0.0, 0.0]], [1, -1]).tolist()
    [0.5, nan]
    """
    p = np.exp(_log_softmax(logits))
    y = class_labels(labels, len(p), p.shape[1], "logits")
    p[np.arange(len(y)), y] -= 1
    return np.where(y < 0, np.nan, (p**2).sum(axis=1))


def _log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    z = np.asarray(logits, dtype=float)
    if z.ndim != 2:
        raise ValueError(f"expected logits (N, C), got {z.shape}")
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
