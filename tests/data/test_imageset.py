from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from testtime.data import Crop, ImageSet, from_arrays, resized
from testtime.data.imageset import with_channels
from testtime.errors import DataError


def small(n: int = 4, name: str = "small") -> ImageSet:
    pixels = np.arange(n * 3 * 4 * 4, dtype=np.uint8).reshape(n, 3, 4, 4)
    return from_arrays(name, pixels, [i % 2 for i in range(n)], ("even", "odd"))


def test_images_are_uint8_and_batches_are_floats_in_0_1() -> None:
    images = small()
    assert images[1].dtype == torch.uint8
    assert images[1][0, 0].tolist() == [48, 49, 50, 51]
    batch = images.batch([1, 0])
    assert torch.equal(batch * 255, torch.stack([images[1], images[0]]).float())
    assert images.targets([1, 0]).tolist() == [1, 0]


def test_an_image_is_a_copy() -> None:
    images = small()
    images[0].zero_()
    assert images[0].sum() > 0


def test_channels_last_and_grey_arrays() -> None:
    colour = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert from_arrays("c", colour, channels_last=True)[0][:, 0, 1].tolist() == [3, 4, 5]
    grey = from_arrays("g", np.full((1, 2, 2), 9, np.uint8))
    assert torch.equal(grey[0], torch.full((3, 2, 2), 9, dtype=torch.uint8))
    assert from_arrays("g", np.full((1, 2, 2), 9, np.uint8), channels=1)[0].shape == (1, 2, 2)


def test_colour_becomes_luma() -> None:
    red = np.array([255, 0, 0], np.uint8).reshape(3, 1, 1)
    assert with_channels(red, 1).item() == 76


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    images = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1)[None, None]
    assert torch.allclose(resized(images, 2), F.interpolate(images, 2, mode="bilinear", antialias=True))
    assert torch.allclose(resized(images, 2).mean(), torch.tensor(0.5))
    assert resized(images, (8, 4))[0, 0, 3].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert resized(images, None) is images


def test_a_subset_keeps_classes_and_order_and_nests() -> None:
    images = small(6)
    chosen = images.subset([5, 2, 3]).subset([2, 0])
    assert chosen.classes == images.classes
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [1, 1]
    assert torch.equal(chosen[0], images[3])
    assert torch.equal(chosen[1], images[5])
    assert len(images.subset([])) == 0


def test_the_digest_depends_on_content_labels_names_and_order_only() -> None:
    images = small()
    assert images.digest() == small().digest()
    assert len(images.digest()) == 64
    pixels = np.arange(4 * 48, dtype=np.uint8).reshape(4, 3, 4, 4)
    pixels[3, 2, 3, 3] += 1
    others = [
        small(name="other"),
        small(3),
        images.subset([1, 0, 2, 3]),
        from_arrays("small", pixels, [0, 1, 0, 1], ("even", "odd")),
        from_arrays("small", small().images.array, [0, 1, 0, 0], ("even", "odd")),  # type: ignore[attr-defined]
        from_arrays("small", small().images.array),  # type: ignore[attr-defined]
    ]
    assert len({images.digest(), *(other.digest() for other in others)}) == 7
    assert images.subset(range(4)).digest() == images.digest()


def test_labels_are_checked_and_cannot_be_changed() -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(DataError, match=r"2 images but labels of shape \(3,\)"):
        from_arrays("x", pixels, [0, 1, 0], ("a", "b"))
    with pytest.raises(DataError, match="labels from 0 to 2, but 2 classes"):
        from_arrays("x", pixels, [0, 2], ("a", "b"))
    labels = np.array([0, 1])
    images = from_arrays("x", pixels, labels, ("a", "b"))
    labels[:] = 0
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1


@pytest.mark.parametrize(
    ("pixels", "classes", "message"),
    [
        (np.zeros((2, 4, 4, 3)), (), "convert them to uint8, with images in"),
        (np.array([np.zeros((4, 4)), np.zeros((5, 5))], dtype=object), (), "stack images of one size"),
        (np.zeros((2, 4, 4), np.uint8), "ab", "sequence of names, got the string 'ab'"),
    ],
)
def test_an_error_says_what_to_do(pixels: Any, classes: Any, message: str) -> None:
    with pytest.raises((DataError, TypeError), match=message):
        from_arrays("x", pixels, [0, 1], classes, channels_last=True)


