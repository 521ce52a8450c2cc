"""Data sets in folders of image files: the general layout, and published data sets by name."""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from testtime.data.decoding import decoded, image_bytes
from testtime.data.files import AGAIN, need_choice, need_folder
from testtime.data.imageset import ImageSet
from testtime.data.listing import SUFFIXES, folders, images, inside, read_lines
from testtime.errors import DataError, need_pillow
from testtime.progress import progress

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
"""Names of the domains of PACS."""
OUTPUTS = 1000  # outputs of a model of ImageNet
PLACES = 365  # classes of Places365
SKIP = "skip_damaged=True of image_folder, or the setting skip_damaged=true of testtime run no-labels, leaves such files out"


class FileImages:
    """Image files, decoded on demand, upright with 8 bits per channel; see :func:`testtime.data.decoding.decoded`.

    Args:
        paths: paths of the files, in order.

    Raises:
        ImportError: Pillow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        need_pillow()
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: int, channels: int) -> NDArray[np.uint8]:
        try:
            return decoded(self.raw(index), channels, self.paths[index])
        except DataError as error:
            raise DataError(f"{error}; {SKIP}") from error

    def raw(self, index: int) -> bytes:
        return image_bytes(self.paths[index])


def image_folder(
    root: str | Path, name: str | None = None, channels: int = 3, skip_damaged: bool = False
) -> ImageSet:
    """Return the images of a folder, with a class for each of its subfolders, or without labels if it has none.

    Classes and images are in natural order: "2" before "10", frame_2 before frame_10. Hidden files and folders are ignored,
    links are followed. The EXIF orientation of images is applied; the first frame of an animation is decoded; an alpha channel
    is dropped. Images beside class folders are ignored with a warning if they are fewer than the folders.

    Args:
        root: path of the folder.
        name: name of the set; by default the name of the folder.
        channels: number of channels, 1 or 3.
        skip_damaged: whether every image is decoded once now and those that cannot be read are left out; the set's
            ``skipped`` names them.

    Raises:
        DataError: there is no such folder, it has no image, one of its classes has none, or there are at least as many
            images beside the class folders as folders.
        ImportError: Pillow is not installed.
    """
    folder = need_folder([Path(root)], "a folder of images, or of folders of images")
    beside, classes = _by_folder(folder)
    empty = [path.name for path in folders(folder) if path.name not in classes]
    title = name or folder.name or folder.resolve().name
    if not classes:
        classes, empty = {"": beside}, []
    elif beside:
        _leave_out(beside, classes, folder)
    skipped: list[str] = []
    if skip_damaged:
        classes, skipped = _sound(classes, channels, folder)
    if list(classes) == [""]:
        if not classes[""]:
            raise DataError(_no_images(folder, "none", skipped))
        return ImageSet(title, (), None, FileImages(classes[""]), channels, tuple(skipped))
    empty += [name for name, paths in classes.items() if not paths]
    if empty:
        raise DataError(_no_images(folder, f"none in {', '.join(empty[:5])}", skipped))
    return replace(labelled(title, classes, channels), skipped=tuple(skipped))


def labelled(
    name: str, files: Mapping[str, Sequence[Path]], channels: int = 3, classes: Sequence[str] | None = None
) -> ImageSet:
    """Return an image set of files.

    Args:
        name: name of the set.
        files: image files of each class, by name of the class.
        channels: number of channels, 1 or 3.
        classes: names of all classes, in the order of the labels; by default those of the files.
    """
    names = tuple(files if classes is None else classes)
    number = {each: label for label, each in enumerate(names)}
    labels = np.repeat([number[each] for each in files], [len(paths) for paths in files.values()])
    return ImageSet(name, names, labels, FileImages([p for paths in files.values() for p in paths]), channels)


def _by_folder(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Return the images directly in a folder, and those of each subfolder at any depth."""
    depth = len(folder.parts)
    beside: list[Path] = []
    below: defaultdict[str, list[Path]] = defaultdict(list)
    for path in images(folder, deep=True):
        inner = path.parts[depth:]
        (beside if len(inner) == 1 else below[inner[0]]).append(path)
    flat = {name for name, paths in below.items() if any(len(path.parts) == depth + 2 for path in paths)}
    parents = [list(dict.fromkeys(path.parent for path in paths)) for paths in below.values()]
    group = next((inner for inner in parents if len(inner) > 1), None)
    if group is not None and not flat and not beside:
        warnings.warn(
            f"{folder}: the classes are {_some(below)}, but the images lie in folders below, such as "
            f"{group[0].relative_to(folder).as_posix()}; if those are the classes, give {group[0].parent} as root",
            stacklevel=3,
        )
    return beside, dict(below)


