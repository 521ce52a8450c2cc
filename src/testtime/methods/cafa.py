r"""CAFA: bring features near the source's Gaussian of their class, and far from those of all others.

With the features :math:`g(x)`, the label :math:`\hat y = \arg\max_c p_c(x)`, and mean and covariance
:math:`\mu_c, \Sigma_c` of the source's features of class c,

.. math::
    D_c(x) &= (g(x) - \mu_c)^\top\, \Sigma_c^{-1}\, (g(x) - \mu_c) \\
    \min_{\gamma, \beta} \; L &= \frac1N \sum_i \log \frac{D_{\hat y_i}(x_i)}{\sum_{c \ne \hat y_i} D_c(x_i)}

A step, after ``prepare(batches)`` has taken the Gaussians once:
    1. predict the batch, normalised by its own statistics: that is the answer;
    2. measure the Mahalanobis distance of every feature to every class;
    3. update scale and shift of the normalisation layers once down the logarithm of the distance within the class over
       that between the classes.

Departures:
    No code was found, and of the paper's text the abstract and summaries alone were at hand. They give the distance, its use
    within and between classes, that normalisation layers move, and that there is no weight between the two terms; the ratio
    under the logarithm, which needs none, is this reading of it. So are the optimizer and the statistics of the batch, those
    of Tent. Figures of this method are those of this reading, not the paper's.
    The paper knows the source's labels. ``prepare`` takes them with the images, ``prepare([(images, labels), ...])``; where
    only images are given, a feature belongs to the class that the source model predicts.
    Few features do not fill a covariance: a share of its mean variance is added to it (``ridge``). ``tied=True`` takes one
    covariance for all classes, which C = 1000 needs to fit in memory. A class of fewer than two features has no Gaussian:
    it is left out, and so are the images of that label.

Cost: one forward, one backward. ``prepare`` costs one forward a batch, once, and holds C covariances of D x D.

Reference: Jung, Lee, Kim, Shaban, Boots and Choo, CAFA: Class-Aware Feature Alignment for Test-Time Adaptation, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import adam
from testtime.parts.features import head_tap, with_features
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction
from testtime.source.branches import labelled_images_of, labels_or_predictions

__all__ = ["CAFA", "ClassGaussians", "class_aware_loss"]


@final
class ClassGaussians(Stateful):
    """A Gaussian of the source's features for each class; empty until learned.

    Attributes:
        mean: (C, D).
        whitening: (C, D, D), or (1, D, D) where they share it: W with the inverse covariance ``W W^T``.
        known: (C,) bool; a class of fewer than two features has no Gaussian.

    ``update`` learns them; calling gives the squared Mahalanobis distances (N, C) of features (N, D).
    """

    learned = True
    mean: Tensor
    whitening: Tensor
    known: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("whitening", torch.empty(0))
        self.register_buffer("known", torch.empty(0, dtype=torch.bool))

    @torch.no_grad()
    def update(self, features: Tensor, label: Tensor, classes: int, ridge: float, tied: bool) -> None:
        """Learn from scratch.

        Args:
            features: (M, D).
            label: (M,).
            classes: C.
            ridge: the share of the mean variance that is added to every variance.
            tied: one covariance for all classes.

        Raises:
            ValueError: no class has two features that differ, or a covariance is singular.
        """
        z = features.double()
        count = torch.bincount(label, minlength=classes)
        mean = z.new_zeros(classes, z.shape[1]).index_add(0, label, z) / count.clamp_min(1)[:, None]
        known = count > 1
        gaps, of = z - mean[label], [label == c for c in range(classes) if known[c]]
        if not of:
            raise ValueError(
                f"no class has two of the {len(z)} source images; expected more images of the source"
            )
        pooled = gaps[known[label]]
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        whitening = eye.repeat(1 if tied else classes, 1, 1)
        places = [0] if tied else known.nonzero().flatten().tolist()
        for place, rows in zip(places, [pooled] if tied else [gaps[mask] for mask in of], strict=True):
            cov = rows.T @ rows / len(rows)
            lower, failed = torch.linalg.cholesky_ex(cov + ridge * cov.diagonal().mean() * eye)
            if (
                bool(failed)
                or not bool(torch.isfinite(lower).all())
                or not bool((lower.diagonal() > 0).all())
            ):
                raise ValueError(
                    f"{len(rows)} features of {z.shape[1]} dimensions give a covariance that has no inverse; show more "
                    "images of the source, take a larger ridge, or tied=True"
                )
            whitening[place] = torch.linalg.solve_triangular(lower, eye, upper=False).T
        self.mean, self.whitening, self.known = mean.to(features), whitening.to(features), known

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            gaps = (features[:, None] - self.mean).transpose(0, 1)  # (C, N, D)
            return (gaps @ self.whitening).square().sum(dim=2).T


def class_aware_loss(distance: Tensor, label: Tensor) -> Tensor:
    """How near features are to their class, against all others: the logarithm of the ratio.

    Args:
        distance: (N, C), to every class.
        label: (N,).

    Returns:
        (N,).

    >>> class_aware_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]))  # log 1/5
    tensor([-1.6094])
    """
    tiny = torch.finfo(distance.dtype).tiny
    within = distance.gather(1, label[:, None]).squeeze(1)
    between = distance.scatter(1, label[:, None], 0.0).sum(dim=1)
    return within.clamp_min(tiny).log() - between.clamp_min(tiny).log()


@final
class CAFA(Adapter):
    """Bring features near the source's Gaussian of their class, and far from those of all others.

    ``prepare`` takes source batches of images, or pairs of images and labels.

    Args:
        model: any classifier with normalisation layers that ends in a linear head.
        optimizer: moves gamma and beta.
        ridge: the share of a covariance's mean variance that is added to every variance.
        tied: one covariance for all classes.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no linear head, or no normalisation layer with scale and shift.
        RuntimeError: it is called before ``prepare``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> cafa = CAFA(net)
    >>> cafa.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = cafa(torch.rand(8, 3, 8, 8))
    >>> y.shape, list(y.selected)
    (torch.Size([8, 2]), ['minimised'])
    """

    name, label = "cafa", "CAFA"
    needs = ("classifier", "norm", "linear head")
    venue = "ICCV 2023"
    paper = (
        "Jung, Lee, Kim, Shaban, Boots and Choo, CAFA: Class-Aware Feature Alignment for Test-Time Adaptation"
    )
    source = "statistics"
    labelled_source = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        ridge: float = 1e-2,
        tied: bool = False,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.ridge, self.tied, self.head, self.norm = optimizer, ridge, tied, head, norm
        self._tap = head_tap(self.model, head)
        self.adapt(norm_affine(self.model), optimizer)
        self.gaussians = ClassGaussians()

    def _see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (N, C), and features (N, D) at least in float32."""
        logits, z = with_features(self.model, self._tap, x)
        return logits, z.to(torch.promote_types(z.dtype, torch.float32))

    def _prepare(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> None:
        images, labels = labelled_images_of(batches)
        with torch.no_grad():
            seen = [self._see(x.clone() if x.is_inference() else x) for x in images]
        logits, features = (torch.cat(parts) for parts in zip(*seen, strict=True))
        label = labels_or_predictions(labels, logits)
        self.gaussians.update(features, label, logits.shape[1], self.ridge, self.tied)

    def step(self, x: Tensor) -> Tensor:
        if not len(self.gaussians.mean):
            raise RuntimeError(
                "CAFA has not seen its source: call adapter.prepare(batches) with unlabelled source batches first"
            )
        with observing(self.model):
            logits, features = self._see(x)
        label, known = logits.argmax(dim=1), self.gaussians.known
        kept = known[label] & (known.sum() > 1)  # there is nothing between the classes where there is but one
        if kept.any():
            distance = self.gaussians(features) * known
            self.update(class_aware_loss(distance, label)[kept].mean())
        return Prediction(logits, selected={"minimised": kept})
