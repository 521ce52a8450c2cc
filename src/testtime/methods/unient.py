r"""UniEnt: split the batch into known and unknown; lower the entropy of the one and raise that of the other.

With the features :math:`g_s` of the source model and the rows :math:`w_c` of its linear head as prototypes of
the classes,

.. math::
    S(x) &= 1 - \operatorname{minmax}\big(\max_c \cos(g_s(x), w_c)\big) \\
    \pi(x) &= \text{posterior of the lower of two Gaussians, fitted to the batch's } S \\
    L &= \operatorname*{mean}_{\pi > 1/2} H(x) \;-\; \alpha_2 \operatorname*{mean}_{\pi < 1/2} H(x)
         \;-\; \alpha_1\, H\Big(\tfrac1N \sum_i p(x_i)\Big)

A step:
    1. predict the batch; take its features from the source model, each normalised by the batch's statistics;
    2. score every image by how far it is from all prototypes, and let two Gaussians split the batch;
    3. update scale and shift of the normalisation layers once: lower the entropy of the known, raise that of
       the unknown and that of the mean prediction. A batch that does not split (one image, equal scores, one
       side empty) is not learned from. Answer with the prediction of 1.

Departures:
    The mixture starts at the exact best split in two, not at a random k-means, so that a run can be repeated.
    Published code step by step: ``UniEnt(model, 10, adam(1e-3), alpha, mixture=published)`` (CIFAR, 100 known
    and 100 unknown images a batch), ``sgd(1e-3)`` (ImageNet, 32 and 32), with the best ``alpha`` of {1, 0.5,
    0.2, 0.1} squared, and ::

        def published(scores):
            s = scores.numpy().reshape(-1, 1)
            mixture = sklearn.mixture.GaussianMixture(n_components=2).fit(s)
            posterior = torch.from_numpy(mixture.predict_proba(s))
            return posterior if mixture.means_[0, 0] < mixture.means_[1, 0] else posterior.flip(1)

    Where one side is empty the published loss is NaN; here nothing moves. Every normalisation layer is
    adapted, and dropout stays off. The published code can add its losses to EATA and OSTTA as well; this is
    the one on TENT, and ``OSTTA(model, criterion=...)`` those on OSTTA.

Cost: two forwards, one backward; the weights exist once. The mixture is fitted on the CPU.

Reference: Gao, Zhang and Liu, Unified Entropy Optimization for Open-Set Test-Time Adaptation, CVPR 2024;
code:
github.com/gaozhengqing/UniEnt, criterion ``ent_ind_ood``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam, entropy, marginal_entropy
from testtime.parts.features import headless, linear_head
from testtime.parts.mixture import two_gaussians
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction

__all__ = ["Mixture", "UniEnt", "checked_head", "prototype_score", "split"]


class Mixture(Protocol):
    """Fits two components to scores (N,) on the CPU; gives posteriors (N, 2), those of the lower scores first."""

    def __call__(self, scores: Tensor) -> Tensor: ...


def prototype_score(features: Tensor, prototypes: Tensor) -> Tensor:
    """How far each image is from all classes, relative to its batch.

    Args:
        features: (N, D).
        prototypes: (C, D).

    Returns:
        (N,): 0 for the image closest to a prototype, 1 for the farthest; NaN where all are equally far.

    Raises:
        ValueError: features and prototypes do not fit.

    >>> prototype_score(torch.eye(3)[:, :2], torch.eye(2))
    tensor([0., 0., 1.])
    """
    if features.dim() != 2 or features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"without its linear head the model returns {tuple(features.shape)}, expected features "
            f"(N, {prototypes.shape[1]}): the layer taken for the head is not the last of the model; pass head= with "
            "the name of the one that is"
        )
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, prototypes = (
        F.normalize(features.to(dtype), eps=1e-8),
        F.normalize(prototypes.to(dtype), eps=1e-8),
    )
    similarity = (features @ prototypes.t()).amax(dim=1)
    low, high = similarity.aminmax()
    return 1 - (similarity - low) / (high - low)


def split(features: Tensor, prototypes: Tensor, mixture: Mixture) -> Tensor:
    """How likely each image is known and unknown, (N, 2) on the CPU; 1/2 for all where the scores do not differ."""
    scores = prototype_score(features.detach(), prototypes.detach()).cpu()
    if not bool(torch.isfinite(scores).all()):
        return torch.full((len(scores), 2), 0.5, dtype=torch.float64)
    return mixture(scores)


def checked_head(model: nn.Module, classes: int, head: str | None) -> Tensor:
    """The weight (C, D) of the linear head.

    Raises:
        ValueError: the model has no such head, or it does not have one row a class.
    """
    name, linear = linear_head(model, head)
    if linear.out_features != classes:
        raise ValueError(
            f"the linear layer {name!r} has {linear.out_features} outputs, expected one for each of {classes} "
            "classes; correct classes=, or pass head= with the name of the layer that gives the logits"
        )
    return linear.weight


@final
class UniEnt(Adapter):
    """Split the batch into known and unknown; lower the entropy of the one and raise that of the other.

    Args:
        model: a classifier with normalisation layers that ends in a linear layer.
        classes: C, the number of known classes.
        optimizer: moves gamma and beta; ``adam(1e-3)`` (CIFAR), ``sgd(1e-3)`` (ImageNet).
        alpha: the weights of the entropy of the mean prediction (alpha_1) and of the unknown (alpha_2); the
            published code searches {1, 0.5, 0.2, 0.1} for both.
        mixture: fits two components to the scores; returns posteriors (N, 2), those of the lower scores
            first.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers in both models.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, or no linear head of C outputs.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = UniEnt(net, classes=2)(torch.rand(8, 3, 8, 8))
    >>> y.updated, (y.selected["minimised"] ^ y.selected["maximised"]).all()
    (True, tensor(True))
    """

    name, label = "unient", "UniEnt"
    needs = ("classifier", "norm", "linear head")
    venue = "CVPR 2024"
    paper = "Gao, Zhang and Liu, Unified Entropy Optimization for Open-Set Test-Time Adaptation"
    code = "github.com/gaozhengqing/UniEnt"
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        alpha: tuple[float, float] = (0.5, 0.5),
        mixture: Mixture = two_gaussians,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.classes, self.optimizer, self.alpha = classes, optimizer, alpha
        self.mixture, self.head, self.norm = mixture, head, norm
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.prototypes = checked_head(self.model, classes, head)
        self.origin = headless(self.model, own=affine, head=head)

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        with torch.no_grad():
            posterior = split(self.origin(x), self.prototypes, self.mixture)
        known, unknown = posterior[:, 0] > posterior[:, 1], posterior[:, 0] < posterior[:, 1]
        both = bool(known.any()) and bool(unknown.any())
        known, unknown = known.to(x.device), unknown.to(x.device)
        if both:
            h, (alpha1, alpha2) = entropy(logits), self.alpha
            loss = (known * h).sum() / known.sum() - alpha2 * (unknown * h).sum() / unknown.sum()
            self.update(loss - alpha1 * marginal_entropy(logits))
        return Prediction(logits, selected={"minimised": known & both, "maximised": unknown & both})
