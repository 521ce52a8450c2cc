"""The groups of a convolutional network: its stem and its stages, beside or behind which a method puts something."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["convolutions_of", "groups_of"]


def groups_of(model: nn.Module) -> list[str]:
    """The dotted names of the children with convolutions of the outermost container that has two or more of them.

    A ``ModuleList`` stands for its members. A network of a single convolution has that one group.

    Args:
        model: a convolutional network.

    Raises:
        ValueError: it has no convolution.

    >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3), nn.Flatten())
    >>> groups_of(nn.Sequential(net))
    ['0.0', '0.1']
    """
    for prefix, module in model.named_modules():
        inner = [
            f"{prefix}.{leaf}".removeprefix(".")
            for leaf, child in _members(module)
            if any(isinstance(m, nn.Conv2d) for m in child.modules())
        ]
        if len(inner) > 1:
            return inner
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    if not convolutions:
        raise ValueError(
            "the groups of a network are found by their convolutions, and this model has none; expected a convolutional network"
        )
    return convolutions


def _members(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children by name, with the members of lists, which have no forward, in their place."""
    for leaf, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{leaf}.{name}", m) for name, m in _members(child))
        else:
            yield leaf, child


def convolutions_of(group: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a group, in their order.

    Raises:
        ValueError: it has none.
    """
    found = [m for m in group.modules() if isinstance(m, nn.Conv2d)]
    if not found:
        raise ValueError(
            f"expected a group with convolutions, and this {type(group).__name__} has none; name other layers"
        )
    return found
