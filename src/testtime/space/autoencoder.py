"""Encoder and decoder of a tokenizer, between frames and a grid of latents: convolutions, or a transformer as in 4M."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.space.model import Block, grid_embedding

__all__ = ["Network", "decoder", "encoder"]

Network = Literal["convolution", "transformer"]
"""Kind of the encoder and decoder."""


class SiLU(nn.Module):
    """SiLU of the output of a norm, in place where no gradient is needed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class Residual(nn.Module):
    """Two convolutions, each after a group norm and SiLU, with a residual connection."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        layers = [
            (_norm(channels), SiLU(), nn.Conv2d(channels, channels, kernel, padding="same")) for _ in "12"
        ]
        self.layers = nn.Sequential(*(part for layer in layers for part in layer))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return x + change if torch.is_grad_enabled() else change.add_(x)


class Transformer(nn.Module):
    """Transformer blocks over all positions, followed by 4M's residual MLP with tanh.

    Args:
        grid: (h, w) of the positions.
        dim: number of channels.
        depth: number of blocks.
    """

    def __init__(self, grid: tuple[int, int], dim: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("position", grid_embedding(grid, dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, max(1, dim // 32)) for _ in range(depth)))
        self.last = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Tanh(), nn.Linear(4 * dim, dim)
        )

    position: Tensor

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks(x.flatten(2).transpose(1, 2) + self.position)
        tokens = tokens + self.last(tokens)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def encoder(
    channels: int,
    width: int,
    depth: int,
    patch: int,
    latent: int,
    kernel: int,
    network: Network,
    grid: tuple[int, int],
) -> nn.Sequential:
    """Make the network from frames (N, channels, H, W) to latents (N, latent, h, w): strided convolutions and blocks."""
    first, widths = _scales(patch, width, network)
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], first, first)]
    for fine, coarse in pairwise(widths):
        layers += [Residual(fine, kernel), nn.Conv2d(fine, coarse, 2, 2)]
    layers += _middle(width, depth, kernel, network, grid)
    return nn.Sequential(*layers, _norm(width), SiLU(), nn.Conv2d(width, latent, 1))


def decoder(
    channels: int,
    width: int,
    depth: int,
    patch: int,
    latent: int,
    kernel: int,
    network: Network,
    grid: tuple[int, int],
) -> nn.Sequential:
    """Make the network from codes (N, latent, h, w) to frames (N, channels, H, W), symmetric to the encoder."""
    first, widths = _scales(patch, width, network)
    layers: list[nn.Module] = [nn.Conv2d(latent, width, 1), *_middle(width, depth, kernel, network, grid)]
    for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True):
        layers += [nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2), Residual(fine, kernel)]
    last = nn.Conv2d(widths[0], channels * first**2, kernel, padding="same")
    return nn.Sequential(*layers, _norm(widths[0]), SiLU(), last, nn.PixelShuffle(first))


def _middle(width: int, depth: int, kernel: int, network: Network, grid: tuple[int, int]) -> list[nn.Module]:
    if network == "transformer":
        return [Transformer(grid, width, depth)]
    return [Residual(width, kernel) for _ in range(depth)]


def _scales(patch: int, width: int, network: Network) -> tuple[int, list[int]]:
    """Return the stride of the first convolution, and the channels of each resolution down to the grid of the tokens."""
    if network == "transformer":
        return patch, [width]
    widths = [width]
    while patch >= 8 and patch % 2 == 0:
        patch //= 2
        widths.insert(0, max(min(32, width), widths[0] // 16 * 8))
    return patch, widths


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)
