r"""OSTTA: minimise the entropy of those whose confidence has grown since the source.

With the source's label :math:`\hat y = \arg\max_c p^s_c(x)` and what source and adapting model think of it,

.. math::
    K &= \{\, i : p_{\hat y}(x_i) \ge p^s_{\hat y}(x_i) \,\} \\
    L &= \frac{1}{|K|} \sum_{i \in K} H(x_i) - \alpha_1\, H\Big(\tfrac1N \sum_i p(x_i)\Big)

A step:
    1. predict the batch with the source model and with the adapting one, each normalised by the batch's
       statistics;
    2. keep the samples whose confidence in the source's label has not fallen: adapted by all the others, the
       model has become surer of them (the wisdom of crowds); the wrong and the unknown become less sure;
    3. update scale and shift of the normalisation layers once on the mean entropy of the kept less the
       entropy of the mean prediction, which keeps the classes balanced. Nobody kept: no update. Answer with
       the adapting model of 1.

With the losses of UniEnt, which split the batch by the features of the source model (:mod:`testtime.methods.unient`) into
known :math:`I` and unknown :math:`O` with posteriors :math:`\pi`, the first term becomes

.. math::
    \texttt{ent\_ind}: \operatorname*{mean}_{K \cap I} H(x_i), \qquad
    \texttt{ent\_ind\_ood}: \operatorname*{mean}_{K \cap I} H(x_i) - \alpha_2 \operatorname*{mean}_{O} H(x_i), \qquad
    \texttt{ent\_unf}: \operatorname*{mean}_{i \in K} \pi_i H(x_i) - \alpha_2 \operatorname*{mean}_{i} (1 - \pi_i) H(x_i)

Departures:
    The authors published no code; this follows the re-implementation in the code of UniEnt, which compares
    the two models on the same batch, takes the mean over the kept and the mean prediction over all.
    Confidences that are equal up to rounding (all, before the first update) count as kept.
    For logits (N, C, H, W), the paper's semantic segmentation, every pixel is a sample: K are the pixels whose confidence has
    not fallen, and the mean prediction is over all pixels. The losses of UniEnt split images and refuse such logits.
    Every normalisation layer is adapted, not only BatchNorm2d, and dropout stays off. Where no sample is kept
    (or, with the losses of UniEnt, a term has no sample) that code's loss is NaN; here nothing moves.
    That code step by step: ``OSTTA(model, adam(1e-3), alpha)`` (CIFAR, 100 known and 100 unknown images a
    batch), ``OSTTA(model, sgd(1e-3), alpha)`` (ImageNet, 32 and 32), with the best alpha of {1, 0.5, 0.2,
    0.1}; its default is 0.5. ``criterion=`` takes that code's names of the losses; the mixture of those of UniEnt
    starts at the exact best split in two there too, ``mixture=`` as in UniEnt reproduces that code's.

Cost: two forwards, one backward; the weights exist once. The mixture is fitted on the CPU.

Reference: Lee, Das, Choo and Choi, Towards Open-Set Test-Time Adaptation Utilizing the Wisdom of Crowds in
Entropy Minimization, ICCV 2023; code: github.com/gaozhengqing/UniEnt, ``ostta.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.sharing import twin
from testtime.methods.unient import Mixture, split
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam, entropy, marginal_entropy
from testtime.parts.features import head_tap, linear_head, with_features
from testtime.parts.mixture import two_gaussians
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import Tap
from testtime.prediction import Prediction

__all__ = ["OSTTA", "confidence_kept"]

Criterion = Literal["ent", "ent_ind", "ent_ind_ood", "ent_unf"]


def confidence_kept(source: Tensor, adapted: Tensor) -> Tensor:
    """Whose confidence in the source's label has not fallen.

    Args:
        source: logits (N, C), or (N, C, H, W), of the source model.
        adapted: logits of the same form, of the adapting model.

    Returns:
        a mask (N,), or (N, H, W); differences of a few units in the last place count as equal.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> confidence_kept(z, torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
    tensor([ True,  True, False])
    """
    dtype = torch.promote_types(source.dtype, torch.float32)
    before, label = source.softmax(dim=1, dtype=dtype).max(dim=1)
    after = adapted.softmax(dim=1, dtype=dtype).gather(1, label.unsqueeze(1)).squeeze(1)
    return after >= before - 16 * torch.finfo(dtype).eps


@final
class OSTTA(Adapter):
    """Minimise the entropy of those whose confidence has grown since the source.

    Args:
        model: any classifier or segmenter with normalisation layers.
        optimizer: moves gamma and beta; ``adam(1e-3)`` (CIFAR), ``sgd(1e-3)`` (ImageNet).
        alpha: the weight of the entropy of the mean prediction (alpha_1) and of the unknown (alpha_2); one number is both.
            0 switches a term off.
        criterion: "ent", the loss of OSTTA, or one of UniEnt on the samples that are kept: "ent_ind", "ent_ind_ood" (UniEnt)
            or "ent_unf" (UniEnt+).
        mixture: fits two components to UniEnt's scores; returns posteriors (N, 2), those of the lower scores first.
        head: the name of the linear head, which UniEnt's losses need; the last linear layer unless given.
        norm: the policy of the BatchNorm layers in both models.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, there is no such criterion, or it is one of
            UniEnt and the model has no linear head.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = OSTTA(net)(torch.rand(8, 3, 8, 8))
    >>> y.updated, y.selected["minimised"].sum()  # no prediction is less certain before the first update
    (True, tensor(8))
    """

    name, label = "ostta", "OSTTA"
    needs = ("class logits", "norm")
    venue = "ICCV 2023"
    paper = (
        "Lee, Das, Choo and Choi, Towards Open-Set Test-Time Adaptation Utilizing the Wisdom of Crowds in "
        "Entropy Minimization"
    )
    code = "github.com/gaozhengqing/UniEnt"
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        alpha: float | tuple[float, float] = 0.5,
        criterion: Criterion = "ent",
        mixture: Mixture = two_gaussians,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.alpha, self.norm = optimizer, alpha, norm
        self.criterion, self.mixture, self.head = criterion, mixture, head
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.origin = twin(self.model, own=affine)
        self._tap: Tap | None = None
        if criterion != "ent":
            self.prototypes = linear_head(self.model, head)[1].weight
            self._tap = head_tap(self.origin, head)

    def _source(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The source model's logits (N, C), and how likely each image is known and unknown, (N, 2)."""
        if self._tap is None:
            return self.origin(x), torch.tensor([[1.0, 0.0]], device=x.device).expand(len(x), 2)
        logits, z = with_features(self.origin, self._tap, x)
        if logits.dim() == 4:
            raise ValueError(
                f"criterion={self.criterion!r} splits images by their features, and this model returns logits for each "
                f"pixel, {tuple(logits.shape)}; pass criterion='ent', the loss of OSTTA, which filters pixels"
            )
        return logits, split(z, self.prototypes, self.mixture).to(x.device)

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            source, posterior = self._source(x)
        logits = self.model(x)
        h, kept = entropy(logits), confidence_kept(source, logits.detach())
        known, unknown = (v.view(-1, *(1,) * (h.dim() - 1)) for v in posterior.to(h).unbind(dim=1))
        low, high = kept & (known > unknown), unknown > known
        if self.criterion == "ent_unf":
            enough = bool(kept.any()) and bool((low | high).any())
            lower, higher = (kept * known * h).sum() / kept.sum(), (unknown * h).mean()
        else:
            high = high & (self.criterion == "ent_ind_ood")
            enough = bool(low.any()) and (self.criterion != "ent_ind_ood" or bool(high.any()))
            lower, higher = (low * h).sum() / low.sum(), (high * h).sum() / high.sum().clamp_min(1)
        if enough:
            alpha1, alpha2 = (self.alpha,) * 2 if isinstance(self.alpha, int | float) else self.alpha
            self.update(lower - alpha2 * higher - alpha1 * marginal_entropy(logits))
        sides = {"minimised": low} if self.criterion == "ent" else {"minimised": low, "maximised": high}
        return Prediction(logits, selected=sides)
