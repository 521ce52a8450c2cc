"""What ViDA learns on source data: by-passes of low and high rank beside the layers of a frozen network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from testtime.intake.sharing import duplicate
from testtime.parts import generator
from testtime.source.passes import class_loss, passes_over

__all__ = ["FORM", "DomainAdapter", "domain_adapters", "train_vida", "with_adapters"]


FORM = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
"""Arguments of a convolution that an adapter beside it shares."""


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
        self.layer = layer
        self.low: Tensor | float = 1.0
        self.high: Tensor | float = 1.0
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
    return up.weight.flatten(1) @ down.weight.flatten(1)  # type: ignore[operator]


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
        layers: dotted names of the layers; None for every linear layer but the head, or every convolution.
        seed: random seed of the first weights.

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
                    f"an adapter is for a torch.nn.Linear or Conv2d, and {name} is a {type(layer).__name__}; "
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


def domain_adapters(model: nn.Module) -> list[DomainAdapter]:
    """Return the domain adapters of a model, in order."""
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
        model: network that was trained on the source; it is not changed.
        batches: labelled source batches, images (N, C, H, W) and labels (N,); a loader that shuffles works too.
        passes: number of passes over the batches.
        rate: learning rate.
        low_rank, high_rank, layers, seed: arguments of :func:`with_adapters`.
        file: path of a checkpoint after every pass, from which the same call continues; None for none.
        title: title of the progress bar; None for none.

    Returns:
        the network, in evaluation mode, with its adapters.

    Raises:
        ValueError: a rank or a layer does not fit (:func:`with_adapters`), a loss is not finite, or the file belongs to another
            training.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> examples = [(torch.rand(8, 3, 2, 2), torch.randint(2, (8,)))] * 3
    >>> type(train_vida(net, examples, high_rank=4, title=None)[1]).__name__
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
        lambda x, y: class_loss(network(x), y),
        lambda _: rate,
        title,
        None if file is None else Path(file),
        described,
        seed,
    ):
        pass
    return network.requires_grad_(False)
