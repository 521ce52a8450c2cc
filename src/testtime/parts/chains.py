"""AugMix: chains of mild changes, mixed with each other and with the image."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from testtime.parts.augment import SHIFT, random_crop_flip

__all__ = ["augmix"]

LEVELS = 255


def _autocontrast(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Each channel stretched over the whole range."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / torch.where(high > low, high - low, 1), x)


def _equalize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Each channel's 256 levels made equally frequent, as far as that goes."""
    values = (x * LEVELS).round().long().flatten(2)
    counts = torch.zeros(*values.shape[:2], LEVELS + 1, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    top = counts.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - top) // LEVELS
    table = ((step // 2 + counts.cumsum(dim=2) - counts) // step.clamp_min(1)).clamp_max(LEVELS)
    table = torch.where(step > 0, table, torch.arange(LEVELS + 1, device=x.device))
    return (table.gather(2, values).to(x.dtype) / LEVELS).view_as(x)


def _posterize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Four bits of eight (at this severity always)."""
    return (x * LEVELS / 16).floor() * 16 / LEVELS


def _solarize(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """The brightest, up to a tenth of the range, inverted."""
    least = (256 - (level * 25.6).floor()).view(-1, 1, 1, 1) / LEVELS
    return torch.where(x >= least, 1 - x, x)


def _moved(x: Tensor, matrix: Tensor) -> Tensor:
    """What an affine map (M, 2, 3) of pixels about the centre finds; grey outside."""
    h, w = x.shape[2:]
    scale = matrix.new_tensor([[1.0, h / w, 2 / w], [w / h, 1.0, 2 / h]])
    grid = F.affine_grid((matrix * scale).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5


def _matrix(entries: dict[tuple[int, int], Tensor], like: Tensor) -> Tensor:
    matrix = torch.eye(2, 3, device=like.device, dtype=like.dtype).repeat(len(like), 1, 1)
    for (row, column), value in entries.items():
        matrix[:, row, column] = value
    return matrix


def _rotate(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    angle = sign * (level * 3).floor() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    return _moved(x, _matrix({(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos}, level))


def _shear_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _moved(x, _matrix({(0, 1): sign * level * 0.03}, level))


def _shear_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _moved(x, _matrix({(1, 0): sign * level * 0.03}, level))


def _translate_x(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _moved(x, _matrix({(0, 2): sign * (level * x.shape[3] / 30).floor()}, level))


def _translate_y(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _moved(x, _matrix({(1, 2): sign * (level * x.shape[2] / 30).floor()}, level))


Change = Callable[[Tensor, Tensor, Tensor], Tensor]
CHANGES: tuple[Change, ...] = (
    _autocontrast,
    _equalize,
    _rotate,
    _solarize,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _posterize,
)


OF_COLOUR = (_autocontrast, _equalize, _solarize)  # each channel for itself
OF_PLACE = (_translate_x, _translate_y)


def augmix(
    x: Tensor,
    rng: torch.Generator,
    chains: int = 3,
    longest: int = 3,
    mirror: bool = True,
    turn: bool = True,
    colour: bool = True,
    shift: float = SHIFT,
) -> Tensor:
    """Random crop and flip, then AugMix at severity 1, newly drawn for every image.

    Each of ``chains`` applies one to ``longest`` changes: autocontrast, equalise, posterise to four bits, solarise, turn
    (up to 2 degrees), shear (up to 0.03), shift (up to a thirtieth of the side). The chains are averaged with weights of a
    Dirichlet distribution, and that average with the cropped image, uniformly weighted.

    Args:
        x: images (N, C, H, W) in [0, 1].
        rng: draws come from here.
        chains: number of chains.
        longest: largest number of changes of a chain.
        mirror, turn, colour: whether to flip, to turn, and to change channels one by one (autocontrast, equalise, solarise);
            a change that is left out of a chain is not replaced, the rest is the same.
        shift: largest shift of the crop as a share of the side; the chains' own shifts are left out where it is smaller
            than an eighth.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: shift is not between 0 and 1/2.

    The published code changes bytes; here only equalising counts in bytes. Outside of an image that was moved it is grey.

    Reference: Hendrycks et al., AugMix, ICLR 2020, with the constants of Zhang et al., MEMO, NeurIPS 2022.

    >>> augmix(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    n, dtype = len(x), torch.promote_types(x.dtype, torch.float32)
    draws = torch.rand(n, chains, 2 + 3 * longest, generator=rng, device=rng.device).to(x.device, dtype)
    blend = torch.rand(n, generator=rng, device=rng.device).to(x.device, dtype).view(-1, 1, 1, 1)
    origin = random_crop_flip(x.to(dtype).clamp(0, 1), rng, mirror, shift)
    forbidden = (() if turn else (_rotate,)) + (() if colour else OF_COLOUR)
    forbidden += () if shift >= SHIFT else OF_PLACE
    weight = -(1 - draws[..., 0]).log()  # exponential draws, normalised, are Dirichlet
    weight = weight / weight.sum(dim=1, keepdim=True)
    length = 1 + (draws[..., 1] * longest).long()
    mixed = torch.zeros_like(origin)
    for chain in range(chains):
        y = origin.clone()
        for link in range(longest):
            kind, level, side = draws[:, chain, 2 + 3 * link : 5 + 3 * link].unbind(dim=1)
            chosen = (kind * len(CHANGES)).long().masked_fill(length[:, chain] <= link, -1)
            for k, change in enumerate(CHANGES):
                rows = (chosen == k).nonzero().flatten()
                if len(rows) and change not in forbidden:
                    sign = torch.where(side[rows] < 0.5, -1.0, 1.0).to(dtype)
                    y[rows] = change(y[rows], 0.1 + 0.9 * level[rows], sign)
        mixed += weight[:, chain].view(-1, 1, 1, 1) * y
    return (blend * origin + (1 - blend) * mixed).clamp(0, 1).to(x.dtype)
