"""How well known and unknown are told apart, and how well both tasks are done at once. All in percent.

A score is higher for the unknown. Every function takes numpy arrays and breaks ties by halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["accuracy", "auroc", "fpr_at", "h_score", "oscr"]


def accuracy(correct: ArrayLike) -> float:
    """Share of right answers in percent; NaN without any.

    Args:
        correct: (N,) bool, or float with NaN for an image of no known class, which is left out.

    Raises:
        ValueError: if it holds other numbers, such as labels.

    >>> accuracy([True, True, False, True])
    75.0
    """
    right = answers(correct)
    right = right[~np.isnan(right)]
    return float(100 * right.mean()) if len(right) else float("nan")


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    r"""Area under the ROC curve in percent: the chance that an unknown image scores above a known one.

    .. math:: 100 \, \big( P(s_k < s_u) + \tfrac12 P(s_k = s_u) \big)

    Args:
        known: (N,) scores of known images.
        unknown: (M,) scores of unknown images.

    Returns:
        percent; NaN if either is empty or holds NaN.

    >>> auroc([0.0, 1.0], [1.0, 2.0])
    87.5
    """
    return oscr(known, unknown, np.ones(np.shape(known), dtype=bool))


def oscr(known: ArrayLike, unknown: ArrayLike, correct: ArrayLike) -> float:
    r"""Open-set classification rate in percent: area under right answers to known against accepted unknown.

    .. math:: 100 \, \big( P(\text{right}, s_k < s_u) + \tfrac12 P(\text{right}, s_k = s_u) \big)

    Args:
        known: (N,) scores of known images.
        unknown: (M,) scores of unknown images.
        correct: (N,) bool, whether the known image got its class.

    Returns:
        percent; NaN if either set is empty or a score is NaN.

    Raises:
        ValueError: if scores are not (N,), or there is no answer for each known image.

    Reference: Dhamija, Günther and Boult, Reducing Network Agnostophobia, NeurIPS 2018, figure 3.

    >>> oscr([0.0, 1.0], [1.0, 2.0], [False, True])
    37.5
    """
    k, u, right = _scores(known), np.sort(_scores(unknown)), answers(correct)
    if right.shape != k.shape:
        raise ValueError(f"expected an answer for each of the {len(k)} known images, got {right.shape}")
    if not len(k) or not len(u) or np.isnan(k).any() or np.isnan(u).any():
        return float("nan")
    above = len(u) - np.searchsorted(u, k, side="right")
    equal = len(u) - np.searchsorted(u, k, side="left") - above
    return float(100 * ((above + equal / 2) * right).sum() / (len(k) * len(u)))


def fpr_at(known: ArrayLike, unknown: ArrayLike, accepted: float = 0.95) -> float:
    """Share of unknown images let in, in percent, at the lowest threshold that lets in this share of the
    known.

    Args:
        known: (N,) scores of known images.
        unknown: (M,) scores of unknown images.
        accepted: the share of the known that must be let in (score at most the threshold), above 0 and at most 1.

    Returns:
        percent, lower is better; NaN if either is empty or holds NaN.

    Raises:
        ValueError: if scores are not (N,), or the share is out of range.

    >>> fpr_at([0.0, 1.0, 2.0, 3.0], [2.5, 3.0, 9.0, 9.0], accepted=0.75)
    0.0
    """
    if not 0 < accepted <= 1:
        raise ValueError(f"accepted is a share above 0 and at most 1, got {accepted}")
    k, u = np.sort(_scores(known)), _scores(unknown)
    if not len(k) or not len(u) or np.isnan(k).any() or np.isnan(u).any():
        return float("nan")
    threshold = k[int(np.ceil(accepted * len(k) - 1e-9)) - 1]
    return float(100 * (u <= threshold).mean())


def h_score(accuracy: float, auroc: float) -> float:
    """Harmonic mean of accuracy and AUROC, in percent as they are.

    The paper's tables take it of the averages over domains: Source, 81.73 and 77.89, is 79.76.

    Raises:
        ValueError: if either is no percentage.

    >>> round(h_score(81.73, 77.89), 2)
    79.76
    """
    if any(value < 0 or value > 100 for value in (accuracy, auroc)):
        raise ValueError(f"expected percent from 0 to 100, got {accuracy} and {auroc}")
    total = accuracy + auroc
    return 2 * accuracy * auroc / total if total > 0 else (0.0 if total == 0 else float("nan"))


def answers(correct: ArrayLike) -> NDArray[np.float64]:
    """Return whether each answer is right as 1, 0 or NaN.

    Raises:
        ValueError: if it holds other numbers, such as labels.
    """
    right = np.asarray(correct, dtype=float)
    wrong = right[~(np.isnan(right) | (right == 0) | (right == 1))]
    if wrong.size:
        raise ValueError(
            f"expected whether each answer is right (True, False or NaN), got {wrong[0]:g}; compare predictions with "
            "labels first"
        )
    return right


def _scores(values: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=float)
    if scores.ndim != 1:
        raise ValueError(f"expected a score for each image (N,), got {scores.shape}")
    return scores
