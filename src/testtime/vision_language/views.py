"""Views of images for zero-shot classifiers: the image itself, and random resized crops of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ViewMaker", "checked_share", "confident", "resized_crops"]

ViewMaker = Callable[[Tensor, int, torch.Generator], Iterator[Tensor]]
"""A function of images (N, C, H, W), a number B and a generator that yields B batches of views (N, C, H, W)."""
RATIO = (3 / 4, 4 / 3)


def resized_crops(
    x: Tensor,
    views: int,
    rng: torch.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    mirror: bool = True,
) -> Iterator[Tensor]:
    """Yield random crops of all images, scaled back to their size (bilinear), each mirrored by chance.

    A crop has the same place in all images of the batch, so that the views of an image depend on the generator alone.

    Args:
        x: images (N, C, H, W).
        views: number of crops.
        rng: draws come from here.
        area: least and greatest share of the image's area; its ratio of width to height is 3/4 to 4/3.
        mirror: whether half of the crops are mirrored.

    >>> x = torch.rand(2, 3, 16, 16)
    >>> [tuple(v.shape) for v in resized_crops(x, 2, torch.Generator().manual_seed(0))]
    [(2, 3, 16, 16), (2, 3, 16, 16)]
    """
    height, width = x.shape[-2:]
    low, high = (math.log(r) for r in RATIO)
    for share, shape, down, right, flip in torch.rand(views, 5, generator=rng, device=rng.device).tolist():
        size = (area[0] + share * (area[1] - area[0])) * height * width
        ratio = math.exp(low + shape * (high - low))
        h = min(max(round(math.sqrt(size / ratio)), 1), height)
        w = min(max(round(math.sqrt(size * ratio)), 1), width)
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        crop = x[..., top : top + h, left : left + w]
        view = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
        yield view.flip(-1) if mirror and flip < 0.5 else view


def checked_share(share: float, method: str = "") -> float:
    """Return the share of the views that are confident.

    Args:
        share: number above 0 and at most 1.
        method: name of the method, for the message.

    Raises:
        ValueError: share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"{method}{': ' * bool(method)}share is the share of the views that are confident, above 0 and at most 1, "
            f"got {share:g}"
        )
    return share


def confident(entropies: Tensor, share: float) -> Tensor:
    """Return the indices (N, k) of the share of the views (N, B) of lowest entropy, one at least.

    >>> confident(torch.tensor([[0.3, 0.1, 0.2, 0.4]]), 0.5)
    tensor([[1, 2]])
    """
    kept = max(1, int(checked_share(share) * entropies.shape[1] + 1e-9))
    return entropies.argsort(dim=1, stable=True)[:, :kept]
