"""Parts for logits of each pixel: pixels as the samples of a loss, and predictions averaged over sizes and mirror images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.views import views_of

__all__ = ["SCALES", "aligned_views", "as_rows", "checked_scales", "mirrors", "over_scales", "scaled_views"]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Sizes of the views of segmentation, relative to the image (Wang et al., CVPR 2022)."""


def as_rows(logits: Tensor) -> Tensor:
    """The logits with a row for each prediction: a pixel of (N, C, H, W), an image of (N, C).

    Args:
        logits: (N, C) or (N, C, H, W).

    Returns:
        (N, C), or (N H W, C) in row-major order of images and pixels.

    >>> as_rows(torch.arange(4.0).view(1, 2, 1, 2))
    tensor([[0., 2.],
            [1., 3.]])
    """
    return logits if logits.dim() == 2 else logits.movedim(1, -1).flatten(0, -2)


def mirrors(model: nn.Module) -> bool:
    """Whether a mirrored image keeps its classes, which it does unless the model declares otherwise."""
    views = views_of(model)
    return views is None or views.mirror


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as a tuple.

    Raises:
        ValueError: there is none, or one is not positive.
    """
    if isinstance(scales, int | float) or not len(scales) or not all(s > 0 for s in scales):
        raise ValueError(
            f"scales are sizes of views relative to the image, positive numbers and one at least, got {scales!r}; "
            "scales=(1.0,) is the image and its mirror image alone"
        )
    return tuple(float(s) for s in scales)


def _takes(network: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a network takes the images in their own size."""
    try:
        network(x)
    except (RuntimeError, ValueError):
        return False
    return True


@torch.no_grad()
def scaled_views(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    scales: Sequence[float] = SCALES,
    mirror: bool = True,
) -> Iterator[Tensor]:
    """Predict the images in several sizes and mirrored; the logits are mirrored back, in the size that they have.

    Args:
        network: predicts images (N, C, H, W) of any height and width, logits (N, K, h, w).
        x: images (N, C, H, W).
        scales: sizes of the views relative to the image; sides are rounded to whole pixels.
        mirror: whether each view is also predicted mirrored.

    Yields:
        logits (N, K, h, w) of each view, at least in float32.

    Raises:
        ValueError: the network does not take a view of another size than the image.

    >>> [round(y.item(), 2) for y in scaled_views(lambda x: x[:, :, :1, :1], torch.tensor([[[[0.0, 1.0]]]]), [1.0])]
    [0.0, 1.0]
    """
    size = (x.shape[-2], x.shape[-1])
    for scale in scales:
        view_size = (max(1, round(scale * size[0])), max(1, round(scale * size[1])))
        view = x if view_size == size else F.interpolate(x, view_size, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if mirror else (False,):
            try:
                z = network(view.flip(-1) if mirrored else view)
            except (RuntimeError, ValueError) as error:
                if view_size == size or not _takes(network, x):
                    raise
                raise ValueError(
                    f"the model does not take images of {view_size[0]} x {view_size[1]} pixels, the view at {scale:g} times "
                    f"{size[0]} x {size[1]}; pass scales= with sizes that it takes, or scales=(1.0,) ({error})"
                ) from error
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            yield z.flip(-1) if mirrored else z


def aligned_views(
    network: Callable[[Tensor], Tensor], x: Tensor, scales: Sequence[float] = SCALES, mirror: bool = True
) -> Tensor:
    """The logits of :func:`scaled_views` in one size, that of the view nearest to the image; bilinear.

    Args:
        network: predicts images (N, C, H, W) of any height and width, logits (N, K, h, w).
        x: images (N, C, H, W).
        scales: sizes of the views relative to the image.
        mirror: whether each view is also predicted mirrored.

    Returns:
        (V, N, K, h, w), at least in float32, for V views.
    """
    views = list(scaled_views(network, x, scales, mirror))
    nearest = min(range(len(scales)), key=lambda i: abs(scales[i] - 1))
    size = views[nearest * (1 + mirror)].shape[-2:]
    return torch.stack([_sized(z, (size[0], size[1])) for z in views])


def _sized(z: Tensor, size: tuple[int, int]) -> Tensor:
    return z if z.shape[-2:] == size else F.interpolate(z, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def over_scales(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    size: tuple[int, int],
    scales: Sequence[float] = SCALES,
    mirror: bool = True,
) -> Tensor:
    r"""Mean logits over views of several sizes and their mirror images.

    .. math:: \frac{1}{2 |S|} \sum_{s \in S} \sum_{m} r_s^{-1} m^{-1} z\big(m\, r_s\, x\big)

    with the resizing :math:`r_s` and the identity or the mirror image :math:`m`, both undone on the logits.

    Args:
        network: predicts images (N, C, H, W) of any height and width.
        x: images (N, C, H, W).
        size: height and width of the logits of the image.
        scales: sizes of the views relative to the image.
        mirror: whether each view is also predicted mirrored.

    Returns:
        (N, K, *size), at least in float32.

    Reference: Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation, CVPR 2022, section 4.

    >>> over_scales(lambda x: x, torch.tensor([[[[0.0, 1.0]]]]), (1, 2), [1.0])
    tensor([[[[0., 1.]]]])
    """
    count, total = 0, torch.zeros((), device=x.device)
    for z in scaled_views(network, x, scales, mirror):
        count, total = count + 1, total + _sized(z, size)
    return total / count
