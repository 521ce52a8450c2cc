"""The data sets and source models of the protocols, found below one data folder."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from testtime import data
from testtime.data import Crop, ImageSet, sha256_of
from testtime.data.imageset import Size
from testtime.errors import DataError, unknown_name
from testtime.models import Preprocessed, load_model, model_card
from testtime.streams import Difficulty, Domain, corrupted, fingerprint, published

__all__ = [
    "SETS",
    "class_count",
    "difficulty",
    "domains",
    "find_weights",
    "open_data",
    "size_for",
    "source_images",
    "source_model",
]


def _first(*readers: Callable[[Path], ImageSet]) -> Callable[[Path], ImageSet]:
    """Whatever is there, in this order; the error is that of the first."""

    def read(root: Path) -> ImageSet:
        errors: list[DataError] = []
        for reader in readers:
            try:
                return reader(root)
            except DataError as error:
                errors.append(error)
        raise errors[0]

    return read


def _tiny(root: Path) -> ImageSet:
    return data.tiny_imagenet(root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root)


def _textures(root: Path) -> ImageSet:
    for folder in (root / "dtd", root):
        if (folder / "images").is_dir():
            return data.textures(folder)
    return data.textures(root)


SETS: dict[str, Callable[[Path], ImageSet]] = {
    "cifar10": lambda root: data.cifar10(root),
    "cifar100": _first(
        lambda root: data.cifar100(root), lambda root: data.image_folder(root / "cifar100-images", "cifar100")
    ),
    "imagenet": lambda root: data.imagenet(root / "imagenet" if (root / "imagenet").is_dir() else root),
    "svhn": _first(lambda root: data.svhn(root), lambda root: data.svhn(root / "svhn")),
    "tiny-imagenet": _tiny,
    "places365": _first(lambda root: data.places365(root), lambda root: data.places365(root / "places365")),
    "textures": _textures,
    "digits": lambda root: data.embedded().test,
    "photographs": lambda root: data.embedded().unknown,
}
EMBEDDED = ("digits", "photographs")
PUBLISHED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}


@functools.lru_cache(maxsize=8)
def open_data(name: str, root: str | Path) -> ImageSet:
    """A data set by its name in the protocols.

    Args:
        name: a key of `SETS`.
        root: the data folder; the embedded sets need none.

    Raises:
        ValueError: no such set.
        DataError: it is not there; the message names the file.
    """
    if name not in SETS:
        raise unknown_name("data set", name, SETS)
    return SETS[name](Path(root))


def class_count(name: str, model: str, root: str | Path) -> int:
    """The number of classes of a closed set, which is that of a source model's outputs.

    Args:
        name: key of `SETS`.
        model: key of `testtime.models.MODELS`.
        root: data folder.

    Raises:
        DataError: if the set has another number of classes than the model has outputs.
    """
    classes, outputs = open_data(name, root).classes, model_card(model).classes
    if len(classes) != outputs:
        raise DataError(
            f"{root}: expected {outputs:,} classes of {name}, as many as {model} has outputs, found {len(classes):,} "
            f"({', '.join(classes[:3])}, ...): their numbers would not be those of the outputs; name the class folders "
            "of ImageNet by wnids, bring the folders of all classes, or take a model of these classes"
        )
    return outputs


def size_for(side: int) -> Size:
    """How pictures of any size are brought to a model's size.

    Models of 224 pixels and more see the middle of a picture whose shorter side is 8/7 of that (256 for 224), as in the
    published ImageNet-C; smaller ones see all of it, stretched.

    >>> size_for(224), size_for(32)
    (Crop(side=224, shorter=256), (32, 32))
    """
    return Crop(side, side * 8 // 7) if side >= 224 else (side, side)


def source_images(name: str, root: str | Path) -> ImageSet:
    """The training images of a closed set, or those of them that are there."""
    if name == "digits":
        return data.embedded().train
    if name == "cifar10":
        return data.cifar10(root, "train", complete=False)
    if name == "cifar100":
        return data.cifar100(root, "train", complete=False)
    if name == "imagenet":
        return data.imagenet(root, "train")
    raise ValueError(f"{name} has no training images here; digits, cifar10, cifar100 and imagenet have")


def domains(
    name: str, root: str | Path, corruptions: tuple[str, ...], severity: int
) -> tuple[list[Domain], str]:
    """The corrupted versions of a closed set, and where they are from.

    A published -C folder below the data folder is used where there is one ("published"); else our corruptions
    make them ("ours-" and a fingerprint of what the corruptions do).
    """
    size = size_for(224) if name == "imagenet" else None
    folder = Path(root) / PUBLISHED.get(name, "-")
    if folder.is_dir():
        read = data.imagenet_c if name == "imagenet" else data.cifar_c
        arguments = {} if name == "imagenet" else {"dataset": name}
        made = [
            published(read, folder, c, severity, arguments=arguments, size=size, jpeg=name == "imagenet")
            for c in corruptions
        ]
        return made, "published"
    images = open_data(name, root)
    made = [corrupted(images, c, severity, size=size, jpeg=name == "imagenet") for c in corruptions]
    marks = "".join(fingerprint(domain.condition) for domain in made)
    return made, f"ours-{hashlib.sha256(marks.encode()).hexdigest()[:8]}"


def find_weights(model: str, root: str | Path) -> Path | None:
    """The weights of a model below the data folder: ``weights/`` or the folder itself; None if they are
    packaged.

    Raises:
        DataError: they are not there.
    """
    card = model_card(model)
    if card.packaged:
        return None
    stem = model.replace("-", "_")
    for folder in (Path(root) / "weights", Path(root)):
        for path in sorted(folder.glob("*.safetensors")):
            if path.stem.replace("-", "_") == stem:
                return path
    wanted = Path(root) / "weights" / f"{stem}.safetensors"
    raise DataError(
        f"{wanted}: no weights of {model} there; they are published at {card.origin} ({card.licence}); "
        "convert them with: python -m testtime.models.convert in.pth out.safetensors"
    )


def source_model(model: str, root: str | Path) -> tuple[Preprocessed, str]:
    """A source model with its weights, and their SHA-256 ("packaged" where they come with the package)."""
    path = find_weights(model, root)
    return load_model(model, path), "packaged" if path is None else sha256_of(path)


@functools.lru_cache(maxsize=2)
def difficulty(name: str, model: str, root: str | Path) -> Difficulty:
    """How accurate a source model is on blends of two corruptions of a closed set.

    What was measured before comes with the package (``scripts/measure_difficulty.py`` wrote it); the rest is measured
    when asked for.
    """
    file = resources.files("testtime.bench") / "difficulties" / f"{model}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    return Difficulty(known, source_model(model, root)[0].eval(), open_data(name, root))
