"""A classifier taken apart: the features, and the linear head that reads the classes from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from torch import Tensor, nn

from testtime.intake.outputs import FOR_PIXELS, Logits
from testtime.intake.sharing import twin
from testtime.parts.taps import Tap, tap, watched

__all__ = ["WithFeatures", "head_tap", "headless", "linear_head", "with_features"]


def linear_head(model: nn.Module, head: str | None = None) -> tuple[str, nn.Linear]:
    """The linear layer that turns features into logits, and its name: found by kind, as the last one of the
    model.

    Args:
        model: any classifier.
        head: the dotted name of the layer, or its end (``"fc"``), where the last linear layer is not it.

    Raises:
        ValueError: the model has no linear layer, or none of this name.

    >>> linear_head(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))[0]
    '2'
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = {n: m for n, m in linear.items() if head is None or f".{n}".endswith(f".{head}")}
    found = {head: found[head]} if head in found else found
    if found:
        return list(found.items())[-1]
    if head is None:
        raise ValueError(
            "this model has no torch.nn.Linear layer, so there is no linear head to take the features from; "
            f"expected a classifier that ends in one; for logits of each pixel, {FOR_PIXELS}"
        )
    raise ValueError(
        f"this model has no torch.nn.Linear layer named {head!r}; its linear layers are {sorted(linear)}; "
        "pass head=None for the last one"
    )


@final
class NoHead(nn.Identity):
    """What stands in place of a linear head and passes its input on; a forward that reads the sizes of its head finds them.

    Args:
        head: the linear head.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = head.in_features, head.out_features


def headless(model: nn.Module, own: Iterable[Tensor] = (), head: str | None = None) -> nn.Module:
    """A twin of the model whose linear head passes its input on: calling it gives the features (N, D).

    Args:
        model: any classifier.
        own: tensors that the twin copies instead of sharing them, as in :func:`testtime.intake.sharing.twin`.
        head: the name of the head; the last linear layer unless given.

    Raises:
        ValueError: the model has no linear head, see :func:`linear_head`.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> headless(net)(torch.rand(5, 3, 2, 2)).shape
    torch.Size([5, 4])
    """
    name, linear = linear_head(model, head)
    tree = twin(model, own)
    parent, _, leaf = name.rpartition(".")
    if not leaf:
        return nn.Identity()
    setattr(tree.get_submodule(parent), leaf, NoHead(linear))
    if isinstance(tree, Logits):
        tree.gives_features, tree.contract = True, None
    return tree


def head_tap(model: nn.Module, head: str | None = None) -> Tap:
    """A tap on what the linear head of a tree of one's own is given, put in place.

    Args:
        model: any classifier.
        head: the name of the head; the last linear layer unless given.

    Raises:
        ValueError: the model has no linear head, see :func:`linear_head`.
    """
    return tap(model, linear_head(model, head)[0], given=True)


def with_features(model: nn.Module, at_head: Tap, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (N, C) of a batch, and the features (N, D) that the head was given for it, in one forward.

    Args:
        model: a classifier.
        at_head: its :func:`head_tap`.
        x: (N, ...).

    Raises:
        ValueError: the head is not given one vector for each image.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> logits, features = with_features(net, head_tap(net), torch.rand(5, 3, 2, 2))
    >>> logits.shape, features.shape
    (torch.Size([5, 2]), torch.Size([5, 4]))
    """
    logits, (features,) = watched(model, [at_head], x)
    if features.dim() != 2 or len(features) != len(x):
        raise ValueError(
            f"expected a linear head that is given one feature vector for each of the {len(x)} images, and it was given "
            f"{tuple(features.shape)}; name the layer that is: head=..."
        )
    return logits, features


class WithFeatures(nn.Module):
    """A network that also returns the features that its linear head is given, as a module without a tap.

    Args:
        network: a classifier.
        head: name of the head; the last linear layer unless given.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [y.shape for y in WithFeatures(net)(torch.rand(5, 3, 2, 2))]
    [torch.Size([5, 2]), torch.Size([5, 4])]
    """

    def __init__(self, network: nn.Module, head: str | None = None) -> None:
        super().__init__()
        name, _ = linear_head(network, head)
        parent = name.rpartition(".")[0]
        tapped = isinstance(
            network.get_submodule(parent), Tap
        )  # a frozen copy has the layer in place of its tap
        self.network, self.head = network, parent if tapped else name

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """Return logits (N, C) and features (N, D)."""
        given: list[Tensor] = []

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            given.append(inputs[0])

        handle = self.network.get_submodule(self.head).register_forward_pre_hook(keep)
        try:
            return self.network(x), given[-1]
        finally:
            handle.remove()
