"""The data sets and source models of a unit, found by name in its places.

Places are paths: ``data`` is the folder of data sets and weights, ``set NAME`` the folder of an own set of images, ``set
source`` that of images of the source, ``model NAME`` an own file of weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from torch import Tensor

from testtime import data
from testtime.data import Crop, ImageSet
from testtime.data.imageset import Size
from testtime.data.named import NAMED, TRAINING, named, reader, training_images
from testtime.errors import DataError, unknown_name
from testtime.models import OpenedModel, open_model
from testtime.plugins import plugins
from testtime.streams import Difficulty, Domain, corrupted, fingerprint, published

__all__ = [
    "Places",
    "check_classes",
    "difficulty",
    "domains",
    "find_set",
    "has_source",
    "image_size",
    "images_of",
    "is_there",
]
__all__ += ["source_batches", "source_model"]

Places = Mapping[str, str]
SMALL = ("cifar10", "cifar100", "digits")  # sets of 32x32 pixels
PUBLISHED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
SOURCE_IMAGES = 2000  # for methods that must see their source


def find_set(name: str, places: dict[str, str]) -> str:
    """Return the name of a data set: of this library, of an entry point ``testtime.data``, or of a folder of images.

    Args:
        name: the name, or the path of the folder, which is added to the places.
        places: places of the unit.

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
    places[f"set {path.name}"] = str(path)
    return path.name


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
        return data.image_folder(own, name, skip_damaged=skip_damaged)
    return named(name, root)


def source_model(name: str, places: Places) -> OpenedModel:
    """Open a source model, see :func:`testtime.models.open_model`."""
    return open_model(places.get(f"model {name}", name), places["data"])


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


def check_classes(images: ImageSet, model: OpenedModel) -> int:
    """Return the number of classes of a closed set, which is that of the model's outputs.

    Raises:
        DataError: it is not.
    """
    if len(images.classes) != model.classes:
        raise DataError(
            f"expected {model.classes:,} classes of {images.name}, as many as {model.name} has outputs, found "
            f"{len(images.classes):,} ({', '.join(images.classes[:3])}, ...): their numbers would not be those of the outputs; "
            "name the class folders of ImageNet by wnids, bring the folders of all classes, or give a --model of these classes"
        )
    return model.classes


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


def domains(
    closed: str, places: Places, corruptions: Sequence[str], severity: int, size: Size | None
) -> tuple[list[Domain], str]:
    """Return the corrupted versions of a closed set, and where they are from.

    A published -C folder below the data folder is used where there is one ("published"); otherwise our corruptions make
    them ("ours-" and a fingerprint of what the corruptions do).
    """
    jpeg, folder = closed == "imagenet", Path(places["data"]) / PUBLISHED.get(closed, "-")
    if folder.is_dir() and f"set {closed}" not in places:
        read = data.imagenet_c if jpeg else data.cifar_c
        facts = {"arguments": {} if jpeg else {"dataset": closed}, "size": size, "jpeg": jpeg}
        return [published(read, folder, c, severity, **facts) for c in corruptions], "published"  # type: ignore[arg-type]
    images = images_of(closed, places)
    made = [corrupted(images, c, severity, size=size, jpeg=jpeg) for c in corruptions]
    marks = "".join(fingerprint(domain.condition) for domain in made)
    return made, f"ours-{hashlib.sha256(marks.encode()).hexdigest()[:8]}"


def difficulty(closed: str, model: str, places: Places, cache: Path | None = None) -> Difficulty:
    """Return the accuracy of a source model on blends of two corruptions of a closed set.

    What was measured before comes with the package (``scripts/measure_difficulty.py`` wrote it); the rest is measured when it
    is asked for, and kept in the cache.
    """
    found, images = source_model(model, places), images_of(closed, places)
    file = resources.files(__package__) / "difficulties" / f"{closed}-{model}.json"
    known = json.loads(file.read_text()) if file.is_file() and f"model {model}" not in places else {}
    kept = None if cache is None else cache / f"difficulty-{images.digest()[:12]}-{found.digest[:12]}.json"
    return Difficulty(known, found.model, images, file=kept)
