"""Domains: sets of images under one condition, such as a corruption, rendered on demand."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.corruptions import corrupt, store_as_jpeg
from testtime.data import ImageSet
from testtime.data.imageset import Size, size_of
from testtime.moved import renamed

__all__ = ["Blend", "Condition", "Domain", "clean", "corrupted", "derive_seed", "fingerprint", "published"]

__getattr__ = renamed(__name__, {"number": "derive_seed"})

SEVERITIES = 6  # number of severities, from 0 (none) to 5


def derive_seed(*parts: object) -> int:
    """Return a 62-bit seed that is a hash of its arguments, the same in every process.

    >>> derive_seed(0, "fog") == derive_seed(0, "fog") != derive_seed(1, "fog")
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


@dataclass(frozen=True)
class Condition:
    """The condition of an image: a corruption, or none.

    Args:
        corruption: name of a corruption of `testtime.corruptions`, or "" for none.
        severity: severity of the corruption, 1 to 5; 0 for none.
        constants: constants of the corruption: "cifar", "imagenet" or "auto" (by the smaller side).
        jpeg: whether the result is stored as JPEG of quality 85, as ImageNet-C is.
        frost: folder with the original frost textures, or None for procedural ones.
        seed: random seed; the random numbers depend on it and on the image's set and index alone.
    """

    corruption: str = ""
    severity: int = 0
    constants: str = "auto"
    jpeg: bool = False
    frost: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the condition, such as ``fog``, ``fog-3`` below severity 5, or ``clean``."""
        if not self.corruption:
            return "clean"
        return self.corruption if self.severity == 5 else f"{self.corruption}-{self.severity}"

    def __call__(self, x: Tensor, owner: str, indices: NDArray[np.int64]) -> Tensor:
        """Apply the condition to images.

        Args:
            x: images (B, C, H, W), uint8 or in [0, 1].
            owner: name of their image set.
            indices: indices of the images in the set, (B,).

        Returns:
            Images like `x`.
        """
        if self.corruption:
            seeds = derive_seed(self.seed, owner) + torch.from_numpy(indices)
            x = corrupt(
                x,
                self.corruption,
                self.severity,
                seeds=seeds,
                constants=self.constants,  # type: ignore[arg-type]
                frost=self.frost,
            )
        return store_as_jpeg(x) if self.jpeg else x


@dataclass(frozen=True)
class Blend:
    """The condition of an image under one corruption and then another, each at any severity.

    Args:
        first, second: names of corruptions of `testtime.corruptions`.
        severities: severities of the two corruptions, 0 to 5; between integers, the images of both are interpolated.
        constants: constants of the corruptions: "cifar", "imagenet" or "auto" (by the smaller side).
        frost: folder with the original frost textures, or None for procedural ones.
        seed: random seed; the random numbers depend on it and on the image's set and index alone.

    Raises:
        ValueError: a severity is out of range.

    >>> Blend("fog", "snow", (3.25, 1)).name, Blend("fog", "snow", (0, 0)).name
    ('fog-3.25+snow-1', 'clean')
    """

    first: str
    second: str
    severities: tuple[float, float]
    constants: str = "auto"
    frost: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= s <= SEVERITIES - 1 for s in self.severities):
            raise ValueError(f"severities go from 0 (none) to {SEVERITIES - 1}, got {self.severities}")

    @property
    def name(self) -> str:
        """Name of the condition from the corruptions above severity 0, such as ``fog-3.25+snow-1``, or ``clean``."""
        present = [
            f"{n}-{s:g}" for n, s in zip((self.first, self.second), self.severities, strict=True) if s > 0
        ]
        return "+".join(present) or "clean"

    def __call__(self, x: Tensor, owner: str, indices: NDArray[np.int64]) -> Tensor:
        """Apply the condition to images.

        Args:
            x: images (B, C, H, W), uint8 or in [0, 1].
            owner: name of their image set.
            indices: indices of the images in the set, (B,).

        Returns:
            Images (B, C, H, W) in [0, 1].
        """
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        seeds = derive_seed(self.seed, owner) + torch.from_numpy(indices)
        for name, severity in zip((self.first, self.second), self.severities, strict=True):
            low, share = int(severity), severity % 1
            lower = self._at(x, name, low, seeds)
            x = lower if share == 0 else torch.lerp(lower, self._at(x, name, low + 1, seeds), share)
        return x

    def _at(self, x: Tensor, name: str, severity: int, seeds: Tensor) -> Tensor:
        if severity == 0:
            return x
        return corrupt(x, name, severity, seeds=seeds, constants=self.constants, frost=self.frost)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def fingerprint(condition: Condition | Blend) -> str:
    """Return a hash of the result of a condition on two small images, which detects changes of the corruption's code.

    >>> fingerprint(Condition()) == fingerprint(Condition("fog", 3))
    False
    """
    probe = torch.arange(2 * 3 * 32 * 32).mul(2654435761).remainder(256).view(2, 3, 32, 32).float() / 255
    seen = condition(probe, "probe", np.arange(2)).mul(255).round_().to(torch.uint8)
    return hashlib.sha256(seen.numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Domain:
    """Images under one condition, rendered to 8 bits as a camera would store them.

    Args:
        images: image set; stored under its condition if ``ready``.
        condition: condition of the images, and of unknown images that are mixed in.
        size: height and width in pixels to which the images are resized, or a `testtime.data.Crop`; None keeps their size.
        ready: whether the images are stored under their condition (a published -C set), so that it applies to unknown images
            only.
        known: whether the labels count; those of unknown images do not.
        table: images rendered before: the row of each index, -1 where there is none, and the uint8 images.
    """

    images: ImageSet
    condition: Condition | Blend
    size: Size | None = None
    ready: bool = False
    known: bool = True
    table: tuple[NDArray[np.int64], NDArray[np.uint8]] | None = None

    @property
    def name(self) -> str:
        """Name of the condition."""
        return self.condition.name

    def __len__(self) -> int:
        return len(self.images)

    def render(self, indices: NDArray[np.int64]) -> Tensor:
        """Render images as uint8 (B, C, H, W); the result depends on (set, condition, index), not on the batch.

        Args:
            indices: indices of the images in the set, (B,).
        """
        if self.table is not None:
            rows, stored = self.table
            return torch.from_numpy(np.array(stored[rows[indices]]))
        x = self.images.levels(indices)
        if not isinstance(x, Tensor) or (self.size is not None and tuple(x.shape[-2:]) != size_of(self.size)):
            x = self.images.batch(indices, self.size)
        if not self.ready:
            x = self.condition(x, self.images.name, indices)
        return x if x.dtype == torch.uint8 else x.mul(255).round_().clamp_(0, 255).to(torch.uint8)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the rendered images; those of the first image if no size is given."""
        if self.size is not None:
            return size_of(self.size)
        height, width = self.images[0].shape[-2:]
        return height, width

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each image (B,), -1 where it is unknown.

        Args:
            indices: indices of the images in the set, (B,).
        """
        if not self.known or self.images.labels is None:
            return np.full(len(indices), -1, np.int64)
        return self.images.labels[indices]

    def of_unknown(self, unknown: ImageSet) -> Domain:
        """Return the domain of unknown images, resized like these images and under the same condition."""
        return Domain(unknown, self.condition, self.size or self.shape, known=False)

    def seeded(self, seed: int) -> Domain:
        """Return the domain with another random seed."""
        return replace(self, condition=replace(self.condition, seed=seed))


def clean(images: ImageSet, size: Size | None = None) -> Domain:
    """Return a domain of unchanged images.

    Args:
        images: image set.
        size: height and width in pixels, or a `testtime.data.Crop`; None keeps the images' size.

    >>> from testtime.data import from_arrays
    >>> domain = clean(from_arrays("grey", np.full((2, 4, 4), 7, np.uint8), [0, 1], ("a", "b")))
    >>> domain.name, domain.render(np.array([1])).unique().tolist()
    ('clean', [7])
    """
    return Domain(images, Condition(), size)


def corrupted(
    images: ImageSet,
    name: str,
    severity: int = 5,
    *,
    seed: int = 0,
    constants: str = "auto",
    jpeg: bool = False,
    frost: str | Path | None = None,
    size: Size | None = None,
) -> Domain:
    """Return a domain of images under a corruption of `testtime.corruptions`, computed on demand.

    Args:
        images: image set.
        name: name of the corruption.
        severity: severity of the corruption, 1 to 5.
        seed, constants, jpeg, frost: arguments of `Condition`.
        size: height and width in pixels, or a `testtime.data.Crop`; None keeps the images' size.
    """
    folder = None if frost is None else str(frost)
    return Domain(images, Condition(name, severity, constants, jpeg, folder, seed), size)


def published(
    read: Callable[..., ImageSet],
    root: str | Path,
    name: str,
    severity: int = 5,
    *,
    seed: int = 0,
    jpeg: bool = False,
    arguments: Mapping[str, str] | None = None,
    size: Size | None = None,
) -> Domain:
    """Return a published -C set as a domain; unknown images that are mixed in get the corruption of the same name.

    Args:
        read: reader of the set, `testtime.data.cifar_c` or `testtime.data.imagenet_c`.
        root: folder of the set.
        name: name of the corruption.
        severity: severity of the corruption, 1 to 5.
        seed: random seed of the corruption of the unknown images.
        jpeg: whether the unknown images are stored as JPEG, as ImageNet-C is.
        arguments: further arguments of the reader, such as ``{"dataset": "cifar100"}``.
        size: height and width in pixels, or a `testtime.data.Crop`; None keeps the images' size.
    """
    images = read(root, name, severity, **(arguments or {}))
    return Domain(images, Condition(name, severity, "auto", jpeg, None, seed), size, ready=True)
