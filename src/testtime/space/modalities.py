"""Modalities: measurements of one sensor or predictions of one network, by name, as tokens on a grid or in a sequence.

The dictionaries in :mod:`testtime.space` are keyed by these names. A frame of a space is a dictionary from names to tensors; a
modality defines the form of the tensor, its mirror image, and its normalisation for the tokenizer.
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
"""Tolerance of the range check, for rounding and resizing."""
Kind = Literal["image", "classes", "features", "sequence"]
"""Kind of the values of a modality."""


@final
@dataclass(frozen=True)
class Modality:
    """Modality of a frame.

    Attributes:
        name: name of the modality.
        kind: form of a frame's tensor: "image" (channels, H, W) float32; "classes" (H, W) int64, ids below ``channels``;
            "features" (channels, h, w) float32 on a grid of its own, as a network gives them; "sequence" (length,) int64, ids
            below ``channels``, the vocabulary.
        channels: number of channels, classes or ids, see ``kind``.
        normalise: normalisation of an image: "unit" ([0, 1] to [-1, 1]) or "signed" (already in [-1, 1]), both with 0 for
            unknown values (NaN); "truncated" (per image, standardised by mean and deviation of its middle 80 %, as 4M's depth),
            or "none".
        signs: factors of the channels in a mirror image: -1 for the x component of normals.
    """

    name: str
    kind: Kind
    channels: int
    normalise: Literal["unit", "signed", "truncated", "none"] = "none"
    signs: tuple[int, ...] = ()

    def mirrored(self, value: Tensor) -> Tensor:
        """Mirror the value left to right.

        Args:
            value: raw value of a frame.

        Raises:
            ValueError: the modality is a sequence, which has to be computed from the mirrored frame instead.
        """
        if self.kind == "sequence":
            raise ValueError(
                f"{self.name} is a sequence and cannot be mirrored; compute it from the mirrored frame"
            )
        value = value.flip(-1)
        if self.signs:
            value = value * value.new_tensor(self.signs).view(-1, 1, 1)
        return value

    def check(self, value: Tensor) -> None:
        """Check raw values of frames, one or a batch: their type, their range, and whether they are finite.

        NaN marks an unknown pixel; it is allowed in maps (depth, normals, edges), but not in pictures and features.

        Args:
            value: values of the kind, with or without a leading batch dimension.

        Raises:
            ValueError: the values are not of this modality.

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
        if not value.numel():
            return
        low, high = (bound.item() for bound in value.float().aminmax())
        if math.isnan(low):  # a value is; a selection costs as much as a small network
            known = value[~value.isnan()].float()
            if self.kind != "image" or (self.channels != 1 and self.normalise != "signed"):
                raise ValueError(
                    f"{self.name}: expected finite {expected}, got NaN in {value.numel() - known.numel()} of {value.numel()} "
                    "values; leave such frames out"
                )
            if not known.numel():
                return
            low, high = (bound.item() for bound in known.aminmax())
        if low == -math.inf or high == math.inf:
            raise ValueError(
                f"{self.name}: expected finite {expected}, got infinity; mark unknown values as NaN"
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
        """Normalise images (N, C, H, W) for tokenizers and networks; other kinds are returned unchanged.

        Args:
            value: raw values.
        """
        if self.normalise == "unit":
            return _known(value * 2 - 1)
        if self.normalise == "signed":
            return _known(value)
        if self.normalise == "truncated":
            return truncated(value)
        return value


def _known(value: Tensor) -> Tensor:
    """Return the values with 0 for NaN; a sum shows at once that there is none."""
    return value if value.sum().isfinite() else value.nan_to_num(0.0)


def truncated(value: Tensor) -> Tensor:
    """Standardise each image by mean and deviation of its values between the 10th and the 90th percentile, as 4M does depth.

    NaN is ignored in both and becomes 0.

    Args:
        value: images (N, C, H, W).

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
"""Picture, in [0, 1]."""

DEPTH = Modality("depth", "image", 1, "truncated")
"""Depth in metres along the optical axis; NaN where unknown."""

NORMALS = Modality("normals", "image", 3, "signed", (-1, 1, 1))
"""Unit normals, x right, y up, z to the viewer; NaN where unknown."""

EDGES = Modality("edge", "image", 1, "unit")
"""Canny edges of the picture, 0 or 1; NaN where unknown."""

OBJECT_EDGES = Modality("object_edge", "image", 1, "unit")
"""Borders between objects, predicted by a network (SAM edges in the paper)."""

SENSORY: Mapping[str, Modality] = {m.name: m for m in (RGB, DEPTH, NORMALS, EDGES)}
"""Modalities of sensors and simple operations, without any network (section 4.1), by name."""


def classes(name: str, count: int) -> Modality:
    """Return the modality of classes for each pixel, predicted by a network.

    Args:
        name: name of the modality.
        count: number of classes.
    """
    return Modality(name, "classes", count)


def features(name: str, channels: int) -> Modality:
    """Return the modality of a network's feature map.

    Args:
        name: name of the modality.
        channels: number of channels.
    """
    return Modality(name, "features", channels)


def boxes(name: str, vocabulary: int) -> Modality:
    """Return the modality of boxes as a sequence of corners and class names (:mod:`testtime.space.sequences`).

    Args:
        name: name of the modality.
        vocabulary: number of ids.
    """
    return Modality(name, "sequence", vocabulary)
