r"""OSTTA: minimise the entropy of those whose confidence has grown since the source.

With the source's label :math:`\hat y = \arg\max_c p^s_c(x)` and what source and adapting model think of it,

.. math::
    K &= \{\, i : p_{\hat y}(x_i) \ge p^s_{\hat y}(x_i) \,\} \\
    L &= \frac{1}{|K|} \sum_{i \in K} H(x_i) - \alpha\, H\Big(\tfrac1N \sum_i p(x_i)\Big)

A step:
    1. predict the batch with the source model and with the adapting one, each normalised by the batch's
       statistics;
    2. keep the samples whose confidence in the source's label has not fallen: adapted by all the others, the
       model has become surer of them (the wisdom of crowds); the wrong and the unknown become less sure;
    3. update scale and shift of the normalisation layers once on the mean entropy of the kept less the
       entropy of the mean prediction, which keeps the classes balanced. Nobody kept: no update. Answer with
       the adapting model of 1.

Departures:
    The authors published no code; this follows the re-implementation in the code of UniEnt, which compares
    the two models on the same batch, takes the mean over the kept and the mean prediction over all.
    Confidences that are equal up to rounding (all, before the first update) count as kept.
    Every normalisation layer is adapted, not only BatchNorm2d, and dropout stays off. Where nobody is kept
    that code's loss is NaN; here nothing moves.
    That code step by step: ``OSTTA(model, adam(1e-3), alpha)`` (CIFAR, 100 known and 100 unknown images a
    batch), ``OSTTA(model, sgd(1e-3), alpha)`` (ImageNet, 32 and 32), with the best alpha of {1, 0.5, 0.2,
    0.1}; its default is 0.5.

Cost: two forwards, one backward; the weights exist once.

Reference: Lee, Das, Choo and Choi, Towards Open-Set Test-Time Adaptation Utilizing the Wisdom of Crowds in
Entropy Minimization, ICCV 2023; code: github.com/gaozhengqing/UniEnt, ``ostta.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam, entropy, marginal_entropy
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction
from testtime.sharing import twin

__all__ = ["OSTTA", "confidence_kept"]


def confidence_kept(source: Tensor, adapted: Tensor) -> Tensor:
    """Whose confidence in the source's label has not fallen.

    Args:
        source: logits (N, C) of the source model.
        adapted: logits (N, C) of the adapting model.

    Returns:
        a mask (N,); differences of a few units in the last place count as equal.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> confidence_kept(z, torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
    tensor([ True,  True, False])
    """
    dtype = torch.promote_types(source.dtype, torch.float32)
    before, label = source.softmax(dim=1, dtype=dtype).max(dim=1)
    after = adapted.softmax(dim=1, dtype=dtype).gather(1, label[:, None]).squeeze(1)
    return after >= before - 16 * torch.finfo(dtype).eps


@final
class OSTTA(Adapter):
    """Minimise the entropy of those whose confidence has grown since the source.

    Args:
        model: any classifier with normalisation layers.
        optimizer: moves gamma and beta; ``adam(1e-3)`` (CIFAR), ``sgd(1e-3)`` (ImageNet).
        alpha: the weight of the entropy of the mean prediction; 0 switches it off.
        norm: the policy of the BatchNorm layers in both models.
        seed: unused, for there is no randomness; kept so that every method is built alike.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = OSTTA(net)(torch.rand(8, 3, 8, 8))
    >>> y.updated, y.selected["minimised"].sum()  # before the first update nobody has become less sure
    (True, tensor(8))
    """

    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        alpha: float = 0.5,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.alpha, self.norm = optimizer, alpha, norm
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.origin = twin(self.model, own=affine)

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            source = self.origin(x)
        logits = self.model(x)
        kept = confidence_kept(source, logits.detach())
        if kept.any():
            self.update((kept * entropy(logits)).sum() / kept.sum() - self.alpha * marginal_entropy(logits))
        return Prediction(logits, selected={"minimised": kept})
