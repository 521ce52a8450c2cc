r"""ITTA: a consistency whose measure was learned to agree with the task, lowered by parameters that are there for that alone.

With the groups :math:`f_1 \dots f_K` of a network of parameters :math:`\theta`, behind each the adaptive parameters
:math:`\Theta_k = (a_k, b_k)`, the features z of an image, those :math:`z'` of the same image in another's style, and a small
network :math:`f_w` that weighs their difference,

.. math::
    x_k &= a_k \odot f_k(x_{k-1}) + b_k, \qquad
    x'_k = S\big(a_k \odot f_k(x'_{k-1}) + b_k\big), \quad k < K \\
    S(x_i) &= \sigma_i^{mix}\, \frac{x_i - \mu(x_i)}{\sigma(x_i)} + \mu_i^{mix}, \qquad
    \mu_i^{mix} = \lambda_i\, \mu(x_i) + (1 - \lambda_i)\, \mu(x_{j(i)}), \quad
    \sigma_i^{mix} = \lambda_i\, \sigma(x_i) + (1 - \lambda_i)\, \sigma(x_{j(i)}) \\
    L_w &= \operatorname{mean} f_w(z - z')^2, \qquad
    L_{align} = \bigg\lVert \frac{\nabla_\theta L_{main}}{\lVert \nabla_\theta L_{main} \rVert}
                - \frac{\nabla_\theta L_w}{\lVert \nabla_\theta L_w \rVert} \bigg\rVert^2

On the source :math:`\min_\theta L_{main} + \alpha L_w` and :math:`\min_w L_{align}`, with :math:`\Theta` the identity; at test
time :math:`\min_\Theta L_w` alone.

A step:
    1. see the batch twice, the second time every image in the style of another one of the batch;
    2. take the gradient of the learned consistency with respect to the adaptive parameters, and update them once;
    3. predict the batch anew, and answer.

Departures:
    The published code has no licence and was not read, and the paper's full text was not at hand: this was written from its
    abstract ("a learnable consistency loss ... which contains learnable parameters that can be adjusted toward better alignment
    between our TTT task and the main prediction task"; "we introduce additional adaptive parameters for the trained model, and
    we suggest only updating the adaptive parameters during the test phase") and from the caption of its figure 3: the adaptive
    parameters come in at test time, one behind each block, for the features of the image and of its other version alike.
    Figures of the paper cannot be claimed. What was chosen:
    The other version is MixStyle's (Zhou et al., 2021), with :math:`\lambda` uniform, in each group but the last; the partner j
    is drawn, and is another image wherever there are two.
    :math:`\Theta_k` is a scale and a shift of each channel. :math:`f_w` is of linear layers without bias, with ReLU between
    them, on what the linear head is given: equal features cost nothing. Gradients are compared at unit length, over all
    parameters but the head's. BatchNorm keeps its source statistics, in training and at test.
    :func:`train_itta` trains network and :math:`f_w` together on the labelled source. For a network that comes alone
    ``prepare`` teaches :math:`f_w` alone, with the network's own answers to unlabelled images for labels.
    At test the published code is reported to go by Adam at a tenth of the rate of training, ``adam(5e-6)`` where that is
    DomainBed's; scales and shifts hardly move at that rate, and the default is this library's.

Cost: three forwards, two backwards. ``prepare`` costs a forward of each batch, and with every pass two forwards, and three
backwards of which one is of second order.

Reference: Chen, Zhang, Song, Shan and Liu, Improved Test-Time Adaptation for Domain Generalization, CVPR 2023; Zhou, Yang, Qiao
and Xiang, Domain Generalization with MixStyle, ICLR 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.model import DetachedCopies
from testtime.intake.sharing import Stateful, duplicate
from testtime.norm import observing, source_statistics
from testtime.parts import adam, generator
from testtime.parts.features import head_tap, linear_head, with_features
from testtime.parts.groups import convolutions_of, groups_of
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import Tap, tapped
from testtime.source.branches import images_of
from testtime.source.passes import passes_over

__all__ = [
    "ITTA",
    "AdaptiveGroup",
    "Consistent",
    "LearnedConsistency",
    "alignment",
    "mix_style",
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
    """A group of a network, and its adaptive parameters: a scale and a shift of each channel, the identity at birth.

    Args:
        group: gives maps (N, C, H, W); its last convolution tells C.

    Attributes:
        partner, share: where they are given, the maps take on another style (:func:`mix_style`).

    Raises:
        ValueError: the group has no convolution, or gives something other than maps.
    """

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


def _groups(model: nn.Module) -> list[AdaptiveGroup]:
    return [m for m in model.modules() if isinstance(m, AdaptiveGroup)]


def with_adaptive(model: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """Put adaptive parameters behind groups of a tree of one's own, in place.

    Args:
        model: the tree.
        layers: the dotted names of the groups; None for :func:`testtime.parts.groups.groups_of`.

    Raises:
        ValueError: the model has no convolution, or as :class:`AdaptiveGroup`.
    """
    for name in groups_of(model) if layers is None else layers:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, AdaptiveGroup(getattr(owner, leaf)))
    return model


@contextmanager
def _restyled(model: nn.Module, images: int, seed: int, step: int) -> Iterator[None]:
    """Inside, every image takes on the style of another in each group but the last."""
    groups = _groups(model)
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
        features: how many there are.
        depth: linear layers of f_w.
        seed: of its first weights.

    Attributes:
        learned: whether an adapter's ``prepare`` teaches it; then it belongs to the adapter's state. One that was trained
            with the network belongs to the network.
        lessons: (), of how many batches it was taught.

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
        with torch.no_grad():
            self.moving()[name].copy_(value)


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """Inside, torch's generator on the CPU starts from the seed; then it stands where it stood."""
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


