r"""Estimates of a classifier's accuracy without labels: AETTA and consistency.

AETTA: a prediction that changes under dropout of the features is likely to be wrong. The estimate grows as the predictions
concentrate on few classes, because a collapsed model agrees with itself. With the share D of (image, dropout) pairs whose
prediction differs, and H the entropy of the mean probabilities of a batch over :math:`\log C`,

.. math:: \widehat{\mathrm{err}} = \min\bigl(D / H^{\alpha},\; 1 - 1/C\bigr)

Consistency: the predictions are compared under a perturbation of the image instead. No access to the network is needed, so
that it also applies to methods whose prediction is not that of their network. A model can also be consistently wrong: one
class in fog, another in noise. The class of an image depends little on its appearance (:mod:`testtime.metrics.appearance`),
and so do the predictions y of a good model; with the share D of predictions that change, the clusters g of images of similar
appearance, and the mutual information I of predictions and clusters,

.. math:: \widehat{\mathrm{acc}} = (1 - D) \left(1 - \frac{I(y; g)}{H(y)}\right)^2

It assumes nothing about the shares of the classes: a stream may contain few of them.

Departures from AETTA: the dropout is applied before the linear head alone (in the published code, within a residual network),
so that any network with such a head can be monitored at the cost of one forward pass.

Consistency is original to this library.

Reference: Lee, Chottananurak, Gong and Lee, AETTA: Label-Free Accuracy Estimation for Test-Time Adaptation, CVPR 2024,
equations 9 to 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["aetta", "consistency", "diversity", "dropout_disagreement"]


@torch.no_grad()
def dropout_disagreement(
    features: Tensor, head: nn.Linear, rng: torch.Generator, rate: float = 0.4, passes: int = 10
) -> tuple[float, float]:
    """Return the disagreement of predictions under dropout, and the diversity of the predicted classes.

    Args:
        features: input of the head, (N, D).
        head: linear layer from features to logits (N, C).
        rng: random generator of the dropout, on the device of the features.
        rate: dropout rate, in (0, 1); the default is that of the paper for CIFAR-10.
        passes: number of dropout masks.

    Returns:
        The disagreement D in [0, 1] and the normalised entropy H in [0, 1].

    Raises:
        ValueError: there are no features, or the rate is out of range.

    >>> head = nn.Linear(2, 2, bias=False)
    >>> _ = head.weight.data.copy_(torch.eye(2))
    >>> dropout_disagreement(torch.tensor([[9.0, 0.0]]), head, torch.Generator().manual_seed(0), rate=1e-9)[0]
    0.0
    """
    if not len(features) or not 0 < rate < 1:
        raise ValueError(f"expected features and a rate in (0, 1), got {len(features)} features and {rate}")
    z, weight, bias = features.float(), head.weight.float(), None if head.bias is None else head.bias.float()
    plain = F.linear(z, weight, bias).argmax(dim=1)
    other, mean = 0.0, torch.zeros(len(weight), device=z.device)
    for _ in range(passes):
        kept = torch.rand(z.shape, generator=rng, device=z.device) >= rate
        logits = F.linear(z * kept / (1 - rate), weight, bias)
        other += float((logits.argmax(dim=1) != plain).float().mean()) / passes
        mean += logits.softmax(dim=1).mean(dim=0) / passes
    return other, diversity(mean.cpu().numpy())


def diversity(shares: ArrayLike) -> float:
    """Return the entropy of the shares of C classes over log C: 1 for equal shares, 0 for a single class.

    Args:
        shares: shares or counts of the classes, (C,), not negative and at least one positive.

    >>> diversity([1, 1, 0, 0]), diversity([4, 0])
    (0.5, 0.0)
    """
    p = np.asarray(shares, dtype=float)
    p = p[p > 0] / p.sum()
    return float(0.0 - (p * np.log(p)).sum() / math.log(max(np.size(shares), 2)))  # 0.0, not -0.0


def aetta(
    disagreements: Sequence[float],
    spreads: Sequence[float],
    classes: int,
    alpha: float = 3.0,
    memory: float = 0.6,
) -> NDArray[np.float64]:
    """Return the estimated accuracy in percent after each batch.

    Args:
        disagreements: disagreement D of each batch, (T,).
        spreads: normalised entropy H of each batch, (T,).
        classes: number of classes C.
        alpha: exponent of the normalised entropy.
        memory: weight of the previous estimate; the first estimate is D itself, as in the published code.

    >>> aetta([0.2, 0.2], [1.0, 0.5], 10).round(1)
    array([80., 52.])
    """
    error = disagreements[0] if len(disagreements) else 0.0
    found = []
    for other, spread in zip(disagreements, spreads, strict=True):
        now = min(other / max(spread, 1e-6) ** alpha, 1 - 1 / classes)
        error = memory * error + (1 - memory) * now
        found.append(100 * (1 - error))
    return np.array(found)


def consistency(changed: float, answers: ArrayLike) -> float:
    """Return the accuracy in percent estimated from consistent predictions that do not depend on the images' appearance.

    Args:
        changed: share of the predictions that change under the perturbation, in [0, 1].
        answers: number of images of each cluster that were predicted as each class, (G, C). Clusters of fewer than 10 C images
            differ by chance.

    Returns:
        The estimate; 0 if all predictions are one class, which is not informative.

    >>> consistency(0.2, [[500, 500], [500, 500]])
    80.0
    >>> consistency(0.0, [[1000, 0], [0, 1000]])  # a class for each appearance
    0.0
    """
    groups = np.atleast_2d(np.asarray(answers, dtype=float))
    groups = groups[groups.any(axis=1)]
    together = diversity(groups.sum(axis=0))
    if not together:
        return 0.0
    apart = np.average([diversity(group) for group in groups], weights=groups.sum(axis=1))
    return 100 * (1 - changed) * float(apart / together) ** 2
