"""The readers and the source models on the real data beside the checkout."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from testtime.data import (
    ImageSet,
    cifar10,
    fashion_mnist,
    image_folder,
    imagenet,
    mnist,
    notmnist,
    omniglot,
    pacs,
    textures,
    tiny_imagenet,
    usps,
)
from testtime.models import load_model

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DATA = ROOT / ".data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data ({SHARED}) is not here"),
]


def unpacked(name: str, folder: str) -> Path:
    """Return .data, after unpacking one set into it on first use."""
    if not (DATA / folder).exists():
        subprocess.run([sys.executable, SHARED / "unpack.py", "--to", DATA, name], check=True)
    return DATA


# name, folder, reader, images, classes, mean of the first 100 images at 32x32
SETS: list[tuple[str, str, Callable[[Path], ImageSet], int, int, float]] = [
    ("cifar10", "cifar-10-batches-bin", cifar10, 10_000, 10, 0.4717),
    ("cifar10", "cifar-10-batches-bin", lambda d: cifar10(d, "train", False), 25_000, 10, 0.4508),
    ("cifar100", "cifar100-images", lambda d: image_folder(d / "cifar100-images"), 5_000, 100, 0.4257),
    ("dtd10", "dtd", textures, 1_200, 10, 0.5766),
    ("tiny_imagenet_val", "tiny-imagenet-200", tiny_imagenet, 5_000, 200, 0.4187),
    ("pacs", "PACS", lambda d: pacs(d, "sketch"), 3_929, 7, 0.9517),
    ("omniglot", "omniglot", omniglot, 2_720, 0, 0.0890),
    ("imagenet_sample", "imagenet", lambda d: imagenet(d / "imagenet"), 1_000, 1_000, 0.4235),
    ("mnist", "mnist", mnist, 10_000, 10, 0.1200),
    ("mnist", "mnist", lambda d: mnist(d, "train"), 10_000, 10, 0.1268),
    ("fashion_mnist", "fashion_mnist", fashion_mnist, 10_000, 10, 0.2840),
    ("notmnist", "notmnist", notmnist, 10_000, 10, 0.3940),
    ("usps", "usps", usps, 2_007, 10, 0.3685),
    ("usps", "usps", lambda d: usps(d, "train"), 7_291, 10, 0.3559),
]


@pytest.mark.parametrize(("name", "folder", "read", "count", "classes", "mean"), SETS)
def test_a_published_layout_is_read(
    name: str, folder: str, read: Callable[[Path], ImageSet], count: int, classes: int, mean: float
) -> None:
    images = read(unpacked(name, folder))
    assert (len(images), len(images.classes)) == (count, classes)
    batch = images.batch(range(100), size=32)
    assert batch.shape == (100, 3, 32, 32)
    assert batch.mean().item() == pytest.approx(mean, abs=5e-4)


def test_the_first_labels_of_cifar10_and_mnist_are_the_known_ones() -> None:
    assert cifar10(unpacked("cifar10", "cifar-10-batches-bin")).targets(range(8)).tolist() == [
        3,
        8,
        8,
        0,
        6,
        6,
        1,
        6,
    ]
    assert mnist(unpacked("mnist", "mnist")).targets(range(8)).tolist() == [7, 2, 1, 0, 4, 1, 4, 9]


def test_pacs_has_four_domains_of_the_published_sizes() -> None:
    root = unpacked("pacs", "PACS")
    sizes = [len(pacs(root, domain)) for domain in ("art_painting", "cartoon", "photo", "sketch")]
    assert sizes == [2048, 2344, 1670, 3929]


def correct(model: nn.Module, images: ImageSet, count: int) -> int:
    """The number of the first images that the model classifies correctly."""
    right = 0
    with torch.inference_mode():
        for start in range(0, count, 200):
            rows = range(start, min(start + 200, count))
            right += int((model(images.batch(rows)).argmax(1) == images.targets(rows)).sum())
    return right


def source(name: str) -> nn.Module:
    path = unpacked("weights", "weights") / "weights" / f"{name.replace('-', '_', 1)}.safetensors"
    return load_model(name, path)


def test_resnet20_is_right_on_915_of_the_first_1000() -> None:
    data = unpacked("cifar10", "cifar-10-batches-bin")
    assert correct(source("cifar10-resnet20"), cifar10(data), 1000) == pytest.approx(915, abs=1)


def test_resnet20_from_npz_is_resnet20() -> None:
    one = source("cifar10-resnet20")
    two = load_model("cifar10-resnet20", SHARED / "weights" / "cifar10_resnet20.npz")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(one(x), two(x))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 91.73), (32, 92.63), (56, 93.39)])
def test_the_cifar_models_have_the_accuracies_of_their_cards(depth: int, accuracy: float) -> None:
    data = unpacked("cifar10", "cifar-10-batches-bin")
    assert correct(source(f"cifar10-resnet{depth}"), cifar10(data), 10_000) / 100 == pytest.approx(
        accuracy, abs=0.03
    )


@pytest.mark.slow
def test_the_mobilenet_is_right_on_504_of_the_imagenet_sample() -> None:
    path = unpacked("weights", "weights") / "weights" / "imagenet_mobilenetv1_x0.25.safetensors"
    images = imagenet(unpacked("imagenet_sample", "imagenet") / "imagenet")
    right = correct(load_model("imagenet-mobilenet-x0.25", path), images, 1000)
    assert right == pytest.approx(504, abs=2)
