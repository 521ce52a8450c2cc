"""A small network for semantic segmentation, and the one that comes with the package: road scenes by day."""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.models.preprocessed import Preprocessed
from testtime.models.weights import load_weights
from testtime.models.zoo import CENTRED, PACKAGED

__all__ = ["SmallSegmenter", "source_roads"]

ROADS = "camvid_day_segmenter.safetensors"
ROAD_CLASSES = 11


@final
class SmallSegmenter(nn.Module):
    """An encoder of five levels and a decoder that adds them up again, all with BatchNorm: 0.57 million parameters.

    Args:
        classes: number of classes.
        widths: channels of the levels, from a half of the resolution to a 32nd of it.

    Takes (N, 3, H, W) images of any size and returns logits (N, classes, H, W).

    >>> SmallSegmenter(5).eval()(torch.zeros(1, 3, 24, 31)).shape
    torch.Size([1, 5, 24, 31])
    >>> sum(p.numel() for p in SmallSegmenter(11).parameters())
    570507
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 96, 112)) -> None:
        super().__init__()
        self.stem = _layer(3, widths[0], 2)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(_layer(a, b, 2), _layer(b, b)) for a, b in pairs)
        self.side = nn.ModuleList(_layer(b, a, size=1) for a, b in reversed(pairs))
        self.up = nn.ModuleList(_layer(a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for side, up in zip(self.side, self.up, strict=True):
            finer = levels.pop()
            y = F.interpolate(side(y), size=finer.shape[-2:], mode="bilinear", align_corners=False)
            y = up(y + finer)
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear", align_corners=False)


def _layer(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def source_roads(device: torch.device | str = "cpu") -> Preprocessed:
    """Return the packaged segmenter of road scenes: 11 classes, trained on CamVid's frames by day at 96x128.

    The weights are for research, as CamVid is (CC BY-NC 4.0); ``scripts/train_source.py camvid`` makes them.

    Args:
        device: device of the model.

    >>> source_roads()(torch.zeros(1, 3, 96, 128)).shape
    torch.Size([1, 11, 96, 128])
    """
    model = Preprocessed(SmallSegmenter(ROAD_CLASSES), *CENTRED)
    load_weights(model, PACKAGED / ROADS)
    return model.to(device)
