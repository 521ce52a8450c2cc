r"""EcoTTA: small networks beside the groups of a frozen one learn, and are held to what the frozen ones say.

With the groups :math:`f_1 \dots f_K` of the frozen network, and beside each a meta network of a normalisation :math:`n_k`
and a block :math:`c_k` of a convolution, a normalisation and a ReLU,

.. math::
    x_k &= f_k(\tilde x_{k-1}), \qquad \tilde x_k = n_k(x_k) + c_k(\tilde x_{k-1}) \\
    L &= \operatorname*{mean}_{i :\, H(p_i) < H_0} H(p_i) + \lambda \sum_k \lVert \tilde x_k - x_k \rVert_1, \qquad
    H_0 = 0.4 \log C

where the norm is a mean over elements, and :math:`x_k` is a constant in it.

A step, after the meta networks were warmed up on the source:
    1. predict the batch; the meta networks normalise it by its own statistics;
    2. take the gradient of the entropy of what is certain enough and of the distance to the frozen groups;
    3. update the meta networks once, and answer with the prediction of 1.

Departures:
    There is no official code, and the paper's full text was not at hand: this was written from its abstract, the caption of
    its overview, and how an unofficial implementation behaves, whose values the defaults are; figures of the paper cannot be
    claimed. What was chosen: :math:`x_k` is what the frozen group makes of the adapted input; a group is a named module, by
    default each child with convolutions of the outermost container that has two or more of these (the stem and the stages of
    a ResNet); :math:`c_k` has a kernel of 3 on an input that is averaged down to the places of :math:`x_k`; where no image is
    certain the distance alone is minimised; a channel of one value is not normalised; the meta networks set out from the mean
    and deviation of :math:`x_k` on the first batch and a tenth of that deviation, so that the network answers nearly as it
    did.
    :func:`train_meta` warms up on the labelled source, and gives a network that brings its meta networks along. For
    a network that comes alone ``prepare`` does so with the network's own answers to unlabelled images.
    The unofficial implementation takes two steps and answers with the forward of the second; this takes one. With
    ``Repeat(EcoTTA(model), times)`` there are more, and the answer is the one after them.
    The paper's claim is memory. No activation inside a group is kept for the gradients of its weights, which are frozen; what
    the backward through it keeps is up to torch, and is measured, not promised.

Cost: one forward, one backward. ``prepare`` costs a forward of each batch, and with every pass a forward and a backward.

Reference: Song, Lee, Kweon and Choi, EcoTTA: Memory-Efficient Continual Test-time Adaptation via Self-distilled
Regularization, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.sharing import Stateful, duplicate
from testtime.norm import source_statistics
from testtime.parts import entropy, generator, sgd
from testtime.parts.groups import convolutions_of, groups_of
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction
from testtime.source.branches import images_of
from testtime.source.passes import passes_over

__all__ = ["EcoTTA", "MetaGroup", "train_meta", "with_meta"]


@final
class BatchScale(nn.Module):
    """Normalise each channel of maps (N, C, H, W) by the batch, then scale and shift; one value per channel stays."""

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
        group: maps (N, C, h, w) to maps (N, D, H, W); its first and last convolutions tell C and D.

    Attributes:
        mode: "adapted"; "frozen" answers as the group alone; "born" sets out from the statistics of the batch.
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
        if self.mode == "born":
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


def _groups(model: nn.Module) -> list[MetaGroup]:
    return [m for m in model.modules() if isinstance(m, MetaGroup)]


def with_meta(model: nn.Module, layers: Sequence[str] | None = None) -> nn.Module:
    """Put meta networks beside groups of a tree of one's own, in place.

    Args:
        model: the tree.
        layers: the dotted names of the groups; None for the children with convolutions of the outermost container that has
            two or more of them.

    Raises:
        ValueError: there is no such container, or as :class:`MetaGroup`.
    """
    with torch.random.fork_rng(
        devices=[]
    ):  # a convolution draws its first weights, which the warm-up draws anew
        torch.default_generator.manual_seed(0)
        for name in groups_of(model) if layers is None else layers:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, leaf, MetaGroup(getattr(owner, leaf)))
    return model


def _warm_up(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int,
    rate: float,
    seed: int,
    title: str | None = None,
    file: Path | None = None,
) -> None:
    """Teach the meta networks in a tree, from scratch."""
    groups = _groups(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, 0, "meta").initial_seed())
        for g in groups:
            g.conv.reset_parameters()
    first = next(iter(batches))[0]
    with torch.no_grad():
        _in_mode(groups, "born", lambda: model(first))
    own = [p for g in groups for p in g.meta()]
    for p in own:
        p.requires_grad_(True)
    described = {"kind": "train_meta", "passes": passes, "rate": rate, "seed": seed}
    for _ in passes_over(
        batches,
        passes,
        model,
        torch.optim.SGD(own, rate, momentum=0.9),
        lambda x, y: F.cross_entropy(model(x), y),
        lambda _: rate,
        title,
        file,
        described,
    ):
        pass


def _in_mode(groups: Sequence[MetaGroup], mode: str, call: Callable[[], Any]) -> Any:
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
        model: trained on the source; it is left as it is.
        batches: of the source, images (N, C, H, W) and labels (N,); a loader that shuffles is one.
        passes: how often they are shown.
        rate: the learning rate.
        layers: as for :func:`with_meta`.
        seed: of the first weights.
        file: a checkpoint after every pass, from which the same call continues; None for none.
        title: says how far the training is; None says nothing.

    Returns:
        the network, in evaluation mode, with its meta networks.

    Raises:
        ValueError: as :func:`with_meta`; a loss is not finite, or the file belongs to another training.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    >>> lessons = [(torch.rand(8, 3, 8, 8), torch.randint(2, (8,)))] * 3
    >>> type(train_meta(net, lessons, title=None)[2]).__name__
    'MetaGroup'
    """
    network = with_meta(duplicate(model).eval().requires_grad_(False), layers)
    _warm_up(network, batches, passes, rate, seed, title, None if file is None else Path(file))
    return network.requires_grad_(False)


