r"""EATA: minimise the entropy of reliable, new samples, and hold the weights that mattered to the source.

To ETA's loss (eq. 2) a Fisher regulariser is added. With the source parameters :math:`\theta^o` and their
importance :math:`\omega`, from :math:`Q` unlabelled source batches and the model's own labels :math:`\hat y`,

.. math::
    \omega_i &= \frac1Q \sum_q \Big( \partial L_{CE}(f(x_q), \hat y_q) / \partial \theta^o_i \Big)^2  && (9) \\
    L &= \frac{\sum_i S_{ent}\, S_{div}\, H(x_i)}{\sum_i [S_{ent} S_{div} > 0]}
         + \beta \sum_i \omega_i (\theta_i - \theta^o_i)^2                                           && (7, 8)

where :math:`S_{ent}` and :math:`S_{div}` are those of :mod:`testtime.methods.eta` (eq. 3-5).

A step, after ``prepare(batches)`` has learned the importance once:
    1. predict the batch, normalised by its own statistics;
    2. keep what is certain enough and unlike the mean prediction so far;
    3. update scale and shift of the normalisation layers once on the mean weighted entropy of the kept plus
       the regulariser, and the mean prediction; where no sample is kept, neither moves. Answer with the
       prediction of 1.

Departures:
    Those of ETA. Equation 9 squares the gradient of each sample; the published code, and this, that of each
    batch's mean loss: show ``prepare`` batches of one image under ``norm=source_statistics`` for the equation
    to the letter.
    Published code step by step: ``EATA(model, 1000, sgd(2.5e-4), d_margin=0.05, fisher_alpha=2000)`` prepared
    with 2000 source images in batches of 64 (ImageNet). For CIFAR its heirs use ``adam(1e-3)``,
    ``fisher_alpha=1`` and batches of 200; that hardly regularises (on a ResNet-20 it stayed within 0.013 of
    ETA in every logit).

Cost: one forward, one backward. ``prepare`` costs one forward and one backward a batch, once.

Reference: Niu, Wu, Zhang, Chen, Zheng, Zhao and Tan, Efficient Test-Time Model Adaptation without Forgetting,
ICML 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.named import NamedTensors
from testtime.intake.sharing import Stateful
from testtime.methods.eta import MeanPrediction, active_entropy
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["EATA", "FisherAnchor"]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).to(torch.promote_types(tensors[0].dtype, torch.float32))


@final
class FisherAnchor(Stateful):
    r"""How much each parameter mattered to the source, and how far it has moved in that measure.

    .. math:: \sum_i \omega_i (\theta_i - \theta^o_i)^2

    Args:
        parameters: theta; their values now are the anchor :math:`\theta^o`.

    ``update`` learns the diagonal :math:`\omega` (P,), empty until then; calling gives the sum.
    """

    learned = True
    importance: Tensor
    anchor: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.anchored = list(parameters)
        anchor = _flat(self.anchored).detach().clone()
        self.register_buffer("anchor", anchor, persistent=False)
        self.register_buffer("importance", anchor.new_zeros(0))

    @property
    def known(self) -> bool:
        """Whether the importance was learned."""
        return len(self.importance) > 0

    def forward(self) -> Tensor:
        """The scalar sum."""
        return (self.importance * (_flat(self.anchored) - self.anchor).square()).sum()

    def update(self, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Learn the importance at the parameters' values now from batches (N, C, H, W) (eq. 9).

        Raises:
            TypeError: a batch is not a tensor.
            ValueError: there is no batch, or it led to gradients that are not finite.
        """
        total, count = torch.zeros_like(self.anchor), 0
        for x in batches:
            if not isinstance(x, Tensor | NamedTensors):
                raise TypeError(
                    f"expected unlabelled batches (N, C, H, W) as tensors, got {type(x).__name__}; give the images alone: "
                    "(x for x, _ in loader)"
                )
            logits = model(x)
            loss = F.cross_entropy(logits, logits.argmax(dim=1))
            total += _flat(torch.autograd.grad(loss, self.anchored, materialize_grads=True)).square()
            count += 1
        if not count or not bool(torch.isfinite(total).all()):
            what = "gradients that are not finite" if count else "no batch"
            raise ValueError(
                f"the Fisher information needs batches of finite source images (N, C, H, W), got {what}"
            )
        self.importance = total / count


@final
class EATA(Adapter):
    """Minimise the entropy of reliable, new samples, and hold the weights that mattered to the source.

    Args:
        model: any classifier or segmenter with normalisation layers.
        classes: C, the number of classes.
        optimizer: moves gamma and beta; ``sgd(2.5e-4)`` (ImageNet) or ``adam(1e-3)`` (CIFAR).
        margin: E_0 as a fraction of log C.
        d_margin: the cosine to the mean prediction above which a sample is redundant (epsilon in eq. 5): 0.05
            (ImageNet), 0.4 (CIFAR-10), 0.1 (CIFAR-100).
        decay: the weight of the past in the mean prediction.
        fisher_alpha: beta of equation 8, the weight of the regulariser; 0 is ETA, and needs no ``prepare``.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.
        RuntimeError: it is called before ``prepare``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> eata = EATA(net, classes=2)
    >>> eata.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> eata(torch.rand(8, 3, 8, 8)).shape
    torch.Size([8, 2])
    """

    name, label = "eata", "EATA"
    needs = ("class logits", "norm")
    venue = "ICML 2022"
    paper = (
        "Niu, Wu, Zhang, Chen, Zheng, Zhao and Tan, Efficient Test-Time Model Adaptation without Forgetting"
    )
    source = "data"

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        margin: float = 0.4,
        d_margin: float = 0.4,
        decay: float = 0.9,
        fisher_alpha: float = 2000.0,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.classes, self.optimizer, self.margin, self.d_margin = classes, optimizer, margin, d_margin
        self.decay, self.fisher_alpha, self.norm = decay, fisher_alpha, norm
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.average = MeanPrediction(classes, decay, like=affine[0])
        self.fisher = FisherAnchor(affine)

    @property
    def e0(self) -> float:
        """E_0, the reliable entropy in nats."""
        return self.margin * math.log(self.classes)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.fisher.update(self.model, batches)

    def step(self, x: Tensor) -> Tensor:
        if self.fisher_alpha and not self.fisher.known:
            raise RuntimeError(
                "EATA has not seen its source: call adapter.prepare(batches) with unlabelled source batches "
                "first; without source data use ETA, or EATA(..., fisher_alpha=0)"
            )
        logits = self.model(x)
        loss, kept, p = active_entropy(logits, self.average, self.e0, self.d_margin)
        if kept.any():
            self.update(loss + self.fisher_alpha * self.fisher() if self.fisher_alpha else loss)
            self.average.update(p, kept)
        return Prediction(logits, selected={"minimised": kept.view(len(x), *logits.shape[2:])})
