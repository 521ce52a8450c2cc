r"""How right a classifier is, guessed without a label.

AETTA: where the answer changes as parts of the features are dropped, it is likely to be wrong; and the more so, the fewer
classes the answers are spread over, since a collapsed model agrees with itself. With the share D of (image, dropout) pairs
whose answer is another one, and H the entropy of the mean probabilities of a batch over :math:`\log C`,

.. math:: \widehat{\mathrm{err}} = \min\bigl(D / H^{\alpha},\; 1 - 1/C\bigr)

Consistency: the same thought with a disturbance of the image, which needs no network to look into, so that it also judges
methods whose answer is not their network's. A model can be consistently wrong, too: one class in fog, another in noise. What an
image shows has little to do with how it looks (:mod:`testtime.metrics.looks`), so that a good model's answers y have, either;
with the share D of answers that change, the groups g of images that look alike, and the mutual information I of both,

.. math:: \widehat{\mathrm{acc}} = (1 - D) \left(1 - \frac{I(y; g)}{H(y)}\right)^2

It asks for no particular shares of the classes: a stream may hold few of them.

Departures from AETTA: the dropout is before the linear head alone (in the published code, within a residual network), so that
any network with such a head can be watched for one forward.

Consistency is ours.

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
    """How often the answer changes under dropout, and over how many classes the answers are spread.

    Args:
        features: (N, D) that the head reads.
        head: from features to logits (N, C).
        rng: on the device of the features; draws come from here.
        rate: of features that are dropped, in (0, 1); the paper's for CIFAR-10.
        passes: number of draws.

    Returns:
        D in [0, 1], and H in [0, 1].

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
    """Entropy of the shares of C classes over log C: 1 for equal shares, 0 for one class alone.

    Args:
        shares: (C,) not negative, at least one positive; counts will do.

    >>> diversity([1, 1, 0, 0])
    0.5
    """
    p = np.asarray(shares, dtype=float)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum() / math.log(max(np.size(shares), 2)))


def aetta(
    disagreements: Sequence[float],
    spreads: Sequence[float],
    classes: int,
    alpha: float = 3.0,
    memory: float = 0.6,
) -> NDArray[np.float64]:
    """The estimated accuracy in percent after each batch.

    Args:
        disagreements: (T,) D of each batch.
        spreads: (T,) H of each batch.
        classes: C.
        alpha: how much a narrow spread counts against the model.
        memory: what is kept of the estimate before; the first is D itself, as in the published code.

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
    """The accuracy in percent that consistent answers speak for, if they do not follow what images look like.

    Args:
        changed: share of the answers that are others for the disturbed image, in [0, 1].
        answers: (G, C) how many images of each group got each class. Groups of less than 10 C images seem to differ by chance.

    Returns:
        the estimate; 0 where all answers are one class, which says nothing.

    >>> consistency(0.2, [[500, 500], [500, 500]])
    80.0
    >>> consistency(0.0, [[1000, 0], [0, 1000]])  # a class for each look
    0.0
    """
    groups = np.atleast_2d(np.asarray(answers, dtype=float))
    groups = groups[groups.any(axis=1)]
    together = diversity(groups.sum(axis=0))
    if not together:
        return 0.0
    apart = np.average([diversity(group) for group in groups], weights=groups.sum(axis=1))
    return 100 * (1 - changed) * float(apart / together) ** 2
