"""Metrics with an answer per pixel, as meters: show them batches, then ask for the value.

Labels are those of :class:`testtime.data.Sample` in a batch, and what a label ignores is never counted. A meter has no
reset; make a new one. ``value()`` is NaN when nothing was measured, and an output that is not finite where its label is
known is an error rather than a gap: a model that diverged must not look as if it had not been asked.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.dense import IGNORE

__all__ = ["RMSE", "MeanAngle", "MeanIoU"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class MeanIoU:
    r"""Mean intersection over union in percent, counted over all pixels of all batches.

    .. math:: \frac{100}{|K|} \sum_{k \in K} \frac{TP_k}{TP_k + FP_k + FN_k}

    Args:
        classes: C, the channels of the output.
        ignore: the label of a pixel whose class is not known.
        absent: what becomes of a class that no label showed. "skip" leaves it out of K; "zero" keeps it with 0, as the
            released code of S4T does, so that the same predictions score lower on a set that lacks a class.

    The published figures of S4T are over the 6 or 7 classes that two sets share, without the background; they are not
    those of the usual benchmarks of the same sets.

    >>> meter = MeanIoU(2)
    >>> meter.update(torch.tensor([[[[9.0, 9, 0, 0]], [[0.0, 0, 9, 9]]]]), torch.tensor([[[0, 1, 1, 255]]]))
    >>> meter.value()
    50.0
    """

    def __init__(self, classes: int, ignore: int = IGNORE, absent: Literal["skip", "zero"] = "skip") -> None:
        if absent not in ("skip", "zero"):
            raise ValueError(f'absent must be "skip" or "zero", not {absent!r}')
        self.classes, self.ignore, self.absent = classes, ignore, absent
        self.confusion = np.zeros((classes, classes), dtype=np.int64)

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            output: (N, C, H, W), logits or probabilities; the highest is the answer.
            label: (N, H, W), integers.

        Raises:
            ValueError: the shapes do not belong together, or a label is neither a class nor ignored.
        """
        expected = (label.shape[0], self.classes, *label.shape[1:])
        if label.dim() != 3 or tuple(output.shape) != expected:
            raise ValueError(
                f"expected output (N, {self.classes}, H, W) and label (N, H, W), "
                f"got {tuple(output.shape)} and {tuple(label.shape)}"
            )
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise ValueError(f"expected labels that are integers, numbers of classes, got {label.dtype}")
        known = label != self.ignore
        _finite(output.isfinite().all(1)[known])
        truth, answer = label[known].long().cpu(), output.argmax(1)[known].cpu()
        wrong = truth[(truth < 0) | (truth >= self.classes)]
        if len(wrong):
            raise ValueError(
                f"label {wrong[0].item()} is none of the {self.classes} classes and not ignored ({self.ignore})"
            )
        pairs = torch.bincount(truth * self.classes + answer, minlength=self.classes**2)
        self.confusion += pairs.numpy().reshape(self.confusion.shape)

    @property
    def by_class(self) -> Floats:
        """(C,) percent; NaN for a class that no label showed."""
        hit, seen = np.diag(self.confusion), self.confusion.sum(1)
        union = seen + self.confusion.sum(0) - hit
        return np.where(seen > 0, 100 * hit / np.maximum(union, 1), np.nan)

    def value(self) -> float:
        """Percent, higher is better."""
        seen = self.by_class
        if np.isnan(seen).all():
            return float("nan")
        return float(np.nanmean(seen) if self.absent == "skip" else np.nan_to_num(seen).mean())


