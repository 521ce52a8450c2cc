"""Augmentations as functions ``(x, generator) -> x`` on batches in [0, 1]; each image draws for itself."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "identity", "random_crop_flip"]


class Augmentation(Protocol):
    """A function of a batch (N, C, H, W) and a generator that returns a batch of the same form."""

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor: ...


def identity(x: Tensor, rng: torch.Generator) -> Tensor:
    """No augmentation: randomness switched off."""
    return x


def random_crop_flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Random crop after zero padding by an eighth of the side (4 pixels of 32), and horizontal flip, per image.

    Args:
        x: (N, C, H, W).
        rng: draws come from here.

    Returns:
        (N, C, H, W).

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> random_crop_flip(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 4, 4])
    """
    n, _, h, w = x.shape
    pad_h, pad_w = h // 8, w // 8

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=rng, device=rng.device).to(x.device)

    top, left, flip = draw(2 * pad_h + 1), draw(2 * pad_w + 1), draw(2).bool()
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    rows = top[:, None] + torch.arange(h, device=x.device)
    columns = torch.arange(w, device=x.device).expand(n, w)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    image = torch.arange(n, device=x.device)[:, None, None]
    # Advanced indices around the channel slice come first: (N, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
