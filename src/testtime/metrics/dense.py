"""Metrics of dense predictions: ``update`` adds a batch, ``value`` returns the metric over all batches.

Labels follow :class:`testtime.data.Sample`, as batches; ignored pixels do not count. A metric has no reset; create a new one.
``value()`` is NaN if nothing was measured. An output that is not finite where its label is known is an error and not a
missing value, so that the divergence of a model is not hidden.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.labels import IGNORE
from testtime.moved import renamed

__all__ = ["RMSE", "MeanAngle", "MeanIoU", "known_pixels"]

__getattr__ = renamed(
    __name__,
    {
        "BCE": "testtime.metrics.edges:BCE",
        "AveragePrecision": "testtime.metrics.edges:AveragePrecision",
        "EdgeF": "testtime.metrics.edges:EdgeF",
        "joined": "testtime.metrics.edge_matching:grow_matching",
        "thinned": "testtime.metrics.edge_matching:thinned",
    },
)

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def known_pixels(output: Tensor, label: Tensor, classes: int, ignore: int) -> Tensor:
    """Check a batch of segmentations, and return which pixels have a class, (N, H, W) bool.

    Args:
        output: logits or probabilities, (N, C, H, W).
        label: class indices, (N, H, W) integers.
        classes: number of classes C.
        ignore: label of a pixel of unknown class.

    Raises:
        ValueError: the shapes do not match, or a label is neither a class nor ignored.
    """
    if label.dim() != 3 or tuple(output.shape) != (label.shape[0], classes, *label.shape[1:]):
        raise ValueError(
            f"expected output (N, {classes}, H, W) and label (N, H, W), "
            f"got {tuple(output.shape)} and {tuple(label.shape)}; resize the output to the label"
        )
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"expected labels that are integers, numbers of classes, got {label.dtype}")
    known = label != ignore
    wrong = label[known & ((label < 0) | (label >= classes))]
    if len(wrong):
        raise ValueError(
            f"label {wrong[0].item()} is none of the {classes} classes and not ignored ({ignore})"
        )
    return known


class MeanIoU:
    r"""Mean intersection over union in percent, over all pixels of all batches.

    .. math:: \frac{100}{|K|} \sum_{k \in K} \frac{TP_k}{TP_k + FP_k + FN_k}

    Args:
        classes: number of classes C, the channels of the output.
        ignore: label of a pixel of unknown class.
        absent: treatment of a class without labelled pixels. "skip" leaves it out of K; "zero" counts it as 0, as the
            released code of S4T does, so that the same predictions score lower on a set that lacks a class.

    The published figures of S4T are over the 6 or 7 classes that two sets share, without the background; they are not
    comparable with the usual benchmarks on these sets.

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
            output: logits or probabilities, (N, C, H, W); the class with the highest is the prediction.
            label: class indices, (N, H, W) integers.

        Raises:
            ValueError: the shapes do not match, or a label is neither a class nor ignored.
        """
        known = known_pixels(output, label, self.classes, self.ignore)
        _finite(output.isfinite().all(1)[known])
        truth, answer = label[known].long().cpu(), output.argmax(1)[known].cpu()
        pairs = torch.bincount(truth * self.classes + answer, minlength=self.classes**2)
        self.confusion += pairs.numpy().reshape(self.confusion.shape)

    @property
    def by_class(self) -> Floats:
        """IoU of each class in percent, (C,); NaN for a class without labelled pixels."""
        hit, seen = np.diag(self.confusion), self.confusion.sum(1)
        union = seen + self.confusion.sum(0) - hit
        return np.where(seen > 0, 100 * hit / np.maximum(union, 1), np.nan)

    def value(self) -> float:
        """Return the mean IoU in percent, higher is better."""
        seen = self.by_class
        if np.isnan(seen).all():
            return float("nan")
        return float(np.nanmean(seen) if self.absent == "skip" else np.nan_to_num(seen).mean())


class RMSE:
    r"""Root mean squared error in the unit of the label, pooled over all values of all batches.

    .. math:: \sqrt{\tfrac1n \sum_p (a(y_p) - d_p)^2}

    Args:
        align: alignment a of the output. "none": the output is unchanged. "median": each image's output is scaled by the
            ratio of the medians of label and output over its known pixels (Zhou et al., Unsupervised Learning of Depth and
            Ego-Motion from Video, CVPR 2017); an output whose median is not positive is unchanged. "lsq" (legacy): one
            scale and shift for all known pixels of a *batch* by least squares, as in the released code of S4T, for depth and
            (on ``output.sigmoid()``) for edges.

    With "lsq" the value cannot exceed the standard deviation of the labels within their batches, whatever the model
    predicts: a constant reaches it. The edge column of S4T's table 1, 0.1440 to 0.1444, is the standard deviation of a
    binary map with 2.1 % edges. The value also depends on the batches. Use it only to reproduce published figures.

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
            output: predictions, (N, C, H, W); C is 1 for depth.
            label: true values, (N, C, H, W), NaN where unknown.

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
        """Return the RMSE in the unit of the label, lower is better."""
        return (self.squares / self.count) ** 0.5 if self.count else float("nan")


class MeanAngle:
    r"""Mean angle between vectors in degrees, over all known pixels of all batches.

    .. math:: \tfrac1n \sum_p 2 \, \mathrm{atan2}(\|a_p - b_p\|, \|a_p + b_p\|)

    with both of unit length (Kahan): exact near 0 and 180 degrees, where the arc cosine of the inner product is not. The
    output need not be of unit length; a zero vector has no direction and counts as 90 degrees. The mean is over pixels and
    not over images, so an image with few known pixels has little weight (as in the released code of S4T).

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
            output: predicted vectors, (N, 3, H, W).
            label: true vectors, (N, 3, H, W), NaN where unknown; a pixel is known where all three components are.

        Raises:
            ValueError: the shapes differ, or the output is not finite where the label is known.
        """
        answer, truth, known = paired(output, label, whole=True)
        a, b = (_unit(np.moveaxis(v, 1, -1)[known]) for v in (answer, truth))
        apart, together = np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)
        self.degrees += float(np.degrees(2 * np.arctan2(apart, together)).sum())
        self.count += len(a)

    def value(self) -> float:
        """Return the mean angle in degrees, lower is better."""
        return self.degrees / self.count if self.count else float("nan")


def _unit(v: Floats) -> Floats:
    """Normalise vectors along the last axis; zero stays zero."""
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return v / np.where(length > 0, length, 1)


def paired(
    output: Tensor, label: Tensor, whole: bool = False, unit: bool = False
) -> tuple[Floats, Floats, Flags]:
    """Return output and label (N, C, H, W) in double precision, and a mask of the known values.

    Args:
        output: predictions, (N, C, H, W).
        label: labels, (N, C, H, W), NaN where unknown.
        whole: whether a pixel is known only where all its channels are; the mask is then (N, H, W).
        unit: whether the labels have to be in [0, 1].

    Raises:
        ValueError: the shapes differ, a label is out of range, or the output is not finite where the label is known.
    """
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
