r"""CMF: what ROID learns from, with weights that follow a Kalman filter instead of a fixed pull to the source.

The filter takes the adapted weights :math:`\theta` for noisy observations of hidden ones :math:`\mu`, which drift back to
the source :math:`\theta_0`. With the noise :math:`Q = q\, P / 38400` for P adapted parameters and :math:`R = 1 - Q`,

.. math::
    \mu^- &= \alpha\, \mu + (1 - \alpha)\, \theta_0, \qquad \sigma^- = \alpha^2 \sigma + Q
        && \text{(predict)} \\
    \beta &= \frac{R}{\sigma^- + R}, \qquad \mu = \beta\, \mu^- + (1 - \beta)\, \theta, \qquad \sigma = \beta\, \sigma^-
        && \text{(update)} \\
    \theta &\leftarrow \gamma\, \theta + (1 - \gamma)\, \mu                                   && \text{(ensemble)}

where :math:`\beta` is kept at 0.89 or above, and is 1 from 0.9999 on. The loss, its weights and the correction by the
prior are those of :mod:`testtime.methods.roid`.

A step:
    1. and 2. those of ROID;
    3. filter, and move scale and shift a little towards the hidden weights, and the mean prediction towards that of the
       batch; answer as ROID does.

Departures:
    Those of ROID, for the loss.
    The paper's text was not at hand: the filter, the bounds of beta and the scale of Q are those of the published code.
    That code offers to ensemble with the predicted weights ("op") instead of the updated ones ("lp", its default), but
    updates them in place, so that both are the latter; this has the latter. Its ``reset`` forgets the variance; here
    that is part of the state.
    Published code step by step, up to the draws: ``CMF(model, classes, options=ROIDOptions(prior="logits"))`` (CIFAR, batches
    of 200), and with ``sgd(2.5e-4, nesterov=True)`` (ImageNet, batches of 64). On a ResNet-20 it stayed
    within 6e-3 of ROID in every logit of twelve batches.

Cost: that of ROID.

Reference: Lee and Chang, Continual Momentum Filtering on Parameter Space for Online Test-time Adaptation, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.methods.roid import ROIDOptions, corrected, diversity_certainty, ensemble, flat, universal_loss
from testtime.norm import batch_statistics, norm_affine, observing
from testtime.parts import adam, generator, katana
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.prior import under_prior
from testtime.parts.views import preserving
from testtime.prediction import Prediction

__all__ = ["CMF", "MomentumFilter"]


@final
class MomentumFilter(Stateful):
    """A Kalman filter with one variance for all weights.

    Args:
        source: theta_0 (P,), where it begins and drifts to.
        drift: alpha, the weight of the hidden weights against the source's.
        noise: Q, the variance that a step adds, between 0 and 1.

    Attributes:
        mean: mu (P,).
        variance: sigma, a scalar.

    ``update`` takes an observation in.
    """

    mean: Tensor
    variance: Tensor
    source: Tensor

    def __init__(self, source: Tensor, drift: float, noise: float) -> None:
        super().__init__()
        self.drift, self.noise = drift, noise
        self.register_buffer("source", source.clone(), persistent=False)
        self.register_buffer("mean", source.clone())
        self.register_buffer("variance", torch.zeros((), dtype=torch.float64, device=source.device))

    def update(self, observed: Tensor) -> None:
        """Predict, and correct by what was observed (P,)."""
        variance = self.drift**2 * self.variance + self.noise
        beta = (1 - self.noise) / (variance + 1 - self.noise)
        beta = torch.where(beta < 0.9999, beta.clamp_min(0.89), torch.ones_like(beta))
        predicted = self.drift * self.mean + (1 - self.drift) * self.source
        self.mean.copy_(beta * predicted + (1 - beta) * observed)
        self.variance.copy_(beta * variance)


@final
class CMF(Adapter):
    """What ROID learns from, with weights that follow a Kalman filter instead of a fixed pull to the source.

    Args:
        model: any classifier with normalisation layers.
        classes: C, the number of classes.
        optimizer: moves gamma and beta; ``adam(1e-3)`` (CIFAR), ``sgd(2.5e-4, nesterov=True)`` (ImageNet).
        alpha: the weight of the hidden weights against the source's.
        gamma: the weight of the adapted weights against the hidden ones.
        q: the noise of a model of 38,400 adapted parameters (a ViT-B); that of others is in proportion.
        decay: the weight of the past in the mean prediction.
        augment: makes the view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        options: settings of the loss and of the prediction that it shares with ROID.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the view.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift, or so many that the noise reaches 1.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> y = CMF(net, classes=2)(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated, list(y.selected)
    (torch.Size([8, 2]), True, ['minimised'])
    """

    name, label = "cmf", "CMF"
    needs = ("classifier", "norm", "views")
    venue = "ICLR 2024"
    paper = "Lee and Chang, Continual Momentum Filtering on Parameter Space for Online Test-time Adaptation"
    stochastic = True
    cost = (2, 2)

    average: Tensor

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        alpha: float = 0.99,
        gamma: float = 0.99,
        q: float = 0.005,
        decay: float = 0.9,
        augment: Augmentation = partial(katana, clean=True),  # noqa: B008
        options: ROIDOptions = ROIDOptions(),  # noqa: B008 - a frozen value
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.alpha, self.gamma, self.q = classes, optimizer, alpha, gamma, q
        self.decay, self.options, self.norm = decay, options, norm
        self.augment = preserving(augment, self.model)
        self.cost = (1 + options.consistency, 1 + options.consistency)
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        source = flat(affine)
        noise = q * len(source) / 38400
        if not 0 <= noise < 1:
            raise ValueError(
                f"q={q} makes the noise {noise:.3g} for the {len(source)} parameters that adapt, and it lies in [0, 1); "
                "pass another q"
            )
        self.filter = MomentumFilter(source, alpha, noise)
        self.register_buffer("average", source.new_full((classes,), 1 / classes))

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
        self.filter.update(flat(self._adapted))
        ensemble(self._adapted, self.filter.mean, self.gamma)
        p = logits.detach().softmax(dim=1, dtype=self.average.dtype).mean(dim=0)
        self.average.lerp_(p, 1 - self.decay)
        return corrected(logits, self.options.prior, {"minimised": weight > 0})
