"""What EcoTTA learns on source data: meta networks beside the groups of a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.sharing import Stateful, duplicate
from testtime.parts import generator
from testtime.parts.groups import convolutions_of, groups_of
from testtime.source.passes import class_loss, passes_over

__all__ = [
    "BatchScale",
    "MetaGroup",
    "Warmth",
    "in_mode",
    "meta_groups",
    "train_meta",
    "warm_up",
    "with_meta",
]


@final
class BatchScale(nn.Module):
    """Normalise each channel of maps (N, C, H, W) by the batch, then scale and shift; one value per channel stays."""

    mixes_samples = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:
            return x
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, 1e-5)


@final
class MetaGroup(nn.Module):
    """A group of a frozen network, and its meta network.

    Args:
        group: maps (N, C, h, w) to maps (N, D, H, W); its first and last convolutions determine C and D.

    Attributes:
        mode: "adapted"; "frozen" predicts as the group alone; "initial" begins with the statistics of the batch.
        gap: the distance of the last answer to that of the group, where it was asked for by ``watched``.

    Raises:
        ValueError: the group has no convolution, or gives something other than maps.
    """

    def __init__(self, group: nn.Module) -> None:
        super().__init__()
        convolutions = convolutions_of(group)
        first, last = convolutions[0], convolutions[-1]
        self.group, self.mode, self.watched = group, "adapted", False
        self.gap: Tensor | None = None
        self.norm = BatchScale(last.out_channels)
        self.conv = nn.Conv2d(first.in_channels, last.out_channels, 3, padding=1, bias=False)
        self.conv_norm = BatchScale(last.out_channels)
        for module in (self.norm, self.conv, self.conv_norm):
            module.to(first.weight)

    def meta(self) -> list[nn.Parameter]:
        """The parameters of the meta network."""
        return [*self.norm.parameters(), *self.conv.parameters(), *self.conv_norm.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.group(x)
        if self.mode == "frozen":
            return y
        if y.dim() != 4:
            raise ValueError(
                f"expected maps (N, C, H, W) from a group, got {tuple(y.shape)}; name other layers"
            )
        if self.mode == "initial":
            self._set_out(y.detach())
        if x.shape[2:] != y.shape[2:]:
            x = F.adaptive_avg_pool2d(x, (y.shape[2], y.shape[3]))
        out = self.norm(y) + F.relu(self.conv_norm(self.conv(x)))
        if self.watched:
            self.gap = F.l1_loss(out, y.detach())
        return out

    @torch.no_grad()
    def _set_out(self, y: Tensor) -> None:
        """Begin near the group: its mean and deviation, and a tenth of the latter."""
        deviation, mean = (v.flatten() for v in torch.std_mean(y, dim=(0, 2, 3), correction=0))
        self.norm.weight.copy_(deviation), self.norm.bias.copy_(mean)
        self.conv_norm.weight.copy_(deviation / 10), self.conv_norm.bias.zero_()


def meta_groups(model: nn.Module) -> list[MetaGroup]:
    """Return the meta groups of a model, in order."""
    return [m for m in model.modules() if isinstance(m, MetaGroup)]


def with_meta(model: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """Put meta networks beside groups of a tree of one's own, in place.

    Args:
        model: the tree.
        layers: dotted names of the groups; None for the children with convolutions of the outermost container that has
            two or more of them.

    Raises:
        ValueError: there is no such container, or as :class:`MetaGroup`.
    """
    with torch.random.fork_rng(
        devices=[]
    ):  # a convolution draws its first weights, which the warm-up draws again
        torch.default_generator.manual_seed(0)
        for name in groups_of(model) if layers is None else layers:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, leaf, MetaGroup(getattr(owner, leaf)))
    return model


def warm_up(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int,
    rate: float,
    seed: int,
    title: str | None = None,
    file: Path | None = None,
) -> None:
    """Teach the meta networks in a tree, from scratch."""
    groups = meta_groups(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, 0, "meta").initial_seed())
        for g in groups:
            g.conv.reset_parameters()
    first = next(iter(batches))[0]
    with torch.no_grad():
        in_mode(groups, "initial", lambda: model(first))
    own = [p for g in groups for p in g.meta()]
    for p in own:
        p.requires_grad_(True)
    described = {"kind": "train_meta", "passes": passes, "rate": rate, "seed": seed}
    for _ in passes_over(
        batches,
        passes,
        model,
        torch.optim.SGD(own, rate, momentum=0.9),
        lambda x, y: class_loss(model(x), y),
        lambda _: rate,
        title,
        file,
        described,
        seed,
    ):
        pass


def in_mode(groups: Sequence[MetaGroup], mode: str, call: Callable[[], Any]) -> Any:
    """Call a function while groups are in a mode; they are in the mode "adapted" afterwards.

    Args:
        groups: groups of a model.
        mode: mode of the groups during the call.
        call: function without arguments.
    """
    for g in groups:
        g.mode = mode
    try:
        return call()
    finally:
        for g in groups:
            g.mode = "adapted"


def train_meta(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int = 10,
    rate: float = 0.05,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    title: str | None = "EcoTTA",
) -> nn.Module:
    """A network with meta networks that were trained on the source, all else frozen, by SGD with momentum 0.9.

    Args:
        model: network that was trained on the source; it is not changed.
        batches: labelled source batches, images (N, C, H, W) and labels (N,), or (N, H, W) where 255 is ignored; a loader that
            shuffles works too.
        passes: number of passes over the batches.
        rate: learning rate.
        layers: dotted names of the groups, see :func:`with_meta`.
        seed: random seed of the first weights.
        file: path of a checkpoint after every pass, from which the same call continues; None for none.
        title: title of the progress bar; None for none.

    Returns:
        the network, in evaluation mode, with its meta networks.

    Raises:
        ValueError: there are no groups, see :func:`with_meta`; a loss is not finite, or the file belongs to another training.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    >>> examples = [(torch.rand(8, 3, 8, 8), torch.randint(2, (8,)))] * 3
    >>> type(train_meta(net, examples, title=None)[2]).__name__
    'MetaGroup'
    """
    network = with_meta(duplicate(model).eval().requires_grad_(False), layers)
    warm_up(network, batches, passes, rate, seed, title, None if file is None else Path(file))
    return network.requires_grad_(False)


@final
class Warmth(Stateful):
    """Whether the meta networks were warmed up."""

    learned = True
    done: Tensor

    def __init__(self, done: bool) -> None:
        super().__init__()
        self.register_buffer("done", torch.tensor(done))
