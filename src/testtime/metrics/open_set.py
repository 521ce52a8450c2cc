"""How well known and unknown are told apart, and how well both tasks are done at once. All in percent.

A score is higher for the unknown. Every function takes numpy arrays and breaks ties by halves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["accuracy", "auroc", "fpr_at", "h_score", "oscr"]


def accuracy(correct: ArrayLike) -> float:
    """Share of right answers in percent; NaN without any.

    Args:
        correct: (N,) bool, or float with NaN for an image of no known class, which is left out.

    >>> accuracy([True, True, False, True])
    75.0
    """
    right = np.asarray(correct, dtype=float)
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
    return oscr(known, unknown, np.ones(len(np.asarray(known)), dtype=bool))


def oscr(known: ArrayLike, unknown: ArrayLike, correct: ArrayLike) -> float:
    r"""Open-set classification rate in percent: area under right answers to known against accepted unknown.

    .. math:: 100 \, \big( P(\text{right}, s_k < s_u) + \tfrac12 P(\text{right}, s_k = s_u) \big)

    Args:
        known: (N,) scores of known images.
        unknown: (M,) scores of unknown images.
        correct: (N,) bool, whether the known image got its class.

    Returns:
        percent; NaN if either set is empty or a score is NaN.

    Reference: Dhamija, Günther and Boult, Reducing Network Agnostophobia, NeurIPS 2018, figure 3.

    >>> oscr([0.0, 1.0], [1.0, 2.0], [False, True])
    37.5
    """
    k, u = np.asarray(known, dtype=float), np.sort(np.asarray(unknown, dtype=float))
    if not len(k) or not len(u) or np.isnan(k).any() or np.isnan(u).any():
        return float("nan")
    above = len(u) - np.searchsorted(u, k, side="right")
    equal = len(u) - np.searchsorted(u, k, side="left") - above
    return float(100 * ((above + equal / 2) * np.asarray(correct, dtype=float)).sum() / (len(k) * len(u)))


def fpr_at(known: ArrayLike, unknown: ArrayLike, accepted: float = 0.95) -> float:
    """Share of unknown images let in, in percent, at the lowest threshold that lets in this share of the
    known.

    Args:
        known: (N,) scores of known images.
        unknown: (M,) scores of unknown images.
        accepted: the share of the known that must be let in (score at most the threshold).

    Returns:
        percent, lower is better; NaN if either is empty or holds NaN.

    >>> fpr_at([0.0, 1.0, 2.0, 3.0], [2.5, 3.0, 9.0, 9.0], accepted=0.75)
    0.0
    """
    k, u = np.sort(np.asarray(known, dtype=float)), np.asarray(unknown, dtype=float)
    if not len(k) or not len(u) or np.isnan(k).any() or np.isnan(u).any():
        return float("nan")
    threshold = k[int(np.ceil(accepted * len(k) - 1e-9)) - 1]
    return float(100 * (u <= threshold).mean())


def h_score(accuracy: float, auroc: float) -> float:
    """Harmonic mean of accuracy and AUROC, in percent as they are.

    The paper's tables take it of the averages over domains: Source, 81.73 and 77.89, is 79.76.

    >>> round(h_score(81.73, 77.89), 2)
    79.76
    """
    total = accuracy + auroc
    return 2 * accuracy * auroc / total if total > 0 else (0.0 if total == 0 else float("nan"))
