r"""TTT++: keep learning to discriminate images, and hold mean and covariance of the features to those of the source.

With the features :math:`z`, averaged over places, their projection :math:`h = g(z)`, two random views of every image whose
normalised projections are :math:`u_1 \dots u_{2N}` with :math:`u_{i'}` the other view of :math:`u_i`, and mean and
covariance :math:`\mu_f, \Sigma_f` of f (z or h) over the batch and a queue of those before it, with a hat over the source,

.. math::
    L_{con} &= \frac{1}{2N} \sum_i -\log \frac{\exp(u_i \cdot u_{i'} / T)}{\sum_{j \ne i} \exp(u_i \cdot u_j / T)} \\
    A_f &= \frac{\lVert \Sigma_f - \hat\Sigma_f \rVert_F^2}{v_\Sigma}
        + \frac12 \frac{\lVert \mu_f - \hat\mu_f \rVert_2^2}{v_\mu} \\
    \min_\theta \; & \lambda_{con} L_{con} + \lambda_z A_z + \lambda_h A_h

where :math:`v_\Sigma, v_\mu` are how much batches of the source differ in this: the mean, over all but the first, of the
squared distance to the first. On the source :math:`L_{con}` is learned jointly with the task.

A step, after ``prepare(batches)`` has summarised the source once:
    1. predict the batch; its features, and those in the queue, give mean and covariance;
    2. draw two views of every image and compare their projections;
    3. move the layers up to the features once down the sum, enqueue the features, and answer with the prediction of 1.

What is learned on source data lies in :mod:`testtime.source.ttt_plus_plus`.

Departures:
    The paper trains branch and network together: give ``Assisted(network, ContrastiveBranch(...))``, as
    :func:`testtime.multitask.train` leaves it. On a network that comes alone ``prepare`` also trains the branch on features
    of the frozen network: ``passes`` over one pair of views of every image with Adam. At test time it stays as it is, as in
    the published scripts (``--fix_ssh``).
    The published code multiplies the contrastive loss by T / 0.07 (``scale_con=0.5 / 0.07``), uses its queue only once it
    is full, draws separate batches for the two losses, leaves the first batch out of the source's moments, lets every
    forward move the BatchNorm statistics, and takes its first two epochs to move nothing else. Here the queue counts from
    the first batch on, one batch serves all, and only its own forward moves the statistics.
    The published code goes up to 500 times through the test set, halves the rate by the test error, and reports
    the best epoch by the labels; here a call is one step, and no label is seen.
    The answer is the forward before the update, normalised by the batch; ``predict`` uses the running statistics.

Cost: three forwards, three backwards. ``prepare`` costs one forward, and two more for a network that comes alone.

Reference: Liu, Kothari, van Delft, Bellot-Gurlet, Mordan and Alahi, TTT++: When Does Self-Supervised Test-Time Training Fail
or Thrive?, NeurIPS 2021; Chen, Kornblith, Norouzi and Hinton, A Simple Framework for Contrastive Learning of Visual
Representations, ICML 2020; Sun and Saenko, Deep CORAL, 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural, Positive
from testtime.intake.sharing import Stateful
from testtime.norm import observing, running_statistics
from testtime.parts import generator, sgd, simclr
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import watched
from testtime.parts.views import preserving
from testtime.source.branches import images_of, joined, upstream
from testtime.source.ttt_plus_plus import ContrastiveBranch, contrastive

__all__ = ["FeatureQueue", "SourceMoments", "TTTPlusPlus", "TTTPlusPlusOptions"]


def covariance(z: Tensor) -> Tensor:
    """The unbiased covariance (D, D) of features (N, D), in their own precision also under autocast."""
    with torch.autocast(z.device.type, enabled=False):
        z = z - z.mean(dim=0)
        return z.T @ z / (len(z) - 1)


@final
class SourceMoments(Stateful):
    """Mean and covariance of the source's features, and how much they vary from batch to batch; empty until learned.

    ``update`` learns them; calling gives the distance A of features (N, D) to them, a scalar.
    """

    learned = True
    mean: Tensor
    cov: Tensor
    variation: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "cov", "variation"):
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def update(self, features: Sequence[Tensor]) -> None:
        """Learn from scratch.

        Args:
            features: (N, D) of each batch.

        Raises:
            ValueError: there are fewer than two batches, a batch holds one image, or the batches do not differ.
        """
        if len(features) < 2 or min(map(len, features)) < 2:
            raise ValueError(
                "TTT++ weighs its distances by how much batches of the source differ, and needs two batches of two images "
                f"at least; got batches of {[len(z) for z in features][:8]}"
            )
        first, *others = [(z.mean(dim=0), covariance(z)) for z in features]
        gaps = [torch.stack([(a - b).square().sum() for a, b in zip(first, o, strict=True)]) for o in others]
        variation = torch.stack(gaps).mean(dim=0)
        if not bool((variation > 0).all()):
            raise ValueError("the batches of the source are all alike; expected batches of different images")
        everything = torch.cat(list(features))
        self.mean, self.cov, self.variation = everything.mean(dim=0), covariance(everything), variation

    def forward(self, z: Tensor) -> Tensor:
        distance = (z.mean(dim=0) - self.mean).square().sum() / self.variation[0] / 2
        if len(z) > 1:  # one row has no covariance
            distance = distance + (covariance(z) - self.cov).square().sum() / self.variation[1]
        return distance


@final
class FeatureQueue(Stateful):
    """The features of the last images, as they were when those were processed.

    Args:
        capacity: largest number of entries.
        like: a weight (..., D) of the type of the features.

    ``update`` enqueues features (N, D), calling puts the held ones behind those it is given.
    """

    rows: Tensor
    met: Tensor

    def __init__(self, capacity: int, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", like.new_zeros(capacity, like.shape[-1]).detach())
        self.register_buffer("met", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, self.rows[: int(self.met)]])

    @torch.no_grad()
    def update(self, z: Tensor) -> None:
        capacity = len(self.rows)
        if capacity:
            z = z[-capacity:]
            places = (int(self.met) + torch.arange(len(z), device=z.device)) % capacity
            self.rows = self.rows.index_copy(0, places, z.to(self.rows))
            self.met = self.met + len(z)


@final
@dataclass(frozen=True)
class TTTPlusPlusOptions:
    """Settings of TTTPlusPlus that are rarely changed.

    Args:
        layer: name of the layer that gives the features, for a network without a branch; None for the encoder of a multi-task
            network, or the input of a classifier's head.
        projection: number of outputs of the new branch.
        temperature: temperature of the new branch.
        passes: number of passes of ``prepare`` over its pairs of views.
        rate: learning rate of ``prepare``.
    """

    layer: str | None = None
    projection: Positive = 128
    temperature: float = 0.5
    passes: Natural = 10
    rate: float = 1e-3


@final
class TTTPlusPlus(Adapter):
    """Keep learning to discriminate images, and hold the features' mean and covariance to the source's.

    Args:
        model: a multi-task network or a classifier, with the ``ContrastiveBranch`` it was trained with
            (``Assisted(network, ContrastiveBranch(...))``) or alone.
        optimizer: moves the layers up to the watched one; the published CIFAR scripts have ``sgd(0.01)``.
        scale_con, scale_ext, scale_ssh: lambda of the contrastive loss, of the features, and of the projections.
        queue: number of features of past images in the mean and the covariance.
        augment: draws a view within the model's invariances.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the views and of the initial weights of the branch.

    Raises:
        ValueError: the layer is not there, or ``prepare`` sees fewer than two batches.
        RuntimeError: it is called before ``prepare``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> adapter = TTTPlusPlus(net)
    >>> adapter.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = adapter(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "ttt++", "TTT++"
    needs = ("linear head", "views")
    venue = "NeurIPS 2021"
    paper = (
        "Liu, Kothari, van Delft, Bellot-Gurlet, Mordan and Alahi, TTT++: When Does Self-Supervised Test-"
        "Time Training Fail or Thrive?"
    )
    source: SourceData = "data"
    stochastic = True
    cost = (3, 3)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-2),  # noqa: B008 - a frozen value
        scale_con: float = 1.0,
        scale_ext: float = 0.05,
        scale_ssh: float = 0.2,
        queue: Positive = 1280,
        augment: Augmentation = simclr,
        options: TTTPlusPlusOptions = TTTPlusPlusOptions(),
        norm: Callable[[nn.Module], nn.Module] = running_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.scale_con, self.scale_ext = optimizer, scale_con, scale_ext
        self.scale_ssh, self.queue, self.options, self.norm = scale_ssh, queue, options, norm
        self.augment = preserving(augment, self.model)
        self.branch, self._taps = joined(
            self.model,
            ContrastiveBranch,
            [options.layer] if options.layer else [],
            lambda widths: ContrastiveBranch(widths[0], options.projection, options.temperature),
            seed,
        )
        self.source = "data" if self.branch.learned else "statistics"
        self.adapt(upstream(self.model, self._taps), optimizer)
        inner, outer = self.branch.inner.weight, self.branch.outer.weight
        self.features, self.feature_queue = SourceMoments(), FeatureQueue(queue, inner)
        self.projections, self.projection_queue = SourceMoments(), FeatureQueue(queue, outer.T)

    @torch.no_grad()
    def _prepare(self, batches: Iterable[Tensor]) -> None:
        images = images_of(batches)
        if self.branch.learned:
            with observing(self.model):
                pairs = [self.branch.pool(self._views(x, f"source {i}")) for i, x in enumerate(images)]
            passes, rate = self.options.passes, self.options.rate
            with torch.enable_grad():
                self.branch.fit(pairs, lambda z, _: self._apart(z), passes, rate, self.seed)
        seen = [self.branch.pool(watched(self.model, self._taps, x)[1][0]) for x in images]
        self.features.update(seen)
        self.projections.update([self.branch(z) for z in seen])

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        self.branch.demand("TTT++")
        if not self.features.mean.numel():
            raise RuntimeError(
                "TTT++ has not seen its source: call adapter.prepare(batches) with unlabelled source batches first"
            )
        with observing(self.model):
            y, (z,) = watched(self.model, self._taps, x)
            views = self._views(x, "views")
        z, h = self.branch.pool(z), self.branch(z)
        apart = self.scale_con * self._apart(views)
        aligned = self.scale_ext * self.features(self.feature_queue(z))
        self.update(apart + aligned + self.scale_ssh * self.projections(self.projection_queue(h)))
        self.feature_queue.update(z)
        self.projection_queue.update(h)
        return y

    def _views(self, x: Tensor, purpose: str) -> Tensor:
        """What the watched layer gives for two views of every image, (2 N, ...)."""
        rng = generator(self.seed, int(self.clock), purpose, x.device)
        views = torch.cat([self.augment(x, rng) for _ in range(2)])
        return watched(self.model, self._taps, views)[1][0]

    def _apart(self, z: Tensor) -> Tensor:
        return contrastive(self.branch(z), self.branch.temperature)
