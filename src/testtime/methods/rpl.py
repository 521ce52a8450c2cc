r"""RPL: robust pseudo-labels, learned from the less the less sure they are.

With the label :math:`\hat y = \arg\max_c p_c(x)`, the generalised cross-entropy

.. math:: \min_{\gamma, \beta} \; \frac1N \sum_i \frac{1 - p_{\hat y_i}(x_i)^q}{q}

is the cross-entropy as :math:`q \to 0` and the error rate at :math:`q = 1`, which wrong labels hurt less.

A step:
    1. predict the batch, normalised by its own statistics: that is the answer;
    2. label everything with its own prediction;
    3. update scale and shift of the normalisation layers once on the mean generalised cross-entropy.

Departures:
    The paper adapts for several epochs to a test set, and compares teachers that are older than the student; this is
    its online form, whose teacher is the student, as RDumb's authors compare with it.
    Every normalisation layer is adapted, not only BatchNorm2d, and dropout stays off.
    For logits (N, C, H, W) every pixel is a sample.
    Published code step by step: ``RPL(model)`` (ImageNet, ResNet-50, batches of 64).

Cost: one forward, one backward.

Reference: Rusak, Schneider, Pachitariu, Eck, Gehler, Bringmann, Brendel and Bethge, If your data distribution shifts, use
self-learning, TMLR 2022; the loss: Zhang and Sabuncu, NeurIPS 2018, eq. 6; online: Press et al., RDumb, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import sgd
from testtime.parts.optimizers import OptimizerFactory

__all__ = ["RPL", "robust_self_loss"]


def robust_self_loss(logits: Tensor, q: float = 0.8) -> Tensor:
    """Generalised cross-entropy of predictions against their own labels, ``(1 - max p^q) / q``.

    Args:
        logits: (N, C), or (N, C, H, W).
        q: in (0, 1].

    Returns:
        (N,), or (N, H, W), at least in float32.

    >>> robust_self_loss(torch.zeros(1, 4), q=0.5)
    tensor([1.])
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (1 - (q * logits.log_softmax(dim=1, dtype=dtype).amax(dim=1)).exp()) / q


@final
class RPL(Adapter):
    """Robust pseudo-labels, learned from the less the less sure they are.

    Args:
        model: any classifier or segmenter with normalisation layers.
        optimizer: moves gamma and beta.
        q: robustness of the loss, in (0, 1].
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, or q is not in (0, 1].

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = RPL(net)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "rpl", "RPL"
    needs = ("class logits", "norm")
    venue = "TMLR 2022"
    paper = (
        "Rusak, Schneider, Pachitariu, Eck, Gehler, Bringmann, Brendel and Bethge, If your data "
        "distribution shifts, use self-learning"
    )

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(5e-4),  # noqa: B008 - a frozen value
        q: float = 0.8,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        if not 0 < q <= 1:
            raise ValueError(
                f"q makes the cross-entropy robust and lies in (0, 1], got {q}; use PL for q = 0"
            )
        super().__init__(norm(model))
        self.optimizer, self.q, self.norm = optimizer, q, norm
        self.adapt(norm_affine(self.model), optimizer)

    def step(self, x: Tensor) -> Tensor:
        with observing(self.model):
            logits = self.model(x)
        self.update(robust_self_loss(logits, self.q).mean())
        return logits
