r"""aTLAS: how much of every task vector goes into every block of the network is learned, all else is frozen.

A task vector is what fine-tuning on a task changes, :math:`\tau_t = \theta_t - \theta_0`. With a coefficient for each task t
and each parameter block b (a weight or a bias of a layer), trusted images :math:`(x_j, \hat y_j)`, a weak view
:math:`\alpha` and a strong view :math:`\mathcal A` of an image,

.. math::
    \theta^{(b)} &= \theta_0^{(b)} + \sum_t \lambda_t^{(b)}\, \tau_t^{(b)} \\
    L &= \tfrac1N \sum_j -\log p_\theta(\hat y_j \mid \alpha(x_j)) + \lambda_u \tfrac1N \sum_i [q_i \ge \omega] \;
         {-\log p_\theta(\hat c_i \mid \mathcal A(x_i))}, \qquad
    (q_i, \hat c_i) = \max_c p_\theta(c \mid \alpha(x_i))

which is FixMatch without labels. An image is trusted where :math:`\theta_0` is among the k surest of its class so far, and
then the prediction of :math:`\theta_0` is its label.

A step, from :math:`\lambda = 0`, once there are task vectors (``train_task_vectors``, ``with_task_vectors`` or
``prepare``):
    1. predict the batch; let :math:`\theta_0` predict it too, and remember whom it is surest of, k of each class;
    2. draw as many trusted images as the batch has, and see the views;
    3. update the coefficients once on L, and answer with the prediction of 1.

What is learned on source data lies in :mod:`testtime.source.atlas`.

Departures:
    The paper's full text was not at hand, and its code has no licence and was not read: this was written from the abstract and
    from a recipe of the experiment (AdamW at 1e-3, batches of 128, 22 task vectors, ten epochs over the test set, FixMatch
    with the surest of each class as labelled). The threshold and :math:`\lambda_u` are FixMatch's, k is this library's.
    Figures of the paper cannot be claimed.
    There the whole test set is at hand: it is gone through ten times, and then predicted. Here it is a stream: whom to trust is
    among those so far, and is predicted before it is learned. ``Repeat(ATLAS(model, classes), 10)`` learns each batch ten
    times and then answers; the offline form is the stream ten times through, and then ``predict``.
    The recipe does not define how AdamW decays; without decay it is Adam, which is the default.
    There the task vectors are of CLIP's image encoder, fine-tuned on 22 data sets, and the head is made of text. Here they are
    of everything but the head (``skip``), and ``prepare``, for a network that comes without, makes some from unlabelled source
    images: for each corruption in ``tasks`` a copy of the network learns to answer the corrupted images as it answered the
    clean ones. Task vectors are of parameters: statistics of BatchNorm follow ``norm``.

Cost: five forwards, two backwards. ``prepare`` costs a forward of each batch, and for every task and pass a forward and a
backward. A task vector is as large as the network; those of ``prepare`` are part of the state. The memory holds
``trusted * classes`` images.

Reference: Zhang, Albert, Rodriguez-Opazo, van den Hengel and Abbasnejad, Knowledge Composition using Task Vectors with
Learned Anisotropic Scaling, NeurIPS 2024; Sohn et al., FixMatch: Simplifying Semi-Supervised Learning with Consistency and
Confidence, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural
from testtime.moved import renamed
from testtime.norm import batch_statistics, observing
from testtime.parts import adam, generator, random_crop_flip, simclr
from testtime.parts.augment import Augmentation
from testtime.parts.memory import ImageMemory
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving
from testtime.prediction import Prediction
from testtime.source.atlas import (
    TaskVectors,
    block_names,
    fine_tuned,
    task_vectors_of,
    unscaled,
)
from testtime.source.branches import images_of
from testtime.source.corrupted import corrupted_domains

__all__ = ["ATLAS", "ATLASOptions", "fixmatch"]

__getattr__ = renamed(
    __name__,
    {
        "with_task_vectors": "testtime.source.atlas:with_task_vectors",
        "train_task_vectors": "testtime.source.atlas:train_task_vectors",
    },
)


def fixmatch(
    trusted: Tensor, label: Tensor, weak: Tensor, strong: Tensor, threshold: float, weight: float
) -> tuple[Tensor, Tensor]:
    """FixMatch's loss, and which images were sure enough to be learned from.

    Args:
        trusted: logits (M, C) of the labelled images.
        label: (M,).
        weak: logits (N, C) of a weak view; they give the pseudo-labels, and no gradient.
        strong: logits (N, C) of a strong view of the same images.
        threshold: omega, a probability.
        weight: lambda_u.

    Returns:
        the scalar loss and a mask (N,).

    Reference: Sohn et al., NeurIPS 2020, equations 3 and 4.
    """
    wide = torch.promote_types(weak.dtype, torch.float32)
    confidence, guess = weak.detach().softmax(dim=1, dtype=wide).max(dim=1)
    sure = confidence >= threshold
    apart = F.cross_entropy(strong.to(wide), guess, reduction="none")
    return F.cross_entropy(trusted.to(wide), label) + weight * (sure * apart).mean(), sure


@final
class TrustedMemory(ImageMemory):
    """The images that the network was surest of, as many of each class, with their pseudo-labels.

    Args:
        classes: C.
        each: k, places for each class.

    Attributes:
        confidence: (C k,) of the network in each image.
    """

    confidence: Tensor

    def __init__(self, classes: int, each: int) -> None:
        super().__init__(classes, classes * each)
        self.each = each
        self.register_buffer("confidence", torch.zeros(self.capacity))

    def update(self, x: Tensor, logits: Tensor) -> Tensor:
        """Take those of the batch (N, ...) that are among the surest of their class; an image is held but once.

        Returns:
            (N,), who was taken.

        Raises:
            ValueError: the logits are of another number of classes.
        """
        if logits.shape[1] != self.classes:
            raise ValueError(f"the model answers with {logits.shape[1]} classes, expected {self.classes}")
        confidence, label = logits.softmax(dim=1, dtype=torch.float32).max(dim=1)
        sure, of = confidence.double().cpu().numpy(), label.cpu().numpy()
        held = np.where(self.label.cpu().numpy() < 0, -1, self.confidence.double().cpu().numpy())
        origin = np.full(self.capacity, -1)
        for c in np.unique(of):
            places = np.arange(c * self.each, (c + 1) * self.each)
            rows = np.array([i for i in np.flatnonzero(of == c) if not self._holds(x[i], places)], dtype=int)
            best = np.argsort(-np.concatenate([held[places], sure[rows]]), kind="stable")[: self.each]
            left = np.setdiff1d(np.arange(self.each), best)
            origin[places[left]] = rows[best[best >= self.each] - self.each]
        self.take(x, origin)
        taken = np.flatnonzero(origin >= 0)
        self.label[taken] = torch.from_numpy(of[origin[taken]]).to(self.label)
        self.confidence[taken] = torch.from_numpy(sure[origin[taken]]).to(self.confidence)
        mask = torch.zeros(len(x), dtype=torch.bool)
        mask[origin[taken]] = True
        self.seen += len(x)
        return mask.to(x.device)

    def _holds(self, image: Tensor, places: np.ndarray) -> bool:
        if self.images.shape[1:] != image.shape:
            return False
        mine = torch.from_numpy(places[self.label.cpu().numpy()[places] >= 0]).to(self.images.device)
        return bool((self.images[mine] == image).flatten(1).all(dim=1).any())

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (count, ...) and their labels (count,), any of those held, with repetition."""
        held = (self.label >= 0).nonzero().flatten().cpu()
        chosen = held[torch.randint(len(held), (count,), generator=rng)]
        return self.images[chosen.to(self.images.device)], self.label.cpu()[chosen].to(self.images.device)


