"""Boundaries of segments: how well those of a prediction agree with those of the labels, within a few pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from testtime.labels import IGNORE
from testtime.metrics.dense import known_pixels

__all__ = ["BoundaryF", "segment_boundaries"]


def segment_boundaries(segments: Tensor, known: Tensor) -> Tensor:
    """Where a segment ends: its pixels beside a known pixel, to the left, right, above or below, that is not in it.

    Args:
        segments: masks (N, C, H, W) of the classes.
        known: pixels that count, (N, H, W).

    Returns:
        masks (N, C, H, W).

    >>> row = torch.tensor([[[[True, True, False, False]]]])
    >>> segment_boundaries(row, torch.ones(1, 1, 4, dtype=torch.bool)).int().tolist()
    [[[[0, 1, 0, 0]]]]
    """
    outside = ~segments & known[:, None]
    beside = torch.zeros_like(segments)
    beside[..., :-1] |= outside[..., 1:]
    beside[..., 1:] |= outside[..., :-1]
    beside[..., :-1, :] |= outside[..., 1:, :]
    beside[..., 1:, :] |= outside[..., :-1, :]
    return segments & known[:, None] & beside


class BoundaryF:
    r"""F-measure of segment boundaries by class, in percent, within a tolerance in pixels.

    .. math::
        F = \frac{100}{|K|} \sum_{k \in K} \frac{2 P_k R_k}{P_k + R_k}, \qquad
        P_k = \frac{|\{p \in \hat B_k : d(p, B_k) \le t\}|}{|\hat B_k|}, \quad
        R_k = \frac{|\{p \in B_k : d(p, \hat B_k) \le t\}|}{|B_k|}

    with the boundary pixels :math:`\hat B_k` of the prediction and :math:`B_k` of the label, pooled over all images, and the
    Euclidean distance d within an image. K are the classes with a labelled boundary.

    Args:
        classes: number of classes C, the channels of the output.
        tolerance: t, largest distance in pixels.
        ignore: label of a pixel of unknown class; such pixels neither have nor make boundaries.

    Raises:
        ValueError: the tolerance is negative.

    Departures: the published measure averages F over images too, so that an image without a class has no part in it.

    Reference: Csurka, Larlus and Perronnin, What is a Good Evaluation Measure for Semantic Segmentation?, BMVC 2013.

    >>> label, aside = torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.tensor([[[0, 0, 0, 0, 1, 1]]])
    >>> for tolerance in (0.0, 1.0):
    ...     meter = BoundaryF(2, tolerance)
    ...     meter.update(torch.stack([1 - aside, aside], 1).float(), label)
    ...     print(meter.value())
    0.0
    100.0
    """

    def __init__(self, classes: int, tolerance: float = 2.0, ignore: int = IGNORE) -> None:
        if not tolerance >= 0:
            raise ValueError(
                f"tolerance is the largest distance in pixels, 0 or more, got {tolerance}; a common value is 2"
            )
        self.classes, self.tolerance, self.ignore = classes, float(tolerance), ignore
        # Of each class: predicted boundary pixels that were hit, all of them, labelled ones that were hit, all of them.
        self.counts = np.zeros((4, classes), dtype=np.int64)

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            output: logits or probabilities, (N, C, H, W); the class with the highest is the prediction.
            label: class indices, (N, H, W) integers.

        Raises:
            ValueError: the shapes do not match, or a label is neither a class nor ignored.
        """
        known = known_pixels(output, label, self.classes, self.ignore)
        names = torch.arange(self.classes, device=label.device).view(1, -1, 1, 1)
        found = segment_boundaries(output.argmax(1, keepdim=True) == names, known)
        drawn = segment_boundaries(label[:, None] == names, known)
        parts = (found & self._near(drawn), found, drawn & self._near(found), drawn)
        self.counts += np.stack([part.sum(dim=(0, 2, 3)).cpu().numpy() for part in parts])

    def _near(self, mask: Tensor) -> Tensor:
        """The pixels within the tolerance of a mask (N, C, H, W)."""
        height, width = mask.shape[-2:]
        near, reach = torch.zeros_like(mask), int(self.tolerance)
        for dy in range(-min(reach, height - 1), min(reach, height - 1) + 1):
            for dx in range(-min(reach, width - 1), min(reach, width - 1) + 1):
                if dy**2 + dx**2 <= self.tolerance**2:
                    to = near[..., max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
                    to |= mask[..., max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
        return near

    @property
    def by_class(self) -> np.ndarray:
        """F of each class in percent, (C,); NaN for a class without a labelled boundary."""
        hit, found, recalled, drawn = self.counts.astype(float)
        precision, recall = hit / np.maximum(found, 1), recalled / np.maximum(drawn, 1)
        total = precision + recall
        f = np.divide(200 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        return np.where(drawn > 0, f, np.nan)

    def value(self) -> float:
        """Return the mean F in percent, higher is better; NaN without a labelled boundary."""
        seen = self.by_class
        return float("nan") if np.isnan(seen).all() else float(np.nanmean(seen))