def _leave_out(beside: Sequence[Path], classes: Mapping[str, object], folder: Path) -> None:
    found = (
        f"{folder}: found {len(beside)} images ({_some(p.name for p in beside)}) beside the class folders "
    )
    if len(beside) >= len(classes):
        raise DataError(f"{found}{_some(classes)}; move the images, or the folders, to another place")
    warnings.warn(f"{found}{_some(classes)}; the images beside the folders are left out", stacklevel=3)


def _sound(
    classes: Mapping[str, Sequence[Path]], channels: int, folder: Path
) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the images that can be decoded, and the names of the others."""
    skipped: list[str] = []

    def sound(path: Path) -> bool:
        try:
            decoded(image_bytes(path), channels, path)
        except DataError:
            skipped.append(path.relative_to(folder).as_posix())
            return False
        return True

    total = sum(map(len, classes.values()))
    every = progress(
        ((name, path) for name, paths in classes.items() for path in paths), total, "reading images"
    )
    kept: dict[str, list[Path]] = {name: [] for name in classes}
    for name, path in every:
        if sound(path):
            kept[name].append(path)
    return kept, skipped


def _no_images(folder: Path, found: str, skipped: Sequence[str]) -> str:
    damaged = f" ({len(skipped)} are damaged: {_some(skipped)})" if skipped else ""
    return (
        f"{folder}: expected images ({' '.join(sorted(SUFFIXES))}) in it or in class folders, found {found}{damaged};"
        " check the path, or unpack the archive again"
    )


def _some(names: Iterable[str], most: int = 5) -> str:
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the wnids of the 1,000 classes of ImageNet (ILSVRC 2012) in the order of the outputs of its models.

    >>> imagenet_wnids().index("n02099601")  # golden retriever
    207
    """
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text().split())


@cache
def imagenet_names() -> tuple[str, ...]:
    """Return a name for each of the 1,000 classes of ImageNet, the first in WordNet, in the order of :func:`imagenet_wnids`.

    Two names stand for two classes each: "crane" and "maillot".

    >>> imagenet_names()[207]
    'golden retriever'
    """
    return tuple(Path(__file__).with_name("imagenet_names.txt").read_text("utf-8").splitlines())


def imagenet(root: str | Path, split: str = "val", skip_damaged: bool = False) -> ImageSet:
    """Return ImageNet, a subset of it, or a set with its classes such as ImageNet-A, -R, -V2 or -Sketch.

    The folders are ``<split>/<wnid>/*.JPEG``, or ``<split>/<number>/`` with the indices of the outputs, as in ImageNet-V2.
    The labels are the output indices of a model of the 1,000 classes, also if some classes have no image. Folders with other
    names are separate classes, in natural order.

    Args:
        root: folder that contains the split, or the folder of the split.
        split: name of the split: "val" or "train".
        skip_damaged: whether images that cannot be read are left out; see :func:`image_folder`.

    Raises:
        DataError: the images are missing, are not in folders (as in the published validation archive), or only some of
            the folders are classes of ImageNet.

    Departures: the published accuracies on ImageNet-A and -R use the 200 outputs of their classes; here all 1,000 outputs
    are used. The EXIF orientation is applied, unlike in most published evaluations.

    Source: Russakovsky et al., *ImageNet Large Scale Visual Recognition Challenge*, IJCV 2015.
    """
    need_choice(split, ("val", "train"), "split")
    folder = need_folder(
        [Path(root) / split, Path(root)], "ImageNet (image-net.org) as one folder for each wnid"
    )
    return _by_output(image_folder(folder, f"imagenet-{split}", skip_damaged=skip_damaged), folder)


def _by_output(found: ImageSet, folder: Path) -> ImageSet:
    """Return the set with the 1,000 outputs as classes if its folders are named by wnids or by indices of outputs."""
    if found.labels is None:
        raise DataError(
            f"{folder}: expected one folder for each wnid, found images without; sort them into folders first"
        )
    wnids = imagenet_wnids()
    if all(re.fullmatch("[0-9]{1,9}", name) for name in found.classes):
        outputs = [int(name) for name in found.classes]
        if max(outputs) >= OUTPUTS:
            raise DataError(
                f"{folder}: expected folders named by the numbers of outputs, 0 to {OUTPUTS - 1}, found {max(outputs)}; "
                "rename them, to the wnids for example"
            )
    else:
        number = {wnid: output for output, wnid in enumerate(wnids)}
        others = [name for name in found.classes if name not in number]
        if len(others) == len(found.classes):
            return found
        if others:
            raise DataError(
                f"{folder}: expected folders named by wnids of ImageNet's 1,000 classes, found also {_some(others)}; "
                "move these to another place"
            )
        outputs = [number[name] for name in found.classes]
    return replace(found, classes=wnids, labels=np.array(outputs)[found.labels])


