r"""ViDA: adapters of low and of high rank beside the layers, weighed by how unsure the teacher is.

A layer :math:`W` gets two by-passes, of rank r for what domains share and of rank R for what is the domain's own,

.. math:: W x + \lambda_l\, B_l A_l x + \lambda_h\, B_h A_h x

and with the teacher's logits :math:`z'_v` on V views of every image, the homeostatic allotment is

.. math::
    u = \rho \cdot \operatorname{mean}_{i, c} \operatorname{Var}_v z'_{vic}, \qquad
    (\lambda_h, \lambda_l) = \begin{cases} (1 + u,\; 1 - u) & u \ge u_0 \\ (1 - u,\; 1 + u) & \text{otherwise} \end{cases}

A step:
    1. the teacher sees the views, which gives the weights of the adapters in both models;
    2. teacher and student predict the batch; the teacher answers;
    3. update all parameters of the student once on its cross-entropy against the teacher, then the teacher.

What is learned on source data lies in :mod:`testtime.source.vida`.

Departures:
    The published ``set_scale`` asks a layer for its low-rank scale and only otherwise for its high-rank one; every layer has
    both, so that :math:`\lambda_h` stays 1 there. Here both are set.
    There the views are seen under the weights of the batch before; here under 1, so that nothing carries over.
    ``allotment="released"`` follows the published code in both.
    There each weight returns to the source with a chance of 0.01, a part of CoTTA that stayed in the code
    (``restoration=0.01``); here none does.
    The published adapters are trained on the source first: ``train_vida`` does so. Without it they begin at B = 0, where
    the network answers as it did.
    The published code adapts the linear layers of timm's attention; here it is every linear layer but the head, and for a
    network without, every convolution (its :math:`A` is a convolution of the same form, its :math:`B` one of a single pixel).
    Linear layers inside torch's own attention, whose code goes around them, are left out.
    The published code runs dropout in the student; this leaves it off. Its views change all images alike
    (``augment=partial(katana, alike=True)``); here each draws for itself.
    Published code step by step, up to the layers, dropout and the draws: ``ViDA(train_vida(model, batches), options=o)`` with
    ``o = ViDAOptions(allotment="released", restoration=0.01)`` (CIFAR-10, batches of 40, images of 384 pixels), with
    ``adam(3e-4)`` and ``adapter_rate=1/300`` (CIFAR-100, of 50), ``sgd(5e-7)``, ``adapter_rate=0.4`` and
    ``adapter_decay=0.8`` (ImageNet, of 50).

    For logits (N, C, H, W), the segmentation of the paper, means are over pixels too, and the V views are the images in
    several sizes and mirrored, undone on the logits, as in CoTTA; the teacher answers and teaches by its prediction of the
    images as they are. One number u serves the whole batch.
    By-passes of ungrouped layers are added to the layer's weight before the forward, which is the same function.

Cost: two forwards and one for each view, one backward.

Reference: Liu, Yang, Jia, Zhang, Guo, Xue and Zhang, ViDA: Homeostatic Visual Domain Adapter for Continual Test Time
Adaptation, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.dense import is_dense
from testtime.intake.sharing import share
from testtime.moved import renamed
from testtime.norm import batch_statistics
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.pixels import SCALES, aligned_views, checked_scales, mirrors
from testtime.parts.restoration import restore_at_random
from testtime.parts.views import preserving
from testtime.source.vida import domain_adapters, with_adapters

__all__ = ["ViDA", "ViDAOptions"]

__getattr__ = renamed(
    __name__,
    {
        "DomainAdapter": "testtime.source.vida:DomainAdapter",
        "train_vida": "testtime.source.vida:train_vida",
    },
)


@final
@dataclass(frozen=True)
class ViDAOptions:
    """Settings of ViDA that are rarely changed.

    Args:
        adapter_rate: learning rate of the adapters, as a multiple of that of the network.
        adapter_decay: weight of the past in the adapters of the teacher.
        scale: factor rho of the variance; the default is that of the published code.
        allotment: "paper", both weights are set and the views are predicted under weights of 1; or "released", the published
            code: the low-rank weight alone is set, and the views are predicted under that of the batch before.
        restoration: probability of each weight to return to the source after a step.
        layers: names of the layers with adapters; None for every linear layer but the head, or every convolution.
        scales: sizes of the views of a segmenter relative to the image, each as it is and mirrored, as in CoTTA.

    Raises:
        ValueError: there is no such allotment, or a scale is not positive.
    """

    adapter_rate: float = 0.1
    adapter_decay: float = 0.999
    scale: float = 0.1
    allotment: Literal["paper", "released"] = "paper"
    restoration: float = 0.0
    layers: Sequence[str] | None = None
    scales: Sequence[float] = SCALES

    def __post_init__(self) -> None:
        checked_scales(self.scales)
        if self.allotment not in ("paper", "released"):
            raise ValueError(f"allotment is 'paper' or 'released', got {self.allotment!r}")


def allotted(views: Tensor, scale: float, threshold: float) -> tuple[Tensor, Tensor]:
    """The weights of low and of high rank by the variance over the logits (V, N, C, ...) of the views, float64 scalars."""
    u = scale * views.var(dim=0).mean().double()
    u = torch.where(u >= threshold, u, -u)
    return 1 - u, 1 + u


class Weighed(nn.Module):
    """A segmenter whose adapters are weighed by its views in several sizes, as a module.

    Args:
        teacher: segmenter with adapters.
        options: scale, scales and allotment.
        threshold: u_0.
        mirrored: whether views are also mirrored.
        before: weight of low rank under which the views are predicted, a scalar; None for 1.
    """

    before: Tensor | None

    def __init__(
        self,
        teacher: nn.Module,
        options: ViDAOptions,
        threshold: float,
        mirrored: bool,
        before: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.options, self.threshold, self.mirrored = teacher, options, threshold, mirrored
        self.register_buffer("before", before)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K, H, W)."""
        try:
            self._weigh(1.0 if self.before is None else self.before, 1.0)
            views = aligned_views(self.teacher, x, self.options.scales, self.mirrored)
            low, high = allotted(views, self.options.scale, self.threshold)
            self._weigh(low, 1.0 if self.options.allotment == "released" else high)
            return self.teacher(x)
        finally:
            self._weigh(1.0, 1.0)

    def _weigh(self, low: Tensor | float, high: Tensor | float) -> None:
        for m in domain_adapters(self.teacher):
            m.low, m.high = low, high


