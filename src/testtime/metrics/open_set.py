"""Metrics of open-set recognition: separation of known and unknown images, and accuracy on the known. All in percent.

An open-set score is higher for unknown images. Every function takes numpy arrays; ties count one half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["accuracy", "auroc", "fpr_at", "h_score", "oscr", "score_shares"]


def accuracy(correct: ArrayLike) -> float:
    """Return the share of correct predictions in percent; NaN without any.

    Args:
        correct: whether each prediction is correct, (N,) bool, or float with NaN for an image of unknown class, which does not
            count.

    Raises:
        ValueError: other numbers, such as labels, are given.

    >>> accuracy([True, True, False, True])
    75.0
    """
    right = answers(correct)
    right = right[~np.isnan(right)]
    return float(100 * right.mean()) if len(right) else float("nan")


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    r"""Return the area under the ROC curve in percent: the probability that an unknown image scores above a known one.

    .. math:: 100 \, \big( P(s_k < s_u) + \tfrac12 P(s_k = s_u) \big)

    Args:
        known: scores of known images, (N,).
        unknown: scores of unknown images, (M,).

    Returns:
        AUROC in percent; NaN if either array is empty or contains NaN.

    >>> auroc([0.0, 1.0], [1.0, 2.0])
    87.5
    """
    return oscr(known, unknown, np.ones(np.shape(known), dtype=bool))


def oscr(known: ArrayLike, unknown: ArrayLike, correct: ArrayLike) -> float:
    r"""Return the open-set classification rate in percent: area under correct known against accepted unknown images.

    .. math:: 100 \, \big( P(\text{right}, s_k < s_u) + \tfrac12 P(\text{right}, s_k = s_u) \big)

    Args:
        known: scores of known images, (N,).
        unknown: scores of unknown images, (M,).
        correct: whether the prediction of each known image is correct, (N,) bool.

    Returns:
        OSCR in percent; NaN if either array is empty or contains NaN.

    Raises:
        ValueError: scores are not one-dimensional, or `correct` differs in length from `known`.

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
    """Return the share of accepted unknown images in percent at the lowest threshold that accepts a share of the known.

    Args:
        known: scores of known images, (N,).
        unknown: scores of unknown images, (M,).
        accepted: least share of the known images that are accepted (score at most the threshold), in (0, 1].

    Returns:
        FPR in percent, lower is better; NaN if either array is empty or contains NaN.

    Raises:
        ValueError: scores are not one-dimensional, or the share is out of range.

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
    """Return the harmonic mean of accuracy and AUROC, all in percent.

    The tables of PAF-KIP report that of the averages over domains: 79.76 for Source, from 81.73 and 77.89.

    Raises:
        ValueError: either is not in [0, 100].

    >>> round(h_score(81.73, 77.89), 2)
    79.76
    """
    if any(value < 0 or value > 100 for value in (accuracy, auroc)):
        raise ValueError(f"expected percent from 0 to 100, got {accuracy} and {auroc}")
    total = accuracy + auroc
    return 2 * accuracy * auroc / total if total > 0 else (0.0 if total == 0 else float("nan"))


def score_shares(known: ArrayLike, unknown: ArrayLike, bins: int = 40) -> dict[str, list[float]]:
    """Return the histograms of open-set scores over common bins, as shares.

    The bins lie between the 1st and the 99th percentile of both; scores outside count at the edges, others than finite ones do
    not count.

    Args:
        known: scores of known images, (N,).
        unknown: scores of unknown images, (M,).
        bins: number of bins.

    Returns:
        shares of "known" and "unknown" images by bin; empty lists without finite scores.

    >>> score_shares([0.0, 0.0, 1.0], [1.0], bins=2)
    {'known': [0.66667, 0.33333], 'unknown': [0.0, 1.0]}
    """
    parts = {"known": _scores(known), "unknown": _scores(unknown)}
    parts = {name: part[np.isfinite(part)] for name, part in parts.items()}
    both = np.concatenate(list(parts.values()))
    if not len(both):
        return {name: [] for name in parts}
    low, high = np.percentile(both, [1, 99])
    edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
    counts = {
        name: np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for name, part in parts.items()
    }
    return {name: (count / max(count.sum(), 1)).round(5).tolist() for name, count in counts.items()}


def answers(correct: ArrayLike) -> NDArray[np.float64]:
    """Return whether each prediction is correct as 1, 0 or NaN.

    Raises:
        ValueError: other numbers, such as labels, are given.
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
