r"""ROID: learn from certain and diverse samples, keep weights near the source, correct predictions for class frequencies.

With the mean prediction so far :math:`\bar y`, a view :math:`\tilde x`, and :math:`\lfloor \cdot \rfloor` for scaling a
batch of numbers to [0, 1],

.. math::
    w_i &= \exp\big( \lfloor 1 - \cos(\bar y, p(x_i)) \rfloor \, \lfloor -H(x_i) \rfloor / \tau \big)
        \ \text{where}\ \lfloor 1 - \cos(\bar y, p(x_i)) \rfloor \ge \text{its mean, else } 0 \\
    L &= \frac1N \sum_i w_i \Big( - \sum_c p_c \log \frac{p_c}{1 - p_c} + \mathrm{SCE}\big(p(\tilde x_i), p(x_i)\big) \Big) \\
    \theta &\leftarrow m\, \theta + (1 - m)\, \theta_0

where the SCE is the mean of both cross-entropies, and gradients flow into both predictions.

A step:
    1. predict the batch, normalised by its own statistics, and weigh its images; the weights carry no gradient;
    2. predict a view of those that count, and update scale and shift of the normalisation layers once on the weighted
       soft likelihood ratio and consistency;
    3. move them a little back to the source, and the mean prediction towards that of the batch. Answer with 1, its
       probabilities reweighted by how frequent the classes are in the batch (:func:`testtime.parts.prior.smoothed_prior`).

Departures:
    The published code multiplies the logits, not the probabilities, by the prior (``ROIDOptions(prior="logits")``).
    Its probabilities are clipped at 0.99, its logarithm adds 1e-5, and its sums are divided by the nominal size of a
    batch: so here, but for the size, which is the actual one.
    Where all images of a batch are equally diverse or certain, the published scaling divides zero by zero; here all of
    them are at 0.
    The published views change all images alike; here each draws for itself (:func:`testtime.parts.katana`).
    The open-set score is the energy of the logits before the prior.
    Published code step by step, up to the draws: ``ROID(model, classes, options=ROIDOptions(prior="logits"))`` (CIFAR, batches
    of 200), and with ``sgd(2.5e-4, nesterov=True)`` (ImageNet, batches of 64).

Cost: one forward of the batch and one of those that count, and the backward of both.

Reference: Marsden, Döbler and Yang, Universal Test-Time Adaptation through Weight Ensembling, Diversity Weighting, and
Prior Correction, WACV 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import adam, entropy, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.prior import reweighted, under_prior
from testtime.parts.views import preserving
from testtime.prediction import Prediction, energy

__all__ = [
    "ROID",
    "ROIDOptions",
    "corrected",
    "diversity_certainty",
    "ensemble",
    "flat",
    "soft_likelihood_ratio",
    "universal_loss",
]

Prior = Literal["probabilities", "logits", "none"]


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def soft_likelihood_ratio(logits: Tensor, clip: float = 0.99, epsilon: float = 1e-5) -> Tensor:
    r"""The loss :math:`-\sum_c p_c \log (p_c / (1 - p_c) + \epsilon)`, whose gradient does not fade with confidence.

    Args:
        logits: (N, C).
        clip: probabilities above it count as it.
        epsilon: within the logarithm.

    Returns:
        (N,), at least in float32.

    >>> soft_likelihood_ratio(torch.zeros(1, 2)).abs() < 1e-4  # even odds
    tensor([True])
    """
    p = _probabilities(logits).clamp(max=clip)
    return -(p * (p / (1 - p) + epsilon).log()).sum(dim=1)


def _scaled(values: Tensor) -> Tensor:
    """Numbers (N,) brought to [0, 1]; zero where all are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def diversity_certainty(logits: Tensor, average: Tensor, temperature: float = 1 / 3) -> Tensor:
    """The weights of a batch: who is certain and unlike the mean prediction.

    Args:
        logits: (N, C); no gradient flows.
        average: the mean prediction (C,) of the batches before.
        temperature: tau.

    Returns:
        (N,), zero for those less diverse than the mean of the batch.
    """
    logits = logits.detach()
    diversity = _scaled(1 - F.cosine_similarity(average[None], _probabilities(logits), dim=1))
    return (diversity >= diversity.mean()) * torch.exp(diversity * _scaled(-entropy(logits)) / temperature)


