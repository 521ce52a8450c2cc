"""Augmentations as functions ``(x, generator) -> x`` on batches in [0, 1]; each image draws for itself."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "identity", "katana", "random_crop_flip", "shuffle_patches", "simclr"]


class Augmentation(Protocol):
    """A function of a batch (N, C, H, W) and a generator that returns a batch of the same form."""

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor: ...


def identity(x: Tensor, rng: torch.Generator) -> Tensor:
    """No augmentation: randomness switched off."""
    return x


SHIFT = 1 / 8  # of the side: 4 pixels of 32


def _within_half(shift: float) -> float:
    if not 0 <= shift <= 1 / 2:
        raise ValueError(f"shift is a share of the side, between 0 and 1/2; got {shift!r}")
    return float(shift)


def random_crop_flip(x: Tensor, rng: torch.Generator, mirror: bool = True, shift: float = SHIFT) -> Tensor:
    """Random crop after zero padding by an eighth of the side (4 pixels of 32), and horizontal flip.

    Args:
        x: (N, C, H, W).
        rng: draws come from here.
        mirror: whether to flip; the crops are the same without.
        shift: padding on each side as a share of the side, rounded down to whole pixels.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: shift is not between 0 and 1/2.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> random_crop_flip(x, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 4, 4])
    """
    n, _, h, w = x.shape
    pad_h, pad_w = (int(side * _within_half(shift) + 1e-9) for side in (h, w))

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n,), generator=rng, device=rng.device).to(x.device)

    top, left, flip = draw(2 * pad_h + 1), draw(2 * pad_w + 1), draw(2).bool() & mirror
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    rows = top[:, None] + torch.arange(h, device=x.device)
    columns = torch.arange(w, device=x.device).expand(n, w)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    image = torch.arange(n, device=x.device)[:, None, None]
    # Advanced indices around the channel slice come first: (N, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def shuffle_patches(x: Tensor, rng: torch.Generator, side: int = 4) -> Tensor:
    """Cut each image into ``side`` x ``side`` patches and shuffle them: colours and textures stay, the shape goes.

    An image whose sides are no multiple of ``side`` is scaled down to the next multiple, and back (bilinear).

    Args:
        x: (N, C, H, W).
        rng: draws come from here.
        side: number of patches along a side.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: an image is smaller than ``side`` pixels.

    Reference: Lee et al., Entropy is not Enough for Test-Time Adaptation, ICLR 2024.

    >>> x = torch.arange(4.0).view(1, 1, 2, 2)
    >>> shuffle_patches(x, torch.Generator().manual_seed(0), side=2).flatten().sort().values
    tensor([0., 1., 2., 3.])
    """
    n, _, h, w = x.shape
    if min(h, w) < side:
        raise ValueError(
            f"an image of {h} x {w} pixels has no {side} x {side} patches; expected larger images"
        )
    high, wide = h // side, w // side
    fits = (high * side, wide * side) == (h, w)
    y = x if fits else F.interpolate(x, (high * side, wide * side), mode="bilinear", align_corners=False)
    order = torch.rand(n, side * side, generator=rng, device=rng.device).argsort(dim=1).to(x.device)
    patches = y.unflatten(3, (side, wide)).unflatten(2, (side, high)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches[torch.arange(n, device=x.device)[:, None], order].unflatten(1, (side, side))
    y = patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return y if fits else F.interpolate(y, (h, w), mode="bilinear", align_corners=False)


GREY = (0.2989, 0.587, 0.114)  # ITU-R 601, of red, green and blue


def _grey(x: Tensor) -> Tensor:
    """Luminance (N, 1, H, W) of colour images; the mean over the channels of others."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return GREY[0] * x[:, :1] + GREY[1] * x[:, 1:2] + GREY[2] * x[:, 2:]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(x)
    return (grey + factor * (x - grey)).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a fraction of the colour circle; only colour images have one."""
    if x.shape[1] != 3:
        return x
    (top, first), chroma = (
        x.max(dim=1, keepdim=True),
        x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True),
    )
    # The sector is 0, 2 or 4 where red, green or blue is the greatest, plus the difference of the other two.
    after, before = x.gather(1, (first + 1) % 3), x.gather(1, (first + 2) % 3)
    sector = 2 * first + (after - before) / torch.where(chroma > 0, chroma, 1)
    k = (sector + 6 * shift + torch.tensor([5, 3, 1], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)) % 6
    return (top - chroma * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


OF_COLOUR = (_saturation, _hue)


def _gamma(x: Tensor, power: Tensor) -> Tensor:
    return x.clamp(1e-8, 1) ** power


def _affine(
    x: Tensor,
    degrees: Tensor,
    shift: Tensor,
    scale: Tensor,
    flip: Tensor,
    margin: int = 0,
    outside: str = "border",
) -> Tensor:
    """Turn, scale, shift (in that order, about the centre) and flip; outside, the edge is repeated.

    Args:
        x: (N, C, H, W).
        degrees, scale, flip: (N,) each; a positive angle turns from the x to the y axis.
        shift: (N, 2), to the right and down, in pixels.
        margin: width in pixels of the border that is returned as well.
        outside: "border", or "reflection" for the mirror image instead.

    Returns:
        (N, C, H + 2 margin, W + 2 margin), bilinear.
    """
    h, w = x.shape[2:]
    rows = torch.arange(-margin, h + margin, device=x.device, dtype=x.dtype) - (h - 1) / 2
    columns = torch.arange(-margin, w + margin, device=x.device, dtype=x.dtype) - (w - 1) / 2
    mirror = torch.where(flip, -1.0, 1.0).to(x.dtype)
    across = mirror[:, None] * columns - shift[:, :1]
    down = rows - shift[:, 1:]
    angle, inverse = degrees * (math.pi / 180), 1 / scale
    cos, sin = (inverse * angle.cos()).view(-1, 1, 1), (inverse * angle.sin()).view(-1, 1, 1)
    source_x = cos * across[:, None, :] + sin * down[:, :, None]
    source_y = cos * down[:, :, None] - sin * across[:, None, :]
    grid = torch.stack([source_x * (2 / w), source_y * (2 / h)], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def _blur(x: Tensor, sigma: Tensor, size: int = 5) -> Tensor:
    """Gaussian blur with one sigma (N,) per image; the image loses size // 2 pixels on every side."""
    offsets = torch.arange(size, device=x.device, dtype=x.dtype) - size // 2
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).t()[..., None, None, None]  # (size, N, 1, 1, 1)
    h, w = x.shape[2] - size + 1, x.shape[3] - size + 1
    x = sum((kernel[i] * x[:, :, i : i + h] for i in range(1, size)), kernel[0] * x[:, :, :h])
    return sum((kernel[i] * x[..., i : i + w] for i in range(1, size)), kernel[0] * x[..., :w])


