r"""DeYO: minimise the entropy of samples that are certain because of an object's shape.

With the label :math:`\hat y = \arg\max_c p_c(x)`, the image :math:`x'` whose patches are shuffled, and
:math:`\tau = m \log C, E_0 = m_0 \log C`,

.. math::
    \mathrm{PLPD}(x) &= p_{\hat y}(x) - p_{\hat y}(x') \\
    S &= \{\, i : H(x_i) < \tau \ \wedge\ \mathrm{PLPD}(x_i) > \tau_{PLPD} \,\} \\
    L &= \frac{1}{|S|} \sum_{i \in S} \alpha(x_i)\, H(x_i), \qquad
    \alpha(x) = \exp(E_0 - H(x)) + \exp(\mathrm{PLPD}(x))

A step:
    1. predict the batch, normalised by its own statistics: that is the answer;
    2. destroy the objects of those that are certain enough, and predict them again, normalised among themselves;
    3. keep whose label lost enough of its probability, and update scale and shift of the normalisation layers once on
       their weighted mean entropy; the weights carry no gradient. Where no sample is kept nothing moves.

Departures:
    The loss is the mean over the kept, as in the published code; the paper writes it for each sample.
    Where the side of an image is no multiple of four, it is scaled by plain bilinear interpolation; the published code
    scales as its version of torchvision does.
    The published code's ``reset`` reads a state that was never kept, and raises; here a reset is a reset.
    As published, the top layers of a ResNet or a ViT stay as they are (``skip``); dropout stays off here.
    Published code step by step, up to the draws: ``DeYO(model, 1000)`` (ResNet-50 with BatchNorm on ImageNet-C),
    ``DeYO(model, 1000, threshold=0.2)`` (ResNet-50 with GroupNorm in wild scenarios; ViT-B: ``sgd(1e-3)``),
    ``DeYO(model, 2, sgd(1.25e-3), threshold=0.5)`` (biased), for batches of 64; other batches scale the rate as for SAR.

Cost: one forward and one backward of the batch, and one forward of those that are certain.

Reference: Lee, Jung, Lee, Park, Shin, Hwang and Yoon, Entropy is not Enough for Test-Time Adaptation: From the
Perspective of Disentangled Factors, ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import TOP_LAYERS, batch_statistics, norm_affine, observing
from testtime.parts import entropy, generator, sgd, shuffle_patches
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["DeYO", "label_drop"]


def label_drop(logits: Tensor, destroyed: Tensor) -> Tensor:
    """PLPD: how much probability the label of an image loses when its object is destroyed.

    Args:
        logits: (N, C), of the images.
        destroyed: (N, C), of the destroyed images.

    Returns:
        (N,), in [-1, 1], at least in float32.

    >>> label_drop(torch.tensor([[9.0, -9.0]]), torch.zeros(1, 2))
    tensor([0.5000])
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    p, label = logits.softmax(dim=1, dtype=dtype).max(dim=1)
    return p - destroyed.softmax(dim=1, dtype=dtype).gather(1, label[:, None]).squeeze(1)


@final
class DeYO(Adapter):
    """Minimise the entropy of samples that are certain because of an object's shape.

    Args:
        model: any classifier with normalisation layers.
        classes: C, the number of classes.
        optimizer: moves gamma and beta; ``sgd(2.5e-4)`` (ResNet-50) or ``sgd(1e-3)`` (ViT-B), for batches of 64.
        margin: the entropy that selects (tau_Ent), as a fraction of log C.
        weight_margin: the entropy in the weights (Ent_0), as a fraction of log C.
        threshold: tau_PLPD, the drop in probability that selects: 0.3 (mild), 0.2 (wild), 0.5 (biased scenarios).
        destroy: makes x'.
        skip: parts of names of layers that stay as they are.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the shuffling of patches.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, or ``skip`` leaves none; an image is
            smaller than the patches are many.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = DeYO(net, classes=2, margin=1.1, threshold=-1)(torch.rand(8, 3, 8, 8))
    >>> y.updated, y.selected["minimised"].sum()
    (True, tensor(8))
    """

    name, label = "deyo", "DeYO"
    needs = ("classifier", "norm", "images")
    venue = "ICLR 2024"
    paper = (
        "Lee, Jung, Lee, Park, Shin, Hwang and Yoon, Entropy is not Enough for Test-Time Adaptation: From "
        "the Perspective of Disentangled Factors"
    )
    stochastic = True
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = sgd(2.5e-4),  # noqa: B008 - a frozen value
        margin: float = 0.5,
        weight_margin: float = 0.4,
        threshold: float = 0.3,
        destroy: Augmentation = shuffle_patches,
        skip: Sequence[str] = TOP_LAYERS,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.margin, self.weight_margin = (
            classes,
            optimizer,
            margin,
            weight_margin,
        )
        self.threshold, self.destroy, self.skip, self.norm = threshold, destroy, tuple(skip), norm
        self.adapt(norm_affine(self.model, self.skip), optimizer)

    def step(self, x: Tensor) -> Tensor:
        log_c = math.log(self.classes)
        with observing(self.model):
            logits = self.model(x)
            h = entropy(logits)
            certain = h.detach() < self.margin * log_c
            drop = torch.full_like(h.detach(), -math.inf)
            if certain.any():
                destroyed = self.destroy(
                    x[certain], generator(self.seed, int(self.clock), "destroy", x.device)
                )
                with torch.no_grad():
                    drop[certain] = label_drop(logits[certain], self.model(destroyed)).to(drop.dtype)
        kept = drop > self.threshold
        if kept.any():
            weight = torch.exp(self.weight_margin * log_c - h.detach()) + drop.exp()
            self.update((weight * h)[kept].mean())
        return Prediction(logits, selected={"minimised": kept})
