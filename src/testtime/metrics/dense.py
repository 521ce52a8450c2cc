"""Metrics with an answer per pixel, as meters: show them batches, then ask for the value.

Labels are those of :class:`testtime.data.Sample` in a batch, and what a label ignores is never counted. A meter has no
reset; make a new one. ``value()`` is NaN when nothing was measured, and an output that is not finite where its label is
known is an error rather than a gap: a model that diverged must not look as if it had not been asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from testtime.labels import IGNORE

__all__ = ["BCE", "RMSE", "AveragePrecision", "EdgeF", "MeanAngle", "MeanIoU"]

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
        answer, truth, known = _paired(output, label)
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
        answer, truth, known = _paired(output, label, whole=True)
        a, b = (_unit(np.moveaxis(v, 1, -1)[known]) for v in (answer, truth))
        apart, together = np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)
        self.degrees += float(np.degrees(2 * np.arctan2(apart, together)).sum())
        self.count += len(a)

    def value(self) -> float:
        """Degrees, lower is better."""
        return self.degrees / self.count if self.count else float("nan")


class BCE:
    r"""Mean binary cross-entropy of edges in nats, over all known pixels; no pixel weighs more than another.

    .. math:: -\tfrac1n \sum_p t_p \log \sigma(y_p) + (1 - t_p) \log(1 - \sigma(y_p))

    Cheap and proper, but it judges calibration too: a model trained with a high weight on edges (HED) pays for the shift
    that the weight asked of it.

    >>> meter = BCE()
    >>> meter.update(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]]))
    >>> round(meter.value(), 4)
    0.6931
    """

    def __init__(self) -> None:
        self.nats, self.count = 0.0, 0

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            output: (N, 1, H, W) logits.
            label: (N, 1, H, W) in [0, 1], NaN where it is not known.

        Raises:
            ValueError: the shapes differ, a label leaves [0, 1], or the output is not finite where the label is known.
        """
        answer, truth, known = _paired(output, label, unit=True)
        y, t = answer[known], truth[known]
        self.nats += float((np.logaddexp(0, y) - t * y).sum())
        self.count += len(y)

    def value(self) -> float:
        """Nats, lower is better."""
        return self.nats / self.count if self.count else float("nan")


