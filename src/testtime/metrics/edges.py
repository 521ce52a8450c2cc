"""Metrics of edge maps: cross-entropy, average precision, and the F-measure of the Berkeley benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.metrics.dense import Floats, paired
from testtime.metrics.edge_matching import grow_matching, ridges, thinned, untied

__all__ = ["BCE", "AveragePrecision", "EdgeF"]


class BCE:
    r"""Mean binary cross-entropy of edges in nats over all known pixels, without weights.

    .. math:: -\tfrac1n \sum_p t_p \log \sigma(y_p) + (1 - t_p) \log(1 - \sigma(y_p))

    A proper score that is cheap to compute. It also measures calibration: a model trained with a high weight of edges (HED)
    scores worse because of the shift of its probabilities.

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
            output: logits, (N, 1, H, W).
            label: edges, (N, 1, H, W) in [0, 1], NaN where unknown.

        Raises:
            ValueError: the shapes differ, a label is not in [0, 1], or the output is not finite where the label is known.
        """
        answer, truth, known = paired(output, label, unit=True)
        y, t = answer[known], truth[known]
        self.nats += float((np.logaddexp(0, y) - t * y).sum())
        self.count += len(y)

    def value(self) -> float:
        """Return the cross-entropy in nats, lower is better."""
        return self.nats / self.count if self.count else float("nan")


class AveragePrecision:
    r"""Average precision of edge pixels in percent: the ranking of edge pixels above other pixels.

    .. math:: 100 \sum_k (R_k - R_{k-1}) \, P_k

    over descending thresholds of the logit in steps of 0.01 between -15 and 15 (logits are clipped to this range; those in
    one bin are ties). An edge is a pixel whose label is at least a half. There is no spatial tolerance: an edge found one
    pixel aside is a false negative and a false positive, unlike in :class:`EdgeF`. A random ranking reaches the share of edge
    pixels.

    >>> meter = AveragePrecision()
    >>> meter.update(torch.tensor([[[[3.0, 2.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0, 1.0]]]]))
    >>> round(meter.value(), 2)
    83.33
    """

    LIMIT, STEP = 15.0, 0.01

    def __init__(self) -> None:
        self.histogram = np.zeros((2, round(2 * self.LIMIT / self.STEP) + 1), dtype=np.int64)

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch, with the arguments and errors of :meth:`BCE.update`."""
        answer, truth, known = paired(output, label, unit=True)
        place = np.rint((answer[known].clip(-self.LIMIT, self.LIMIT) + self.LIMIT) / self.STEP).astype(int)
        edge = truth[known] >= 0.5
        for row, here in enumerate((place[~edge], place[edge])):
            self.histogram[row] += np.bincount(here, minlength=self.histogram.shape[1])

    def value(self) -> float:
        """Return the average precision in percent, higher is better; NaN without an edge."""
        rest, edges = self.histogram[:, ::-1].cumsum(1)
        return _area(edges, edges + rest, edges[-1])


