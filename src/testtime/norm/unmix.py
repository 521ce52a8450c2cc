r"""Un-mixed statistics (UnMix-TNS): several components stand in for the batch that a correlated stream does not give.

With K components :math:`(\mu_k, \sigma_k^2)`, mean :math:`\tilde\mu_b` and variance :math:`\tilde\sigma_b^2` of each instance
over its places, and m the momentum of a batch of :math:`B_{max}`,

.. math::
    \mu_k^0 &= \mu_s + \sigma_s \sqrt{\tfrac{\alpha K}{K - 1}}\, (\zeta_k - \bar\zeta), \quad
    \zeta_k \sim \mathcal N(0, I), \quad \bar\zeta = \tfrac1K \sum_k \zeta_k, \qquad
    (\sigma_k^0)^2 = (1 - \alpha)\, \sigma_s^2 \\
    p_{bk} &= \operatorname{softmax}_k \big( \cos(\tilde\mu_b, \mu_k) / \tau \big) \\
    \hat\mu_{bk} &= (1 - p_{bk})\, \mu_k + p_{bk}\, \tilde\mu_b, \qquad
    \hat\sigma_{bk}^2 = (1 - p_{bk})\, \sigma_k^2 + p_{bk}\, \tilde\sigma_b^2 \\
    \mu_b &= \tfrac1K \sum_k \hat\mu_{bk}, \qquad
    \sigma_b^2 = \tfrac1K \sum_k \hat\sigma_{bk}^2 + \tfrac1K \sum_k \hat\mu_{bk}^2 - \mu_b^2 \\
    \mu_k &\leftarrow \mu_k + \tfrac{\lambda}{B} \sum_b p_{bk} (\tilde\mu_b - \mu_k), \quad
    \sigma_k^2 \leftarrow \sigma_k^2 + \tfrac{\lambda}{B} \sum_b p_{bk} (\tilde\sigma_b^2 - \sigma_k^2), \quad
    \lambda = 1 - (1 - m)^{B / B_{max}}

Instance b is normalised by :math:`\mu_b, \sigma_b^2`; initially the mixture of the components has the source's mean, and on
average its variance.

Departures:
    The published draw is not centred: the mean of 16 components is then off by a deviation of 0.18 :math:`\sigma_s` in every
    channel of every layer, which costs a ResNet-20 28 points on clean images before the first batch (docs/field.md);
    ``unmix_tns(model, centred=False)`` is that.
    Written from the authors' description, which gives the statistics and their mixing; the published code, which has no
    licence, was not read. The form of the initialisation, of tau and of the momentum is what is reported of that code. That the
    components move by the very mixing above, m = 0.1, and :math:`B_{max}` = 64, the batch of the paper's streams, are this
    library's reading. The published layers are reported to move in every forward, so that any extra forward counts twice; here
    they move once per adapted batch. What is one value per channel (a layer after pooling) has no instance statistics: as
    reported of that code, the source's serve, and nothing moves.
    Gradients flow through the instance's statistics and through p; in the published code none flows through p:
    ``unmix_tns(model, detach_assignment=True)``.

Reference: Tomar, Vray, Thiran and Bozorgtabar, Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal
Correlation, ICLR 2024.
"""

from __future__ import annotations

from itertools import count
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm.layer import NormPolicy, policy
from testtime.parts.randomness import generator

__all__ = ["UnMixStatistics", "unmix_tns"]


@final
class UnMixStatistics(NormPolicy):
    """Normalise each instance by the components, mixed with its own statistics; they advance once per adapted batch.

    Attributes:
        mean, var: (K, C), of the components.
    """

    mixes_samples = True
    mean: Tensor
    var: Tensor

    def __init__(
        self,
        layer: _BatchNorm,
        components: int,
        alpha: float,
        temperature: float,
        momentum: float,
        full_batch: int,
        centred: bool,
        detach_assignment: bool,
        rng: torch.Generator,
    ) -> None:
        super().__init__(layer)
        self.temperature, self.momentum, self.full_batch = temperature, momentum, full_batch
        self.detach_assignment = detach_assignment
        noise = torch.randn(components, len(self.source_mean), generator=rng, dtype=torch.float64)
        noise = noise - noise.mean(dim=0) if centred else noise
        wide = self.source_var.double() * (alpha * components / max(components - 1, 1))
        mean = self.source_mean.double() + wide.sqrt() * noise.to(wide.device)
        self.register_buffer("mean", mean.to(self.source_mean.dtype))
        self.register_buffer("var", ((1 - alpha) * self.source_var).repeat(components, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[0] * x.shape[1]:  # one place: an instance has no spread of its own
            return self.normalise_by(x, self.source_mean, self.source_var)
        own_mean, own_var = self.instance_moments(x)
        means, variances = self.mean.to(own_mean.dtype), self.var.to(own_var.dtype)
        with torch.autocast(x.device.type, enabled=False):
            likeness = F.normalize(own_mean, dim=1) @ F.normalize(means, dim=1).T
        p = (likeness / self.temperature).softmax(dim=1)[:, :, None]  # (B, K, 1)
        p = p.detach() if self.detach_assignment else p
        mixed_mean = means + p * (own_mean[:, None] - means)
        mixed_var = variances + p * (own_var[:, None] - variances)
        rate = 1 - (1 - self.momentum) ** (len(x) / self.full_batch)
        self.propose(
            mean=means.lerp(mixed_mean.mean(dim=0), rate).to(self.mean.dtype),
            var=variances.lerp(mixed_var.mean(dim=0), rate).to(self.var.dtype),
        )
        mean = mixed_mean.mean(dim=1)
        var = mixed_var.mean(dim=1) + (mixed_mean - mean[:, None]).square().mean(dim=1)
        return self.normalise(x, mean, var)


def unmix_tns(
    model: nn.Module,
    components: int = 16,
    alpha: float = 0.5,
    temperature: float = 0.07,
    momentum: float = 0.1,
    full_batch: int = 64,
    centred: bool = True,
    detach_assignment: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The model with un-mixed statistics in every BatchNorm layer, as in ``EATA(unmix_tns(model), classes=10)``.

    Args:
        model: any module.
        components: K, 16 in the paper, 128 where domains are mixed.
        alpha: the share of the source's variance that lies between the components' means, in [0, 1].
        temperature: tau.
        momentum: step of the components for a batch of ``full_batch``, in [0, 1].
        full_batch: images.
        centred: whether the initial means of the components have exactly the source's for their mean; the published have not.
        detach_assignment: whether p is a constant for gradients, as in the published code.
        seed: random seed of the initial means of the components.

    Raises:
        ValueError: components, temperature or full_batch not above 0, alpha or momentum outside [0, 1].

    >>> x = torch.randn(2, 3, 4, 4)
    >>> unmix_tns(nn.BatchNorm2d(3))(x).shape
    torch.Size([2, 3, 4, 4])
    """
    if components < 1 or temperature <= 0 or full_batch < 1:
        raise ValueError(
            f"components, temperature and full_batch are above 0, got {components}, {temperature}, {full_batch}"
        )
    if not 0 <= alpha <= 1 or not 0 <= momentum <= 1:
        raise ValueError(f"alpha and momentum are shares and lie in [0, 1], got {alpha} and {momentum}")
    if components == 1:
        alpha = 0.0  # one component is the source itself
    number = count()

    def make(layer: _BatchNorm) -> UnMixStatistics:
        rng = generator(seed, next(number), "components")
        return UnMixStatistics(
            layer, components, alpha, temperature, momentum, full_batch, centred, detach_assignment, rng
        )

    return policy(model, make)