class AveragePrecision:
    r"""Average precision of edge pixels in percent: how well edges are ranked above the rest, pixel for pixel.

    .. math:: 100 \sum_k (R_k - R_{k-1}) \, P_k

    over thresholds of the logit from the highest down, in steps of 0.01 between -15 and 15 (what lies beyond counts as
    the end; equal bins are ties and enter together). An edge is a pixel whose label is at least a half. There is no
    tolerance: an edge found one pixel aside is a miss and a false alarm, which :class:`EdgeF` forgives. The worst that
    chance can do is the share of edge pixels.

    >>> meter = AveragePrecision()
    >>> meter.update(torch.tensor([[[[3.0, 2.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0, 1.0]]]]))
    >>> round(meter.value(), 2)
    83.33
    """

    LIMIT, STEP = 15.0, 0.01

    def __init__(self) -> None:
        self.histogram = np.zeros((2, round(2 * self.LIMIT / self.STEP) + 1), dtype=np.int64)

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch; arguments and errors are those of :meth:`BCE.update`."""
        answer, truth, known = _paired(output, label, unit=True)
        place = np.rint((answer[known].clip(-self.LIMIT, self.LIMIT) + self.LIMIT) / self.STEP).astype(int)
        edge = truth[known] >= 0.5
        for row, here in enumerate((place[~edge], place[edge])):
            self.histogram[row] += np.bincount(here, minlength=self.histogram.shape[1])

    def value(self) -> float:
        """Percent, higher is better; NaN before the first edge."""
        rest, edges = self.histogram[:, ::-1].cumsum(1)
        return _area(edges, edges + rest, edges[-1])


class EdgeF:
    r"""F-measure of thinned edges that are matched one to one within a tolerance, as in the Berkeley benchmark.

    .. math:: F(t) = \frac{2 P R}{P + R}, \quad P = \frac{m(t)}{\text{found}(t)}, \quad R = \frac{m(t)}{\text{edges}}

    with m(t) the largest number of pairs of a found pixel and an edge pixel that lie within the tolerance, no pixel being
    in two pairs. Three figures in percent: ``value()`` is ODS, the best F over one threshold for all images; ``ois`` lets
    each image choose its own; ``ap`` is :math:`\sum_k (R_k - R_{k-1}) P_k` over the thresholds.

    Args:
        thresholds: how many, evenly within (0, 1): k / (K + 1); or the thresholds themselves, rising. A pixel is found
            where its probability reaches the threshold.
        tolerance: as a share of the image's diagonal; 0.0075 is Berkeley's. It is never less than one pixel, which it
            would be below an image of 94 x 94.
        thin_labels: whether to thin the labels to lines of one pixel too. Labels that mark both sides of an edge, as those
            computed for PASCAL-Context do, could not be recalled by thin edges otherwise; the benchmark takes its drawn
            labels as they are.

    What is found is thinned twice. A pixel stays if neither neighbour across the ridge is higher (interpolated one pixel
    away, along the main curvature of the map blurred by one pixel; on a plateau the middle is higher), and what is left
    is thinned to lines of one pixel (:func:`thinned`), the least probable pixels leaving first.

    The matching is exact, and one pass answers all thresholds: what is found at a lower threshold contains what is found
    at a higher one, so pixels join from the most probable down, each looking for an augmenting path, and a pixel that
    finds none never will (the rank of a transversal matroid). The benchmark minimises a sum of distances in which an
    unmatched pixel costs a hundred tolerances; the number of pairs is the same unless one more pair needs a path of a
    hundred shifts.

    Departures from the benchmark's code: one annotator; thinned once and not at every threshold; F at the thresholds,
    without interpolation between them; ``ap`` is a sum of steps, where the benchmark interpolates and leaves out what is
    left of the lowest recall it met; the curvature is that of the Hessian.
    An edge is a pixel whose label is at least a half; what is found where no label is known does not count. Where edges
    are dense and the tolerance is wide, noise scores well.

    Cost: for all thresholds on one core about 3 ms for an image of 64 x 64, 12 ms for 128 x 128, up to 2 s for 480 x 480
    with dense edges, where the tolerance covers 81 pixels.

    Reference: Martin, Fowlkes and Malik, Learning to Detect Natural Image Boundaries, PAMI 2004; Arbelaez et al., Contour
    Detection and Hierarchical Image Segmentation, PAMI 2011.

    >>> label = torch.zeros(1, 1, 16, 16)
    >>> label[..., 5] = 1
    >>> meter = EdgeF()
    >>> meter.update(20 * label.roll(1, 3) - 10, label)
    >>> meter.value()
    100.0
    """

    def __init__(
        self, thresholds: int | Sequence[float] = 33, tolerance: float = 0.0075, thin_labels: bool = True
    ) -> None:
        if isinstance(thresholds, int):
            thresholds = [k / (thresholds + 1) for k in range(1, thresholds + 1)]
        self.thresholds = np.asarray(thresholds, dtype=float)
        if not len(self.thresholds) or (np.diff(self.thresholds) <= 0).any():
            raise ValueError("thresholds must be at least one, and rising")
        self.tolerance, self.thin_labels = tolerance, thin_labels
        # By threshold: pairs and found pixels; in all: edge pixels. The same at each image's best threshold.
        self.pairs, self.found = np.zeros((2, len(self.thresholds)), dtype=np.int64)
        self.edges = 0
        self.best_pairs, self.best_found = 0, 0

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch; arguments and errors are those of :meth:`BCE.update`."""
        answer, truth, known = _paired(output, label, unit=True)
        p = torch.from_numpy(np.nan_to_num(answer[:, 0])).sigmoid()
        drawn = torch.from_numpy(np.nan_to_num(truth[:, 0]))
        reach = max(1.0, self.tolerance * float(np.hypot(*p.shape[-2:])))
        images = zip(p.numpy(), _untied(p).numpy(), _ridges(p), known[:, 0], strict=True)
        labels = zip(drawn.numpy() >= 0.5, _untied(drawn).numpy(), strict=True)
        for (p, height, ridge, seen), (edge, drawn_height) in zip(images, labels, strict=True):
            if not seen.any():
                continue
            edge = thinned(edge, drawn_height) if self.thin_labels else edge
            ridge = thinned(ridge & seen & (p >= self.thresholds[0]), height)
            found = np.flatnonzero(ridge)
            found = found[np.argsort(-p.flat[found], kind="stable")]
            hits = np.concatenate([[0], np.cumsum(joined(found, edge, reach))])
            count = np.searchsorted(-p.flat[found], -self.thresholds, side="right")
            pairs, edges = hits[count], int(edge.sum())
            self.pairs += pairs
            self.found += count
            self.edges += edges
            f = _f(pairs, count, edges)
            best = len(f) - 1 - int(np.argmax(f[::-1]))
            self.best_pairs += int(pairs[best])
            self.best_found += int(count[best])

    def curve(self) -> tuple[Floats, Floats, Floats]:
        """Threshold, precision and recall, each (K,), from 0 to 1; a precision is 0 where nothing was found."""
        precision = self.pairs / np.maximum(self.found, 1)
        recall = self.pairs / self.edges if self.edges else np.full(len(self.pairs), np.nan)
        return self.thresholds, precision, recall

    @property
    def ods(self) -> float:
        """Percent at the best threshold for all images."""
        return float(100 * _f(self.pairs, self.found, self.edges).max()) if self.edges else float("nan")

    @property
    def ois(self) -> float:
        """Percent when every image chooses its threshold."""
        best = _f(np.array([self.best_pairs]), np.array([self.best_found]), self.edges)
        return float(100 * best[0]) if self.edges else float("nan")

    @property
    def ap(self) -> float:
        """Average precision in percent."""
        return _area(self.pairs[::-1], self.found[::-1], self.edges)

    def value(self) -> float:
        """ODS in percent, higher is better; NaN before the first edge."""
        return self.ods


