r"""SAR: minimise the entropy of reliable samples where the loss is flat, and return to the source before it collapses.

With the reliable samples :math:`S`, :math:`E_0 = m_0 \log C`, and the radius :math:`\rho`,

.. math::
    S &= \{\, i : H(x_i; \theta) < E_0 \,\}                                                         && (2) \\
    \min_{\gamma, \beta} \; & L\big(\theta + \epsilon(\theta)\big), \qquad
    \epsilon(\theta) = \rho\, \frac{\nabla L(\theta)}{\lVert \nabla L(\theta) \rVert_2}, \qquad
    L = \frac{1}{|S|} \sum_{i \in S} H(x_i)                                                         && (3, 4) \\
    e_t &= L(\theta + \epsilon) \ \text{at first, then}\ \beta\, e_{t-1} + (1 - \beta)\, L(\theta + \epsilon)

A step:
    1. predict the batch, normalised by its own statistics: that is the answer; keep what is certain enough;
    2. climb to the worst point nearby, keep who is certain enough there too, and take the gradient of their mean
       entropy;
    3. go back and update scale and shift of the normalisation layers with it, and the average e; where no sample is
       kept, neither moves. When e falls below ``floor``, the weights, the optimizer and e return to their initial values.

Departures:
    The second selection, at the worst point, is the published code's; Algorithm 1 of the paper selects once
    (``reselect=False``).
    The published code resets the weights, but then writes the old average back, so that it resets again after every
    batch that follows, whether it kept an image or not, until the average has grown; its reset misses the momentum of
    the optimizer too (``recovery="weights"``). Here both restart. Its ``reset_constant`` is ignored in favour of
    0.2; ``floor`` is not.
    Where no sample is kept, the published loss is NaN or the momentum moves the weights on; here nothing moves.
    The floor is an absolute entropy: for ten classes, whose E_0 is 0.92, the mean entropy of the kept often lies below
    0.2, and then most batches end in a return to the source. ``floor=0`` never returns.
    For logits (N, C, H, W) every pixel is a sample: S are the reliable pixels of the batch, in one loss.
    As published, the top layers of a ResNet or a ViT stay as they are (``skip``), and dropout stays off here.
    Published code step by step, up to those bugs: ``SAR(model, 1000)`` (ResNet-50, batches of 64),
    ``SAR(model, 1000, sgd(1e-3))`` (ViT-B, batches of 64). For a batch of n images the rate is scaled by n / 64; for a
    ResNet that is doubled below 32, for a ViT at one.

Cost: two forwards, two backwards.

Reference: Niu, Wu, Zhang, Wen, Chen, Zhao and Tan, Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import TOP_LAYERS, batch_statistics, norm_affine, observing
from testtime.parts import at_worst_point, entropy, sgd
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["SAR"]


@final
class SAR(Adapter):
    """Minimise the entropy of reliable samples where the loss is flat, and return to the source before it collapses.

    Args:
        model: any classifier or segmenter with normalisation layers.
        classes: C, the number of classes.
        optimizer: moves gamma and beta; ``sgd(2.5e-4)`` (ResNet-50) or ``sgd(1e-3)`` (ViT-B), for batches of 64.
        margin: E_0 as a fraction of log C.
        rho: the radius of the sharpness-aware step.
        floor: e_0, the average entropy in nats below which it returns to the source; 0 switches that off.
        decay: beta, the weight of the past in the average.
        reselect: select again at the worst point.
        recovery: parts that return to the source: "full" for weights, optimizer and average, "weights" for the weights alone,
            as in the published code.
        skip: parts of names of layers that stay as they are.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, ``skip`` leaves none, or ``recovery`` is
            neither "full" nor "weights".

    Attributes:
        average: e, the moving average of the entropy of the kept; it counts once ``begun``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = SAR(net, classes=2, margin=1.1)(torch.rand(8, 3, 8, 8))
    >>> y.updated, y.selected["minimised"].sum()
    (True, tensor(8))
    """

    name, label = "sar", "SAR"
    needs = ("class logits", "norm")
    venue = "ICLR 2023"
    paper = (
        "Niu, Wu, Zhang, Wen, Chen, Zhao and Tan, Towards Stable Test-Time Adaptation in Dynamic Wild World"
    )
    cost = (2, 2)

    average: Tensor
    begun: Tensor

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = sgd(2.5e-4),  # noqa: B008 - a frozen value
        margin: float = 0.4,
        rho: float = 0.05,
        floor: float = 0.2,
        decay: float = 0.9,
        reselect: bool = True,
        recovery: Literal["full", "weights"] = "full",
        skip: Sequence[str] = TOP_LAYERS,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.classes, self.optimizer, self.margin, self.rho, self.floor = (
            classes,
            optimizer,
            margin,
            rho,
            floor,
        )
        self.recovery = recovery
        self.decay, self.reselect, self.skip, self.norm = decay, reselect, tuple(skip), norm
        affine = norm_affine(self.model, self.skip)
        self.adapt(affine, optimizer)
        like = affine[0].detach()
        self.register_buffer(
            "average", like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
        )
        self.register_buffer("begun", like.new_zeros((), dtype=torch.bool))

    @property
    def e0(self) -> float:
        """E_0, the reliable entropy in nats."""
        return self.margin * math.log(self.classes)

    def step(self, x: Tensor) -> Tensor:
        with observing(self.model):
            logits = self.model(x)
            h = entropy(logits)
            kept = h.detach() < self.e0
            if kept.any():
                with at_worst_point(h[kept].mean(), self._adapted, self.rho):
                    h = entropy(self.model(x))
                    if self.reselect:
                        kept = kept & (h.detach() < self.e0)
                    loss = h[kept].mean()
                    gradients = (
                        torch.autograd.grad(loss, self._adapted, materialize_grads=True) if kept.any() else ()
                    )
        if kept.any():
            self.update(gradients)
            self._count(loss.detach())
        if self.begun and self.average < self.floor:
            self._recover()
        return Prediction(logits, selected={"minimised": kept})

    def _count(self, loss: Tensor) -> None:
        """Move the average entropy."""
        self.average.copy_(torch.where(self.begun, torch.lerp(loss, self.average, self.decay), loss))
        self.begun.fill_(True)

    def _recover(self) -> None:
        """Return to the source."""
        initial, weights = self._initial_state(), self.recovery == "weights"
        names = [n for n in self.moving() if (n.startswith("model.") if weights else n != "clock")]
        self._restore({name: initial[name] for name in names})
