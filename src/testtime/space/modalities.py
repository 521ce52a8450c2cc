"""Modalities: what a place looks like to one sensor or one network, by name, as tokens on a grid or in a sequence.

Everything in :mod:`testtime.space` is keyed by these names. A frame of a place is a dictionary from names to tensors; a
modality says what form the tensor has, how it is mirrored, and how it is brought to the range that a tokenizer works in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from testtime.data.dense import IGNORE

__all__ = [
    "DEPTH",
    "EDGES",
    "NORMALS",
    "OBJECT_EDGES",
    "RGB",
    "SENSORY",
    "Kind",
    "Modality",
    "boxes",
    "classes",
    "features",
]

SLACK = 1e-3
"""How far beyond its range a value may lie, by rounding and resizing."""
Kind = Literal["image", "classes", "features", "sequence"]
"""Kind of the values of a modality."""


@final
@dataclass(frozen=True)
class Modality:
    """One kind of knowledge of a frame.

    Attributes:
        name: everything is keyed by it.
        kind: the form of a frame's tensor: "image" (channels, H, W) float32; "classes" (H, W) int64, ids below ``channels``;
            "features" (channels, h, w) float32 on a grid of its own, as a network gives them; "sequence" (length,) int64, ids
            below ``channels``, the vocabulary.
        channels: see ``kind``.
        normalise: how an image is brought to the range of tokens: "unit" ([0, 1] to [-1, 1]) and "signed" (already in
            [-1, 1]), of both NaN, which is not known, to 0; "truncated" (per image: less the mean and over the deviation of
            its middle 80 %, as 4M treats depth), or "none".
        signs: of the channels in a mirror image: a normal map's x changes its sign.
    """

    name: str
    kind: Kind
    channels: int
    normalise: Literal["unit", "signed", "truncated", "none"] = "none"
    signs: tuple[int, ...] = ()

    def mirrored(self, value: Tensor) -> Tensor:
        """The value of the frame seen in a mirror (left is right); a sequence has no mirror image here.

        Raises:
            ValueError: a sequence; make it of the mirrored frame instead.
        """
        if self.kind == "sequence":
            raise ValueError(f"{self.name} is a sequence: make it again of the mirrored frame")
        value = value.flip(-1)
        if self.signs:
            value = value * value.new_tensor(self.signs).view(-1, 1, 1)
        return value

    def check(self, value: Tensor) -> None:
        """Check raw values of frames, one or a batch: their type, their range, and whether they are finite.

        NaN is a pixel that is not known; only maps have such pixels (depth, normals, edges), pictures and features do not.

        Args:
            value: values of the kind, with or without a batch dimension in front.

        Raises:
            ValueError: the values are none of this modality.

        >>> RGB.check(torch.full((3, 8, 8), 255, dtype=torch.uint8))
        Traceback (most recent call last):
        ...
        ValueError: rgb: expected floats in [0, 1], got torch.uint8; divide 8-bit images by 255
        """
        if self.kind in ("classes", "sequence"):
            self._check_ids(value)
            return
        bounds = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0)}.get(self.normalise)
        expected = "floats" if bounds is None else f"floats in [{bounds[0]:g}, {bounds[1]:g}]"
        if not value.is_floating_point() and not (value.dtype == torch.bool and self.normalise == "unit"):
            advice = "divide 8-bit images by 255" if self.normalise == "unit" else "convert them first"
            raise ValueError(f"{self.name}: expected {expected}, got {value.dtype}; {advice}")
        known = value[~value.isnan()].float() if value.is_floating_point() else value.float()
        may_lack = self.kind == "image" and (self.channels == 1 or self.normalise == "signed")
        if known.numel() < value.numel() and not may_lack:
            raise ValueError(
                f"{self.name}: expected finite {expected}, got NaN in {value.numel() - known.numel()} of {value.numel()} "
                "values; leave such frames out"
            )
        if not known.numel():
            return
        low, high = known.min().item(), known.max().item()
        if low == -math.inf or high == math.inf:
            raise ValueError(
                f"{self.name}: expected finite {expected}, got infinity; mark what is not known as NaN"
            )
        if bounds is not None and not (bounds[0] - SLACK <= low and high <= bounds[1] + SLACK):
            raise ValueError(
                f"{self.name}: expected {expected}, got values from {low:g} to {high:g}; divide 8-bit images by 255"
            )

    def _check_ids(self, value: Tensor) -> None:
        if value.is_floating_point() or value.is_complex():
            raise ValueError(f"{self.name}: expected whole numbers below {self.channels}, got {value.dtype}")
        unknown = (value == IGNORE) | (value == -1)
        wrong = value[((value < 0) | (value >= self.channels)) & ~unknown]
        if wrong.numel():
            raise ValueError(
                f"{self.name}: expected ids below {self.channels}, or {IGNORE} where none is known, got {int(wrong[0])}"
            )

    def normalised(self, value: Tensor) -> Tensor:
        """Images (N, C, H, W) in the range that tokenizers and networks see; other kinds come back as they are."""
        if self.normalise == "unit":
            return (value * 2 - 1).nan_to_num(0.0)
        if self.normalise == "signed":
            return value.nan_to_num(0.0)
        if self.normalise == "truncated":
            return truncated(value)
        return value


def truncated(value: Tensor) -> Tensor:
    """Per image, less the mean and over the deviation of its values between the 10th and the 90th percentile.

    NaN is left out of both and becomes 0. As 4M standardises depth, so that near and far rooms look alike.

    >>> truncated(torch.arange(11.0).view(1, 1, 1, 11)).squeeze()[5].item()
    0.0
    """
    flat = value.flatten(1)
    low, high = flat.nanquantile(0.1, 1, keepdim=True), flat.nanquantile(0.9, 1, keepdim=True)
    middle = torch.where((flat >= low) & (flat <= high), flat, torch.nan)
    mean = middle.nanmean(1, keepdim=True)
    deviation = (middle - mean).square().nanmean(1, keepdim=True).sqrt()
    return ((flat - mean) / (deviation + 1e-6)).nan_to_num(0.0).view_as(value)


RGB = Modality("rgb", "image", 3, "unit")
"""The picture, [0, 1]."""

DEPTH = Modality("depth", "image", 1, "truncated")
"""Metres along the optical axis; NaN where nothing was measured."""

NORMALS = Modality("normals", "image", 3, "signed", (-1, 1, 1))
"""Unit vectors, x right, y up, z to the viewer; NaN where there is none."""

EDGES = Modality("edge", "image", 1, "unit")
"""Canny edges of the picture, 0 or 1; NaN where they are not known."""

OBJECT_EDGES = Modality("object_edge", "image", 1, "unit")
"""Where one object ends and another begins, by the word of a network (SAM edges in the paper)."""

SENSORY: Mapping[str, Modality] = {m.name: m for m in (RGB, DEPTH, NORMALS, EDGES)}
"""What sensors and simple operations give without any network (section 4.1)."""


def classes(name: str, count: int) -> Modality:
    """A class for each pixel, by the word of a network."""
    return Modality(name, "classes", count)


def features(name: str, channels: int) -> Modality:
    """The feature map of a network, on its own grid."""
    return Modality(name, "features", channels)


def boxes(name: str, vocabulary: int) -> Modality:
    """Boxes as a sequence of corners and class names (:mod:`testtime.space.sequences`)."""
    return Modality(name, "sequence", vocabulary)