def joined(found: NDArray[np.intp], edges: Flags, reach: float) -> Flags:
    """Which of the found pixels make the largest one-to-one matching grow, in the order in which they join.

    Args:
        found: flat places in the image, no two the same.
        edges: (H, W), the pixels to be matched.
        reach: the largest distance of a pair, in pixels.

    Returns:
        as many flags as places; the first n hold as many True as the largest matching of the first n has pairs.

    >>> joined(np.array([0, 2, 4]), np.array([[False, True, False, True, False]]), 1).tolist()
    [True, True, False]
    """
    margin = int(reach)
    width = edges.shape[1] + 2 * margin
    down, right = np.mgrid[-margin : margin + 1, -margin : margin + 1]
    squares = (down**2 + right**2).ravel()
    near = [k for k in np.argsort(squares, kind="stable") if squares[k] <= reach**2 + 1e-9]
    shifts: list[int] = (down * width + right).ravel()[near].tolist()
    rows, columns = np.divmod(found, edges.shape[1])
    places: list[int] = ((rows + margin) * width + columns + margin).tolist()

    # An edge pixel is open until a search shows that it can bring no further pair.
    is_open = bytearray(np.pad(edges, margin).tobytes())
    holder: dict[int, int] = {}
    held: dict[int, int] = {}
    grown = np.zeros(len(places), dtype=bool)
    for i, start in enumerate(places):
        reached: dict[int, int] = {}
        queue = [start]
        end = -1
        for place in queue:
            for shift in shifts:
                edge = place + shift
                if is_open[edge] and edge not in reached:
                    reached[edge] = place
                    if edge not in holder:
                        end = edge
                        break
                    queue.append(holder[edge])
            if end >= 0:
                break
        if end < 0:
            # All that was reached is held by pixels that reach nothing else: no path will ever pass here.
            for edge in reached:
                is_open[edge] = 0
            continue
        grown[i] = True
        while True:
            place = reached[end]
            holder[end] = place
            end, held[place] = held.get(place, -1), end
            if place == start:
                break
    return grown


