"""Small sets of grey images: MNIST and related sets in idx files, and USPS."""

import bz2
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testtime.data.files import AGAIN, need_choice, need_folder
from testtime.data.folders import image_folder
from testtime.data.imageset import ImageSet, from_arrays
from testtime.errors import DataError
from testtime.labels import class_labels

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
LETTERS = tuple("ABCDEFGHIJ")
SPLITS = ("train", "test")
PLACES = [str(place) for place in range(1, 257)]  # indices of the pixels in a row of LIBSVM's USPS
UNSIGNED_BYTES = 0x08
MOST = 1 << 30  # largest number of values in a file


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Return the array of an idx file of unsigned bytes, plain or gzipped.

    Args:
        path: path of the file, such as ``t10k-images-idx3-ubyte.gz``.

    Raises:
        DataError: the magic number, the type or the size is wrong.

    Source: LeCun's page of MNIST: 0, 0, type, number of dimensions, the sizes as big-endian integers, the values.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTES or not 1 <= head[3] <= 4:
                raise DataError(
                    f"{path}: expected the idx magic number 00 00 08, found {head.hex(' ')}; {AGAIN}"
                )
            sizes = file.read(4 * head[3])
            shape = tuple(int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4))
            if len(shape) < head[3] or math.prod(shape) > MOST:
                raise DataError(
                    f"{path}: expected {head[3]} sizes of at most {MOST} values, found {shape}; {AGAIN}"
                )
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzipped idx file, found otherwise ({error}); {AGAIN}") from error
    if len(data) != math.prod(shape):
        found = len(data) if len(data) < math.prod(shape) else "more"
        raise DataError(f"{path}: expected {shape} values, found {found}; {AGAIN}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def mnist(root: str | Path, split: str = "test", channels: int = 3) -> ImageSet:
    """Return MNIST, 28x28.

    Args:
        root: folder of the four idx files, or the folder that contains it as ``mnist``, ``MNIST`` or ``raw``.
        split: name of the split: "train" (60,000 images) or "test" (10,000).
        channels: number of channels, 1 or 3.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: there is no such split.

    Source: LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
    """
    return _idx_set(Path(root), "mnist", ("mnist", "MNIST", "MNIST/raw", "raw"), split, DIGITS, channels)


def fashion_mnist(root: str | Path, split: str = "test", channels: int = 3) -> ImageSet:
    """Return Fashion-MNIST, 28x28.

    Args:
        root: folder of the four idx files, or the folder that contains it as ``fashion_mnist`` or ``FashionMNIST``.
        split: name of the split: "train" (60,000 images) or "test" (10,000).
        channels: number of channels, 1 or 3.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: there is no such split.

    Source: Xiao et al., *Fashion-MNIST*, 2017.
    """
    places = ("fashion_mnist", "FashionMNIST", "FashionMNIST/raw", "raw")
    return _idx_set(Path(root), "fashion_mnist", places, split, FASHION, channels)


def notmnist(
    root: str | Path, split: str = "test", channels: int = 3, skip_damaged: bool = False
) -> ImageSet:
    """Return notMNIST, the letters A to J, 28x28.

    Args:
        root: folder of the idx files, or of ``notMNIST_{small,large}/<letter>/*.png``, or the folder that contains it.
        split: name of the split: "test" (small) or "train" (large).
        channels: number of channels, 1 or 3.
        skip_damaged: whether images that cannot be read are left out; the published archives contain a few.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: there is no such split.

    Source: Bulatov, *notMNIST dataset*, 2011.
    """
    need_choice(split, SPLITS, "split")
    folder = Path(root) / ("notMNIST_small" if split == "test" else "notMNIST_large")
    if folder.is_dir():
        return image_folder(folder, f"notmnist-{split}", channels, skip_damaged)
    return _idx_set(Path(root), "notmnist", ("notmnist", "notMNIST"), split, LETTERS, channels)


def usps(root: str | Path, split: str = "test", channels: int = 3) -> ImageSet:
    """Return USPS, 16x16.

    Args:
        root: folder of ``<split>/<digit>/*``, or of LIBSVM's ``usps.bz2`` and ``usps.t.bz2``, or the folder that contains it
            as ``usps``.
        split: name of the split: "train" (7,291 images) or "test" (2,007).
        channels: number of channels, 1 or 3.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: there is no such split.

    Source: Hull, *A database for handwritten text recognition research*, TPAMI 1994.
    """
    need_choice(split, SPLITS, "split")
    name = f"usps-{split}"
    packed = "usps.bz2" if split == "train" else "usps.t.bz2"
    for folder in (Path(root) / "usps", Path(root)):
        if (folder / packed).is_file():
            return from_arrays(name, *_libsvm(folder / packed), DIGITS, channels)
    folder = need_folder(
        [Path(root) / "usps" / split, Path(root) / split], f"USPS: {split}/<digit>/ or {packed}"
    )
    return image_folder(folder, name, channels)


def _idx_set(
    root: Path, name: str, places: tuple[str, ...], split: str, classes: tuple[str, ...], channels: int
) -> ImageSet:
    need_choice(split, SPLITS, "split")
    stem = "train" if split == "train" else "t10k"
    image_file = _idx_file(root, places, f"{stem}-images-idx3-ubyte")
    label_file = _idx_file(root, places, f"{stem}-labels-idx1-ubyte")
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1:
        swapped = " (the files are swapped)" if (images.ndim, labels.ndim) == (1, 3) else ""
        raise DataError(
            f"{image_file}, {label_file}: expected images (N, H, W) and labels (N,), found {images.shape} and "
            f"{labels.shape}{swapped}; {AGAIN}"
        )
    if not images.size:
        raise DataError(f"{image_file}: expected images, found {images.shape}; {AGAIN}")
    numbers = class_labels(labels, len(images), len(classes), str(label_file))
    return from_arrays(f"{name}-{split}", images, numbers, classes, channels)


def _idx_file(root: Path, places: tuple[str, ...], name: str) -> Path:
    """Find a file under its published name or with a dot before "idx", gzipped or not, or in a folder of its name."""
    names = [f"{base}{suffix}" for base in (name, name.replace("-idx", ".idx")) for suffix in (".gz", "")]
    for folder in (root, *(root / place for place in places)):
        for path in (folder / each for each in names):
            if path.is_file():
                return path
            inner = [path / each for each in names if (path / each).is_file()] if path.is_dir() else []
            if inner:
                return inner[0]
    raise DataError(
        f"{root / name}[.gz]: no such file, nor with a dot before idx; expected an idx file; looked also in "
        f"{', '.join(places)}; give the folder that holds it as root"
    )


def _libsvm(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read rows "label 1:v 2:v ...": labels 1 to 10, values in [-1, 1]."""
    try:
        with bz2.open(path) as file:
            text = file.read(MOST + 1)
        if len(text) > MOST:
            raise ValueError(f"more than {MOST} bytes")
        rows = [line.split() for line in text.decode("ascii").splitlines() if line.strip()]
        cells = [[cell.partition(":") for cell in row[1:]] for row in rows]
        if not rows or any([at for at, _, _ in row] != PLACES for row in cells):
            raise ValueError("a row whose values are not numbered 1 to 256")
        values = np.array([[float(value) for _, _, value in row] for row in cells])
        if not (np.abs(values) <= 1.001).all():
            raise ValueError("a value outside of [-1, 1]")
        pixels = np.rint((values.reshape(-1, 16, 16) + 1) / 2 * 255).clip(0, 255).astype(np.uint8)
        digits = np.array([float(row[0]) - 1 for row in rows])
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{path}: expected rows of a label and 256 values ({error}); {AGAIN}") from error
    labels = class_labels(digits, len(pixels), len(DIGITS), str(path))
    if (labels < 0).any():
        raise DataError(f"{path}: expected labels 1 to 10, found 0; {AGAIN}")
    return pixels, labels
