r"""TTTFlow: make the features of the test images as likely as those of the source, by a normalizing flow that knows them.

A flow maps a feature vector :math:`z \in \mathbb R^D` to :math:`u = F(z)`, a standard normal where z is of the source,
through affine couplings (RealNVP) of its halves,

.. math::
    v_a = u_a, \qquad v_b = u_b \odot e^{s(u_a)} + t(u_a), \qquad \log\det = \sum s(u_a), \\
    -\log p(z) = \tfrac12 \|F(z)\|^2 + \tfrac D2 \log 2\pi - \log \Big| \det \frac{\partial F}{\partial z} \Big|, \qquad
    L = \tfrac{1}{D}\, \operatorname{mean}\, {-\log p(z)}

It is fitted to the features of the finished source network by minimising L; at test time L adapts the network, F frozen.

A step:
    1. predict the batch, and compute the likelihood of its features by the flow;
    2. take the gradient of L with respect to the layers up to the watched one;
    3. update them once, and answer with the prediction of 1.

The paper takes 10 iterations on a batch, from the source each time, and evaluates after them: call the adapter as often,
call ``predict``, and ``reset`` before the next batch.

What is learned on source data lies in :mod:`testtime.source.ttt_flow`.

Departures:
    As in the paper the flow comes after the network: ``prepare`` fits it, ``passes`` over its batches with Adam. In joint
    training (``Assisted(network, Flow(...))``) it learns beside the network from features whose gradient is cut, so that the
    network is the one it would be alone.
    The paper watches the second stage of a ResNet: ``layer="layer2"``. Unless named, it is the encoder of a multi-task
    network, or what a classifier's head is given.
    Every place of a feature map is a vector of its own, so the flow knows no neighbourhood; s is bounded to (-1, 1) by tanh,
    the halves change parts in every coupling, and features are first standardised by the source's averages, of which a
    channel's variance counts a hundredth of the mean variance more, for channels that are silent on the source.
    L is in nats per dimension, so that a learning rate means the same for every width; sizes of s and t are this library's.
    The answer is the forward before the update. BatchNorm follows the batch, which the paper leaves to its code.

Cost: one forward, one backward (from the watched layer). ``prepare`` costs ``passes`` forwards, once.

Reference: Osowiechi, Vargas Hakim, Noori, Cheraghalikhani, Ben Ayed and Desrosiers, TTTFlow: Unsupervised Test-Time
Training with Normalizing Flow, WACV 2023; Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural, Positive
from testtime.moved import renamed
from testtime.norm import batch_statistics, observing
from testtime.parts import sgd
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import watched
from testtime.source.branches import joined, upstream
from testtime.source.ttt_flow import Flow

__all__ = ["TTTFlow"]

__getattr__ = renamed(
    __name__,
    {
        "Coupling": "testtime.source.ttt_flow:Coupling",
    },
)


@final
class TTTFlow(Adapter):
    """Make the features of the test images as likely as those of the source.

    Args:
        model: a multi-task network or a classifier, alone or with the ``Flow`` it was trained with
            (``Assisted(network, Flow(...))``).
        optimizer: moves the layers up to the watched one; the paper's is ``sgd(1e-3, weight_decay=5e-4)``.
        couplings: number of couplings of the flow of a network without one; likewise hidden and layer.
        hidden: units of each of the two hidden layers of a coupling.
        layer: the name of the layer to watch.
        passes: passes of ``prepare`` over its batches.
        rate: the learning rate of ``prepare``.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the initial weights of the flow.

    Raises:
        ValueError: the layer is not there, or gives neither feature maps nor vectors of two channels at least.
        RuntimeError: it is called with neither a trained nor a prepared flow.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> ttt_flow = TTTFlow(net, layer="1")
    >>> ttt_flow.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = ttt_flow(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "tttflow", "TTTFlow"
    needs = ("linear head",)
    venue = "WACV 2023"
    paper = (
        "Osowiechi, Vargas Hakim, Noori, Cheraghalikhani, Ben Ayed and Desrosiers, TTTFlow: Unsupervised "
        "Test-Time Training with Normalizing Flow"
    )
    source: SourceData = "data"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-3, weight_decay=5e-4),  # noqa: B008 - a frozen value
        couplings: Positive = 4,
        hidden: Positive = 64,
        layer: str | None = None,
        passes: Natural = 10,
        rate: float = 3e-3,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.couplings, self.hidden, self.layer = optimizer, couplings, hidden, layer
        self.passes, self.rate, self.norm = passes, rate, norm
        self.branch, self._taps = joined(
            self.model,
            Flow,
            (layer,) if layer else (),
            lambda channels: Flow(channels[0], couplings, hidden),
            seed,
        )
        self.source = "data" if self.branch.learned else "none"
        self.adapt(upstream(self.model, self._taps), optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if self.branch.learned:
            self.branch.teach(self.model, self._taps, batches, self.passes, self.rate, self.seed)

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        self.branch.demand("TTTFlow")
        with observing(self.model):
            y, (z,) = watched(self.model, self._taps, x)
        self.update(self.branch(z).mean())
        return y
