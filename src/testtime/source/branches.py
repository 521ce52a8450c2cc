"""Branches that need no labels: found beside the network they were trained with, or taught on it as it stands.

Test-time training adds a self-supervised branch to a network and trains both together. Where a network comes without, an
adapter's ``prepare`` can teach the branch alone, on what the frozen network says of unlabelled source images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from testtime.models.assisted import Assisted, Branch
from testtime.norm.layer import observing
from testtime.parts.features import linear_head
from testtime.parts.optimizers import Descent
from testtime.parts.randomness import generator
from testtime.parts.taps import Tap, tap, watched
from testtime.tasks import tasks_of

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

L = TypeVar("L")


class UnsupervisedBranch(Branch):
    """A branch whose ``source_loss`` asks for images and features alone.

    Attributes:
        taught: (), bool; whether :meth:`teach` has run. Joint training says nothing here.
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
        """Learn from scratch by Adam, the network frozen and normalised as when it adapts.

        Args:
            model: the network.
            taps: on its layers that the branch looks at.
            batches: unlabelled source images (N, C, H, W); they are held until the end.
            passes: how often each batch is shown, in the order given.
            rate: the learning rate.
            seed: of the first weights and of what the loss draws.

        Raises:
            TypeError: a batch is not a tensor.
            ValueError: there is no batch, or the loss is not finite.
        """

        def loss(x: Tensor, rng: torch.Generator) -> Tensor:
            with torch.no_grad(), observing(model):
                _, seen = watched(model, taps, x)
            return torch.stack(list(self.source_loss(model, x, seen, {}, rng).values())).sum()

        self.fit(images_of(batches), loss, passes, rate, seed)

    def fit(
        self,
        lessons: Sequence[L],
        loss: Callable[[L, torch.Generator], Tensor],
        passes: int,
        rate: float,
        seed: int,
    ) -> None:
        """Learn from scratch by Adam; a branch in half precision is trained as a float32 copy.

        Args:
            lessons: of any kind, shown one by one.
            loss: of one lesson, a scalar; draws from the generator it is given.
            passes, rate, seed: as for :meth:`teach`.

        Raises:
            ValueError: the loss or a gradient is not finite.
        """
        with _seeded(seed):
            for module in reversed(list(self.modules())):  # what is inside first
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        descent = Descent(torch.optim.Adam(self.requires_grad_(True).parameters(), rate))
        for step, lesson in enumerate([*lessons] * passes):
            value = loss(lesson, generator(seed, step, "source"))
            descent.step(value, f"teaching {type(self).__name__}", f"at step {step}")
        self.requires_grad_(False)
        self.taught.fill_(True)

    def demand(self, method: str) -> None:
        """Refuse to work for a method that was to prepare it, and did not.

        Raises:
            RuntimeError: it was neither trained with the network nor taught.
        """
        if self.learned and not bool(self.taught):
            raise RuntimeError(
                f"{method} has no trained {type(self).__name__}: call adapter.prepare(batches) with unlabelled source "
                f"batches first, or build it on Assisted(network, {type(self).__name__}(...)) as joint training "
                "(testtime.multitask.train) makes one"
            )


B = TypeVar("B", bound=UnsupervisedBranch)


def images_of(batches: Iterable[Tensor]) -> list[Tensor]:
    """The unlabelled source batches that ``prepare`` was given, held so that they can be shown again, also under gradients.

    Raises:
        TypeError: a batch is not a tensor.
        ValueError: there is no batch.
    """
    images = list(batches)
    for x in images:
        if not isinstance(x, Tensor):
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
    """The source batches of a method that can use labels, held so that they can be shown again.

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
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"expected one label for each of the {len(x)} source images, got labels of shape {tuple(y.shape)}"
            )
    return images, torch.cat([y.detach().clone().long() for y in labels])


def labels_or_predictions(labels: Tensor | None, logits: Tensor) -> Tensor:
    """The labels (M,) of source images; the classes that the model predicts where there are no labels.

    Args:
        labels: (M,) or None.
        logits: (M, C) of the model.

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
    """The branch of a network, and taps on the layers it looks at.

    Args:
        model: a tree of one's own; one that holds ``Assisted(network, kind(...))`` gives the branch it was trained with.
        kind: of branch.
        layers: names of the layers to look at where the branch is new; empty for the encoder of a multi-task network,
            and for what the linear head of a classifier is given.
        build: makes a new branch (``learned``, in at least float32) of the numbers of channels.
        seed: of its weights.

    Raises:
        ValueError: a layer is not there, or its number of channels cannot be told.
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
    with _seeded(seed):
        branch = build([_channels(t) for t in taps])
    branch.learned = True
    like = next(model.parameters())
    dtype = torch.promote_types(like.dtype, torch.float32)
    return branch.to(like.device, dtype).eval().requires_grad_(False), taps


def upstream(model: nn.Module, taps: Sequence[Tap]) -> list[nn.Parameter]:
    """The parameters of the tapped layers and of all that the model registers before the last of them.

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
    """Features (N, C) or feature maps (N, C, h, w) as rows, one for each place of each image, in the type of ``like``.

    Args:
        z: what a layer gave.
        like: the weight (..., C) that they will meet.

    Raises:
        ValueError: z has another form or number of channels.

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
    """Features (N, C), feature maps (N, C, h, w) or tokens (N, T, C) as one vector for each image, in the type of ``like``.

    Args:
        z: what a layer gave; its places are averaged.
        like: the weight (..., C) that it will meet.

    Raises:
        ValueError: z has another form or number of channels.

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
    """How many channels a tap sees: what the layer says of itself, or the last part of it that says."""
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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, torch's generator on the CPU starts from the seed; then it stands where it stood."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, 0, "branch").initial_seed())
        yield