def imagenet_c(root: str | Path, corruption: str, severity: int = 5, skip_damaged: bool = False) -> ImageSet:
    """Return one corruption of ImageNet-C at one severity, from ``<corruption>/<severity>/<wnid>/*.JPEG``.

    Args:
        root: folder that contains the corruptions, directly or in groups such as ``noise``.
        corruption: name of the corruption, such as "gaussian_noise".
        severity: severity of the corruption, 1 to 5.
        skip_damaged: whether images that cannot be read are left out; see :func:`image_folder`.

    The labels are those of :func:`imagenet`.

    Raises:
        DataError: there is no such folder or it has no images.
        ValueError: severity is not 1 to 5.

    Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness*, ICLR 2019.
    """
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1 to 5, got {severity}")
    tail = Path(corruption) / str(severity)
    roots = [Path(root), Path(root) / "ImageNet-C"]
    groups = [group / tail for place in roots if place.is_dir() for group in folders(place)]
    folder = need_folder([*(place / tail for place in roots), *groups], f"ImageNet-C {tail}")
    name = f"imagenet-c-{corruption}-{severity}"
    return _by_output(image_folder(folder, name, skip_damaged=skip_damaged), folder)


def textures(root: str | Path) -> ImageSet:
    """Return the Describable Textures Dataset, from ``images/<class>/*``.

    Args:
        root: folder ``dtd``, or the folder that contains it.

    Raises:
        DataError: the images are missing.

    Source: Cimpoi et al., *Describing Textures in the Wild*, CVPR 2014.
    """
    root = Path(root)
    folder = need_folder(
        [root / "dtd" / "images", root / "images"],
        "the images of the Describable Textures (www.robots.ox.ac.uk/~vgg/data/dtd)",
    )
    return image_folder(folder, "textures")


def tiny_imagenet(root: str | Path, split: str = "val") -> ImageSet:
    """Return Tiny ImageNet; its classes are sorted wnids, those of ``wnids.txt`` if it exists.

    Args:
        root: folder ``tiny-imagenet-200``, or the folder that contains it.
        split: name of the split: "train" (``train/<wnid>/images``) or "val" (``val/images`` and ``val/val_annotations.txt``,
            or ``val/<wnid>``).

    Raises:
        DataError: files are missing, or an annotation names a missing file or one outside of the folder.
        ValueError: there is no such split.

    Source: Le and Yang, *Tiny ImageNet Visual Recognition Challenge*, 2015.
    """
    need_choice(split, ("train", "val"), "split")
    root = Path(root)
    what = f"Tiny ImageNet's folder {split}"
    folder = need_folder([root / "tiny-imagenet-200" / split, root / split], what)
    annotations, flat = folder / "val_annotations.txt", folder / "images"
    by_list = split == "val" and (
        annotations.is_file() if flat.is_dir() and images(flat) else not _wnid_folders(folder)
    )
    groups: dict[str, list[Path]] = defaultdict(list)
    if by_list:
        rows = _table(annotations, 2)
        for path, (_, wnid, *_) in zip(_listed(rows, flat, annotations), rows, strict=True):
            groups[wnid].append(path)
    else:
        beside, found = _by_folder(folder)
        groups = defaultdict(list, {path.name: found.get(path.name, []) for path in _wnid_folders(folder)})
        empty = [wnid for wnid, paths in groups.items() if not paths]
        if empty or not groups:
            raise DataError(_no_images(folder, f"none in class folders {_some(empty)}".rstrip(), ()))
        beside += found.get("images", [])
        if beside:
            _leave_out(beside, groups, folder)
    listing = folder.parent / "wnids.txt"
    wnids = set(groups) | set(read_lines(listing, "the wnids of the classes") if listing.is_file() else ())
    ordered = {wnid: groups[wnid] for wnid in sorted(groups)}
    return labelled(f"tiny-imagenet-{split}", ordered, classes=sorted(wnids))


def _wnid_folders(folder: Path) -> list[Path]:
    return [path for path in folders(folder) if path.name != "images"]


