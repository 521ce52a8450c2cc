r"""VDP: learn two images that are added to every image, one for the domain and one for all domains; the network stays.

With the domain-specific prompt :math:`\delta` and the domain-agnostic one :math:`\gamma`, their averages
:math:`\delta', \gamma'` (the teacher), and the teacher's mean logits over V views of an image, whose softmax is
:math:`\tilde y`,

.. math::
    \hat x &= x + \delta + \gamma, \qquad
    L = -\frac1N \sum_i \sum_c \tilde y_{ic} \log p(c \mid \hat x_i) \\
    s &\leftarrow \kappa\, s + (1 - \kappa) \Big( \frac{\partial L}{\partial \gamma} \Big)^2, \qquad
    \min_{\delta, \gamma} \; L + \lambda \sum_d \frac{s_d}{\max s}\, (\gamma_d - \gamma'_d)^2 \\
    \delta', \gamma' &\leftarrow \beta\, (\delta', \gamma') + (1 - \beta)\, (\delta, \gamma)

A step:
    1. the teacher answers the batch, and labels it by its views;
    2. the student predicts it; what of :math:`\gamma` the domains are sensitive to is held, the rest may learn;
    3. update both prompts once, then the teacher.

Departures:
    There is no official code, and this was written from the paper's abstract and its description of the framework: two prompts
    that are summed on the input, a frozen network, a student and a teacher that follows it, images with and without
    augmentation, and a homeostasis that suppresses what of the domain-agnostic prompt is sensitive to domains. The formulas
    above that specify more are this library's choice, and so are the values of all arguments; figures of the paper cannot be
    claimed. In particular the sensitivity is a running mean of squared gradients, the prompts are as large as an image and
    begin at zero, and the teacher labels by the mean over views, as in CoTTA.

Cost: two forwards and one for each view, one backward, of the prompts alone. The state is four images and the optimizer's.

Reference: Gan, Bai, Lou, Ma, Zhang, Shi and Luo, Decorate the Newcomers: Visual Domain Prompt for Continual Test Time
Adaptation, AAAI 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import Stateful
from testtime.norm import batch_statistics
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving

__all__ = ["VDP", "Prompted", "Sensitivity"]


@final
class Prompted(nn.Module):
    """A network that is shown images with two prompts on them, both zero at first.

    Args:
        network: any classifier.
        size: (C, H, W) of the prompts; images of another height and width get them scaled (bilinear).

    Raises:
        ValueError: when called with images of other channels.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size
        like = next(network.parameters())
        self.specific = nn.Parameter(like.new_zeros(size).detach())
        self.agnostic = nn.Parameter(like.new_zeros(size).detach())

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] != self.size[0]:
            raise ValueError(
                f"the prompts are of size {self.size}, and these images of {tuple(x.shape[1:])}; "
                f"expected {self.size[0]} channels"
            )
        prompt = self.specific + self.agnostic
        if prompt.shape[1:] != x.shape[2:]:
            size = (x.shape[2], x.shape[3])
            prompt = F.interpolate(prompt[None], size, mode="bilinear", align_corners=False)[0]
        return self.network(x + prompt)


@final
class Sensitivity(Stateful):
    """How much a loss depends on each value of a prompt: a running mean of squared gradients.

    Args:
        prompt: (C, H, W).
        decay: kappa, the weight of the past.

    ``update`` takes a gradient, calling gives the sensitivity in [0, 1], relative to the greatest.
    """

    mean: Tensor

    def __init__(self, prompt: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        wide = torch.promote_types(prompt.dtype, torch.float32)
        self.register_buffer("mean", torch.zeros_like(prompt, dtype=wide).detach())

    def update(self, gradient: Tensor) -> None:
        self.mean = self.mean.lerp(gradient.to(self.mean.dtype).square(), 1 - self.decay)

    def forward(self) -> Tensor:
        return self.mean / self.mean.max().clamp_min(torch.finfo(self.mean.dtype).tiny)


@final
class VDP(Adapter):
    """Learn two images that are added to every image, one for the domain and one for all domains; the network stays.

    Args:
        model: any classifier.
        size: (C, H, W) of the prompts, best that of the images; for others they are scaled.
        optimizer: moves the prompts.
        views: V, how many random views the teacher labels by.
        hold: lambda, how much what is sensitive is held to its average.
        decay: beta, the weight of the past in the teacher.
        sensitivity_decay: kappa, the weight of the past in the sensitivity.
        augment: makes a view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the views.

    Raises:
        ValueError: views is below 1, or an image has other channels.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> vdp = VDP(net, size=(3, 8, 8), views=2)
    >>> y = vdp(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "vdp", "VDP"
    needs = ("classifier", "images")
    venue = "AAAI 2023"
    paper = (
        "Gan, Bai, Lou, Ma, Zhang, Shi and Luo, Decorate the Newcomers: Visual Domain Prompt for Continual "
        "Test Time Adaptation"
    )
    output = "teacher"
    stochastic = True
    cost = (6, 1)

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int, int] = (3, 32, 32),
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        views: Positive = 4,
        hold: float = 1.0,
        decay: float = 0.999,
        sensitivity_decay: float = 0.9,
        augment: Augmentation = katana,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(Prompted(norm(model), size), seed)
        self.size, self.optimizer, self.views, self.hold = size, optimizer, views, hold
        self.decay, self.sensitivity_decay, self.norm = decay, sensitivity_decay, norm
        self.augment = preserving(augment, self.model)
        self.cost = (2 + views, 1)
        prompts = [self.model.get_parameter(f"network.{name}") for name in ("specific", "agnostic")]
        self.adapt(prompts, optimizer)
        self.teacher = Teacher(self.model, prompts, decay)
        self.sensitivity = Sensitivity(prompts[1], sensitivity_decay)

    def _predict_batch(self, x: Tensor) -> Any:
        """The teacher's answer (N, C): a call answers the same."""
        return self.teacher(x)

    def _answering(self) -> nn.Module:
        return self.teacher.model

    def _label(self, x: Tensor) -> Tensor:
        """The teacher's mean logits (N, C) over the views."""
        seen = []
        for i in range(self.views):
            view = self.augment(x, generator(self.seed, int(self.clock), f"view {i}", x.device))
            seen.append(self.teacher(view))
        return torch.stack(seen).mean(dim=0)

    def step(self, x: Tensor) -> Any:
        answer, label = self._predict_batch(x), self._label(x)
        loss = soft_cross_entropy(self.model(x), label).mean()
        specific, agnostic = torch.autograd.grad(loss, self._adapted)
        self.sensitivity.update(agnostic)
        away = (self._adapted[1] - self.teacher.average[1]).detach()
        self.update([specific, agnostic + (2 * self.hold * self.sensitivity() * away).to(agnostic.dtype)])
        self.teacher.update()
        return answer
