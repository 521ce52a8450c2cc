"""Data sets by name on this machine: named sets below one folder, and own folders of images.

Places are paths by name: ``data`` is the folder of data sets and weights, ``set NAME`` the folder of an own set of images,
``set source`` that of images of the source.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from testtime.data.folders import image_folder
from testtime.data.imageset import Crop, ImageSet, Size
from testtime.data.named import NAMED, TRAINING, named, reader, training_images
from testtime.errors import DataError, unknown_name
from testtime.plugins import plugins

__all__ = [
    "Places",
    "add_source",
    "find_set",
    "has_source",
    "image_size",
    "images_of",
    "is_there",
    "source_batches",
]

Places = Mapping[str, str]
SMALL = ("cifar10", "cifar100", "digits")  # sets of 32x32 pixels
SOURCE_IMAGES = 2000  # for methods that must see their source


def find_set(name: str, places: dict[str, str]) -> str:
    """Return the name of a data set: of this library, of an entry point ``testtime.data``, or of a folder of images.

    Args:
        name: the name, or the path of the folder, which is added to the places.
        places: places, by name.

    Returns:
        the name; that of a folder is its last part, with more of its path where another set has that name.

    Raises:
        ValueError: there is no such set or folder.
    """
    if reader(name) is not None:
        return name
    path = Path(name).resolve()
    if not path.is_dir():
        raise unknown_name(
            "data set", name, ["none", *NAMED, *plugins("testtime.data"), "any folder of images"]
        )
    short = _free_name(path, places)
    places[f"set {short}"] = str(path)
    return short


def add_source(name: str, places: dict[str, str]) -> None:
    """Add the folder of images of the source to the places.

    Args:
        name: path of the folder.
        places: places, by name.

    Raises:
        ValueError: it is no folder, or the name of a data set.
    """
    if reader(name) is not None:
        raise ValueError(
            f"expected a folder of images of the source as the setting source, got the name of the data set {name!r}; a "
            "named set brings its own training images, and needs no setting"
        )
    places["set source"] = places[f"set {find_set(name, places)}"]


def _free_name(path: Path, places: Places) -> str:
    """The name of a folder, with those of the folders above it where another set has it already."""
    names = path.parts
    for count in range(1, len(names)):
        short = "-".join(names[-count:])
        free = short != "source" and reader(short) is None
        if free and places.get(f"set {short}", str(path)) == str(path):
            return short
    return str(path)


def images_of(name: str, places: Places, skip_damaged: bool = False) -> ImageSet:
    """Open a data set; ``skip_damaged`` leaves out images of an own set that cannot be read.

    Raises:
        DataError: it is not there; the message names the file.
    """
    return _open(name, places.get(f"set {name}", ""), places["data"], skip_damaged)


def is_there(name: str, places: Places) -> bool:
    """Return whether a data set can be opened."""
    try:
        images_of(name, places)
    except DataError:
        return False
    return True


@functools.lru_cache(maxsize=8)
def _open(name: str, own: str, root: str, skip_damaged: bool) -> ImageSet:
    if own:
        return image_folder(own, name, skip_damaged=skip_damaged)
    return named(name, root)


def has_source(closed: str, places: Places) -> bool:
    """Return whether there are images of the source: training images of a named set, or a folder of them."""
    return "set source" in places or (f"set {closed}" not in places and closed in TRAINING)


def source_batches(
    closed: str, places: Places, batch_size: int, seed: int, size: Size | None
) -> Iterator[Tensor]:
    """Pass on batches of some images of the source, for methods that must see it.

    Raises:
        DataError: there are none.
    """
    if not has_source(closed, places):
        raise DataError(
            f"no images of the source of {closed} are known; give their folder with the setting source"
        )
    own = places.get("set source")
    images = training_images(closed, places["data"]) if own is None else images_of("source", places, True)
    chosen = np.random.default_rng(seed).permutation(len(images))[:SOURCE_IMAGES]
    for part in np.array_split(chosen, max(1, len(chosen) // batch_size)):
        yield images.batch(part, size)


def image_size(closed: str, side: int | None) -> Size | None:
    """Return how images are brought to a model's size; None where they have it.

    Models of 224 pixels and more see the middle of a picture whose shorter side is 8/7 of that (256 for 224), as in the
    published ImageNet-C; smaller ones see all of it, stretched.

    >>> image_size("imagenet", 224), image_size("photos", 32), image_size("cifar10", 32)
    (Crop(side=224, shorter=256), (32, 32), None)
    """
    if side is None or (closed in SMALL and side == 32):
        return None
    return Crop(side, side * 8 // 7) if side >= 224 else (side, side)
