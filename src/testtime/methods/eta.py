r"""ETA: minimise the entropy of reliable samples that are not redundant.

With the mean prediction :math:`m` of what was learned from before and :math:`E_0 = m_0 \log C`,

.. math::
    S_{ent} &= [H(x) < E_0] \, \exp(E_0 - H(x))                                        && (3) \\
    m_t &= \bar p_1 \ \text{at first, then}\ \beta\, m_{t-1} + (1 - \beta)\, \bar p_t  && (4) \\
    S_{div} &= [\, |\cos(p(x), m_{t-1})| < d \,]                                       && (5) \\
    L &= \frac{\sum_i S_{ent}\, S_{div}\, H(x_i)}{\sum_i [S_{ent} S_{div} > 0]}        && (2)

A step:
    1. predict the batch, normalised by its own statistics;
    2. keep what is certain enough and unlike the mean prediction so far (the first batch: only certain
       enough); the weight :math:`S_{ent}` carries no gradient;
    3. update scale and shift of the normalisation layers once on the mean weighted entropy of the kept, and
       the mean prediction with the mean of the kept; where no sample is kept, neither moves. Answer with the
       prediction of 1.

Departures:
    :math:`\bar p` is the mean over the kept samples, as in the published code; equation 4 speaks of the
    mini-batch. The absolute value in equation 5 is the code's; probabilities are positive, so it changes
    nothing.
    The published code's ``reset`` forgets to reset the mean prediction; here it is part of the state.
    Every normalisation layer is adapted, not only BatchNorm2d, and dropout stays off.
    For logits (N, C, H, W) every pixel is a sample: both filters, the mean prediction and the loss are over pixels.
    Published code step by step: ``ETA(model, 1000, sgd(2.5e-4), d_margin=0.05)`` (ImageNet, batches of 64);
    ``ETA(model, 10, adam(1e-3), d_margin=0.4)`` and ``ETA(model, 100, adam(1e-3), d_margin=0.1)`` (CIFAR, as
    used by its heirs).

Cost: one forward, one backward. (The backward runs over the whole batch, with zeros for who was left out.)

Reference: Niu, Wu, Zhang, Chen, Zheng, Zhao and Tan, Efficient Test-Time Model Adaptation without Forgetting,
ICML 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam, entropy
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.pixels import as_rows
from testtime.prediction import Prediction

__all__ = ["ETA", "MeanPrediction", "active_entropy"]


@final
class MeanPrediction(Stateful):
    """The moving average of the predictions that were learned from (eq. 4); what is not yet seen is a flag.

    Args:
        classes: C.
        decay: beta, the weight of the past.
        like: a tensor whose device and precision (at least float32) the average takes.

    ``update`` advances it, a call returns which predictions are unlike it.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, classes: int, decay: float, like: Tensor) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is the weight of the past and lies in [0, 1], got {decay}")
        self.decay = decay
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.register_buffer("mean", torch.zeros(classes, dtype=dtype, device=like.device))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool, device=like.device))

    def forward(self, p: Tensor, d_margin: float) -> Tensor:
        """Which probabilities (N, C) are unlike the average (eq. 5), a mask (N,): at first all of them."""
        return ~self.seen | (F.cosine_similarity(self.mean[None], p, dim=1).abs() < d_margin)

    def update(self, p: Tensor, kept: Tensor) -> None:
        """Move the average towards the mean of the probabilities (N, C) whose mask (N,) is True; one at least is."""
        new = (p * kept[:, None]).sum(dim=0) / kept.sum()
        self.mean.copy_(torch.where(self.seen, self.decay * self.mean + (1 - self.decay) * new, new))
        self.seen.fill_(True)


def active_entropy(
    logits: Tensor, average: MeanPrediction, e0: float, d_margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of equation 2, who was kept, and what was predicted.

    Args:
        logits: (N, C), or (N, C, H, W), with their graph.
        average: moving average of the predictions so far, (C,); it is not changed.
        e0: E_0, the entropy in nats below which a sample is reliable.
        d_margin: the cosine below which it is new.

    Returns:
        the scalar loss (NaN where no sample is kept), the mask (M,) of the kept, and the probabilities (M, C), with
        M = N, or N H W for logits of each pixel.
    """
    logits = as_rows(logits)
    h = entropy(logits)
    p = logits.detach().softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    kept = (h.detach() < e0) & average(p, d_margin)
    weight = kept * torch.exp(e0 - h.detach())
    return (weight * h).sum() / kept.sum(), kept, p


@final
class ETA(Adapter):
    """Minimise the entropy of reliable samples that are not redundant.

    Args:
        model: any classifier or segmenter with normalisation layers.
        classes: C, the number of classes.
        optimizer: moves gamma and beta; ``sgd(2.5e-4)`` (ImageNet) or ``adam(1e-3)`` (CIFAR).
        margin: E_0 as a fraction of log C.
        d_margin: the cosine to the mean prediction above which a sample is redundant (epsilon in eq. 5): 0.05
            (ImageNet), 0.4 (CIFAR-10), 0.1 (CIFAR-100); anything above 1 keeps all that are reliable.
        decay: the weight of the past in the mean prediction.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = ETA(net, classes=2, margin=1.0)(torch.rand(8, 3, 8, 8))
    >>> y.updated, y.selected["minimised"].sum()
    (True, tensor(8))
    """

    name, label = "eta", "ETA"
    needs = ("class logits", "norm")
    venue = "ICML 2022"
    paper = (
        "Niu, Wu, Zhang, Chen, Zheng, Zhao and Tan, Efficient Test-Time Model Adaptation without Forgetting"
    )

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        margin: float = 0.4,
        d_margin: float = 0.4,
        decay: float = 0.9,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.classes, self.optimizer, self.margin = classes, optimizer, margin
        self.d_margin, self.decay, self.norm = d_margin, decay, norm
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.average = MeanPrediction(classes, decay, like=affine[0])

    @property
    def e0(self) -> float:
        """E_0, the reliable entropy in nats."""
        return self.margin * math.log(self.classes)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        loss, kept, p = active_entropy(logits, self.average, self.e0, self.d_margin)
        if kept.any():
            self.update(loss)
            self.average.update(p, kept)
        return Prediction(logits, selected={"minimised": kept.view(len(x), *logits.shape[2:])})