@final
@dataclass(frozen=True)
class ATLASOptions:
    """Settings of ATLAS that are rarely changed.

    Args:
        tasks: names of the corruptions of the source whose task vectors ``prepare`` learns.
        severity: severity of the corruptions, 1 to 5.
        passes, rate: number of passes and learning rate of ``prepare``, for each task.
        skip: parts of names of parameters without task vectors, in ``prepare``; None is the last linear layer, the head.

    Raises:
        ValueError: there is no task.
    """

    tasks: Sequence[str] = ("gaussian_noise", "defocus_blur", "fog", "contrast")
    severity: int = 3
    passes: Natural = 1
    rate: float = 1e-3
    skip: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("expected at least one corruption in tasks, got none")


@final
class ATLAS(Adapter):
    """How much of every task vector goes into every block of the network is learned, all else is frozen.

    Args:
        model: any classifier; one of ``train_task_vectors`` or ``with_task_vectors`` needs no ``prepare``.
        classes: C.
        optimizer: moves the coefficients; the recipe's 1e-3 is for ten passes, and a single one wants more: ``adam(1e-2)``.
        trusted: k, how many images of each class are held as labelled; ``trusted=1`` for ImageNet holds a thousand.
        threshold: omega, from which confidence on a pseudo-label counts; FixMatch's is 0.95.
        weight: lambda_u, of the images that are not trusted; FixMatch's is 1.
        weak, strong: the views, within the model's invariances; ``testtime.parts.identity`` switches their randomness off.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers, also while ``prepare`` fine-tunes.
        seed: random seed of the views and of the draws from the memory.

    Raises:
        ValueError: trusted is below 1, or the ``skip`` of the options leaves out all parameters.
        RuntimeError: it is called before ``prepare``, and the network brings no task vectors along.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> batches = [(torch.rand(8, 3, 8, 8), torch.randint(2, (8,)))] * 3
    >>> from testtime.source.atlas import train_task_vectors
    >>> atlas = ATLAS(train_task_vectors(net, {"fog": batches, "snow": batches}, title=None), classes=2)
    >>> y = atlas(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated, atlas.vectors.coefficients.shape  # of a weight and a bias in two layers, by task
    (torch.Size([8, 2]), True, torch.Size([2, 4]))
    """

    name, label = "atlas", "aTLAS"
    needs = ("classifier", "images")
    venue = "NeurIPS 2024"
    paper = (
        "Zhang, Albert, Rodriguez-Opazo, van den Hengel and Abbasnejad, Knowledge Composition using Task "
        "Vectors with Learned Anisotropic Scaling"
    )
    source: SourceData = "data"
    stochastic = True
    cost = (5, 2)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        trusted: int = 4,
        threshold: float = 0.95,
        weight: float = 1.0,
        weak: Augmentation = random_crop_flip,
        strong: Augmentation = simclr,
        options: ATLASOptions = ATLASOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        if trusted < 1:
            raise ValueError(f"trusted counts the images of each class and is at least 1, got {trusted}")
        network = norm(model)
        if (brought := task_vectors_of(network)) is None:
            network = TaskVectors(network, block_names(network, options.skip), options.tasks)
        super().__init__(network, seed)
        self.classes, self.optimizer, self.trusted, self.threshold = classes, optimizer, trusted, threshold
        self.weight, self.options, self.norm = weight, options, norm
        self.weak, self.strong = preserving(weak, self.model), preserving(strong, self.model)
        vectors = task_vectors_of(self.model)
        assert vectors is not None
        self.vectors, self.memory = vectors, TrustedMemory(classes, trusted)
        if brought is not None:
            self.source = "none"
        self.adapt([vectors.coefficients], optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if not self.vectors.learned:
            return
        images = images_of(batches)
        with torch.no_grad(), unscaled(self.vectors):
            predicted = [self.model(x).argmax(dim=1) for x in images]
        options = self.options
        domains = corrupted_domains(images, predicted, options.tasks, options.severity)
        found = [fine_tuned(self.model, one, options.passes, options.rate, 0.0) for one in domains.values()]
        self.vectors.vectors = torch.stack(found)

    def step(self, x: Tensor) -> Tensor:
        if not len(self.vectors.vectors):
            raise RuntimeError(
                "ATLAS has no task vectors: call adapter.prepare(batches) with unlabelled source batches first, or give it the "
                "network of train_task_vectors(model, labelled tasks) or with_task_vectors(model, fine-tuned networks)"
            )
        with torch.no_grad(), observing(self.model):
            y = self.model(x)
        with torch.no_grad(), unscaled(self.vectors):
            taken = self.memory.update(x, self.model(x))
        images, label = self.memory.draw(len(x), generator(self.seed, int(self.clock), "trusted"))
        with torch.no_grad():
            weak = self.model(self.weak(x, self._rng("weak", x)))
        known = self.model(self.weak(images.to(x), self._rng("known", x)))
        strong = self.model(self.strong(x, self._rng("strong", x)))
        loss, sure = fixmatch(known, label, weak, strong, self.threshold, self.weight)
        self.update(loss)
        return Prediction(y, selected={"trusted": taken, "minimised": sure})

    def _rng(self, purpose: str, x: Tensor) -> torch.Generator:
        return generator(self.seed, int(self.clock), purpose, x.device)
