"""A domain: a set of images seen under one condition, rendered when asked for."""

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

__all__ = ["Blend", "Condition", "Domain", "clean", "corrupted", "fingerprint", "number", "published"]

SEVERITIES = 6  # from 0, none, to 5


def number(*what: object) -> int:
    """A 62-bit number that is a function of its arguments alone, the same in every process.

    >>> number(0, "fog") == number(0, "fog") != number(1, "fog")
    True
    """
    digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


@dataclass(frozen=True)
class Condition:
    """What happens to an image on its way: a corruption, or nothing.

    Args:
        corruption: a name of `testtime.corruptions`, or "" for none.
        severity: 1 to 5; 0 for none.
        constants: constants of the corruption: "cifar", "imagenet" or "auto" (by the smaller side).
        jpeg: whether the image is stored as JPEG of quality 85 at last, as ImageNet-C is.
        frost: folder of the original frost textures, or None for procedural ones.
        seed: with the image's set and index, all that the random numbers depend on.
    """

    corruption: str = ""
    severity: int = 0
    constants: str = "auto"
    jpeg: bool = False
    frost: str | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """For example ``fog``, ``fog-3`` below severity 5, or ``clean``."""
        if not self.corruption:
            return "clean"
        return self.corruption if self.severity == 5 else f"{self.corruption}-{self.severity}"

    def __call__(self, x: Tensor, owner: str, indices: NDArray[np.int64]) -> Tensor:
        """The images (B, C, H, W) of set ``owner`` under this condition, still in [0, 1]."""
        if self.corruption:
            seeds = number(self.seed, owner) + torch.from_numpy(indices)
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
    """What happens to an image on its way: one corruption and then another, each at any severity.

    Args:
        first, second: names of `testtime.corruptions`.
        severities: theirs, 0 to 5; between two whole ones the picture is mixed from both.
        constants: "cifar", "imagenet" or "auto" (by the smaller side).
        frost: folder of the original frost textures, or None for procedural ones.
        seed: with the image's set and index, all that the random numbers depend on.

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
        """Those that are there and how strong."""
        here = [
            f"{n}-{s:g}" for n, s in zip((self.first, self.second), self.severities, strict=True) if s > 0
        ]
        return "+".join(here) or "clean"

    def __call__(self, x: Tensor, owner: str, indices: NDArray[np.int64]) -> Tensor:
        """The images (B, C, H, W) of set ``owner`` under this condition, still in [0, 1]."""
        seeds = number(self.seed, owner) + torch.from_numpy(indices)
        for name, severity in zip((self.first, self.second), self.severities, strict=True):
            low, share = int(severity), severity % 1
            seen = self._at(x, name, low, seeds)
            x = seen if share == 0 else torch.lerp(seen, self._at(x, name, low + 1, seeds), share)
        return x

    def _at(self, x: Tensor, name: str, severity: int, seeds: Tensor) -> Tensor:
        if severity == 0:
            return x
        return corrupt(x, name, severity, seeds=seeds, constants=self.constants, frost=self.frost)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def fingerprint(condition: Condition | Blend) -> str:
    """A hash of what a condition does to two small images: it changes when the corruption's code changes its
    results.

    >>> fingerprint(Condition()) == fingerprint(Condition("fog", 3))
    False
    """
    probe = torch.arange(2 * 3 * 32 * 32).mul(2654435761).remainder(256).view(2, 3, 32, 32).float() / 255
    seen = condition(probe, "probe", np.arange(2)).mul(255).round_().to(torch.uint8)
    return hashlib.sha256(seen.numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Domain:
    """Images under one condition: (name, index -> image), 8 bits deep as a camera hands them over.

    Args:
        images: the set; already under its condition when ``ready``.
        condition: what happens to them, and to unknown images that are mixed in.
        size: height and width in pixels to stretch the images to, or a `testtime.data.Crop`; None keeps the images' own.
        ready: the images are stored corrupted (a published -C set): only the unknown ones still need it.
        known: whether the labels count; an open set's do not.
        table: images that were rendered before: the row of each index, -1 where there is none, and uint8
            images.
    """

    images: ImageSet
    condition: Condition | Blend
    size: Size | None = None
    ready: bool = False
    known: bool = True
    table: tuple[NDArray[np.int64], NDArray[np.uint8]] | None = None

    @property
    def name(self) -> str:
        """Of the condition."""
        return self.condition.name

    def __len__(self) -> int:
        return len(self.images)

    def render(self, indices: NDArray[np.int64]) -> Tensor:
        """The images as uint8 (B, C, H, W); a function of (set, condition, index), never of the batch."""
        if self.table is not None:
            rows, stored = self.table
            return torch.from_numpy(np.array(stored[rows[indices]]))
        x = self.images.batch(indices.tolist(), self.size)
        if not self.ready:
            x = self.condition(x, self.images.name, indices)
        return x.mul(255).round_().clamp_(0, 255).to(torch.uint8)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the rendered images; those of the first one where no size is given."""
        if self.size is not None:
            return size_of(self.size)
        height, width = self.images[0].shape[-2:]
        return height, width

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class of each image (B,), -1 where it is unknown."""
        if not self.known or self.images.labels is None:
            return np.full(len(indices), -1, np.int64)
        return self.images.labels[indices]

    def of_unknown(self, unknown: ImageSet) -> Domain:
        """The domain of other images, brought to these images' size in the same way and under the same condition."""
        return Domain(unknown, self.condition, self.size or self.shape, known=False)

    def seeded(self, seed: int) -> Domain:
        """The same domain with other random numbers."""
        return replace(self, condition=replace(self.condition, seed=seed))


def clean(images: ImageSet, size: Size | None = None) -> Domain:
    """The images as they are.

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
    """The images under a corruption of `testtime.corruptions`, computed when asked for."""
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
    """A published -C set as a domain; unknown images that are mixed in get our corruption of the same name.

    Args:
        read: `testtime.data.cifar_c` or `testtime.data.imagenet_c`.
        root: where the set lies.
        name: of the corruption.
        severity: 1 to 5.
        seed: of the random numbers of the unknown images.
        jpeg: store the unknown images as JPEG, as ImageNet-C is.
        arguments: what else the reader takes, e.g. ``{"dataset": "cifar100"}``.
        size: height and width in pixels.
    """
    images = read(root, name, severity, **(arguments or {}))
    return Domain(images, Condition(name, severity, "auto", jpeg, None, seed), size, ready=True)
