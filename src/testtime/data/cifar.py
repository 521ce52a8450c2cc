"""CIFAR-10 and CIFAR-100 as published (binary and Python batches), and CIFAR-10-C and CIFAR-100-C."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.data.bounded import numpy_array
from testtime.data.files import AGAIN, need_choice, need_file, need_folder, need_size
from testtime.data.imageset import ImageSet, from_arrays
from testtime.data.pickled import read_pickled
from testtime.errors import DataError
from testtime.labels import class_labels

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the classes of CIFAR-10."""
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_FINE.split())
"""Names of the fine classes of CIFAR-100."""
SPLITS = ("train", "test")
PIXELS = 3 * 32 * 32
BATCH = 10_000
CLASSES = {"labels": len(CIFAR10_CLASSES), "fine_labels": len(CIFAR100_CLASSES)}


def cifar10(root: str | Path, split: str = "test", complete: bool = True) -> ImageSet:
    """Return CIFAR-10 from its binary batches or, failing these, from its Python batches.

    Args:
        root: folder ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or the folder that contains one of them.
        split: name of the split: "train" (50,000 images) or "test" (10,000).
        complete: whether every batch with its 10,000 images is required; otherwise the existing batches are read.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: there is no such split.

    Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    need_choice(split, SPLITS, "split")
    folder = _folder(Path(root), "cifar-10-batches-bin", "cifar-10-batches-py", "test_batch")
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    suffix = "" if folder.name.endswith("-py") or (folder / "test_batch").is_file() else ".bin"
    paths = [folder / f"{name}{suffix}" for name in names]
    if not complete:
        paths = [path for path in paths if path.is_file()] or paths[:1]
    read = _python_batch if suffix == "" else _binary_batch
    count = BATCH if complete else None
    parts = [read(need_file(path, "a batch of CIFAR-10"), "labels", 1, count) for path in paths]
    return _joined(f"cifar10-{split}", parts, CIFAR10_CLASSES)


def cifar100(root: str | Path, split: str = "test", complete: bool = True) -> ImageSet:
    """Return CIFAR-100 with its 100 fine classes, from its binary or its Python files.

    Args:
        root: folder ``cifar-100-binary`` or ``cifar-100-python``, or the folder that contains one of them.
        split: name of the split: "train" (50,000 images) or "test" (10,000).
        complete: whether all images are required; otherwise any number of whole images is read.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: there is no such split.

    Source: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    need_choice(split, SPLITS, "split")
    folder = _folder(Path(root), "cifar-100-binary", "cifar-100-python", split)
    count = None if not complete else BATCH if split == "test" else 5 * BATCH
    if (folder / split).is_file():
        part = _python_batch(folder / split, "fine_labels", 2, count)
    else:
        path = need_file(folder / f"{split}.bin", "the images of CIFAR-100")
        part = _binary_batch(path, "fine_labels", 2, count)
    return _joined(f"cifar100-{split}", [part], CIFAR100_CLASSES)


def cifar_c(
    root: str | Path,
    corruption: str,
    severity: int = 5,
    dataset: str = "cifar10",
    one_severity: bool = False,
) -> ImageSet:
    """Return one corruption of CIFAR-10-C or CIFAR-100-C at one severity, memory-mapped.

    Args:
        root: folder of ``<corruption>.npy`` and ``labels.npy``, or the folder that contains it.
        corruption: name of the corruption and of its file, such as "gaussian_noise".
        severity: severity of the corruption, 1 to 5.
        dataset: name of the data set: "cifar10" or "cifar100".
        one_severity: whether the files contain the images of this severity alone; the published files contain all five.

    Raises:
        DataError: a file is missing, damaged or in another format.
        ValueError: severity or dataset is out of range.

    Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness*, ICLR 2019.
    """
    need_choice(dataset, ("cifar10", "cifar100"), "dataset")
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1 to 5, got {severity}")
    classes, inner = (
        (CIFAR10_CLASSES, "CIFAR-10-C") if dataset == "cifar10" else (CIFAR100_CLASSES, "CIFAR-100-C")
    )
    folder = need_folder([Path(root) / inner, Path(root)], f"the folder {inner}")
    path = folder / f"{corruption}.npy"
    images = numpy_array(path, "images of a corrupted CIFAR", mapped=True)
    labels = numpy_array(folder / "labels.npy", "labels of a corrupted CIFAR")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
        remedy = "save them as round(255 x) in uint8" if images.dtype.kind == "f" else AGAIN
        if images.shape[1:] == (3, 32, 32):
            remedy = "save images.transpose(0, 2, 3, 1)"
        raise DataError(
            f"{path}: expected uint8 (5N, 32, 32, 3), found {images.dtype} {images.shape}; {remedy}"
        )
    labels = class_labels(labels, labels.size, len(classes), str(folder / "labels.npy"))
    count = len(images) if one_severity else len(images) // 5
    five = len(labels) == 5 * count and bool((labels.reshape(5, count) == labels[:count]).all())
    if len(images) != (count if one_severity else 5 * count) or not (
        five or (one_severity and len(labels) == count)
    ):
        raise DataError(
            f"{folder / 'labels.npy'}: expected {5 * count} labels, five times the same {count}, once for each severity, "
            f"found {len(labels)}{'' if five else ' that are not'} for {len(images)} images of {path.name}; "
            "one_severity=True reads images of one severity alone"
        )
    start = 0 if one_severity else (severity - 1) * count
    part = slice(start, start + count)
    name = f"{dataset}-c-{corruption}-{severity}"
    return from_arrays(name, images[part], labels[:count], classes, channels_last=True)


def _folder(root: Path, binary: str, python: str, mark: str) -> Path:
    """Find the folder of the batches: root itself, or one of the published names under it."""
    what = f"the folder {binary} or {python} of www.cs.toronto.edu/~kriz/cifar.html"
    if (root / mark).is_file() or (root / f"{mark}.bin").is_file() or root.name in (binary, python):
        return need_folder([root], what)
    return need_folder([root / binary, root / python], what)


Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _binary_batch(path: Path, key: str, labels: int, count: int | None) -> Part:
    """Read records of `labels` label bytes, of which the last is used, and 3,072 pixel bytes."""
    records = need_size(path, labels + PIXELS, count)
    rows = np.memmap(path, np.uint8, "r").reshape(records, labels + PIXELS)
    return rows[:, labels:].reshape(-1, 3, 32, 32), class_labels(
        rows[:, labels - 1], records, CLASSES[key], str(path)
    )


def _python_batch(path: Path, key: str, labels: int, count: int | None) -> Part:
    """Read a pickled batch without executing it."""
    table: dict[str, Any] = read_pickled(path)
    data, y = table.get("data"), table.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: expected 'data' as uint8 (N, {PIXELS}), found {found}; {AGAIN}")
    if not isinstance(y, list | tuple | np.ndarray) or len(y) != len(data) or (count and len(data) != count):
        labels_found = len(y) if isinstance(y, list | tuple | np.ndarray) else "no list or array of"
        found = f"{len(data)} images and {labels_found} labels among {', '.join(map(str, table))}"
        raise DataError(f"{path}: expected {count or 'as many'} images and {key!r}, found {found}; {AGAIN}")
    return data.reshape(-1, 3, 32, 32), class_labels(y, len(data), CLASSES[key], str(path))


def _joined(name: str, parts: list[Part], classes: tuple[str, ...]) -> ImageSet:
    images = parts[0][0] if len(parts) == 1 else np.concatenate([images for images, _ in parts])
    return from_arrays(name, images, np.concatenate([labels for _, labels in parts]), classes)