@final
class Warmth(Stateful):
    """Whether the meta networks were warmed up."""

    learned = True
    done: Tensor

    def __init__(self, done: bool) -> None:
        super().__init__()
        self.register_buffer("done", torch.tensor(done))


@final
class EcoTTA(Adapter):
    """Small networks beside the groups of a frozen one learn, and are held to what the frozen ones say.

    Args:
        model: a convolutional classifier; one of :func:`train_meta` needs no ``prepare``.
        optimizer: moves the meta networks.
        hold: lambda, the weight of the distance to the frozen groups.
        margin: H_0 as a fraction of log C.
        passes, rate: of ``prepare`` over its batches.
        layers: the dotted names of the groups; None for the children with convolutions of the outermost container that has
            two or more of them.
        norm: the policy of the frozen network's BatchNorm layers; the meta networks always normalise by the batch.
        seed: of the meta networks' first weights.

    Raises:
        ValueError: the model has no convolutions, or as :class:`MetaGroup`.
        RuntimeError: it is called before ``prepare``, and the network brings no meta networks along.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> ecotta = EcoTTA(net)
    >>> ecotta.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = ecotta(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "ecotta", "EcoTTA"
    needs = ("classifier", "convolution")
    venue = "CVPR 2023"
    paper = (
        "Song, Lee, Kweon and Choi, EcoTTA: Memory-Efficient Continual Test-time Adaptation via Self- "
        "distilled Regularization"
    )
    source: SourceData = "data"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(5e-3),  # noqa: B008 - a frozen value
        hold: float = 0.25,
        margin: float = 0.4,
        passes: int = 10,
        rate: float = 0.05,
        layers: Sequence[str] | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.hold, self.margin, self.passes = optimizer, hold, margin, passes
        self.rate, self.layers, self.norm = rate, layers, norm
        self.warmth = Warmth(bool(_groups(self.model)))
        if self.warmth.done:
            self.source = "none"
        else:
            with_meta(self.model.get_submodule("network"), layers)
        self.adapt([p for g in _groups(self.model) for p in g.meta()], optimizer)
        if not self.warmth.done:
            self.remember_birth()

    def _learn(self, batches: Iterable[Tensor]) -> None:
        images = [x.clone() if x.is_inference() else x for x in images_of(batches)]
        groups = _groups(self.model)
        with torch.no_grad():
            answers = _in_mode(groups, "frozen", lambda: [self.model(x).argmax(dim=1) for x in images])
        _warm_up(self.model, list(zip(images, answers, strict=True)), self.passes, self.rate, self.seed)
        self.warmth.done = torch.ones_like(self.warmth.done)

    def step(self, x: Tensor) -> Tensor:
        if not self.warmth.done:
            raise RuntimeError(
                "EcoTTA's meta networks were not warmed up: call adapter.prepare(batches) with unlabelled source batches "
                "first, or give it the network of train_meta(model, labelled batches)"
            )
        logits, gaps = self._watched(x)
        h = entropy(logits)
        kept = h < self.margin * math.log(logits.shape[1])
        loss = self.hold * torch.stack(gaps).sum()
        self.update(loss + h[kept].mean() if kept.any() else loss)
        return Prediction(logits, selected={"minimised": kept})

    def _watched(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits (N, C), and each group's distance to the frozen one."""
        groups = _groups(self.model)
        for g in groups:
            g.watched = True
        try:
            logits = self.model(x)
            return logits, [g.gap for g in groups if g.gap is not None]
        finally:
            for g in groups:
                g.watched, g.gap = False, None
