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

Departures:
    The published ``set_scale`` asks a layer for its low-rank scale and only otherwise for its high-rank one; every layer has
    both, so that :math:`\lambda_h` stays 1 there. Here both are set.
    There the views are seen under the weights of the batch before; here under 1, so that nothing carries over.
    ``allotment="released"`` follows the published code in both.
    There each weight returns to the source with a chance of 0.01, a part of CoTTA that stayed in the code
    (``restoration=0.01``); here none does.
    The published adapters are trained on the source first: :func:`train_vida` does so. Without it they begin at B = 0, where
    the network answers as it did.
    The published code adapts the linear layers of timm's attention; here it is every linear layer but the head, and for a
    network without, every convolution (its :math:`A` is a convolution of the same form, its :math:`B` one of a single pixel).
    Linear layers inside torch's own attention, whose code goes around them, are left out.
    The published code runs dropout in the student; this leaves it off. Its views change all images alike
    (``augment=partial(katana, alike=True)``); here each draws for itself.
    Published code step by step, up to the layers, dropout and the draws: ``ViDA(train_vida(model, batches),
    allotment="released", restoration=0.01)`` (CIFAR-10, batches of 40, images of 384 pixels), with ``optimizer=adam(3e-4),
    adapter_rate=1/300`` (CIFAR-100, of 50), ``optimizer=sgd(5e-7), adapter_rate=0.4, adapter_decay=0.8`` (ImageNet, of 50).

    By-passes of ungrouped layers are added to the layer's weight before it meets an image, which is the same function.

Cost: two forwards and one for each view, one backward.

Reference: Liu, Yang, Jia, Zhang, Guo, Xue and Zhang, ViDA: Homeostatic Visual Domain Adapter for Continual Test Time
Adaptation, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.sharing import duplicate, share
from testtime.norm import batch_statistics
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.restoration import restore_at_random
from testtime.parts.views import preserving
from testtime.source.passes import passes_over

__all__ = ["DomainAdapter", "ViDA", "train_vida", "with_adapters"]

FORM = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


