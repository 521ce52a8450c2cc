"""A network together with the self-supervised branch that test-time training adds to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from testtime.intake.sharing import Stateful

__all__ = ["Assisted", "Branch", "MaskedBranch"]


class Branch(Stateful, ABC):
    """What test-time training adds to a network: a module with a task of its own, learned together with the network's.

    Attributes:
        layers: names of the network's layers that it reads; :meth:`source_loss` gets what they gave.
        learned: whether an adapter's ``prepare`` trained it; then it belongs to the adapter's state. A branch that was
            trained with the network belongs to the network.
    """

    layers: tuple[str, ...] = ()

    @abstractmethod
    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The losses that are added to the network's own in joint training.

        Args:
            network: the network, for branches that show it other images.
            x: images (N, 3, H, W).
            seen: outputs of the watched layers for x, in the order of ``layers``.
            labels: labels by task; a self-supervised branch ignores them.
            generator: draws whatever is drawn.

        Returns:
            scalars: under the name of a task, to be weighted as that task is; under any other name, with weight 1.
        """

    def moving(self) -> dict[str, Tensor]:
        return dict([*self.named_parameters(), *self.named_buffers()]) if self.learned else {}

    def restore(self, name: str, value: Tensor) -> None:
        self.restore_all({name: value})

    @torch.no_grad()
    def restore_all(self, values: Mapping[str, Tensor]) -> None:
        live = dict([*self.named_parameters(), *self.named_buffers()])
        for name, value in values.items():
            live[name].copy_(value)


class MaskedBranch(Branch):
    """A branch that hides most places of an image and is trained to fill them in.

    Attributes:
        encoder: encoder of the shown places; the network has the same one.
        places: number of places of an image.
        visible: number of places that a mask shows.
    """

    encoder: nn.Module
    places: int
    visible: int

    @abstractmethod
    def masks(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw the places that are shown, (count, visible) int64, each row without repetition."""

    @abstractmethod
    def loss(self, images: Tensor, shown: Tensor) -> Tensor:
        """Return the error of what is filled in, a scalar.

        Args:
            images: (N, 3, H, W) in [0, 1].
            shown: places that the encoder sees, (N, visible) int64.
        """


class Assisted(nn.Module):
    """A network together with its branch: what a test-time training method is given. It answers as the network does."""

    def __init__(self, network: nn.Module, branch: Branch) -> None:
        super().__init__()
        self.network = network
        self.branch = branch

    def forward(self, x: Tensor) -> Any:
        return self.network(x)