class EdgeF:
    r"""F-measure of thinned edges matched one to one within a tolerance, as in the Berkeley benchmark.

    .. math:: F(t) = \frac{2 P R}{P + R}, \quad P = \frac{m(t)}{\text{found}(t)}, \quad R = \frac{m(t)}{\text{edges}}

    with m(t) the size of the largest one-to-one matching of found pixels and edge pixels within the tolerance. Three metrics
    in percent: ``value()`` is ODS, the best F with one threshold for all images; ``ois`` is F with the best threshold of each
    image; ``ap`` is :math:`\sum_k (R_k - R_{k-1}) P_k` over the thresholds.

    Args:
        thresholds: number K of evenly spaced thresholds k / (K + 1) in (0, 1), or the ascending thresholds themselves. A
            pixel is found if its probability is at least the threshold.
        tolerance: largest distance of a matched pair as a share of the image's diagonal, but at least one pixel (which
            applies below 94 x 94 pixels); the default is that of the Berkeley benchmark.
        thin_labels: whether the labels are thinned to lines of one pixel too. Otherwise thin edges could not recall labels
            that mark both sides of an edge, as those computed for PASCAL-Context do; the benchmark does not thin its drawn
            labels.

    Predicted edges are thinned twice: first by non-maximum suppression (a pixel is kept if neither neighbour across the ridge
    is higher, interpolated one pixel away along the main curvature of the map blurred by one pixel; on a plateau the middle
    is higher), then to lines of one pixel (:func:`~testtime.metrics.edge_matching.thinned`), the least probable pixels first.

    The matching is exact, and one pass covers all thresholds: pixels found at a threshold include those found at a higher
    one, so pixels are added in descending order of probability, each with a search for an augmenting path, and a pixel
    without such a path never gets one (the rank of a transversal matroid). The benchmark minimises a sum of distances in which
    an unmatched pixel costs a hundred tolerances; the number of pairs is the same unless a further pair needs an augmenting
    path of a hundred shifts.

    Departures from the benchmark's code: one annotator; thinning once and not at every threshold; F at the thresholds,
    without interpolation between them; ``ap`` is a sum of steps, where the benchmark interpolates and omits recalls below
    the lowest measured one; the curvature is that of the Hessian.
    An edge is a pixel whose label is at least a half; pixels found where the label is unknown do not count. Where edges
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
        # Pairs and found pixels by threshold, and all edge pixels; then pairs and found pixels at each image's best threshold.
        self.pairs, self.found = np.zeros((2, len(self.thresholds)), dtype=np.int64)
        self.edges = 0
        self.best_pairs, self.best_found = 0, 0

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch, with the arguments and errors of :meth:`BCE.update`."""
        answer, truth, known = paired(output, label, unit=True)
        p = torch.from_numpy(np.nan_to_num(answer[:, 0])).sigmoid()
        drawn = torch.from_numpy(np.nan_to_num(truth[:, 0]))
        reach = max(1.0, self.tolerance * float(np.hypot(*p.shape[-2:])))
        images = zip(p.numpy(), untied(p).numpy(), ridges(p), known[:, 0], strict=True)
        labels = zip(drawn.numpy() >= 0.5, untied(drawn).numpy(), strict=True)
        for (p, height, ridge, seen), (edge, drawn_height) in zip(images, labels, strict=True):
            if not seen.any():
                continue
            edge = thinned(edge, drawn_height) if self.thin_labels else edge
            ridge = thinned(ridge & seen & (p >= self.thresholds[0]), height)
            found = np.flatnonzero(ridge)
            found = found[np.argsort(-p.flat[found], kind="stable")]
            hits = np.concatenate([[0], np.cumsum(grow_matching(found, edge, reach))])
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
        """Return thresholds, precisions and recalls, each (K,), in [0, 1]; a precision is 0 where nothing was found."""
        precision = self.pairs / np.maximum(self.found, 1)
        recall = self.pairs / self.edges if self.edges else np.full(len(self.pairs), np.nan)
        return self.thresholds, precision, recall

    @property
    def ods(self) -> float:
        """F in percent at the best threshold for all images."""
        return float(100 * _f(self.pairs, self.found, self.edges).max()) if self.edges else float("nan")

    @property
    def ois(self) -> float:
        """F in percent at the best threshold of each image."""
        best = _f(np.array([self.best_pairs]), np.array([self.best_found]), self.edges)
        return float(100 * best[0]) if self.edges else float("nan")

    @property
    def ap(self) -> float:
        """Average precision in percent."""
        return _area(self.pairs[::-1], self.found[::-1], self.edges)

    def value(self) -> float:
        """Return ODS in percent, higher is better; NaN without an edge."""
        return self.ods


def _f(pairs: NDArray[np.int64], found: NDArray[np.int64], edges: int) -> Floats:
    """Return F = 2PR / (P + R) from counts: twice the pairs over the sum of found and edge pixels."""
    return 2 * pairs / np.maximum(found + edges, 1)


def _area(hits: NDArray[np.int64], found: NDArray[np.int64], edges: int) -> float:
    """Return the sum of precisions over steps of recall in percent, for descending thresholds."""
    if not edges:
        return float("nan")
    steps = np.diff(hits, prepend=0) / edges
    return float(100 * (steps * hits / np.maximum(found, 1)).sum())