@final
class DomainAdapter(nn.Module):
    """A layer with two by-passes; it answers as the layer does until they have learned.

    Args:
        layer: linear, or a convolution.
        low_rank, high_rank: r and R.

    Attributes:
        low, high: the weights of the by-passes, 1 each until they are set.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, low_rank: int, high_rank: int) -> None:
        super().__init__()
        self.layer, self.low, self.high = layer, 1.0, 1.0
        self.low_down, self.low_up = _bypass(layer, low_rank)
        self.high_down, self.high_up = _bypass(layer, high_rank)

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self.layer, "groups", 1) > 1:
            low, high = self.low_up(self.low_down(x)), self.high_up(self.high_down(x))
            return self.layer(x) + self.low * low + self.high * high
        with torch.autocast(x.device.type, enabled=False):
            low, high = _product(self.low_up, self.low_down), _product(self.high_up, self.high_down)
            own = self.layer.weight
            weight = own + (self.low * low + self.high * high).view_as(own)
        answer: Tensor = functional_call(self.layer, {"weight": weight}, (x,))
        return answer


def _product(up: nn.Module, down: nn.Module) -> Tensor:
    """B A, as the weight of one layer: cheaper than both on every pixel, however high the rank."""
    b, a = up.get_parameter("weight"), down.get_parameter("weight")
    return b.flatten(1) @ a.flatten(1)


def _bypass(layer: nn.Linear | nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    """A, of a normal distribution of deviation 1 / rank^2, and B, zero."""
    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        down, up = nn.Linear(layer.in_features, rank, False), nn.Linear(rank, layer.out_features, False)
    else:
        form: dict[str, Any] = {name: getattr(layer, name) for name in FORM}
        down = nn.Conv2d(layer.in_channels, rank, bias=False, **form)
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    nn.init.normal_(down.weight, std=1 / rank**2)
    nn.init.zeros_(up.weight)
    return down.to(layer.weight), up.to(layer.weight)


def with_adapters(
    model: nn.Module,
    low_rank: int = 1,
    high_rank: int = 128,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Put adapters beside layers of a tree of one's own, in place.

    Args:
        model: the tree.
        low_rank, high_rank: r and R.
        layers: the dotted names of the layers; None for every linear layer but the head, or every convolution.
        seed: of the first weights.

    Raises:
        ValueError: a rank is below 1, there is no layer to adapt, or one is neither linear nor a convolution.
    """
    if min(low_rank, high_rank) < 1:
        raise ValueError(f"a rank is at least 1, got {low_rank} and {high_rank}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, 0, "adapters").initial_seed())
        for name in _named(model) if layers is None else layers:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            layer = getattr(owner, leaf)
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                raise ValueError(
                    f"an adapter stands beside a torch.nn.Linear or Conv2d, and {name} is a {type(layer).__name__}; "
                    "name other layers"
                )
            setattr(owner, leaf, DomainAdapter(layer, low_rank, high_rank))
    return model


def _named(model: nn.Module) -> list[str]:
    """Every linear layer but the head, or every convolution."""
    torchs = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    inside = [f"{n}." for n, m in model.named_modules() if isinstance(m, torchs)]
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = [n for n in linear[:-1] if not any(n.startswith(i) for i in inside)]
    found = found or [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    if not found:
        raise ValueError(
            "ViDA adapts linear layers before the head, or convolutions, and this model has none; name some: layers=(...)"
        )
    return found


def _adapters(model: nn.Module) -> list[DomainAdapter]:
    return [m for m in model.modules() if isinstance(m, DomainAdapter)]


def train_vida(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int = 1,
    rate: float = 1e-4,
    low_rank: int = 1,
    high_rank: int = 128,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    title: str | None = "ViDA",
) -> nn.Module:
    """A network with adapters that were trained on the source, all else frozen, by Adam.

    Args:
        model: trained on the source; it is left as it is.
        batches: of the source, images (N, C, H, W) and labels (N,); a loader that shuffles is one.
        passes: how often they are shown.
        rate: the learning rate.
        low_rank, high_rank, layers, seed: as for :func:`with_adapters`.
        file: a checkpoint after every pass, from which the same call continues; None for none.
        title: says how far the training is; None says nothing.

    Returns:
        the network, in evaluation mode, with its adapters.

    Raises:
        ValueError: as :func:`with_adapters`; a loss is not finite, or the file belongs to another training.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> lessons = [(torch.rand(8, 3, 2, 2), torch.randint(2, (8,)))] * 3
    >>> type(train_vida(net, lessons, high_rank=4, title=None)[1]).__name__
    'DomainAdapter'
    """
    network = with_adapters(duplicate(model).eval().requires_grad_(False), low_rank, high_rank, layers, seed)
    own = [p for p in network.parameters() if p.requires_grad]
    described = {"kind": "train_vida", "ranks": [low_rank, high_rank], "rate": rate, "seed": seed}
    for _ in passes_over(
        batches,
        passes,
        network,
        torch.optim.Adam(own, rate),
        lambda x, y: F.cross_entropy(network(x), y),
        lambda _: rate,
        title,
        None if file is None else Path(file),
        described,
    ):
        pass
    return network.requires_grad_(False)


@final
class ViDA(Adapter):
    """Adapters of low and of high rank beside the layers, weighed by how unsure the teacher is.

    Args:
        model: any classifier; one of :func:`train_vida` brings its adapters along.
        optimizer: moves all parameters; ``adam(1e-4)`` (CIFAR-10), ``adam(3e-4)`` (CIFAR-100), ``sgd(5e-7)`` (ImageNet).
        adapter_rate: the learning rate of the adapters, as a multiple of the others'.
        low_rank, high_rank: r and R; a network that brings its adapters along has its own.
        views: V, how many random views the teacher sees.
        threshold: u_0, the uncertainty from which on the domain's own adapter counts more; 0.2 in the published class, 0.05
            in its CIFAR command.
        scale: rho, of the variance; the published code's.
        decay, adapter_decay: the weight of the past in the teacher's network and in its adapters.
        allotment: "paper", both weights are set and the views are seen under weights of 1; or "released", the published code:
            the low-rank weight alone is set, and the views are seen under that of the batch before.
        restoration: chance of a weight to return to the source after a step.
        augment: makes a view within the model's invariances; ``testtime.parts.identity`` switches its randomness off.
        layers: the names of the layers with adapters; None for every linear layer but the head, or every convolution.
        norm: the policy of the BatchNorm layers in both models.
        seed: of the views and of the adapters' first weights.

    Raises:
        ValueError: views is below 2, there is no such allotment, or as :func:`with_adapters`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> vida = ViDA(net, views=2, high_rank=8)
    >>> y = vida(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "vida", "ViDA"
    needs = ("classifier", "views")
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
        adapter_rate: float = 0.1,
        low_rank: int = 1,
        high_rank: int = 128,
        views: int = 10,
        threshold: float = 0.2,
        scale: float = 0.1,
        decay: float = 0.999,
        adapter_decay: float = 0.999,
        allotment: Literal["paper", "released"] = "paper",
        restoration: float = 0.0,
        augment: Augmentation = katana,
        layers: Sequence[str] | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        if views < 2:
            raise ValueError(f"a variance over views needs at least 2 of them, got {views}")
        if allotment not in ("paper", "released"):
            raise ValueError(f"allotment is 'paper' or 'released', got {allotment!r}")
        super().__init__(norm(model), seed)
        self.optimizer, self.adapter_rate, self.low_rank, self.high_rank = (
            optimizer,
            adapter_rate,
            low_rank,
            high_rank,
        )
        self.views, self.threshold, self.scale = views, threshold, scale
        self.augment = preserving(augment, self.model)
        self.decay, self.adapter_decay, self.layers, self.norm = decay, adapter_decay, layers, norm
        self.allotment, self.restoration, self.cost = allotment, restoration, (2 + views, 1)
        if not _adapters(self.model):
            with_adapters(self.model.get_submodule("network"), low_rank, high_rank, layers, seed)
        layers_own = {id(p) for m in _adapters(self.model) for p in m.layer.parameters()}
        own = {id(p) for m in _adapters(self.model) for p in m.parameters()} - layers_own
        self.anchor = share(self.model) if restoration else None
        self.adapt(self.model.parameters(), lambda ps: _two_rates(optimizer(ps), own, adapter_rate))
        self.teacher = Teacher(self.model, self._adapted, decay)
        self._decays = [adapter_decay if id(p) in own else decay for p in self.teacher.student]
        if allotment == "released":
            like = self._adapted[0]
            wide = torch.promote_types(like.dtype, torch.float32)
            self.register_buffer(
                "low", like.new_ones((), dtype=wide).detach()
            )  # lambda_l of the batch before

    def _allot(self, x: Tensor) -> float:
        """Set the weights of the adapters by the teacher's views of x, and give that of low rank."""
        released = self.allotment == "released"
        self._weigh(float(self.low) if released else 1.0, 1.0)
        seen = []
        for i in range(self.views):
            view = self.augment(x, generator(self.seed, int(self.clock), f"view {i}", x.device))
            z = self.teacher(view)
            seen.append(z.to(torch.promote_types(z.dtype, torch.float32)))
        u = self.scale * float(torch.stack(seen).var(dim=0).mean())
        sign = 1 if u >= self.threshold else -1
        self._weigh(1 - sign * u, 1.0 if released else 1 + sign * u)
        return 1 - sign * u

    def _weigh(self, low: float, high: float) -> None:
        for m in (*_adapters(self.model), *_adapters(self.teacher.model)):
            m.low, m.high = low, high

    def _look(self, x: Tensor) -> Any:
        """The teacher's answer (N, C): a call answers the same."""
        self._allot(x)
        return self.teacher(x)

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
            restore_at_random(self._adapted, source, self.restoration, self.seed, int(self.clock))
        if self.allotment == "released":
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