def places365(root: str | Path) -> ImageSet:
    """Return the validation images of Places365.

    They are in one folder, with labels if ``places365_val.txt`` exists, or in class folders.

    Args:
        root: folder that contains ``val_256``, or the folder of the images.

    Raises:
        DataError: images are missing, or the list names one that does not exist or is not in the folder.

    Source: Zhou et al., *Places: A 10 Million Image Database*, TPAMI 2018.
    """
    root = Path(root)
    folder = need_folder([root / "val_256", root], "the validation images of Places365")
    lists = [place / "places365_val.txt" for place in (root, folder.parent)]
    listing = next((path for path in lists if path.is_file()), None)
    if listing is None:
        return image_folder(folder, "places365")
    rows = _table(listing, 2)
    paths = _listed(rows, folder, listing)
    labels = _numbers(rows, listing)
    names = listing.with_name("categories_places365.txt")
    if names.is_file():
        table = _table(names, 2)
        numbers = _numbers(table, names)
        if not np.array_equal(np.sort(numbers), np.arange(len(table))):
            raise DataError(f"{names}: expected each number from 0 to {len(table) - 1} once; {AGAIN}")
        classes = [table[at][0] for at in np.argsort(numbers)]
    else:
        if labels.max() >= PLACES:
            raise DataError(f"{listing}: expected classes 0 to {PLACES - 1}, found {labels.max()}; {AGAIN}")
        classes = [str(i) for i in range(int(labels.max()) + 1)]
    return ImageSet("places365", tuple(classes), labels, FileImages(paths))


def pacs(root: str | Path, domain: str) -> ImageSet:
    """Return one domain of PACS, from ``<domain>/<class>/*``.

    Args:
        root: folder ``PACS``, or the folder that contains it.
        domain: name of the domain: "art_painting", "cartoon", "photo" or "sketch".

    Raises:
        DataError: the images are missing.
        ValueError: there is no such domain.

    Source: Li et al., *Deeper, Broader and Artier Domain Generalization*, ICCV 2017.
    """
    need_choice(domain, PACS_DOMAINS, "domain")
    root = Path(root)
    places = [root / "PACS" / domain, root / "kfold" / domain, root / domain]
    return image_folder(
        need_folder(places, f"the domain {domain} of PACS (Li et al., ICCV 2017)"), f"pacs-{domain}"
    )


def omniglot(root: str | Path, channels: int = 3) -> ImageSet:
    """Return Omniglot with a class for each ``<alphabet>/<character>/``, or images of one folder without labels.

    Args:
        root: folder ``images_background``, ``images_evaluation`` or ``omniglot``, or the folder that contains it.
        channels: number of channels, 1 or 3.

    Raises:
        DataError: the images are missing.

    Source: Lake et al., *Human-level concept learning*, Science 2015. Pixels are not inverted (the original has black ink on
    white).
    """
    root = Path(root)
    inner = [root / name for name in ("images_background", "images_evaluation", "omniglot")]
    folder = need_folder([*inner, root], "the drawings of Omniglot")
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in images(folder, deep=True):
        groups[path.parent.relative_to(folder).as_posix()].append(path)
    if set(groups) <= {"."}:
        return image_folder(folder, "omniglot", channels)
    above = {str(parent) for name in groups for parent in PurePosixPath(name).parents}
    beside = [path for name in above & set(groups) for path in groups.pop(name)]
    if beside:
        _leave_out(beside, groups, folder)
    return labelled("omniglot", groups, channels)


def _table(path: Path, columns: int) -> list[list[str]]:
    """Read a text file of rows with a minimum number of columns, separated by tabs or else by white space."""
    lines = read_lines(path, "the list of the images")
    rows = [re.split(r"\s*\t\s*", line) if "\t" in line else line.split() for line in lines]
    short = next((i for i, row in enumerate(rows) if len(row) < columns), None)
    if short is not None:
        raise DataError(f"{path}: expected {columns} columns, found fewer in row {short + 1}; {AGAIN}")
    return rows


def _numbers(rows: Sequence[Sequence[str]], path: Path) -> NDArray[np.int64]:
    """Return the numbers in the second column of a list."""
    try:
        return np.array([int(row[1]) for row in rows], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: expected a number after each name ({error}); {AGAIN}") from error


def _listed(rows: Sequence[Sequence[str]], folder: Path, listing: Path) -> list[Path]:
    """Return the images that a list names in its first column; warn of images that it does not name."""
    paths = [inside(folder, row[0]) for row in rows]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file, but {listing} names it; unpack the archive again")
    named = set(paths)
    if len(named) < len(paths):
        twice = next(name for name, count in Counter(row[0] for row in rows).items() if count > 1)
        raise DataError(
            f"{listing}: expected each image once, found {twice} more than once; correct the list"
        )
    others = [path.name for path in images(folder) if path not in named]
    if others:
        warnings.warn(
            f"{listing}: left out {len(others)} images that it does not name: {_some(others)}", stacklevel=3
        )
    return paths