def test_wrong_arrays_channels_indices_and_empty_batches_are_refused() -> None:
    with pytest.raises(DataError, match="expected uint8 images"):
        from_arrays("x", np.zeros((2, 4, 4), np.float32))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 or 3 channels"):
        from_arrays("x", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        from_arrays("x", np.zeros((2, 4, 4), np.uint8), channels=2)
    with pytest.raises(IndexError, match="no image 4, there are 4"):
        small()[4]
    with pytest.raises(IndexError, match="indices from -1 to 0 of 4"):
        small().subset([-1, 0])
    with pytest.raises(ValueError, match="at least one index"):
        small().batch([])
    with pytest.raises(ValueError, match="has no labels"):
        from_arrays("x", np.zeros((2, 4, 4), np.uint8)).targets([0])


def test_a_set_is_iterable() -> None:
    assert len(list(small())) == 4


@pytest.mark.parametrize(
    "labels", [[0.7, 1.2], [float("nan"), 0.0], [True, False], ["0", "1"], [0, 1j], [None, 0], [[0], [1]]]
)
def test_labels_that_are_no_integers_are_refused(labels: list[object]) -> None:
    pixels = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(DataError, match="expected labels that are integers|labels of shape"):
        from_arrays("x", pixels, labels, ("a", "b"))  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [[-2, 0], [0, 2], [0.0, float("inf")], np.array([0, 2**63], np.uint64)])
def test_labels_of_no_class_are_refused(labels: object) -> None:
    with pytest.raises(DataError, match=r"but 2 classes \(-1: unknown\)"):
        from_arrays("x", np.zeros((2, 4, 4), np.uint8), labels, ("a", "b"))  # type: ignore[arg-type]


def test_whole_floats_tensors_and_the_unknown_are_labels() -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    for labels in ([1.0, -1.0, 0.0], torch.tensor([1, -1, 0]), np.array([1, -1, 0], np.int8)):
        images = from_arrays("x", pixels, labels, ("a", "b"))
        assert images.targets([0, 1, 2]).tolist() == [1, -1, 0]


def test_arrays_of_another_form_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match="channels_last=True"):
        from_arrays("x", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="channels_last=False"):
        from_arrays("x", np.zeros((2, 3, 8, 8), np.uint8), channels_last=True)
    with pytest.raises(DataError, match="by 255"):
        from_arrays("x", np.zeros((2, 3, 8, 8), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(300, 600), (500, 375), (90, 70), (224, 224), (256, 256)])
def test_a_crop_is_that_of_the_published_preprocessing(height: int, width: int) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = np.asarray(image.fromarray(pixels).resize((width, height)))
    shorter = min(height, width)
    wide, tall = int(256 * width / shorter), int(256 * height / shorter)
    left, top = round((wide - 224) / 2), round((tall - 224) / 2)
    scaled = image.fromarray(pixels).resize((wide, tall), image.Resampling.BILINEAR)
    expected = pixels if height == width == 224 else scaled.crop((left, top, left + 224, top + 224))
    found = from_arrays("x", pixels[None], channels_last=True).batch([0], Crop(224, 256))[0] * 255
    assert np.abs(found.permute(1, 2, 0).numpy() - np.asarray(expected)).max() <= 1.01  # Pillow rounds twice


def test_a_crop_of_a_strip_or_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at most 50 times as long as wide, found 600 x 2"):
        Crop(224, 256)(torch.zeros(1, 3, 2, 600))
    with pytest.raises(ValueError, match="1 <= side <= shorter"):
        Crop(256, 224)


def test_images_in_lists_and_tensors_are_checked_as_arrays_are() -> None:
    with pytest.raises(DataError, match="expected uint8 images of 1 or 3 channels, found int64"):
        from_arrays("list", [[[0, 1], [2, 3]]])  # type: ignore[arg-type]
    several: Any = [np.zeros((2, 2, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)]
    with pytest.raises(DataError, match=r"images of one size .* image_folder reads others"):
        from_arrays("list", several)
    with pytest.raises(TypeError, match="sequence of names, got 10"):
        from_arrays("list", np.zeros((2, 4, 4), np.uint8), classes=10)  # type: ignore[arg-type]
    images = from_arrays("tensor", torch.full((1, 2, 2), 7, dtype=torch.uint8))  # type: ignore[arg-type]
    assert images[0].tolist() == [[[7, 7], [7, 7]]] * 3
