"""Branches that need no labels: trained together with their network, or alone on the frozen network.

Test-time training adds a self-supervised branch to a network and trains both together. For a network without a branch, an
adapter's ``prepare`` trains the branch alone, on the features of the frozen network for unlabelled source images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from testtime.intake.named import NamedTensors
from testtime.models.assisted import Assisted, Branch
from testtime.norm.layer import observing
from testtime.parts.features import linear_head
from testtime.parts.randomness import generator, seeded
from testtime.parts.taps import Tap, tap, watched
from testtime.tasks import tasks_of
from testtime.training.loop import Plan, Training

__all__ = [
    "UnsupervisedBranch",
    "images_of",
    "joined",
    "labelled_images_of",
    "labels_or_predictions",
    "pooled",
    "positions",
    "upstream",
]

S = TypeVar("S")


class UnsupervisedBranch(Branch):
    """A branch whose ``source_loss`` needs images and features alone.

    Args:
        layers: names of the layers whose features the branch uses.

    Attributes:
        taught: (), bool; whether :meth:`teach` has trained it. Joint training does not set it.
    """

    taught: Tensor

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.register_buffer("taught", torch.zeros((), dtype=torch.bool))

    def teach(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        batches: Iterable[Tensor],
        passes: int,
        rate: float,
        seed: int,
    ) -> None:
        """Train from scratch with Adam; the network is frozen and normalised as during adaptation.

        Args:
            model: the network.
            taps: taps of the layers whose features the branch uses.
            batches: unlabelled source images (N, C, H, W); they are held until the end.
            passes: number of passes over the batches, in the order given.
            rate: learning rate.
            seed: random seed of the initial weights and of the loss.

        Raises:
            TypeError: a batch is not a tensor.
            ValueError: there is no batch.
            NonFiniteError: a loss or a gradient is not finite.
        """

        def loss(x: Tensor, rng: torch.Generator) -> Tensor:
            with torch.no_grad(), observing(model):
                _, seen = watched(model, taps, x)
            return torch.stack(list(self.source_loss(model, x, seen, {}, rng).values())).sum()

        self.fit(images_of(batches), loss, passes, rate, seed)

    def fit(
        self,
        samples: Sequence[S],
        loss: Callable[[S, torch.Generator], Tensor],
        passes: int,
        rate: float,
        seed: int,
    ) -> None:
        """Train from scratch with Adam; a branch in half precision is trained as a float32 copy.

        Args:
            samples: samples of any kind, one for each step.
            loss: scalar loss of one sample, which draws from the generator that it is given.
            passes: number of passes over the samples, in the order given.
            rate: learning rate.
            seed: random seed of the initial weights and of the loss.

        Raises:
            NonFiniteError: a loss or a gradient is not finite.
        """
        with seeded(seed, 0, "branch"):
            for module in reversed(list(self.modules())):  # inner modules first
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        optimizer = torch.optim.Adam(self.requires_grad_(True).parameters(), rate)
        plan, title = Plan(len(samples) * passes), f"training of {type(self).__name__}"
        training = Training(self, optimizer, plan, title, seed=seed, show=False)
        training.run(
            lambda step: {"loss": loss(samples[step % len(samples)], generator(seed, step, "source"))}
        )
        self.requires_grad_(False)
        self.taught.fill_(True)

    def demand(self, method: str) -> None:
        """Raise if the branch was never trained.

        Args:
            method: name of the method, for the message.

        Raises:
            RuntimeError: the branch was trained neither with the network nor alone.
        """
        if self.learned and not bool(self.taught):
            raise RuntimeError(
                f"{method} has no trained {type(self).__name__}: call adapter.prepare(batches) with unlabelled source "
                f"batches first, or build it on Assisted(network, {type(self).__name__}(...)) as joint training "
                "(testtime.multitask.train) makes one"
            )


B = TypeVar("B", bound=UnsupervisedBranch)


def images_of(batches: Iterable[Tensor]) -> list[Tensor]:
    """Return unlabelled source batches as a list, so that several passes over them are possible, also under gradients.

    Args:
        batches: images (N, C, H, W).

    Raises:
        TypeError: a batch is not a tensor.
        ValueError: there is no batch.
    """
    images = list(batches)
    for x in images:
        if not isinstance(x, Tensor | NamedTensors):
            raise TypeError(
                f"expected unlabelled batches (N, C, H, W) as tensors, got {type(x).__name__}; give the images "
                "alone: (x for x, _ in loader)"
            )
    if not images:
        raise ValueError("expected batches of source images (N, C, H, W) to learn from, got none")
    return [x.clone() if x.is_inference() else x for x in images]


def labelled_images_of(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
) -> tuple[list[Tensor], Tensor | None]:
    """Return source batches, with labels or without, as a list, so that several passes over them are possible.

    Args:
        batches: images (N, ...), or pairs of images and labels (N,).

    Returns:
        the images by batch, and the labels (M,) of all of them; None where none were given.

    Raises:
        TypeError: a batch is neither, labels are not integers, or only some batches have labels.
        ValueError: there is no batch, or labels and images of a batch differ in number.

    >>> images, labels = labelled_images_of([(torch.rand(2, 3), torch.tensor([0, 1])), (torch.rand(1, 3), torch.tensor([1]))])
    >>> len(images), labels
    (2, tensor([0, 1, 1]))
    """
    held = list(batches)
    pairs = [isinstance(b, tuple | list) and len(b) == 2 for b in held]
    if not any(pairs):
        return images_of(held), None  # type: ignore[arg-type]
    if not all(pairs):
        raise TypeError("expected labels with every source batch or with none, got batches of both kinds")
    images, labels = images_of(x for x, _ in held), [y for _, y in held]
    for x, y in zip(images, labels, strict=True):
        if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            got = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"expected source labels (N,) as a tensor of integers, got {got}")
        if y.shape != (len(x),):
            raise ValueError(
                f"expected one label for each of the {len(x)} source images, got labels of shape {tuple(y.shape)}"
            )
    return images, torch.cat([y.detach().clone().long() for y in labels])


def labels_or_predictions(labels: Tensor | None, logits: Tensor) -> Tensor:
    """Return the labels (M,) of source images, or the predicted classes where there are no labels.

    Args:
        labels: labels (M,), or None.
        logits: logits (M, C) of the model.

    Raises:
        ValueError: a label is not a class of the model.
    """
    if labels is None:
        return logits.argmax(dim=1)
    classes = logits.shape[1]
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"expected source labels from 0 to {classes - 1}, the classes of the model, got labels from "
            f"{int(labels.min())} to {int(labels.max())}; leave out images of other classes"
        )
    return labels.to(logits.device)


def joined(
    model: nn.Module, kind: type[B], layers: Sequence[str], build: Callable[[list[int]], B], seed: int
) -> tuple[B, list[Tap]]:
    """Return the branch of a network, and taps of the layers whose features it uses.

    Args:
        model: the adapter's own tree; where it holds ``Assisted(network, kind(...))``, that branch is returned.
        kind: class of the branch.
        layers: names of the layers of a new branch; empty for the encoder of a multi-task network, and for the input of the
            linear head of a classifier.
        build: function of the numbers of channels that makes a new branch (``learned``, in at least float32).
        seed: random seed of the weights of a new branch.

    Raises:
        ValueError: there is no such layer, or its number of channels is unknown.
    """
    for module in model.modules():
        if isinstance(module, Assisted) and isinstance(module.branch, kind):
            return module.branch, [tap(module.network, name) for name in module.branch.layers]
    if layers:
        taps = [tap(model, name) for name in layers]
    elif tasks_of(model):
        taps = [tap(model, "encoder")]
    else:
        taps = [tap(model, linear_head(model)[0], given=True)]
    with seeded(seed, 0, "branch"):
        branch = build([_channels(t) for t in taps])
    branch.learned = True
    like = next(model.parameters())
    dtype = torch.promote_types(like.dtype, torch.float32)
    return branch.to(like.device, dtype).eval().requires_grad_(False), taps


def upstream(model: nn.Module, taps: Sequence[Tap]) -> list[nn.Parameter]:
    """Return the parameters of the tapped layers and of all modules registered before the last of them.

    Args:
        model: the model.
        taps: taps of its layers.

    Raises:
        ValueError: there are none.
    """
    modules = list(model.modules())
    ends = [modules.index(t) + (0 if t.given else len(list(t.modules()))) for t in taps]
    found = [p for m in modules[: max(ends)] for p in m.parameters(recurse=False)]
    if not found:
        raise ValueError(
            "there are no parameters up to the watched layer, so there is nothing to adapt; pass layers=(name,) of a "
            "later one"
        )
    return found


def positions(z: Tensor, like: Tensor) -> Tensor:
    """Return features (N, C) or feature maps (N, C, h, w) as rows, one for each position of each image.

    Args:
        z: output of a layer.
        like: weight (..., C) that gives the type and the number of channels.

    Raises:
        ValueError: z has another shape or number of channels.

    >>> positions(torch.rand(2, 3, 4, 5), torch.rand(1, 3)).shape
    torch.Size([40, 3])
    """
    if z.dim() not in (2, 4) or z.shape[1] != like.shape[-1]:
        raise ValueError(
            f"expected feature maps (N, {like.shape[-1]}, h, w) or vectors (N, {like.shape[-1]}) from the watched layer, "
            f"got {tuple(z.shape)}; name another layer, or give the branch its number of channels"
        )
    return z.flatten(2).transpose(1, 2).flatten(0, 1).to(like.dtype) if z.dim() == 4 else z.to(like.dtype)


def pooled(z: Tensor, like: Tensor) -> Tensor:
    """Return features (N, C), feature maps (N, C, h, w) or tokens (N, T, C) as one vector for each image.

    Args:
        z: output of a layer; its positions are averaged.
        like: weight (..., C) that gives the type and the number of channels.

    Raises:
        ValueError: z has another shape or number of channels.

    >>> pooled(torch.rand(2, 3, 4, 5), torch.rand(1, 3)).shape
    torch.Size([2, 3])
    """
    z = z.mean(dim=(2, 3)) if z.dim() == 4 else z.mean(dim=1) if z.dim() == 3 else z
    if z.dim() != 2 or z.shape[1] != like.shape[-1]:
        raise ValueError(
            f"expected features of {like.shape[-1]} channels from the watched layer, as vectors, maps (N, C, h, w) or "
            f"tokens (N, T, C), and got {tuple(z.shape)} after averaging over places; name another layer, or give the "
            "branch its number of channels"
        )
    return z.to(like.dtype)


def _channels(tap: Tap) -> int:
    """Return the number of channels at a tap: that of the layer, or of the last module in it that has one."""
    if tap.given:
        return int(tap.layer.in_features)  # type: ignore[arg-type]
    for module in (tap.layer, *reversed(list(tap.layer.modules()))):
        for name in ("channels", "out_channels", "out_features", "num_features", "num_channels"):
            if isinstance(channels := getattr(module, name, None), int):
                return channels
    raise ValueError(
        f"the layer {type(tap.layer).__name__} does not say how many channels it gives; name one that holds a "
        "convolution or a linear layer, or give it an attribute `channels`"
    )
