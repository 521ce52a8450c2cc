"""Data sets by name below one folder, in their published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from testtime.data.cifar import cifar10, cifar100
from testtime.data.embedded import embedded
from testtime.data.folders import image_folder, imagenet, places365, textures, tiny_imagenet
from testtime.data.imageset import ImageSet
from testtime.data.svhn import svhn
from testtime.errors import DataError, unknown_name
from testtime.plugins import load_plugin, located, plugins

__all__ = ["EMBEDDED", "NAMED", "TRAINING", "named", "reader", "training_images"]

Reader = Callable[[Path], ImageSet]


def _first(*readers: Reader) -> Reader:
    """A reader of the first that is there; the error is that of the first reader."""

    def read(root: Path) -> ImageSet:
        errors: list[DataError] = []
        for reader in readers:
            try:
                return reader(root)
            except DataError as error:
                errors.append(error)
        raise errors[0]

    return read


def _below(root: Path, name: str) -> Path:
    """The folder of this name below a folder, or the folder itself."""
    return root / name if (root / name).is_dir() else root


NAMED: dict[str, Reader] = {
    "cifar10": lambda root: cifar10(root),
    "cifar100": _first(
        lambda root: cifar100(root), lambda root: image_folder(root / "cifar100-images", "cifar100")
    ),
    "imagenet": lambda root: imagenet(_below(root, "imagenet")),
    "svhn": _first(lambda root: svhn(root), lambda root: svhn(root / "svhn")),
    "tiny-imagenet": lambda root: tiny_imagenet(_below(root, "tiny-imagenet-200")),
    "places365": _first(lambda root: places365(root), lambda root: places365(root / "places365")),
    "textures": lambda root: textures(root / "dtd" if (root / "dtd" / "images").is_dir() else root),
    "digits": lambda root: embedded().test,
    "photographs": lambda root: embedded().unknown,
}
"""Reader of the test images of each set, from the folder of data sets."""

TRAINING: dict[str, Reader] = {
    "digits": lambda root: embedded().train,
    "cifar10": lambda root: cifar10(root, "train", complete=False),
    "cifar100": lambda root: cifar100(root, "train", complete=False),
    "imagenet": lambda root: imagenet(root, "train"),
}
"""Reader of the training images, or of those of them that are there."""

EMBEDDED = frozenset({"digits", "photographs"})
"""Sets that need no folder."""


def reader(name: str) -> Reader | None:
    """Return the reader of a data set: of :data:`NAMED`, or of an entry point ``testtime.data``; None if there is none."""
    if name in NAMED:
        return NAMED[name]
    point = plugins("testtime.data").get(name)
    return None if point is None else _checked(f"the entry point {name} of testtime.data", load_plugin(point))


def _checked(what: str, read: Any) -> Reader:
    """A reader of another package, whose errors of programming are those of the data."""

    def checked(root: Path) -> ImageSet:
        try:
            found = read(root)
        except (ValueError, OSError, ImportError):
            raise
        except Exception as error:
            advice = "repair or uninstall the package that registers it"
            raise DataError(f"{what} cannot read {root}: {located(error)}; {advice}") from error
        if not isinstance(found, ImageSet):
            raise DataError(f"{what} returned {type(found).__name__}, expected a testtime.data.ImageSet")
        return found

    return checked


def named(name: str, root: str | Path) -> ImageSet:
    """Open the test images of a data set.

    Args:
        name: key of :data:`NAMED`, or name of an entry point ``testtime.data``.
        root: folder of the data sets.

    Raises:
        ValueError: there is no such set.
        DataError: it is not there; the message names the file.

    >>> len(named("digits", "."))
    899
    """
    read = reader(name)
    if read is None:
        raise unknown_name("data set", name, [*NAMED, *plugins("testtime.data")])
    return read(Path(root))


def training_images(name: str, root: str | Path) -> ImageSet:
    """Open the training images of a data set, or those of them that are there.

    Args:
        name: key of :data:`TRAINING`.
        root: folder of the data sets.

    Raises:
        ValueError: there are none of this set.
        DataError: they are not there.
    """
    if name not in TRAINING:
        raise ValueError(f"{name} has no training images here; {', '.join(TRAINING)} have")
    return TRAINING[name](Path(root))
