"""What PETAL learns on source data: mean and variance of a network"s weights (SWAG)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.sharing import duplicate
from testtime.source.passes import passes_over

__all__ = ["SwagDiagonal", "flat", "swag_diagonal", "wide"]


@final
class SwagDiagonal(nn.Module):
    """A network with the variance of its weights; it answers as the network does.

    Args:
        network: network with the mean weights.

    Attributes:
        variance: (P,) of all its parameters, one after the other, at least in float32.
    """

    variance: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("variance", torch.zeros_like(flat(list(network.parameters()))))

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


class _Walk(nn.Module):
    """A network on its way, the mean of its weights at some points of it, and their squared distance to that."""

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        weights = flat(list(network.parameters()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros_like(weights))
        self.register_buffer("spread", torch.zeros_like(weights))

    def note(self) -> None:
        """Count the weights as they are in (Welford, 1962)."""
        weights = flat(list(self.network.parameters()))
        self.count += 1
        gap = weights - self.mean
        self.mean += gap / self.count
        self.spread += gap * (weights - self.mean)


def swag_diagonal(
    model: nn.Module,
    batches: Collection[tuple[Tensor, Tensor]],
    passes: int = 5,
    rate: float = 8e-4,
    top_rate: float = 1e-2,
    file: str | Path | None = None,
    title: str | None = "SWAG",
) -> SwagDiagonal:
    """Train a network on, by SGD, and take mean and variance of its weights after every pass but the first.

    Args:
        model: network that was trained on the source; it is not changed.
        batches: labelled source batches, images (N, C, H, W) and labels (N,); a loader that shuffles works too.
        passes: number of passes over the batches, at least 2.
        rate: learning rate of the first two passes.
        top_rate: that of the fifth and all later ones; between them it rises linearly.
        file: path of a checkpoint after every pass, from which the same call continues; None for none.
        title: title of the progress bar; None for none.

    Returns:
        the network of mean weights, in evaluation mode, with their variance.

    Raises:
        ValueError: passes is below 2, a loss is not finite, or the file belongs to another training.

    A network in half precision is trained as a float32 copy: its weights move by less than their last digit. The
    published script has momentum 0.9 and weight decay 5e-4, and trains in evaluation mode, as this does: BatchNorm keeps
    its statistics. Those are of no use to PETAL, which normalises by the batch.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> swag = swag_diagonal(net, [(torch.rand(8, 3, 2, 2), torch.randint(2, (8,)))] * 3, title=None)
    >>> swag.variance.shape, bool((swag.variance > 0).all())
    (torch.Size([26]), True)
    """
    if passes < 2:
        raise ValueError(
            f"passes is at least 2, for the first one is not counted and a variance needs some, got {passes}"
        )
    walk = _Walk(duplicate(model)._apply(wide).eval().requires_grad_(True))
    optimizer = torch.optim.SGD(walk.network.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    for done in passes_over(
        batches,
        passes,
        walk,
        optimizer,
        lambda x, y: F.cross_entropy(walk.network(wide(x)), y),
        lambda i: rate + (top_rate - rate) * min(max((i - 1) / 3, 0), 1),
        title,
        None if file is None else Path(file),
        {"kind": "swag_diagonal", "passes": passes, "rate": rate, "top_rate": top_rate},
    ):
        if done:
            with torch.no_grad():
                walk.note()
    swag = SwagDiagonal(duplicate(model).eval().requires_grad_(False))
    swag.variance.copy_(walk.spread / walk.count)
    parameters = list(swag.network.parameters())
    for p, mean in zip(parameters, walk.mean.split([p.numel() for p in parameters]), strict=True):
        p.data.copy_(mean.view_as(p))
    return swag


def wide(x: Tensor) -> Tensor:
    """The tensor, in float32 where it is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the values of tensors as one vector, at least in float32."""
    return wide(torch.cat([t.flatten() for t in tensors]))
