"""Domains made of unlabelled source images: the images under corruptions, with the predictions of the clean ones as labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from testtime.corruptions import corrupt

__all__ = ["corrupted_domains"]


def corrupted_domains(
    images: Sequence[Tensor], labels: Sequence[Tensor], corruptions: Sequence[str], severity: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return labelled batches by the name of a corruption; each image draws its noise by its place among all.

    Args:
        images: batches (N, 3, H, W) in [0, 1].
        labels: labels (N,) of each batch, or predictions.
        corruptions: names of corruptions (:data:`testtime.corruptions.CORRUPTIONS`).
        severity: severity of all, 1 to 5.

    >>> domains = corrupted_domains([torch.rand(2, 3, 32, 32)], [torch.tensor([0, 1])], ["fog", "contrast"], 3)
    >>> list(domains), domains["fog"][0][0].shape, domains["fog"][0][1].tolist()
    (['fog', 'contrast'], torch.Size([2, 3, 32, 32]), [0, 1])
    """
    sizes = [len(x) for x in images]
    seeds = torch.arange(sum(sizes)).split(sizes)
    return {
        name: [
            (corrupt(x, name, severity, seeds=s), y) for x, s, y in zip(images, seeds, labels, strict=True)
        ]
        for name in corruptions
    }