def universal_loss(logits: Tensor, weight: Tensor, again: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The weighted soft likelihood ratio, and the consistency with another prediction of those that count.

    Args:
        logits: (N, C), with their graph.
        weight: (N,); those of weight 0 do not count.
        again: predicts another view, (M, C), of the M images that a mask (N,) names; None leaves consistency out.

    Returns:
        a scalar, divided by N.
    """
    kept = weight > 0
    loss = (weight * soft_likelihood_ratio(logits))[kept].sum()
    if again is not None:
        view, here = again(kept), logits[kept]
        both = (soft_cross_entropy(view, here) + soft_cross_entropy(here, view)) / 2
        loss = loss + (weight[kept] * both).sum()
    return loss / len(logits)


def corrected(logits: Tensor, prior: Prior, selected: dict[str, Tensor] | None = None) -> Prediction:
    """The answer of logits (N, C) under the prior of their batch; the open-set score is that of the logits alone."""
    plain = logits.detach()
    z = plain if prior == "none" else reweighted(plain, torch.isfinite(plain).all(dim=1), prior)
    return Prediction(z, score=energy(plain), selected=selected)


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """A copy of the parameters' values as one vector (P,), at least in float32."""
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    return torch.cat([p.detach().flatten().to(dtype) for p in parameters])


@torch.no_grad()
def ensemble(parameters: Sequence[Tensor], other: Tensor, momentum: float) -> None:
    """Average the parameters with other values (P,) in place; their own weigh ``momentum``."""
    for p, values in zip(parameters, other.split([p.numel() for p in parameters]), strict=True):
        p.lerp_(values.view_as(p).to(p.dtype), 1 - momentum)


@final
@dataclass(frozen=True)
class ROIDOptions:
    """Settings of the loss and of the prediction of ROID, and of CMF.

    Args:
        temperature: temperature tau of the weights of the images.
        weighting: whether images are weighted; False weighs all alike.
        consistency: whether the loss has the consistency with a view.
        prior: factor of the prior of the batch: "probabilities" or "logits"; "none" leaves it out.

    Raises:
        ValueError: there is no such prior.
    """

    temperature: float = 1 / 3
    weighting: bool = True
    consistency: bool = True
    prior: Prior = "probabilities"

    def __post_init__(self) -> None:
        if self.prior not in ("probabilities", "logits", "none"):
            raise ValueError(f'expected prior "probabilities", "logits" or "none", got {self.prior!r}')


@final
class ROID(Adapter):
    """Learn from certain and diverse samples, keep weights near the source, correct predictions for class frequencies.

    Args:
        model: any classifier with normalisation layers.
        classes: C, the number of classes.
        optimizer: moves gamma and beta; ``adam(1e-3)`` (CIFAR), ``sgd(2.5e-4, nesterov=True)`` (ImageNet).
        momentum: m, the weight of the adapted weights against the source's; 1 switches the ensemble off.
        decay: the weight of the past in the mean prediction.
        augment: makes the view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        options: settings of the loss and of the prediction.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the view.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    Attributes:
        average: the mean prediction (C,).
        anchor: the source's gamma and beta as one vector.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = ROID(net, classes=2)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated, list(y.selected)
    (torch.Size([8, 2]), True, ['minimised'])
    """

    name, label = "roid", "ROID"
    needs = ("classifier", "norm", "views")
    venue = "WACV 2024"
    paper = (
        "Marsden, Döbler and Yang, Universal Test-Time Adaptation through Weight Ensembling, Diversity "
        "Weighting, and Prior Correction"
    )
    stochastic = True
    cost = (2, 2)

    average: Tensor
    anchor: Tensor

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        momentum: float = 0.99,
        decay: float = 0.9,
        augment: Augmentation = partial(katana, clean=True),  # noqa: B008
        options: ROIDOptions = ROIDOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.momentum, self.decay = classes, optimizer, momentum, decay
        self.options, self.norm = options, norm
        self.augment = preserving(augment, self.model)
        self.cost = (1 + options.consistency, 1 + options.consistency)
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.register_buffer("anchor", flat(affine), persistent=False)
        self.register_buffer("average", self.anchor.new_full((classes,), 1 / classes))

    def _predict_batch(self, x: Tensor) -> Prediction:
        return corrected(self.model(x), self.options.prior)

    def _answering(self) -> nn.Module:
        return under_prior(self.model, self.options.prior)

    def step(self, x: Tensor) -> Tensor:
        with observing(self.model):
            logits = self.model(x)
            weight = diversity_certainty(logits, self.average, self.options.temperature)
            if not self.options.weighting:
                weight = torch.ones_like(weight)

            def again(kept: Tensor) -> Tensor:
                rng = generator(self.seed, int(self.clock), "view", x.device)
                return self.model(self.augment(x[kept], rng))

            self.update(universal_loss(logits, weight, again if self.options.consistency else None))
        ensemble(self._adapted, self.anchor, self.momentum)
        self.average.lerp_(_probabilities(logits.detach()).mean(dim=0).to(self.average), 1 - self.decay)
        return corrected(logits, self.options.prior, {"minimised": weight > 0})
