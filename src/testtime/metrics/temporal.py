"""Metrics of temporal localisation: segments of videos with a class and a score, and frames. In percent.

A segment is a pair (first frame, frame after its last).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Segment", "frame_f", "runs", "segment_ap", "segment_map", "temporal_iou"]


@final
@dataclass(frozen=True)
class Segment:
    """A part of a video.

    Attributes:
        video: number or name of the video.
        label: class.
        start, end: first frame, and frame after the last.
        score: confidence; not used of a true segment.
    """

    video: int | str
    label: int | str
    start: float
    end: float
    score: float = 1.0


def runs(inside: ArrayLike) -> list[tuple[int, int]]:
    """Return the runs of True as (first, after the last).

    >>> runs([False, True, True, False, True])
    [(1, 3), (4, 5)]
    """
    flags = np.asarray(inside, dtype=bool)
    if flags.ndim != 1:
        raise ValueError(f"expected a flag for each frame, (T,), got shape {flags.shape}")
    steps = np.diff(np.r_[0, flags.astype(int), 0])
    return list(zip((steps == 1).nonzero()[0].tolist(), (steps == -1).nonzero()[0].tolist(), strict=True))


def temporal_iou(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Return the temporal intersection over union of segments.

    Args:
        one: segments (N, 2).
        other: segments (M, 2).

    Returns:
        (N, M) in [0, 1].

    >>> temporal_iou([[0, 4]], [[2, 6], [4, 8]]).round(2)
    array([[0.33, 0.  ]])
    """
    a = np.asarray(one, dtype=np.float64).reshape(-1, 2)
    b = np.asarray(other, dtype=np.float64).reshape(-1, 2)
    both = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    both = np.maximum(both, 0)
    either = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - both
    share: NDArray[np.float64] = both / np.maximum(either, 1e-12)
    return share


def segment_ap(found: Sequence[Segment], truth: Sequence[Segment], iou: float = 0.5) -> float:
    """Return the average precision in percent of the segments of one class.

    Segments are taken from the highest score down; each counts as right if it overlaps a true segment of its video, not yet
    taken by another, by at least ``iou``: the one with the largest overlap. The precision at a recall is the largest at that
    recall or above; NaN without true segments.

    Args:
        found: segments with scores.
        truth: true segments.
        iou: least temporal intersection over union, in (0, 1].

    >>> truth = [Segment("a", 0, 0, 10), Segment("a", 0, 20, 30)]
    >>> segment_ap([Segment("a", 0, 1, 10, 0.9), Segment("a", 0, 12, 18, 0.8), Segment("a", 0, 20, 30, 0.7)], truth, 0.5)
    83.33333333333333
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou: expected a share in (0, 1], got {iou}")
    if not truth:
        return float("nan")
    taken, right = set[int](), []
    for segment in sorted(found, key=lambda s: -s.score):
        free = [i for i, t in enumerate(truth) if t.video == segment.video and i not in taken]
        overlap = temporal_iou([[segment.start, segment.end]], [[truth[i].start, truth[i].end] for i in free])
        hit = bool(free) and float(overlap.max()) >= iou
        right.append(hit)
        if hit:
            taken.add(free[int(overlap.argmax())])
    if not right:
        return 0.0
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100 * highest[np.array(right)].sum() / len(truth))


def segment_map(found: Sequence[Segment], truth: Sequence[Segment], iou: float = 0.5) -> float:
    """Return the mean over classes with true segments of :func:`segment_ap`, in percent; NaN without true segments."""
    labels = dict.fromkeys(t.label for t in truth)
    each = [
        segment_ap([f for f in found if f.label == k], [t for t in truth if t.label == k], iou)
        for k in labels
    ]
    return float(np.mean(each)) if each else float("nan")


def frame_f(answers: Sequence[ArrayLike], truth: Sequence[ArrayLike]) -> float:
    r"""Return the F1 of frames of all videos in percent, :math:`2TP / (2TP + FP + FN)`; NaN where nothing is true or answered.

    Args:
        answers: for each video, whether a frame is in a segment, (T,) bool.
        truth: the same for the true segments.

    Raises:
        ValueError: the videos differ in number or length.

    >>> frame_f([[True, True, False]], [[False, True, True]])
    50.0
    """
    if [np.shape(a) for a in answers] != [np.shape(t) for t in truth]:
        raise ValueError("expected an answer for each frame of each video, got others in number or length")
    a = np.concatenate([np.asarray(v, dtype=bool) for v in answers]) if answers else np.zeros(0, bool)
    t = np.concatenate([np.asarray(v, dtype=bool) for v in truth]) if truth else np.zeros(0, bool)
    either = int(a.sum() + t.sum())
    return float(200 * (a & t).sum() / either) if either else float("nan")
