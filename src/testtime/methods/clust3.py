r"""ClusT3: keep features and their clusters as informative of each other as they were on the source.

With a linear projector g and the assignment :math:`p_m = \operatorname{softmax}(g(z_m))` of the m-th feature vector to K
clusters,

.. math::
    \max_\theta \; I(X; Z) = H(\bar p) - \frac1M \sum_m H(p_m), \qquad \bar p = \frac1M \sum_m p_m, \qquad
    H(p) = -\sum_k p_k \log p_k

on the source jointly with the task, :math:`L = L_{task} - I` with g learning too, and at test time alone with g frozen.

A step:
    1. predict the batch, and let every projector assign the features of its layer to clusters;
    2. take the gradient of the mean negative information with respect to the layers up to the watched ones;
    3. update them once, and answer with the prediction of 1.

The paper takes 20 to 100 iterations on a batch, from the source each time, and evaluates after them: call the adapter as
often, call ``predict``, and ``reset`` before the next batch.

What is learned on source data lies in :mod:`testtime.source.clust3`.

Departures:
    The paper trains projectors and network together: give ``Assisted(network, Projectors(...))``, as
    :func:`testtime.multitask.train` leaves it. On a network that comes alone ``prepare`` trains the projectors, the network
    frozen: ``passes`` over the batches with Adam.
    The paper watches the first two stages of a ResNet: ``layers=("layer1", "layer2")``. Unless named, it is the encoder of
    a multi-task network, or what a classifier's head is given.
    M counts every place of every feature map of the batch, and the information is averaged over projectors and layers;
    how the paper weighs several layers is not known to us.
    The answer is the forward before the update. BatchNorm follows the batch, which the paper leaves to its code.

Cost: one forward, one backward (from the watched layers). ``prepare`` costs ``passes`` forwards, once.

Reference: Vargas Hakim, Osowiechi, Noori, Cheraghalikhani, Bahri, Ben Ayed and Desrosiers, ClusT3: Information Invariant
Test-Time Training, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural
from testtime.norm import batch_statistics, observing
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import watched
from testtime.source.branches import joined, upstream
from testtime.source.clust3 import Projectors

__all__ = ["ClusT3"]


@final
class ClusT3(Adapter):
    """Keep features and their clusters informative of each other.

    Args:
        model: a multi-task network or a classifier, with the ``Projectors`` it was trained with
            (``Assisted(network, Projectors(...))``) or alone.
        optimizer: moves the layers up to the last watched one; the paper's is ``adam(1e-5)``.
        clusters: K; with projectors and layers, of the projectors of a network that comes alone.
        projectors: number of projectors on each layer; up to 15 in the paper.
        layers: names of the layers to watch.
        passes: passes of ``prepare`` over its batches.
        rate: the learning rate of ``prepare``.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the initial weights of the projectors.

    Raises:
        ValueError: a layer is not there, or gives neither feature maps nor vectors.
        RuntimeError: it is called with neither trained nor prepared projectors.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> clust3 = ClusT3(net, layers=("1",))
    >>> clust3.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = clust3(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "clust3", "ClusT3"
    needs = ("linear head",)
    venue = "ICCV 2023"
    paper = (
        "Vargas Hakim, Osowiechi, Noori, Cheraghalikhani, Bahri, Ben Ayed and Desrosiers, ClusT3: "
        "Information Invariant Test-Time Training"
    )
    source: SourceData = "data"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-5),  # noqa: B008 - a frozen value
        clusters: int = 10,
        projectors: int = 1,
        layers: Sequence[str] = (),
        passes: Natural = 10,
        rate: float = 1e-2,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.clusters, self.projectors, self.layers = optimizer, clusters, projectors, layers
        self.passes, self.rate, self.norm = passes, rate, norm
        self.branch, self._taps = joined(
            self.model, Projectors, layers, lambda widths: Projectors(widths, clusters, projectors), seed
        )
        self.source = "data" if self.branch.learned else "none"
        self.adapt(upstream(self.model, self._taps), optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if self.branch.learned:
            self.branch.teach(self.model, self._taps, batches, self.passes, self.rate, self.seed)

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        self.branch.demand("ClusT3")
        with observing(self.model):
            y, seen = watched(self.model, self._taps, x)
        self.update(-self.branch(seen))
        return y