class RMSE:
    r"""Root mean squared error in the unit of the label, pooled over all values of all batches.

    .. math:: \sqrt{\tfrac1n \sum_p (a(y_p) - d_p)^2}

    Args:
        align: the a above. "none": the output as it is. "median": each image's output is scaled by the ratio of the
            medians of label and output over its known pixels (Zhou et al., Unsupervised Learning of Depth and
            Ego-Motion from Video, CVPR 2017); an output whose median is not positive has no such scale and stays as it is.
            "lsq" (legacy): one scale and shift for all known pixels of a *batch* by least squares, as in the released code
            of S4T, for depth and (on ``output.sigmoid()``) for edges.

    With "lsq" the value cannot exceed the deviation of the labels within their batches, whatever the model answers: a
    constant reaches it. The edge column of S4T's table 1, 0.1440 to 0.1444, is the deviation of a binary map with 2.1 %
    edges. The value also depends on how the images were batched. Use it to reproduce, not to conclude.

    >>> label = torch.tensor([[[[1.0, 2.0, float("nan")]]]])
    >>> for align in ("none", "median", "lsq"):
    ...     meter = RMSE(align)
    ...     meter.update(2 * torch.ones(1, 1, 1, 3), label)
    ...     print(align, round(meter.value(), 3))
    none 0.707
    median 0.5
    lsq 0.5
    """

    def __init__(self, align: Literal["none", "median", "lsq"] = "none") -> None:
        if align not in ("none", "median", "lsq"):
            raise ValueError(f'align must be "none", "median" or "lsq", not {align!r}')
        self.align = align
        self.squares, self.count = 0.0, 0

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            output: (N, C, H, W); C is 1 for depth.
            label: the same shape, NaN where it is not known.

        Raises:
            ValueError: the shapes differ, or the output is not finite where the label is known.
        """
        answer, truth, known = paired(output, label)
        if self.align == "median":
            for y, d, k in zip(answer, truth, known, strict=True):
                middle = np.median(y[k]) if k.any() else 0.0
                if middle > 0:
                    y *= np.median(d[k]) / middle
        y, d = answer[known], truth[known]
        if self.align == "lsq" and len(y):
            centred = y - y.mean()
            variance = (centred**2).mean()
            slope = (centred * (d - d.mean())).mean() / variance if variance > 0 else 0.0
            y = slope * centred + d.mean()
        self.squares += float(((y - d) ** 2).sum())
        self.count += len(y)

    def value(self) -> float:
        """In the unit of the label, lower is better."""
        return (self.squares / self.count) ** 0.5 if self.count else float("nan")


class MeanAngle:
    r"""Mean angle between vectors in degrees, over all known pixels of all batches.

    .. math:: \tfrac1n \sum_p 2 \, \mathrm{atan2}(\|a_p - b_p\|, \|a_p + b_p\|)

    with both of unit length (Kahan): exact near 0 and 180 degrees, where the arc cosine of the inner product is not. The
    output need not be of unit length; a zero vector points nowhere and counts 90. The mean is over pixels and not over
    images, so an image with few known pixels weighs little (the released code of S4T does the same).

    >>> meter = MeanAngle()
    >>> meter.update(torch.tensor([[3.0, 0, 0]])[..., None, None], torch.tensor([[0.0, 1, 0]])[..., None, None])
    >>> round(meter.value(), 6)
    90.0
    """

    def __init__(self) -> None:
        self.degrees, self.count = 0.0, 0

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            output: (N, 3, H, W).
            label: (N, 3, H, W), NaN where it is not known; a pixel is known where all three are.

        Raises:
            ValueError: the shapes differ, or the output is not finite where the label is known.
        """
        answer, truth, known = paired(output, label, whole=True)
        a, b = (_unit(np.moveaxis(v, 1, -1)[known]) for v in (answer, truth))
        apart, together = np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)
        self.degrees += float(np.degrees(2 * np.arctan2(apart, together)).sum())
        self.count += len(a)

    def value(self) -> float:
        """Degrees, lower is better."""
        return self.degrees / self.count if self.count else float("nan")


def _unit(v: Floats) -> Floats:
    """Unit vectors along the last axis; zero stays zero."""
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return v / np.where(length > 0, length, 1)


def paired(
    output: Tensor, label: Tensor, whole: bool = False, unit: bool = False
) -> tuple[Floats, Floats, Flags]:
    """Output and label in double precision, and where the label is known (in all channels, if ``whole``)."""
    if output.dim() != 4 or output.shape != label.shape:
        raise ValueError(
            f"expected output and label of one shape (N, C, H, W), got {tuple(output.shape)} "
            f"and {tuple(label.shape)}; resize the output to the label"
        )
    answer, truth = (v.detach().cpu().double().numpy().copy() for v in (output, label))
    known = np.isfinite(truth)
    if unit and ((truth[known] < 0) | (truth[known] > 1)).any():
        raise ValueError("an edge label must lie in [0, 1], NaN where it is not known")
    if whole:
        known = known.all(1)
        _finite(np.isfinite(answer).all(1)[known])
    else:
        _finite(np.isfinite(answer[known]))
    return answer, truth, known


def _finite(flags: Tensor | Flags) -> None:
    wrong = len(flags) - int(flags.sum())
    if wrong:
        raise ValueError(
            f"the output is not finite at {wrong} of {len(flags)} known pixels: the model has diverged"
        )