def _loss(
    network: nn.Module,
    at_head: Tap,
    consistency: LearnedConsistency,
    alpha: float | None,
    seed: int,
) -> Callable[[Tensor, Tensor], Tensor]:
    """What a batch of images and labels says: to f_w by L_align, and to the network, unless alpha is None, by its losses."""
    head = {id(p) for p in at_head.parameters()}
    theta = [p for p in network.parameters() if p.requires_grad and id(p) not in head]
    weights = dict(consistency.named_parameters())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits, z = with_features(network, at_head, x)
        with _restyled(network, len(x), seed, int(consistency.lessons)):
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


def train_itta(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int = 5,
    rate: float = 5e-5,
    alpha: float = 1.0,
    depth: int = 2,
    layers: Sequence[str] | None = None,
    head: str | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    title: str | None = "ITTA",
) -> Consistent:
    """Train a network on, together with a consistency that learns to agree with the task, by Adam.

    Args:
        model: trained on the source, or not yet; it is left as it is. Its BatchNorm layers keep their statistics.
        batches: of the source, images (N, C, H, W) and labels (N,); a loader that shuffles is one.
        passes: how often they are shown.
        rate: the learning rate of both; DomainBed's, in which the paper works.
        alpha: the weight of the consistency beside the task.
        depth: linear layers of f_w.
        layers: as for :func:`with_adaptive`.
        head: the name of the linear head; the last linear layer unless given.
        seed: of styles and first weights.
        file: a checkpoint after every pass, from which the same call continues; None for none.
        title: says how far the training is; None says nothing.

    Returns:
        the network, in evaluation mode, with adaptive parameters at the identity, and its consistency.

    Raises:
        ValueError: the model has no linear head, as :func:`with_adaptive`, a loss is not finite, or the file belongs to
            another training.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    >>> lessons = [(torch.rand(8, 3, 8, 8), torch.randint(2, (8,)))] * 3
    >>> train_itta(net, lessons, title=None).consistency.lessons
    tensor(15)
    """
    network = duplicate(model).eval().requires_grad_(True)
    name, last = linear_head(network, head)
    dtype = torch.promote_types(last.weight.dtype, torch.float32)
    both = Consistent(
        with_adaptive(network, layers),
        LearnedConsistency(last.in_features, depth, seed).to(last.weight.device, dtype),
    )
    for group in _groups(network):
        group.scale.requires_grad_(False), group.shift.requires_grad_(False)
    described = {
        "kind": "train_itta",
        "passes": passes,
        "rate": rate,
        "alpha": alpha,
        "depth": depth,
        "seed": seed,
    }
    with tapped(both.network, [name], given=True) as (at_head,):
        own = [p for p in both.parameters() if p.requires_grad]
        for _ in passes_over(
            batches,
            passes,
            both,
            torch.optim.Adam(own, rate),
            _loss(both.network, at_head, both.consistency, alpha, seed),
            lambda _: rate,
            title,
            None if file is None else Path(file),
            described,
        ):
            pass
    return both.requires_grad_(False)


