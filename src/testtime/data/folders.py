"""Data sets that are folders of image files: the general layout, and the published ones by name."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testtime.data.files import AGAIN, need_choice, need_file, need_folder
from testtime.data.imageset import ImageSet
from testtime.errors import DataError, need_pillow

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


class FileImages:
    """Image files, decoded when asked for.

    Args:
        paths: the files, in order.

    Raises:
        ImportError: if Pillow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        need_pillow()
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: int, channels: int) -> NDArray[np.uint8]:
        return decoded(self.raw(index), channels, self.paths[index])

    def raw(self, index: int) -> bytes:
        return need_file(self.paths[index], "an image").read_bytes()


def decoded(encoded: bytes, channels: int, path: Path) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image, uint8 (channels, H, W).

    Args:
        encoded: the bytes of a JPEG, PNG or other common image.
        channels: 1 (grey) or 3 (RGB); an alpha channel is dropped.
        path: where they came from, for the message.

    Raises:
        DataError: if the image is damaged or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode[0] in "IF":
                raise DataError(
                    f"{path}: expected 8 bits a channel, found mode {image.mode}; convert it first"
                )
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected an image, found a damaged file ({error}); {AGAIN}") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def image_folder(root: str | Path, name: str | None = None, channels: int = 3) -> ImageSet:
    """Return the images of a folder: one class for each folder under it, or no labels where images lie in it.

    Args:
        root: the folder.
        name: what it is; the folder's name by default.
        channels: 1 or 3.

    Raises:
        DataError: if there is no such folder, it holds no image, or one of its classes holds none.
    """
    folder = need_folder([Path(root)], "a folder of images, or of folders of images")
    flat = _images(folder)
    if flat:
        return ImageSet(name or folder.name, (), None, FileImages(flat), channels)
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return by_class(
        name or folder.name, {c: _images(folder / c, deep=True) for c in classes}, folder, channels
    )


def by_class(name: str, files: dict[str, list[Path]], folder: Path, channels: int = 3) -> ImageSet:
    """Return the set of these files, the classes in the order of the dict.

    Args:
        name: what it is.
        files: for each class, its images.
        folder: where they were looked for, for the message.
        channels: 1 or 3.

    Raises:
        DataError: if there is no class, or one has no image.
    """
    empty = [c for c, paths in files.items() if not paths]
    if not files or empty:
        which = f"none in {', '.join(empty[:5])}" if empty else "none"
        raise DataError(
            f"{folder}: expected images ({' '.join(sorted(SUFFIXES))}) in class folders, found {which};"
            " check the path, or unpack the archive again"
        )
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])
    paths = [path for group in files.values() for path in group]
    return ImageSet(name, tuple(files), labels, FileImages(paths), channels)


def imagenet(root: str | Path, split: str = "val") -> ImageSet:
    """Return ImageNet, or a part of it, from ``<split>/<wnid>/*.JPEG``; classes are sorted wnids.

    Args:
        root: the folder that holds the split, or the split itself.
        split: "val" or "train".

    Raises:
        DataError: if the images are missing, or lie flat as in the published validation archive.

    Source: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015.
    """
    need_choice(split, ("val", "train"), "split")
    folder = need_folder([Path(root) / split, Path(root)], "ImageNet as one folder for each wnid")
    images = image_folder(folder, f"imagenet-{split}")
    if images.labels is None:
        raise DataError(
            f"{folder}: expected one folder for each wnid, found images without; sort them into folders first"
        )
    return images