@final
class ViDA(Adapter):
    """Adapters of low and of high rank beside the layers, weighed by how unsure the teacher is.

    Args:
        model: any classifier or segmenter; one of ``train_vida`` brings its adapters along.
        optimizer: moves all parameters; ``adam(1e-4)`` (CIFAR-10), ``adam(3e-4)`` (CIFAR-100), ``sgd(5e-7)`` (ImageNet).
        low_rank, high_rank: r and R; a network that brings its adapters along has its own.
        views: V, how many random views the teacher sees; those of a segmenter are ``ViDAOptions.scales``.
        threshold: u_0, the uncertainty from which on the domain's own adapter counts more; 0.2 in the published class, 0.05
            in its CIFAR command.
        decay: weight of the past in the network of the teacher.
        augment: makes a view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in both models.
        seed: random seed of the views and of the initial weights of the adapters.

    Raises:
        ValueError: views is below 2, or as ``with_adapters``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> vida = ViDA(net, views=2, high_rank=8)
    >>> y = vida(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "vida", "ViDA"
    needs = ("class logits", "views")
    answers_with = "a network whose adapters are weighed by the variance over views that are drawn at random"
    venue = "ICLR 2024"
    paper = (
        "Liu, Yang, Jia, Zhang, Guo, Xue and Zhang, ViDA: Homeostatic Visual Domain Adapter for Continual "
        "Test Time Adaptation"
    )
    output = "teacher"
    stochastic = True
    cost = (12, 1)

    low: Tensor

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-4),  # noqa: B008 - a frozen value
        low_rank: int = 1,
        high_rank: int = 128,
        views: int = 10,
        threshold: float = 0.2,
        decay: float = 0.999,
        augment: Augmentation = katana,
        options: ViDAOptions = ViDAOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        if views < 2:
            raise ValueError(f"a variance over views needs at least 2 of them, got {views}")
        super().__init__(norm(model), seed)
        self.optimizer, self.low_rank, self.high_rank, self.views = optimizer, low_rank, high_rank, views
        self.threshold, self.decay, self.options, self.norm = threshold, decay, options, norm
        self.augment = preserving(augment, self.model)
        self.pixels = is_dense(
            model, getattr(model, "outputs", None)
        )  # of others it is known when they have answered
        self.mirrored = mirrors(self.model)
        self.cost = (2 + (2 * len(options.scales) if self.pixels else views), 1)
        if not domain_adapters(self.model):
            with_adapters(self.model.get_submodule("network"), low_rank, high_rank, options.layers, seed)
        layers_own = {id(p) for m in domain_adapters(self.model) for p in m.layer.parameters()}
        own = {id(p) for m in domain_adapters(self.model) for p in m.parameters()} - layers_own
        self.anchor = share(self.model) if options.restoration else None
        self.adapt(self.model.parameters(), lambda ps: _two_rates(optimizer(ps), own, options.adapter_rate))
        self.teacher = Teacher(self.model, self._adapted, decay)
        self._decays = [options.adapter_decay if id(p) in own else decay for p in self.teacher.student]
        if options.allotment == "released":
            like = self._adapted[0]
            wide = torch.promote_types(like.dtype, torch.float32)
            self.register_buffer(
                "low", like.new_ones((), dtype=wide).detach()
            )  # lambda_l of the batch before

    def _allot(self, x: Tensor) -> float:
        """Set the weights of the adapters by the teacher's views of x, and give that of low rank."""
        released = self.options.allotment == "released"
        self._weigh(float(self.low) if released else 1.0, 1.0)
        seen: list[Tensor] = []
        for i in range(0 if self.pixels else self.views):
            view = self.augment(x, generator(self.seed, int(self.clock), f"view {i}", x.device))
            z = self.teacher(view)
            if z.dim() == 4:
                self.pixels, self.cost = True, (2 + 2 * len(self.options.scales), 1)
                break
            seen.append(z.to(torch.promote_types(z.dtype, torch.float32)))
        views = (
            aligned_views(self.teacher, x, self.options.scales, self.mirrored)
            if self.pixels
            else torch.stack(seen)
        )
        low, high = allotted(views, self.options.scale, self.threshold)
        self._weigh(float(low), 1.0 if released else float(high))
        return float(low)

    def _weigh(self, low: float, high: float) -> None:
        for m in (*domain_adapters(self.model), *domain_adapters(self.teacher.model)):
            m.low, m.high = low, high

    def _predict_batch(self, x: Tensor) -> Any:
        """The teacher's answer: a call answers the same."""
        self._allot(x)
        return self.teacher(x)

    def _answering(self) -> nn.Module:
        if not self.pixels:
            return super()._answering()
        before = self.low.clone() if self.options.allotment == "released" else None
        return Weighed(self.teacher.model, self.options, self.threshold, self.mirrored, before)

    def step(self, x: Tensor) -> Any:
        low = self._allot(x)
        teacher = self.teacher(x)
        self.update(soft_cross_entropy(self.model(x), teacher).mean())
        with torch.no_grad():
            for average, p, decay in zip(
                self.teacher.average, self.teacher.student, self._decays, strict=True
            ):
                average.lerp_(p, 1 - decay)
        if self.anchor is not None:
            source = list(self.anchor.parameters())
            restore_at_random(self._adapted, source, self.options.restoration, self.seed, int(self.clock))
        if self.options.allotment == "released":
            self.low.fill_(low)
        return teacher


def _two_rates(optimizer: torch.optim.Optimizer, own: set[int], times: float) -> torch.optim.Optimizer:
    """Give the parameters with these ids a learning rate of their own."""
    (group,) = optimizer.param_groups
    others = {name: value for name, value in group.items() if name != "params"}
    theirs = [p for p in group["params"] if id(p) in own]
    group["params"] = [p for p in group["params"] if id(p) not in own]
    optimizer.add_param_group({**others, "params": theirs, "lr": times * group["lr"]})
    return optimizer