@final
class ITTA(Adapter):
    """A consistency whose measure was learned to agree with the task, lowered by parameters that are there for that alone.

    Args:
        model: a convolutional classifier that ends in a linear head; one of :func:`train_itta` needs no ``prepare``.
        optimizer: moves the adaptive parameters.
        depth: linear layers of f_w, where the network comes alone.
        passes, rate: of ``prepare`` over its batches.
        layers: the dotted names of the groups; None for the children with convolutions of the outermost container that has
            two or more of them (the stem and the stages of a ResNet).
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers.
        seed: of styles and first weights.

    Raises:
        ValueError: the model has no linear head or no convolution, or as :class:`AdaptiveGroup`.
        RuntimeError: it is called before ``prepare``, and the network brings no consistency along.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> itta = ITTA(net)
    >>> itta.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = itta(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "itta", "ITTA"
    needs = ("classifier", "convolution", "linear head")
    venue = "CVPR 2023"
    paper = "Chen, Zhang, Song, Shan and Liu, Improved Test-Time Adaptation for Domain Generalization"
    output = "after"
    source: SourceData = "data"
    stochastic = True
    cost = (3, 2)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        depth: int = 2,
        passes: int = 5,
        rate: float = 1e-3,
        layers: Sequence[str] | None = None,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.depth, self.passes, self.rate = optimizer, depth, passes, rate
        self.layers, self.head, self.norm = layers, head, norm
        brought = [m for m in self.model.modules() if isinstance(m, Consistent)]
        home = brought[-1].network if brought else self.model.get_submodule("network")
        if not _groups(home):
            with_adaptive(home, layers)
        last = linear_head(home, head)[1]
        if brought:
            self.consistency = brought[-1].consistency
            self.source = "none"
        else:
            dtype = torch.promote_types(last.weight.dtype, torch.float32)
            fresh = LearnedConsistency(last.in_features, depth, seed).to(last.weight.device, dtype)
            self.consistency = fresh.requires_grad_(False)
            self.consistency.learned = True
        self._tap = head_tap(home, head)
        self.adapt([p for g in _groups(self.model) for p in (g.scale, g.shift)], optimizer)

    def _learn(self, batches: Iterable[Tensor]) -> None:
        if not self.consistency.learned:
            return
        images = [x.clone() if x.is_inference() else x for x in images_of(batches)]
        with DetachedCopies():
            network, at_head = copy.deepcopy((self.model, self._tap))
        network.requires_grad_(True)
        with torch.no_grad():
            lessons = [(x, network(x).argmax(dim=1)) for x in images]
        self.consistency.begin(self.seed)
        self.consistency.requires_grad_(True)
        for _ in passes_over(
            lessons,
            self.passes,
            self.consistency,
            torch.optim.Adam(self.consistency.parameters(), self.rate),
            _loss(network, at_head, self.consistency, None, self.seed),
            lambda _: self.rate,
        ):
            pass
        self.consistency.requires_grad_(False)

    def step(self, x: Tensor) -> Tensor:
        if self.consistency.learned and not self.consistency.lessons:
            raise RuntimeError(
                "ITTA's consistency was not learned: call adapter.prepare(batches) with unlabelled source batches first, or "
                "give it the network of train_itta(model, labelled batches)"
            )
        with observing(self.model):
            _, z = with_features(self.model, self._tap, x)
            with _restyled(self.model, len(x), self.seed, int(self.clock)):
                _, other = with_features(self.model, self._tap, x)
        self.update(self.consistency(z, other))
        with torch.no_grad():
            return self.model(x)