def imagenet_c(root: str | Path, corruption: str, severity: int = 5) -> ImageSet:
    """Return one corruption of ImageNet-C at one severity, from ``<corruption>/<severity>/<wnid>/*.JPEG``.

    Args:
        root: the folder that holds the corruptions, directly or in groups such as ``noise``.
        corruption: such as "gaussian_noise".
        severity: 1 to 5.

    Raises:
        DataError: if there is no such folder or it holds no images.
        ValueError: if severity is not 1 to 5.

    Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness*, ICLR 2019.
    """
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1 to 5, got {severity}")
    root = Path(root)
    tail = Path(corruption) / str(severity)
    groups = sorted(path / tail for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    folder = need_folder([root / tail, root / "ImageNet-C" / tail, *groups], f"ImageNet-C {tail}")
    return image_folder(folder, f"imagenet-c-{corruption}-{severity}")


def textures(root: str | Path) -> ImageSet:
    """Return the Describable Textures Dataset, from ``images/<class>/*``.

    Args:
        root: the folder ``dtd``, or the folder that holds it.

    Raises:
        DataError: if the images are missing.

    Source: Cimpoi et al., *Describing Textures in the Wild*, CVPR 2014.
    """
    root = Path(root)
    folder = need_folder([root / "dtd" / "images", root / "images"], "the images of the Describable Textures")
    return image_folder(folder, "textures")


def tiny_imagenet(root: str | Path, split: str = "val") -> ImageSet:
    """Return Tiny ImageNet; classes are sorted wnids.

    Args:
        root: the folder ``tiny-imagenet-200``, or the folder that holds it.
        split: "train" (``train/<wnid>/images``) or "val" (``val/images`` and ``val/val_annotations.txt``).

    Raises:
        DataError: if files are missing or an annotation names none.
        ValueError: if there is no such split.

    Source: Le and Yang, *Tiny ImageNet Visual Recognition Challenge*, 2015.
    """
    need_choice(split, ("train", "val"), "split")
    root = Path(root)
    what = f"Tiny ImageNet's folder {split}"
    folder = need_folder([root / "tiny-imagenet-200" / split, root / split], what)
    if split == "train":
        return image_folder(folder, "tiny-imagenet-train")
    rows = _table(folder / "val_annotations.txt", 2)
    groups: dict[str, list[Path]] = {wnid: [] for wnid in sorted({row[1] for row in rows})}
    for row in rows:
        groups[row[1]].append(folder / "images" / row[0])
    _all_there((path for paths in groups.values() for path in paths), folder / "val_annotations.txt")
    return by_class("tiny-imagenet-val", groups, folder)


def places365(root: str | Path) -> ImageSet:
    """Return the validation images of Places365.

    They lie flat, with labels if ``places365_val.txt`` is there, or in class folders.

    Args:
        root: the folder that holds ``val_256``, or the images themselves.

    Raises:
        DataError: if images are missing, or the list names one that is not there.

    Source: Zhou et al., *Places: A 10 Million Image Database*, TPAMI 2018.
    """
    root = Path(root)
    folder = need_folder([root / "val_256", root], "the validation images of Places365")
    lists = [place / "places365_val.txt" for place in (root, folder.parent)]
    listing = next((path for path in lists if path.is_file()), None)
    if listing is None:
        return image_folder(folder, "places365")
    rows = _table(listing, 2)
    paths = [folder / row[0] for row in rows]
    _all_there(paths, listing)
    try:
        labels = np.array([int(row[1]) for row in rows], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{listing}: expected a number after each name ({error}); {AGAIN}") from error
    names = listing.with_name("categories_places365.txt")
    count = int(labels.max()) + 1
    classes = [row[0] for row in _table(names, 2)] if names.is_file() else [str(i) for i in range(count)]
    return ImageSet("places365", tuple(classes), labels, FileImages(paths))


def pacs(root: str | Path, domain: str) -> ImageSet:
    """Return one domain of PACS, from ``<domain>/<class>/*``.

    Args:
        root: the folder ``PACS``, or the folder that holds it.
        domain: "art_painting", "cartoon", "photo" or "sketch".

    Raises:
        DataError: if the images are missing.
        ValueError: if there is no such domain.

    Source: Li et al., *Deeper, Broader and Artier Domain Generalization*, ICCV 2017.
    """
    need_choice(domain, PACS_DOMAINS, "domain")
    root = Path(root)
    places = [root / "PACS" / domain, root / "kfold" / domain, root / domain]
    return image_folder(need_folder(places, f"PACS {domain}"), f"pacs-{domain}")


def omniglot(root: str | Path, channels: int = 3) -> ImageSet:
    """Return Omniglot: a class for each ``<alphabet>/<character>/``, or flat images without labels.

    Args:
        root: one of ``images_background``, ``images_evaluation``, ``omniglot``, or the folder that holds it.
        channels: 1 or 3.

    Raises:
        DataError: if the images are missing.

    Source: Lake et al., *Human-level concept learning*, Science 2015. Pixels are as stored (the original
    draws ink black on white).
    """
    root = Path(root)
    inner = [root / name for name in ("images_background", "images_evaluation", "omniglot")]
    folder = need_folder([*inner, root], "the drawings of Omniglot")
    if _images(folder):
        return image_folder(folder, "omniglot", channels)
    groups: dict[str, list[Path]] = {}
    for path in _images(folder, deep=True):
        groups.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    return by_class("omniglot", groups, folder, channels)


def _images(folder: Path, deep: bool = False) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _table(path: Path, columns: int) -> list[list[str]]:
    """Read a text file of white-space separated rows with at least so many columns."""
    lines = need_file(path, "the list of the images").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip()]
    short = next((i for i, row in enumerate(rows) if len(row) < columns), None)
    if not rows or short is not None:
        raise DataError(f"{path}: expected {columns} columns, found fewer in row {(short or 0) + 1}; {AGAIN}")
    return rows


def _all_there(paths: Iterable[Path], listing: Path) -> None:
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file, but {listing} names it; unpack the archive again")
