"""Street View House Numbers: cropped digits in Matlab files."""

from pathlib import Path

import numpy as np

from testtime.data.files import AGAIN, need_choice, need_file
from testtime.data.grey import DIGITS
from testtime.data.imageset import ImageSet, from_arrays
from testtime.data.matlab import matlab
from testtime.errors import DataError
from testtime.labels import class_labels


def svhn(root: str | Path, split: str = "test") -> ImageSet:
    """Return SVHN, 32x32 colour, from ``<split>_32x32.mat``; its label 10 is the digit 0.

    Args:
        root: folder of the file, or the folder that contains it as ``svhn`` or ``SVHN``.
        split: name of the split: "train", "test" or "extra".

    Raises:
        DataError: the file is missing or damaged.
        ValueError: there is no such split.

    Source: Netzer et al., *Reading Digits in Natural Images*, 2011.
    """
    need_choice(split, ("train", "test", "extra"), "split")
    name = f"{split}_32x32.mat"
    places = [Path(root) / name, Path(root) / "svhn" / name, Path(root) / "SVHN" / name]
    path = need_file(next((place for place in places if place.is_file()), places[0]), "SVHN's cropped digits")
    images, labels = matlab(path, "X"), matlab(path, "y").ravel()
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(
            f"{path}: expected X as uint8 (32, 32, 3, N), found {images.dtype} {images.shape}; {AGAIN}"
        )
    labels = class_labels(labels, images.shape[3], 11, str(path))
    if (labels < 0).any():
        raise DataError(f"{path}: expected labels 1 to 10, found {labels.min()}; {AGAIN}")
    return from_arrays(
        f"svhn-{split}",
        images.transpose(3, 0, 1, 2),
        labels % 10,
        DIGITS,
        channels_last=True,
    )
