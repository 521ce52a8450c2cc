"""What ITTA learns on source data: a consistency that agrees with the task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from testtime.intake.model import DetachedCopies
from testtime.intake.sharing import Stateful, duplicate
from testtime.moved import takes_former
from testtime.parts import generator
from testtime.parts.features import linear_head, with_features
from testtime.parts.groups import convolutions_of, groups_of
from testtime.parts.taps import Tap, tapped
from testtime.source.passes import passes_over

__all__ = [
    "AdaptiveGroup",
    "Consistent",
    "ITTAOptions",
    "LearnedConsistency",
    "adaptive_groups",
    "alignment",
    "consistency_loss",
    "learn_consistency",
    "mix_style",
    "restyled",
    "train_itta",
    "with_adaptive",
]


def mix_style(x: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    r"""Give each image's maps a mean and deviation between its own and those of its partner (MixStyle).

    Args:
        x: maps (N, C, H, W).
        partner: (N,), the index of each image's partner.
        share: lambda (N,), in [0, 1]: 1 leaves an image as it is.

    Returns:
        (N, C, H, W); gradients flow through x, not through its statistics.

    Reference: Zhou et al., Domain Generalization with MixStyle, ICLR 2021, eq. 1 to 5.

    >>> x = torch.tensor([[0.0, 2.0], [10.0, 14.0]]).view(2, 1, 1, 2)
    >>> mix_style(x, torch.tensor([1, 0]), torch.zeros(2)).flatten(1).round().abs()  # each in the other's style
    tensor([[10., 14.],
            [ 0.,  2.]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.detach().mean(dim=(2, 3), keepdim=True)
    deviation = ((wide.detach() - mean).square().mean(dim=(2, 3), keepdim=True) + 1e-6).sqrt()
    own = share.to(wide).view(-1, 1, 1, 1)
    mixed_mean, mixed_deviation = (own * s + (1 - own) * s[partner] for s in (mean, deviation))
    return ((wide - mean) / deviation * mixed_deviation + mixed_mean).to(x.dtype)


@final
class AdaptiveGroup(nn.Module):
    """A group of a network, and its adaptive parameters: a scale and a shift of each channel, the identity initially.

    Args:
        group: gives maps (N, C, H, W); its last convolution determines C.

    Attributes:
        partner, share: arguments of :func:`mix_style`, which changes the maps where they are set.

    Raises:
        ValueError: the group has no convolution, or gives something other than maps.
    """

    mixes_samples = True

    def __init__(self, group: nn.Module) -> None:
        super().__init__()
        convolutions = convolutions_of(group)
        like = convolutions[-1].weight.detach()
        self.group = group
        self.scale, self.shift = (
            nn.Parameter(like.new_ones(len(like))),
            nn.Parameter(like.new_zeros(len(like))),
        )
        self.partner: Tensor | None = None
        self.share: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.group(x)
        if y.dim() != 4 or y.shape[1] != len(self.scale):
            raise ValueError(
                f"expected maps (N, {len(self.scale)}, H, W) from a group, got {tuple(y.shape)}; name other layers"
            )
        y = (y * self.scale[:, None, None] + self.shift[:, None, None]).to(y.dtype)
        return y if self.partner is None or self.share is None else mix_style(y, self.partner, self.share)


def adaptive_groups(model: nn.Module) -> list[AdaptiveGroup]:
    """Return the adaptive groups of a model, in order."""
    return [m for m in model.modules() if isinstance(m, AdaptiveGroup)]


def with_adaptive(model: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """Put adaptive parameters behind groups of a tree of one's own, in place.

    Args:
        model: the tree.
        layers: dotted names of the groups; None for :func:`testtime.parts.groups.groups_of`.

    Raises:
        ValueError: the model has no convolution, or as :class:`AdaptiveGroup`.
    """
    for name in groups_of(model) if layers is None else layers:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, AdaptiveGroup(getattr(owner, leaf)))
    return model


@contextmanager
def restyled(model: nn.Module, images: int, seed: int, step: int) -> Iterator[None]:
    """Inside, every image takes on the style of another in each group but the last."""
    groups = adaptive_groups(model)
    try:
        for k, group in enumerate(groups[:-1] or groups):
            rng, device = generator(seed, step, f"style {k}"), group.scale.device
            order = torch.randperm(images, generator=rng)
            partner = torch.empty_like(order)
            partner[order] = order.roll(1)
            group.partner, group.share = partner.to(device), torch.rand(images, generator=rng).to(device)
        yield
    finally:
        for group in groups:
            group.partner = group.share = None


@final
class LearnedConsistency(Stateful):
    r"""How much a difference of features counts: the mean square of :math:`f_w(z - z')`.

    Args:
        features: number of features.
        depth: linear layers of f_w.
        seed: random seed of its first weights.

    Attributes:
        learned: whether an adapter's ``prepare`` trains it; then it belongs to the adapter's state. One that was trained
            with the network belongs to the network.
        lessons: (), number of batches it was trained on.

    >>> consistency, z = LearnedConsistency(4), torch.rand(2, 4)
    >>> consistency(z, z).item()
    0.0
    """

    lessons: Tensor

    def __init__(self, features: int, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        with _drawn(seed):
            layers = [nn.Linear(features, features, bias=False) for _ in range(depth)]
        self.weigh = nn.Sequential(*[m for linear in layers for m in (linear, nn.ReLU())][:-1])
        self.register_buffer("lessons", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, other: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        gap: Tensor = self.weigh(z.to(dtype) - other.to(dtype))
        return gap.square().mean()

    def begin(self, seed: int) -> None:
        """Back to its first weights, untaught."""
        self.lessons.zero_()
        with _drawn(seed):
            for m in self.weigh:
                if isinstance(m, nn.Linear):
                    m.reset_parameters()

    def moving(self) -> dict[str, Tensor]:
        return dict([*self.named_parameters(), *self.named_buffers()]) if self.learned else {}

    def restore(self, name: str, value: Tensor) -> None:
        self.restore_all({name: value})

    @torch.no_grad()
    def restore_all(self, values: Mapping[str, Tensor]) -> None:
        live = self.moving()
        for name, value in values.items():
            live[name].copy_(value)


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """Inside, torch's generator on the CPU starts from the seed; afterwards its state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, 0, "consistency").initial_seed())
        yield


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def alignment(main: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> Tensor:
    """The squared distance of two gradients at unit length, between 0 (they agree) and 4 (they are opposed).

    >>> one = [torch.tensor([2.0, 0.0])]
    >>> alignment(one, [torch.tensor([7.0, 0.0])]).item(), alignment(one, [torch.tensor([0.0, 1.0])]).item()
    (0.0, 2.0)
    """
    return (F.normalize(_flat(main), dim=0) - F.normalize(_flat(auxiliary), dim=0)).square().sum()


@final
class Consistent(nn.Module):
    """A network with adaptive parameters, and the consistency that was trained with it; it answers as the network does."""

    def __init__(self, network: nn.Module, consistency: LearnedConsistency) -> None:
        super().__init__()
        self.network, self.consistency = network, consistency

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def consistency_loss(
    network: nn.Module,
    at_head: Tap,
    consistency: LearnedConsistency,
    alpha: float | None,
    seed: int,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a batch of images and labels: to f_w by L_align, and to the network, unless alpha is None, by its losses."""
    head = {id(p) for p in at_head.parameters()}
    theta = [p for p in network.parameters() if p.requires_grad and id(p) not in head]
    weights = dict(consistency.named_parameters())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits, z = with_features(network, at_head, x)
        with restyled(network, len(x), seed, int(consistency.lessons)):
            _, other = with_features(network, at_head, x)
        consistency.lessons += 1
        main, gap = F.cross_entropy(logits, y), consistency(z, other)
        of_main = torch.autograd.grad(main, theta, retain_graph=True, materialize_grads=True)
        of_gap = torch.autograd.grad(gap, theta, create_graph=True, materialize_grads=True)
        apart = alignment(of_main, of_gap)
        pulls = torch.autograd.grad(apart, [*weights.values()], retain_graph=True, materialize_grads=True)
        # L_align is of second order, and is to move w alone: this has its gradient there, none elsewhere, and is 0.
        stand_in = torch.stack([(w * p).sum() for w, p in zip(weights.values(), pulls, strict=True)]).sum()
        stand_in = stand_in - stand_in.detach()
        if alpha is None:
            return apart.detach() + stand_in
        held = functional_call(consistency, {k: w.detach() for k, w in weights.items()}, (z, other))
        return main + alpha * held + stand_in

    return loss


@final
@dataclass(frozen=True)
class ITTAOptions:
    """Layers of the consistency and of the network in :func:`train_itta`.

    Args:
        depth: number of linear layers of f_w.
        layers: dotted names of the groups, see :func:`with_adaptive`.
        head: name of the linear head; the last linear layer unless given.
    """

    depth: int = 2
    layers: Sequence[str] | None = None
    head: str | None = None


@takes_former
def train_itta(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int = 5,
    rate: float = 5e-5,
    alpha: float = 1.0,
    options: ITTAOptions = ITTAOptions(),
    seed: int = 0,
    file: str | Path | None = None,
    title: str | None = "ITTA",
) -> Consistent:
    """Train a network on, together with a consistency that learns to agree with the task, by Adam.

    Args:
        model: network, trained on the source or not; it is not changed. Its BatchNorm layers keep their statistics.
        batches: labelled source batches, images (N, C, H, W) and labels (N,); a loader that shuffles works too.
        passes: number of passes over the batches.
        rate: learning rate of both; DomainBed's, in which the paper works.
        alpha: weight of the consistency beside the task.
        options: layers of the consistency and of the network.
        seed: random seed of styles and first weights.
        file: path of a checkpoint after every pass, from which the same call continues; None for none.
        title: title of the progress bar; None for none.

    Returns:
        the network, in evaluation mode, with adaptive parameters at the identity, and its consistency.

    Raises:
        ValueError: the model has no linear head, as :func:`with_adaptive`, a loss is not finite, or the file belongs to
            another training.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    >>> examples = [(torch.rand(8, 3, 8, 8), torch.randint(2, (8,)))] * 3
    >>> train_itta(net, examples, title=None).consistency.lessons
    tensor(15)
    """
    network = duplicate(model).eval().requires_grad_(True)
    name, last = linear_head(network, options.head)
    dtype = torch.promote_types(last.weight.dtype, torch.float32)
    both = Consistent(
        with_adaptive(network, options.layers),
        LearnedConsistency(last.in_features, options.depth, seed).to(last.weight.device, dtype),
    )
    for group in adaptive_groups(network):
        group.scale.requires_grad_(False), group.shift.requires_grad_(False)
    described = {
        "kind": "train_itta",
        "passes": passes,
        "rate": rate,
        "alpha": alpha,
        "depth": options.depth,
        "seed": seed,
    }
    with tapped(both.network, [name], given=True) as (at_head,):
        own = [p for p in both.parameters() if p.requires_grad]
        for _ in passes_over(
            batches,
            passes,
            both,
            torch.optim.Adam(own, rate),
            consistency_loss(both.network, at_head, both.consistency, alpha, seed),
            lambda _: rate,
            title,
            None if file is None else Path(file),
            described,
            seed,
        ):
            pass
    return both.requires_grad_(False)


def learn_consistency(
    model: nn.Module,
    at_head: Tap,
    consistency: LearnedConsistency,
    images: Sequence[Tensor],
    passes: int,
    rate: float,
    seed: int,
) -> None:
    """Train a consistency from scratch by Adam, in place, for a network that stays as it is.

    Args:
        model: network with adaptive parameters; its predictions are the labels.
        at_head: tap on what its linear head is given.
        consistency: consistency to train.
        images: unlabelled source batches (N, C, H, W).
        passes: number of passes over the batches.
        rate: learning rate.
        seed: random seed of styles and first weights.

    Raises:
        ValueError: a loss is not finite.
    """
    with DetachedCopies():
        network, tap = copy.deepcopy((model, at_head))
    network.requires_grad_(True)
    with torch.no_grad():
        examples = [(x, network(x).argmax(dim=1)) for x in images]
    consistency.begin(seed)
    consistency.requires_grad_(True)
    for _ in passes_over(
        examples,
        passes,
        consistency,
        torch.optim.Adam(consistency.parameters(), rate),
        consistency_loss(network, tap, consistency, None, seed),
        lambda _: rate,
        seed=seed,
    ):
        pass
    consistency.requires_grad_(False)