def katana(
    x: Tensor,
    rng: torch.Generator,
    clean: bool = False,
    alike: bool = False,
    mirror: bool = True,
    turn: bool = True,
    colour: bool = True,
    shift: float = SHIFT,
) -> Tensor:
    """The strong augmentation of CoTTA and RoTTA: colours, place, blur and noise, newly drawn for every image.

    In this order: clip to [0, 1]; brightness 0.6-1.4, contrast 0.7-1.3, saturation 0.5-1.5, hue +-0.06 of the
    circle and gamma 0.7-1.3, in an order drawn once per batch; turn by +-15 degrees, shift by whole pixels up
    to an eighth of the side, scale by 0.9-1.1, with the edge repeated outside; Gaussian blur (5 pixels, sigma
    0.001-0.5); horizontal flip; Gaussian noise of 0.005; clip.

    Args:
        x: images (N, C, H, W) in [0, 1]; saturation and hue need three channels.
        rng: draws come from here.
        clean: neither blur nor noise, and the mirror image outside of the edges, as ROID and CMF use it.
        alike: whether one draw changes all images of the batch alike, as in the published code; noise differs all the same.
        mirror, turn, colour: whether to flip, to turn, and to change saturation and hue; the rest is the same without.
        shift: largest shift as a share of the side; the draw is rounded to whole pixels.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: shift is not between 0 and 1/2.

    The published code draws once per batch, so that all images of a view are changed alike (``alike=True``); here each
    draws for itself. Its shift of 1/16 is one of the image padded to twice its side, hence an eighth.

    Reference: Cohen and Giryes, KATANA: Simple Post-Training Robustness Using Test Time Augmentations, 2021,
    with the constants of Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022.

    >>> katana(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    n, _, h, w = x.shape
    across, down = (side * _within_half(shift) for side in (w, h))
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = x.to(dtype).clamp(0, 1)
    order = torch.randperm(5, generator=rng, device=rng.device).tolist()
    draws = (
        torch.rand(1 if alike else n, 11, generator=rng, device=rng.device).to(x.device, dtype).expand(n, 11)
    )
    if not clean:
        noise = torch.randn(x.shape, generator=rng, device=rng.device).to(x.device, dtype)

    def between(column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * draws[:, column]

    colours = (
        (_brightness, between(0, 0.6, 1.4)),
        (_contrast, between(1, 0.7, 1.3)),
        (_saturation, between(2, 0.5, 1.5)),
        (_hue, between(3, -0.06, 0.06)),
        (_gamma, between(4, 0.7, 1.3)),
    )
    for i in order:
        change, amount = colours[i]
        if colour or change not in OF_COLOUR:
            y = change(y, amount.view(-1, 1, 1, 1))
    pixels = torch.stack([between(6, -across, across), between(7, -down, down)], dim=1).round()
    degrees, scale = between(5, -15 * turn, 15 * turn), between(8, 0.9, 1.1)
    flip = (draws[:, 9] < 0.5) & mirror
    if clean:
        return _affine(y, degrees, pixels, scale, flip, outside="reflection").clamp(0, 1).to(x.dtype)
    y = _affine(y, degrees, pixels, scale, flip, margin=2)
    y = _blur(y, between(10, 0.001, 0.5))
    return (y + 0.005 * noise).clamp(0, 1).to(x.dtype)


def simclr(x: Tensor, rng: torch.Generator, mirror: bool = True, colour: bool = True) -> Tensor:
    """The augmentation of contrastive learning: a window, its colours and its mirror image, newly drawn for every image.

    In this order: a window of 0.2 to 1 of the area and of 3/4 to 4/3 of the proportions, brought to the size of the image;
    horizontal flip; with a chance of 0.8 brightness, contrast and saturation 0.6-1.4 and hue +-0.1 of the circle, in an
    order drawn once per batch; with a chance of 0.2 grey.

    Args:
        x: images (N, C, H, W) in [0, 1]; saturation and hue need three channels.
        rng: draws come from here.
        mirror, colour: whether to flip, and to change saturation and hue or turn grey; the rest is the same without.

    Returns:
        (N, C, H, W).

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, with the
    constants used for CIFAR (Khosla et al., Supervised Contrastive Learning, NeurIPS 2020).

    >>> simclr(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    n, _, h, w = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    order = torch.randperm(4, generator=rng, device=rng.device).tolist()
    draws = torch.rand(n, 11, generator=rng, device=rng.device).to(x.device, dtype)

    def between(column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * draws[:, column]

    area, proportion = between(0, 0.2, 1.0), between(1, math.log(3 / 4), math.log(4 / 3)).exp()
    y = x.to(dtype).clamp(0, 1)
    axes = []
    for size, share, place in ((w, area * proportion, 2), (h, area / proportion, 3)):
        part = share.sqrt().clamp(max=1)[:, None]
        centres = (2 * torch.arange(size, device=x.device, dtype=dtype) + 1) / size - 1
        axes.append((1 - part) * between(place, -1, 1)[:, None] + part * centres)
    across = torch.where((draws[:, 4:5] < 0.5) & mirror, axes[0].flip(1), axes[0])
    grid = torch.stack([across[:, None, :].expand(n, h, w), axes[1][:, :, None].expand(n, h, w)], dim=-1)
    y = F.grid_sample(y, grid, mode="bilinear", padding_mode="border", align_corners=False)
    colours = (
        (_brightness, between(6, 0.6, 1.4)),
        (_contrast, between(7, 0.6, 1.4)),
        (_saturation, between(8, 0.6, 1.4)),
        (_hue, between(9, -0.1, 0.1)),
    )
    jittered = y
    for i in order:
        change, amount = colours[i]
        if colour or change not in OF_COLOUR:
            jittered = change(jittered, amount.view(-1, 1, 1, 1))
    y = torch.where((draws[:, 5] < 0.8).view(-1, 1, 1, 1), jittered, y)
    return torch.where(((draws[:, 10] < 0.2) & colour).view(-1, 1, 1, 1), _grey(y).expand_as(y), y).to(
        x.dtype
    )
