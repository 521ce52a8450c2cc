r"""The common corruptions of images: 15 + 4 kinds, 5 severities, with the constants of CIFAR-10-C and of ImageNet-C.

.. math:: x' = Q_8\bigl(f_{name}(x;\, c_{severity},\, \epsilon_{seed})\bigr)

The random numbers of image i depend on (seed i, name) alone: never on its batch, its severity or its device.

>>> import torch
>>> x = torch.full((2, 3, 32, 32), 0.5)
>>> y = corrupt(x, "contrast", 5)
>>> y.shape, y.unique().mul(255)
(torch.Size([2, 3, 32, 32]), tensor([127.]))
>>> both = corrupt(x, "fog", 3, seeds=[7, 8])
>>> torch.equal(corrupt(x[1:], "fog", 3, seeds=[8]), both[1:])
True

Reference: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from testtime.corruptions import blur, digital, noise, weather
from testtime.corruptions.digital import store_as_jpeg
from testtime.corruptions.filters import to_8_bits, to_bytes
from testtime.corruptions.rng import Rng
from testtime.errors import did_you_mean

__all__ = ["CONSTANTS", "CORRUPTIONS", "EXTRA", "corrupt", "store_as_jpeg"]

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""Names of the 15 corruptions of the benchmark."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Names of the 4 further corruptions, for validation."""

FAMILIES = (noise, blur, weather, digital)
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    name: getattr(family, name) for family in FAMILIES for name in family.CIFAR
}
BYTES = {name for family in FAMILIES for name in family.BYTES}
"""Names of the corruptions that take images as uint8 also."""
CONSTANTS: dict[str, dict[str, Sequence[Any]]] = {
    "cifar": {name: table for family in FAMILIES for name, table in family.CIFAR.items()},
    "imagenet": {name: table for family in FAMILIES for name, table in family.IMAGENET.items()},
}
"""Constants of the corruptions, for severities 1 to 5, by benchmark and name."""
PART = (
    2**19
)  # values that are corrupted at a time on a CPU: intermediate results of 2 MiB, whatever the batch


@torch.no_grad()
def corrupt(
    x: Tensor,
    name: str,
    severity: int = 5,
    *,
    seeds: Tensor | Sequence[int] | None = None,
    constants: Literal["cifar", "imagenet", "auto"] = "auto",
    frost: str | Path | None = None,
    quantise: bool = True,
) -> Tensor:
    """Corrupt a batch of images with the functions and constants of CIFAR-10-C or ImageNet-C.

    Args:
        x: images (N, 3, H, W): uint8, or floating-point in [0, 1].
        name: one of `CORRUPTIONS` or `EXTRA`.
        severity: severity of the corruption, 1 (mild) to 5 (strong).
        seeds: random seeds of the images, (N,) integers; None counts from 0. The random numbers of an image depend on its
            seed and on `name`, so the severities of an image share them, and any split into batches gives the same images.
        constants: constants of the corruption: "cifar" (for 32 x 32 pixels), "imagenet" (for 224 x 224) or "auto": "cifar"
            where the smaller side has up to 64 pixels.
        frost: folder with the original frost textures (frost1 to frost5, .png or .jpg); None uses procedural ones.
        quantise: whether to truncate the result to k / 255, as the published sets are stored; otherwise it is only clipped
            to [0, 1]. The result of uint8 images is always truncated.

    Returns:
        Images with the shape, dtype and device of `x`; floating-point ones in [0, 1].

    Raises:
        TypeError: `x` is neither a uint8 nor a floating-point tensor, or `seeds` are not integers.
        ValueError: wrong shape or values of `x`, unknown name, severity, or constants, or a number of seeds that differs
            from the number of images.
        FileNotFoundError: a frost texture is missing.
        ImportError: Pillow (the extra ``images``) is not installed, for JPEG or frost from a folder.

    Departures from the published code: its calls of ImageMagick, OpenCV, scikit-image and scipy are rewritten on tensors
    with the same conventions, the random numbers differ, and each corruption's docstring names further differences.
    ImageNet-C is also stored as JPEG: `store_as_jpeg`.

    Reference: Hendrycks & Dietterich, ICLR 2019 (see the module).

    >>> corrupt(torch.full((1, 3, 32, 32), 0.2), "brightness", 5)[0, :, 0, 0].mul(255)
    tensor([127., 127., 127.])
    >>> corrupt(torch.full((1, 3, 32, 32), 51, dtype=torch.uint8), "brightness", 5)[0, :, 0, 0]
    tensor([127, 127, 127], dtype=torch.uint8)
    """
    check_images(x)
    if name not in FUNCTIONS:
        raise ValueError(
            f"unknown corruption {name!r}{did_you_mean(name, FUNCTIONS)}; there are {', '.join(CORRUPTIONS + EXTRA)}"
        )
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"expected a severity of 1, 2, 3, 4 or 5, got {severity!r}")
    if constants not in ("auto", "cifar", "imagenet"):
        raise ValueError(f"expected constants 'cifar', 'imagenet' or 'auto', got {constants!r}")
    if len(x) == 0:
        return x.clone()
    if constants == "auto":
        constants = "cifar" if min(x.shape[2:]) <= 64 else "imagenet"
    function = FUNCTIONS[name]
    if name == "frost":
        function = partial(weather.frost, folder=None if frost is None else Path(frost))
    seeds = check_seeds(seeds, len(x)).to(x.device)
    c = CONSTANTS[constants][name][int(severity) - 1]
    size = len(x) if x.is_cuda else max(1, PART // x[0].numel())
    parts = []
    for part, seed in zip(x.split(size), seeds.split(size), strict=True):
        images = part.contiguous() if x.dtype == torch.uint8 else part.float().contiguous()
        if x.dtype == torch.uint8 and name not in BYTES:
            images = images.float().div_(255)
        y = function(images, c, Rng(seed, name))
        if x.dtype == torch.uint8:
            y = y if y.dtype == torch.uint8 else to_bytes(y)
        elif name not in digital.STORED:
            y = to_8_bits(y) if quantise else y.clamp_(0, 1)
        parts.append(y)
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(x.dtype)


def check_images(x: Tensor) -> None:
    """Refuse what is not a batch of colour images.

    Raises:
        TypeError: `x` is neither a uint8 nor a floating-point tensor.
        ValueError: wrong shape, or floating-point values outside of [0, 1].
    """
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.dtype == torch.uint8):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"expected images as a uint8 or a floating-point tensor in [0, 1], got {kind}")
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"expected images of shape (N, 3, H, W), got {tuple(x.shape)}")
    if x.is_floating_point() and len(x):
        low, high = (bound.item() for bound in x.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"expected images in [0, 1], got values from {low:g} to {high:g}")


def check_seeds(seeds: Tensor | Sequence[int] | None, count: int) -> Tensor:
    """Return seeds (count,) as int64.

    Args:
        seeds: integers (count,); None counts from 0.
        count: number of images.

    Raises:
        TypeError: the seeds are not integers.
        ValueError: their number differs from the number of images.
    """
    seeds = torch.arange(count) if seeds is None else torch.as_tensor(seeds)
    if seeds.is_floating_point() or seeds.is_complex() or seeds.dtype == torch.bool:
        raise TypeError(f"expected integer seeds, got {seeds.dtype}")
    if seeds.shape != (count,):
        raise ValueError(f"expected one seed for each of {count} images, got {tuple(seeds.shape)}")
    return seeds.to(torch.int64)
