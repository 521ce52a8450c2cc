"""The interface of image data sets: a name, classes, labels, and images that are decoded on demand."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from testtime.errors import DataError
from testtime.labels import class_labels


class Images(Protocol):
    """A source of pixels: an array in memory or on disk, or image files."""

    def __len__(self) -> int: ...

    def pixels(self, index: int, channels: int) -> NDArray[np.uint8]:
        """Return one image, (channels, H, W)."""
        ...

    def raw(self, index: int) -> bytes:
        """Return the encoded image, for the digest."""
        ...


class ArrayImages:
    """Images of one size in an array.

    Args:
        array: images, uint8 (N, H, W), (N, C, H, W) or (N, H, W, C), possibly memory-mapped.
        channels_last: whether the array is (N, H, W, C).

    Raises:
        DataError: the array has another dtype or shape.
    """

    def __init__(self, array: NDArray[np.uint8], channels_last: bool = False) -> None:
        try:
            array = np.asanyarray(array)
        except ValueError as error:
            raise DataError(f"expected images of one size ({error}); image_folder reads others") from error
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and channels_last:
            array = array.transpose(0, 3, 1, 2)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
            remedy = f"channels_last={not channels_last} reads the channels on the other side"
            if array.dtype == object:
                remedy = "stack images of one size (np.stack); image_folder reads others"
            elif array.dtype != np.uint8:
                remedy = "convert them to uint8, with images in [0, 1] multiplied by 255"
            raise DataError(
                f"expected uint8 images of 1 or 3 channels, found {array.dtype} {array.shape}; {remedy}"
            )
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def pixels(self, index: int, channels: int) -> NDArray[np.uint8]:
        return with_channels(np.asarray(self.array[index]), channels)

    def raw(self, index: int) -> bytes:
        image = np.ascontiguousarray(self.array[index])
        return str(image.shape).encode() + image.tobytes()


class Chosen:
    """A selection of images of another source, in a new order."""

    def __init__(self, images: Images, indices: NDArray[np.int64]) -> None:
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, index: int, channels: int) -> NDArray[np.uint8]:
        return self.images.pixels(int(self.indices[index]), channels)

    def raw(self, index: int) -> bytes:
        return self.images.raw(int(self.indices[index]))


def several(
    images: Images, indices: NDArray[np.int64], channels: int
) -> list[NDArray[np.uint8]] | NDArray[np.uint8]:
    """Return images (channels, H, W), in one array where their source is an array.

    Args:
        images: source of the pixels.
        indices: indices of the images, (B,), from 0 on.
        channels: number of channels, 1 or 3.
    """
    if isinstance(images, Chosen):
        return several(images.images, images.indices[indices], channels)
    if isinstance(images, ArrayImages) and images.array.shape[1] == channels:
        return np.ascontiguousarray(images.array[indices])
    return [images.pixels(int(index), channels) for index in indices]


def with_channels(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert an image to 1 or 3 channels: grey is repeated, colour is reduced to luma (ITU-R 601).

    Args:
        image: image, uint8 (C, H, W) with 1 or 3 channels.
        channels: number of channels of the result, 1 or 3.

    >>> with_channels(np.full((3, 1, 1), 7, np.uint8), 1).tolist()
    [[[7]]]
    """
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    weights = np.array([299, 587, 114], dtype=np.int64)[:, None, None]
    return (((image * weights).sum(0, keepdims=True) + 500) // 1000).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set of images that are decoded on demand, with or without labels.

    Args:
        name: name of the set, for reports.
        classes: names of the classes; empty without labels.
        labels: class indices, (N,) integers in [0, len(classes)), -1 for an image of unknown class; or None.
        images: source of the pixels.
        channels: number of channels, 1 or 3; grey images are repeated to 3.
        skipped: names of the files that were left out because they are damaged.

    Raises:
        DataError: the number of labels differs from the number of images, or a label is not a class index.

    >>> digits = from_arrays("two", np.zeros((2, 4, 4), np.uint8), [0, 1], ("a", "b"))
    >>> len(digits), tuple(digits[0].shape), digits.batch([0, 1], size=2).shape
    (2, (3, 4, 4), torch.Size([2, 3, 2, 2]))
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    images: Images
    channels: int = 3
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.labels is None:
            return
        labels = class_labels(self.labels, len(self.images), len(self.classes), self.name)
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image, uint8 (channels, H, W).

        Raises:
            IndexError: there is no such image.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no image {index}, there are {len(self)}")
        pixels = self.images.pixels(int(index) % len(self), self.channels)
        return torch.from_numpy(np.array(pixels, copy=True, order="C"))

    def batch(self, indices: Iterable[int], size: "int | Size | None" = None) -> Tensor:
        """Return images as float (B, channels, H, W) in [0, 1].

        Args:
            indices: indices of the images, in this order.
            size: height and width in pixels, or one number for both; or a `Crop`, which keeps the aspect ratio; None keeps the
                size of the images.

        Raises:
            ValueError: there are no indices, or the images differ in size and no size is given.
        """
        images = self.levels(indices)
        if isinstance(images, Tensor):
            return resized(images.float() / 255, size)
        if size is None:
            raise ValueError(f"{self.name}: the images differ in size; give size=, for example size=224")
        return torch.cat([resized(image[None].float() / 255, size) for image in images])

    def levels(self, indices: Iterable[int]) -> Tensor | list[Tensor]:
        """Return images as they are stored, uint8 (B, channels, H, W), or as a list where they differ in size.

        Args:
            indices: indices of the images, in this order.

        Raises:
            ValueError: there are no indices.
            IndexError: there is no such image.
        """
        chosen = np.fromiter(indices, dtype=np.int64)
        if not len(chosen):
            raise ValueError(f"{self.name}: a batch needs at least one index")
        for index in chosen[(chosen < -len(self)) | (chosen >= len(self))]:
            raise IndexError(f"{self.name}: no image {index}, there are {len(self)}")
        images = several(self.images, chosen % len(self), self.channels)
        if isinstance(images, list):
            if len({image.shape for image in images}) > 1:
                return [torch.from_numpy(np.array(image, order="C")) for image in images]
            images = np.stack(images)
        return torch.from_numpy(images)

    def targets(self, indices: Iterable[int]) -> Tensor:
        """Return labels, int64 (B,).

        Args:
            indices: indices of the images, in this order.

        Raises:
            ValueError: the set has no labels.
        """
        if self.labels is None:
            raise ValueError(f"{self.name} has no labels")
        return torch.from_numpy(self.labels[np.fromiter(indices, dtype=np.int64)])

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """Return the set of these images, in this order, with the same classes.

        Args:
            indices: indices of the images.

        Raises:
            IndexError: an index is out of range.
        """
        chosen = np.fromiter(indices, dtype=np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"{self.name}: indices from {chosen.min()} to {chosen.max()} of {len(self)}")
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=Chosen(self.images, chosen), labels=labels)

    def digest(self) -> str:
        """Return the SHA-256 of name, classes, channels, labels and the bytes of every image, computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        head = repr((self.name, self.classes, self.channels, len(self), self.labels is not None))
        state = hashlib.sha256(head.encode())
        if self.labels is not None:
            state.update(self.labels.astype("<i8").tobytes())
        for index in range(len(self)):
            raw = self.images.raw(index)
            state.update(len(raw).to_bytes(8, "little") + raw)
        return state.hexdigest()


@dataclass(frozen=True)
class Crop:
    """Scaling of the shorter side of an image and a centre crop, which keep the aspect ratio.

    An image that already has the size of the result is unchanged.

    Args:
        side: height and width of the result, in pixels.
        shorter: shorter side of the scaled image, in pixels.

    Raises:
        ValueError: shorter is below side, or side below 1.

    >>> Crop(224, 256)(torch.zeros(1, 3, 300, 600)).shape
    torch.Size([1, 3, 224, 224])
    """

    side: int
    shorter: int

    def __post_init__(self) -> None:
        if not 1 <= self.side <= self.shorter:
            raise ValueError(f"expected 1 <= side <= shorter, got side={self.side}, shorter={self.shorter}")

    def __call__(self, images: Tensor) -> Tensor:
        """Scale and crop images, float (B, C, H, W).

        Raises:
            DataError: the aspect ratio of an image is above `MAX_RATIO`.
        """
        height, width = images.shape[-2:]
        short, long = sorted((height, width))
        if short == long == self.side:
            return images
        if long > MAX_RATIO * short:
            raise DataError(
                f"expected images at most {MAX_RATIO} times as long as wide, found {width} x {height}"
            )
        tall, wide = int(self.shorter * height / short), int(self.shorter * width / short)
        top, left = round((tall - self.side) / 2), round((wide - self.side) / 2)
        return resized(images, (tall, wide))[..., top : top + self.side, left : left + self.side]


Size = tuple[int, int] | Crop
MAX_RATIO = 50


def size_of(size: "Size") -> tuple[int, int]:
    """Return the height and width of resized images."""
    return (size.side, size.side) if isinstance(size, Crop) else size


def resized(images: Tensor, size: "int | Size | None") -> Tensor:
    """Resize images bilinearly, with antialiasing where they shrink.

    Args:
        images: images, float (B, C, H, W).
        size: height and width in pixels, or one number for both; or a `Crop`; None returns the images unchanged.
    """
    if isinstance(size, Crop):
        return size(images)
    target = (size, size) if isinstance(size, int) else size
    if target is None or tuple(images.shape[-2:]) == tuple(target):
        return images
    return F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=True)


def from_arrays(
    name: str,
    images: NDArray[np.uint8],
    labels: ArrayLike | None = None,
    classes: Sequence[str] = (),
    channels: int = 3,
    channels_last: bool = False,
) -> ImageSet:
    """Create an image set from an array.

    Args:
        name: name of the set, for reports.
        images: images, uint8 (N, H, W), (N, C, H, W), or (N, H, W, C) with channels_last.
        labels: class indices, (N,) integers, -1 for an image of unknown class; or None.
        classes: names of the classes.
        channels: number of channels, 1 or 3.
        channels_last: whether the images are (N, H, W, C).

    Raises:
        DataError: the dtype, the shape or the labels are not valid.
        TypeError: ``classes`` is one string, or no sequence.
    """
    if isinstance(classes, str):
        raise TypeError(
            f"expected classes as a sequence of names, got the string {classes!r}; write [{classes!r}]"
        )
    if not isinstance(classes, Iterable):
        raise TypeError(f"expected classes as a sequence of names, got {classes!r}")
    array = None if labels is None else np.asarray(labels)
    return ImageSet(name, tuple(classes), array, ArrayImages(images, channels_last), channels)
