"""The embedded default: real images distributed with scikit-learn, so that a first run needs no download."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from testtime.data.grey import DIGITS
from testtime.data.imageset import ImageSet, from_arrays
from testtime.errors import need_packages

SIZE = 32
TRAIN = 898  # the first half; the images are sorted by writer, so the halves share almost no writers
PATCH = 64
STRIDE = 20


class Embedded(NamedTuple):
    """The three sets of the embedded default, a tuple ``train, test, unknown``."""

    train: ImageSet
    test: ImageSet
    unknown: ImageSet


def embedded(channels: int = 3) -> Embedded:
    """Return handwritten digits for training and testing, and patches of photographs as unknown images, made once a process.

    Args:
        channels: number of channels, 1 or 3; all images are grey, 32x32.

    The digits are the 1,797 of the UCI test set (8x8, 17 grey levels), enlarged bilinearly: 898 for training, 899 for testing.
    The unknown images are 1,102 patches of 64x64, cut every 20 pixels from two photographs and averaged to 32x32.

    Raises:
        ImportError: scikit-learn or Pillow is not installed.

    Source: Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI 1998.
    """
    need_packages(sklearn="demo", PIL="demo")
    return _made(channels)


@cache
def _made(channels: int) -> Embedded:
    from PIL import Image

    folder = _package("sklearn") / "datasets"
    table = np.loadtxt(folder / "data" / "digits.csv.gz", delimiter=",")
    images, labels = _enlarged(table[:, :-1].reshape(-1, 8, 8)), table[:, -1].astype(np.int64)
    images.setflags(write=False)
    train = from_arrays("digits-train", images[:TRAIN], labels[:TRAIN], DIGITS, channels)
    test = from_arrays("digits-test", images[TRAIN:], labels[TRAIN:], DIGITS, channels)
    photographs = [np.asarray(Image.open(folder / "images" / name)) for name in ("china.jpg", "flower.jpg")]
    patches = np.concatenate([_patches(photograph) for photograph in photographs])
    patches.setflags(write=False)
    return Embedded(train, test, from_arrays("photograph-patches", patches, channels=channels))


def _package(name: str) -> Path:
    """The folder of a package, which is not imported: that of scikit-learn takes a second."""
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _enlarged(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Enlarge 8x8 images of levels 0 to 16."""
    grey = torch.from_numpy(images)[:, None] * (255 / 16)
    large = F.interpolate(grey, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return large.round().to(torch.uint8).numpy()


def _patches(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut a photograph (H, W, 3) into grey patches."""
    grey = torch.from_numpy(photograph @ np.array([0.299, 0.587, 0.114]))
    cut = grey.unfold(0, PATCH, STRIDE).unfold(1, PATCH, STRIDE).reshape(-1, 1, PATCH, PATCH)
    return F.avg_pool2d(cut, PATCH // SIZE).round().to(torch.uint8).numpy()
