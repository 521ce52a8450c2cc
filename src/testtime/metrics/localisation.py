"""Metrics of anomaly localisation and of masks: pixels, regions, images. In percent; NaN where nothing can be measured.

Scores are higher for what is abnormal. Every function takes numpy arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.metrics.open_set import auroc

__all__ = ["f1_max", "mask_iou", "pixel_auroc", "pro", "regions"]


def _pairs(maps: ArrayLike, masks: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, truth = np.asarray(maps, dtype=np.float64), np.asarray(masks)
    if scores.shape != truth.shape or scores.ndim < 2:
        raise ValueError(
            f"expected maps and masks of one shape (N, H, W), got {scores.shape} and {truth.shape}; resize the maps first"
        )
    if truth.dtype != bool:
        raise ValueError(f"expected masks as bool, True where abnormal, got {truth.dtype}; compare: mask > 0")
    return scores, truth


def pixel_auroc(maps: ArrayLike, masks: ArrayLike) -> float:
    """Return the probability in percent that an abnormal pixel scores above a normal one, over the pixels of all images.

    Args:
        maps: scores (N, H, W).
        masks: abnormal pixels (N, H, W) bool.

    Raises:
        ValueError: maps and masks differ in shape, or masks are not bool.

    >>> pixel_auroc([[[0.1, 0.9], [0.2, 0.3]]], np.array([[[False, True], [True, False]]]))
    75.0
    """
    scores, truth = _pairs(maps, masks)
    return auroc(scores[~truth], scores[truth])


def f1_max(maps: ArrayLike, masks: ArrayLike) -> float:
    r"""Return the largest F1 in percent of "score at least t" over all thresholds t, :math:`\max_t 2TP / (2TP + FP + FN)`.

    The threshold is chosen with the labels: a ceiling of what a threshold can give.

    Args:
        maps: scores (N, H, W), or of images (N, 1).
        masks: abnormal pixels of the same shape, bool.

    >>> f1_max([[0.1], [0.9], [0.2], [0.3]], np.array([[False], [True], [True], [False]]))
    80.0
    """
    scores, truth = _pairs(maps, masks)
    order = np.argsort(-scores, axis=None, kind="stable")
    value, hit = scores.ravel()[order], truth.ravel()[order]
    if not hit.any() or np.isnan(value).any():
        return float("nan")
    last = np.r_[value[1:] != value[:-1], True]  # the last of each tie
    right = np.cumsum(hit)[last]
    chosen = np.arange(1, len(hit) + 1)[last]
    return float(100 * (2 * right / (chosen + hit.sum())).max())


def regions(masks: ArrayLike) -> NDArray[np.int64]:
    """Number the connected regions of masks, with eight neighbours.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W): 0 outside, and a number from 1 on for each region, over all images.

    >>> regions(np.array([[[True, False, False], [False, True, False], [False, False, False], [True, False, True]]]))
    array([[[1, 0, 0],
            [0, 1, 0],
            [0, 0, 0],
            [2, 0, 3]]])
    """
    inside = np.asarray(masks, dtype=bool)
    names = np.where(inside, np.arange(1, inside.size + 1).reshape(inside.shape), 0)
    height, width = inside.shape[1:]
    while True:
        padded = np.pad(names, ((0, 0), (1, 1), (1, 1)))
        best = names
        for dy in range(3):
            for dx in range(3):
                best = np.maximum(best, padded[:, dy : dy + height, dx : dx + width])
        best = np.where(inside, best, 0)
        if (best == names).all():
            break
        names = best
    firsts = [int(v) for v in dict.fromkeys(names[inside].tolist())]
    numbers = np.zeros(inside.size + 1, dtype=np.int64)
    numbers[firsts] = np.arange(1, len(firsts) + 1)
    return numbers[names]


def pro(maps: ArrayLike, masks: ArrayLike, limit: float = 0.3) -> float:
    r"""Return the per-region overlap in percent: mean share of each region that is found, over false-positive rates to a limit.

    .. math:: \frac{100}{L} \int_0^L \frac1R \sum_r \frac{|\{s \ge t(f)\} \cap r|}{|r|} \, df

    so that a small region counts as much as a large one.

    Args:
        maps: scores (N, H, W).
        masks: abnormal pixels (N, H, W) bool; regions have eight neighbours.
        limit: L, largest share of normal pixels above the threshold.

    Raises:
        ValueError: maps and masks differ in shape, or limit is not in (0, 1].

    Reference: Bergmann et al., *Uninformed Students*, CVPR 2020.

    >>> mask = np.zeros((1, 4, 4), bool)
    >>> mask[0, 0, 0] = mask[0, 3, 3] = True
    >>> pro(mask * 1.0, mask), pro(1.0 - mask, mask)
    (100.0, 0.0)
    """
    scores, truth = _pairs(maps, masks)
    if not 0 < limit <= 1:
        raise ValueError(f"limit: expected a share in (0, 1], got {limit}")
    if not truth.any() or truth.all() or np.isnan(scores).any():
        return float("nan")
    number = regions(truth)
    area = np.bincount(number.ravel())[1:]
    share = np.r_[0.0, 1.0 / (area * len(area))][number]
    order = np.argsort(-scores, axis=None, kind="stable")
    value = scores.ravel()[order]
    last = np.r_[value[1:] != value[:-1], True]
    found = np.r_[0.0, np.cumsum(share.ravel()[order])[last]]
    false = np.r_[0.0, np.cumsum(~truth.ravel()[order])[last] / (~truth).sum()]
    upto = np.searchsorted(false, limit, side="right")
    end = float(np.interp(limit, false, found))
    f, p = np.r_[false[:upto], limit], np.r_[found[:upto], end]
    return float(100 * ((f[1:] - f[:-1]) * (p[1:] + p[:-1]) / 2).sum() / limit)


def mask_iou(answers: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """Return the intersection over union in percent of each mask with its truth; 100 where both are empty.

    Args:
        answers: masks (N, H, W) bool.
        masks: true masks (N, H, W) bool.

    Raises:
        ValueError: they differ in shape, or are not bool.

    >>> mask_iou(np.array([[[True, True, False]]]), np.array([[[False, True, True]]])).round(1)
    array([33.3])
    """
    given, truth = np.asarray(answers), np.asarray(masks)
    if given.dtype != bool or truth.dtype != bool or given.shape != truth.shape:
        raise ValueError(
            f"expected masks of one shape as bool, got {given.dtype} {given.shape} and {truth.dtype} {truth.shape}"
        )
    axes = tuple(range(1, truth.ndim))
    both, either = (given & truth).sum(axes), (given | truth).sum(axes)
    share: NDArray[np.float64] = np.where(either > 0, 100.0 * both / np.maximum(either, 1), 100.0)
    return share
