r"""A promptable segmenter: an image and points with labels -> the mask of what the points are on; a stand-in for SAM.

:class:`PointSegmenter` has 0.3 M parameters and was trained by ``scripts/train_point_segmenter.py`` on instances in rendered
rooms, and on nothing else. :class:`testtime.vision_language.GenSAM` knows its interface alone: any function of the same
arguments can take its place.

Reference: the interface is that of Kirillov et al., *Segment Anything*, ICCV 2023. No figure of SAM is claimed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PointSegmenter", "Promptable", "draw_points", "load_point_segmenter"]

WEIGHTS = Path(__file__).parent / "packaged" / "point_segmenter.safetensors"
WIDTHS = (16, 32, 64, 96)
RADIUS = 0.03
"""Standard deviation of a drawn point, as a share of the shorter side."""


class Promptable(Protocol):
    """Any promptable segmenter: ``segmenter(images, points, labels)`` -> logits of masks.

    Args:
        images: (N, 3, H, W) in [0, 1].
        points: (N, P, 2), x and y as shares of width and height, in [0, 1].
        labels: (N, P) int64, 1 on the object, 0 beside it, -1 for no point.

    Returns:
        (N, H, W) logits, positive on the object.
    """

    def __call__(self, images: Tensor, points: Tensor, labels: Tensor) -> Tensor: ...


def draw_points(points: Tensor, labels: Tensor, size: tuple[int, int], radius: float = RADIUS) -> Tensor:
    r"""Draw points as maps of one channel per label, :math:`\max_p \exp(-\|u - p\|^2 / 2 r^2)`.

    Args:
        points: (N, P, 2), x and y in [0, 1].
        labels: (N, P), 1, 0, or -1 for no point.
        size: (H, W) of the maps.
        radius: r, as a share of the shorter side.

    Returns:
        (N, 2, H, W): points on the object, points beside it.

    Raises:
        ValueError: points and labels have other shapes, or a point is outside of the image.

    >>> maps = draw_points(torch.tensor([[[0.25, 0.75]]]), torch.tensor([[1]]), (2, 2), radius=0.25)
    >>> maps[0, 0].argmax().item(), maps[0, 1].max().item()  # the lower left pixel
    (2, 0.0)
    """
    if points.dim() != 3 or points.shape[2] != 2 or labels.shape != points.shape[:2]:
        raise ValueError(
            f"expected points (N, P, 2) and labels (N, P), got {tuple(points.shape)} and {tuple(labels.shape)}; for one "
            "image add the batch dimension: points[None], labels[None]"
        )
    used = points[labels >= 0]
    if used.numel() and not bool(((used >= 0) & (used <= 1)).all()):
        raise ValueError(
            "expected points as shares of width and height, in [0, 1]; divide pixels by (width, height)"
        )
    height, width = size
    y = (torch.arange(height, device=points.device) + 0.5).to(points.dtype)
    x = (torch.arange(width, device=points.device) + 0.5).to(points.dtype)
    across = (x - points[..., :1] * width).square()  # (N, P, W)
    down = (y - points[..., 1:] * height).square()  # (N, P, H)
    spread = 2 * (radius * min(size)) ** 2
    drawn = torch.exp(-(down[..., :, None] + across[..., None, :]) / spread)  # (N, P, H, W)
    maps = []
    for label in (1, 0):
        here = drawn * (labels == label)[..., None, None]
        maps.append(here.amax(1) if points.shape[1] else points.new_zeros(len(points), height, width))
    return torch.stack(maps, 1)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@final
class PointSegmenter(nn.Module):
    """A small U-Net over an image and two maps of points.

    Args:
        size: side of the square at which the network works, a multiple of 8; other images are resized.

    >>> net = PointSegmenter(size=16).eval()
    >>> net(torch.rand(2, 3, 24, 32), torch.rand(2, 1, 2), torch.ones(2, 1, dtype=torch.int64)).shape
    torch.Size([2, 24, 32])
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        if size < 8 or size % 8:
            raise ValueError(f"size: expected a multiple of 8, got {size}")
        self.size, (a, b, c, d) = size, WIDTHS
        self.first = _block(5, a)
        self.down = nn.ModuleList(
            nn.Sequential(_block(i, o, 2), _block(o, o)) for i, o in ((a, b), (b, c), (c, d))
        )
        self.up = nn.ModuleList((_block(d + c, c), _block(c + b, b), _block(b + a, a)))
        self.answer = nn.Conv2d(a, 1, 1)

    def forward(self, images: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """Return logits (N, H, W); see :class:`Promptable`.

        Raises:
            ValueError: images are not (N, 3, H, W), or points do not fit.
        """
        if images.dim() != 4 or images.shape[1] != 3 or len(images) != len(points):
            raise ValueError(
                f"expected images (N, 3, H, W) with points for each, got {tuple(images.shape)} and {len(points)} sets of points"
            )
        size = (self.size, self.size)
        x = images if images.shape[2:] == size else F.interpolate(images, size, mode="area")
        kept = [self.first(torch.cat([2 * x - 1, draw_points(points.to(x.dtype), labels, size)], 1))]
        for block in self.down:
            kept.append(block(kept[-1]))
        y = kept.pop()
        for block in self.up:
            larger = F.interpolate(y, scale_factor=2.0, mode="nearest")
            y = block(torch.cat([larger, kept.pop()], 1))
        logits: Tensor = self.answer(y)
        if images.shape[2:] != size:
            logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
        return logits[:, 0]


def load_point_segmenter() -> PointSegmenter:
    """Return the packaged segmenter, trained on instances in rendered rooms: a stand-in for SAM, in evaluation mode."""
    from testtime.models.weights import load_weights

    net = PointSegmenter()
    load_weights(net, WEIGHTS)
    return net.eval()