def thinned(mask: Flags, height: Floats) -> Flags:
    """The lines of one pixel that a mask thins to: pixels leave from the lowest up, unless they hold two parts together
    or end a line.

    Any part of the result that is cut off by a threshold of the height is as thin.

    Args:
        mask: (H, W).
        height: (H, W), best without ties.

    Reference: Pudney, Distance-Ordered Homotopic Thinning, CVIU 1998, with this height for the distance.

    >>> mask = np.ones((3, 4), dtype=bool)
    >>> thinned(mask, np.array([[1.0, 5, 6, 2], [9, 9, 9, 9], [3, 7, 8, 4]])).astype(int).tolist()
    [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    """
    width = mask.shape[1] + 2
    rows, columns = np.nonzero(mask)
    order = np.argsort(height[rows, columns], kind="stable")
    places: list[int] = ((rows + 1) * width + columns + 1)[order].tolist()
    on = bytearray(np.pad(mask, 1).tobytes())
    while True:
        kept = []
        for at in places:
            up, down = at - width, at + width
            around = (
                on[up],
                on[up + 1],
                on[at + 1],
                on[down + 1],
                on[down],
                on[down - 1],
                on[at - 1],
                on[up - 1],
            )
            if around in REMOVABLE:
                on[at] = 0
            else:
                kept.append(at)
        if len(kept) == len(places):
            break
        places = kept
    whole = np.frombuffer(on, dtype=bool).reshape(-1, width)
    return whole[1:-1, 1:-1].copy()


def _removable(around: tuple[int, ...]) -> bool:
    """Whether a pixel with these neighbours, clockwise from above, neither joins two parts nor ends a line.

    The two tests are those of Guo and Hall, Parallel Thinning with Two-Subiteration Algorithms, CACM 1989.
    """
    n, ne, e, se, s, sw, w, nw = around
    parts = sum(
        not here and (beside or after)
        for here, beside, after in ((n, ne, e), (e, se, s), (s, sw, w), (w, nw, n))
    )
    lines = min(sum((nw | n, ne | e, se | s, sw | w)), sum((n | ne, e | se, s | sw, w | nw)))
    return parts == 1 and lines >= 2


REMOVABLE = frozenset(around for around in product((0, 1), repeat=8) if _removable(around))


def _ridges(p: Tensor) -> Flags:
    """Where probabilities (N, H, W) are not lower than either neighbour across their ridge."""
    height, width = p.shape[-2:]
    if min(height, width) < 2:
        return np.ones(tuple(p.shape), dtype=bool)
    down, right = torch.gradient(_blurred(p), dim=(1, 2))
    (yy, yx), (_, xx) = (torch.gradient(d, dim=(1, 2)) for d in (down, right))
    # The direction of the strongest curvature, which on a crest is downward: across the ridge.
    angle = torch.atan2(2 * yx, xx - yy) / 2 + torch.where(xx + yy > 0, 0, torch.pi / 2)
    q = _untied(p)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    kept = torch.ones_like(p, dtype=torch.bool)
    for sign in (-1, 1):
        y, x = rows + sign * angle.sin(), columns + sign * angle.cos()
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        beside = F.grid_sample(q[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
        kept &= q >= beside - 1e-14
    return kept.numpy()


def _untied(p: Tensor) -> Tensor:
    """Maps (N, H, W) in which equal heights are told apart by what lies around them, and then by their place."""
    ramp = torch.linspace(0, 1e-8, p.shape[-2] * p.shape[-1], dtype=p.dtype).view(p.shape[-2:])
    return p + 1e-4 * _blurred(p) + ramp


def _blurred(p: Tensor) -> Tensor:
    """Maps (N, H, W) under a Gaussian of one pixel, the border repeated."""
    kernel = torch.exp(-(torch.arange(-3, 4, dtype=p.dtype) ** 2) / 2)
    kernel = kernel / kernel.sum()
    wide = F.pad(p[:, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel.view(1, 1, 7, 1)), kernel.view(1, 1, 1, 7))[:, 0]


def _f(pairs: NDArray[np.int64], found: NDArray[np.int64], edges: int) -> Floats:
    """F from counts: 2PR / (P + R) is twice the pairs over all that could have been in one."""
    return 2 * pairs / np.maximum(found + edges, 1)


def _area(hits: NDArray[np.int64], found: NDArray[np.int64], edges: int) -> float:
    """Percent: precision summed over steps of recall, the thresholds falling."""
    if not edges:
        return float("nan")
    steps = np.diff(hits, prepend=0) / edges
    return float(100 * (steps * hits / np.maximum(found, 1)).sum())


def _unit(v: Floats) -> Floats:
    """Unit vectors along the last axis; zero stays zero."""
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return v / np.where(length > 0, length, 1)


def _paired(
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
