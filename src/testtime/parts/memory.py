"""What memories of images have in common: places that are free or hold an image and its pseudo-label."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.intake.journal import RowWrites
from testtime.intake.sharing import Stateful

__all__ = ["ImageMemory"]


class ImageMemory(Stateful):
    """A fixed number of places for images; a subclass decides who gets one.

    Args:
        classes: C.
        capacity: largest number of images in the bank.

    Attributes:
        images: (capacity, ...) from the first batch on; empty before.
        label: (capacity,) pseudo-labels; -1 is a free place.
        seen: images processed so far, kept or not.
    """

    images: Tensor
    label: Tensor
    seen: Tensor

    def __init__(self, classes: int, capacity: int = 64) -> None:
        super().__init__()
        self.classes, self.capacity = classes, capacity
        self.row_writes = RowWrites("images")
        self.register_buffer("images", torch.empty(0))
        self.register_buffer("label", torch.full((capacity,), -1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def grows(self, name: str) -> bool:
        """Only the images take their form from the first batch."""
        return name == "images"

    def _moving_elsewhere(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.moving().items() if name != "images"}

    def restore(self, name: str, value: Tensor) -> None:
        """Give a moving tensor its value back."""
        if name == "images" and len(value) not in (0, self.capacity):
            raise ValueError(f"the memory has {self.capacity} places, the saved state {len(value)} images")
        super().restore(name, value)

    def take(self, x: Tensor, origin: NDArray[np.int64]) -> None:
        """Copy rows of the batch x (N, ...) to the places whose ``origin`` (capacity,) is not -1 but their number.

        Raises:
            ValueError: the images have another form than those that are held.
        """
        if self.images.shape[1:] != x.shape[1:]:
            if self.images.numel():
                raise ValueError(
                    f"the memory holds images of {tuple(self.images.shape[1:])}, and this batch has "
                    f"{tuple(x.shape[1:])}; resize the images, or reset() the adapter"
                )
            self.images = x.new_zeros(self.capacity, *x.shape[1:])
        places = np.flatnonzero(origin >= 0)
        if len(places):
            rows = x[torch.from_numpy(origin[places]).to(x.device)]
            self.row_writes.write(
                self.images, torch.from_numpy(places).to(x.device), rows.to(self.images.dtype)
            )

    def held(self) -> Tensor:
        """The images (M, ...)."""
        return self.images[self.label >= 0]
