r"""NC-TTT: keep features where a discriminator, trained on the source to distinguish small from large noise, predicts small.

With the projection z of a feature vector to d dimensions, its views :math:`\tilde z = z + \sigma \epsilon`,
:math:`\epsilon \sim \mathcal N(0, I)`, of little noise (:math:`\sigma_s`, in distribution) and of much (:math:`\sigma_o`),
and a discriminator D, whose output is a log-odds,

.. math::
    p(s \mid \tilde z, z) &= \frac{\mathcal N(\tilde z; z, \sigma_s^2 I)}
        {\mathcal N(\tilde z; z, \sigma_s^2 I) + \mathcal N(\tilde z; z, \sigma_o^2 I)}
        = \operatorname{sigmoid}\Big( d \log \tfrac{\sigma_o}{\sigma_s}
        - \tfrac12 \|\tilde z - z\|^2 \big(\tfrac{1}{\sigma_s^2} - \tfrac{1}{\sigma_o^2}\big) \Big) \\
    L_{source} &= L_{task} + \operatorname{mean} \operatorname{BCE}\big(\operatorname{sigmoid} D(\tilde z),\,
        p(s \mid \tilde z, z)\big) \\
    L_{test} &= \operatorname{mean}\, -\log \operatorname{sigmoid} D(z)

so that D learns the log-ratio of the source's density blurred by little noise and by much.

A step:
    1. predict the batch, and let the discriminator judge the projection of its features, without noise;
    2. take the gradient of L_test with respect to the layers up to the watched one;
    3. update them once, and answer with the prediction of 1.

The paper takes several iterations on a batch, from the source each time, and evaluates after them: call the adapter as
often, call ``predict``, and ``reset`` before the next batch.

What is learned on source data lies in :mod:`testtime.source.nc_ttt`.

Departures:
    The paper trains branch and network together: give ``Assisted(network, NoiseDiscriminator(...))``, as
    :func:`testtime.multitask.train` leaves it. On a network that comes alone ``prepare`` trains the branch, the network
    frozen: ``passes`` over the batches with Adam.
    Every place of a feature map is a vector of its own. The projection is linear and then standardised, by the batch while
    it is learned and by the source's averages at test time: otherwise a projection to a point would solve the task, and the
    deviations of the noise would have no unit. The values of sigma_s, sigma_o, d and the width of D are this library's.
    The published file has the opposite sign in the test loss, :math:`-\log \operatorname{sigmoid}(-D(z))`, which leads away
    from the source if D is trained as above; this follows the formula (``opposite=True``: the file).
    Unless named, the watched layer is the encoder of a multi-task network, or what a classifier's head is given.
    The answer is the forward before the update. BatchNorm follows the batch, which the paper leaves to its code.

Cost: one forward, one backward (from the watched layer). ``prepare`` costs ``passes`` forwards, once.

Reference: Osowiechi, Vargas Hakim, Noori, Cheraghalikhani, Bahri, Yazdanpanah, Ben Ayed and Desrosiers, NC-TTT: A Noise
Contrastive Approach for Test-Time Training, CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.arguments import Natural, Positive
from testtime.moved import renamed
from testtime.norm import batch_statistics, observing
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import watched
from testtime.source.branches import joined, upstream
from testtime.source.nc_ttt import NoiseDiscriminator

__all__ = ["NCTTT", "NCTTTOptions"]

__getattr__ = renamed(
    __name__,
    {
        "in_distribution": "testtime.source.nc_ttt:in_distribution",
    },
)


@final
@dataclass(frozen=True)
class NCTTTOptions:
    """Settings of NCTTT that are rarely changed.

    Args:
        width: number of dimensions d of the projection of a new branch.
        hidden: number of units of its hidden layer.
        small, large: deviations sigma_s and sigma_o of its noise.
        layer: name of the layer that it watches; the input of the head, or the encoder, unless given.
        passes: number of passes of ``prepare`` over its batches.
        rate: learning rate of ``prepare``.
    """

    width: Positive = 16
    hidden: Positive = 64
    small: float = 0.1
    large: float = 0.5
    layer: str | None = None
    passes: Natural = 10
    rate: float = 1e-2


@final
class NCTTT(Adapter):
    """Keep features where a discriminator of small and large noise, trained on the source, predicts small noise.

    Args:
        model: a multi-task network or a classifier, with the ``NoiseDiscriminator`` it was trained with
            (``Assisted(network, NoiseDiscriminator(...))``) or alone.
        optimizer: moves the layers up to the watched one; the paper's is ``adam(1e-5)``.
        opposite: minimise -log sigmoid(-D), the test loss of the published file.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the initial weights of the branch and of the noise in ``prepare``.

    Raises:
        ValueError: the layer is not there, or gives neither feature maps nor vectors.
        RuntimeError: it is called with neither a trained nor a prepared branch.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> ncttt = NCTTT(net, options=NCTTTOptions(layer="1"))
    >>> ncttt.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = ncttt(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "nc-ttt", "NC-TTT"
    needs = ("linear head",)
    venue = "CVPR 2024"
    paper = (
        "Osowiechi, Vargas Hakim, Noori, Cheraghalikhani, Bahri, Yazdanpanah, Ben Ayed and Desrosiers, NC-"
        "TTT: A Noise Contrastive Approach for Test-Time Training"
    )
    source: SourceData = "data"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-5),  # noqa: B008 - a frozen value
        opposite: bool = False,
        options: NCTTTOptions = NCTTTOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.opposite, self.options, self.norm = optimizer, opposite, options, norm
        o = options
        self.branch, self._taps = joined(
            self.model,
            NoiseDiscriminator,
            (o.layer,) if o.layer else (),
            lambda channels: NoiseDiscriminator(channels[0], o.width, o.hidden, o.small, o.large),
            seed,
        )
        self.source = "data" if self.branch.learned else "none"
        self.adapt(upstream(self.model, self._taps), optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if self.branch.learned:
            passes, rate = self.options.passes, self.options.rate
            self.branch.teach(self.model, self._taps, batches, passes, rate, self.seed)

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        self.branch.demand("NCTTT")
        with observing(self.model):
            y, (z,) = watched(self.model, self._taps, x)
        odds = self.branch(z)
        self.update(F.softplus(odds if self.opposite else -odds).mean())
        return y
