import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.data import (
    image_folder,
    imagenet,
    imagenet_c,
    omniglot,
    pacs,
    places365,
    textures,
    tiny_imagenet,
)
from testtime.errors import DataError


def put(path: Path, value: int = 0, size: tuple[int, int] = (4, 6), mode: str = "RGB") -> Path:
    """Write an image of one value; size is height, width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value if mode == "L" else (value,) * len(mode)).save(path)
    return path


def values(images: object) -> list[int]:
    return [int(images[i].float().mean().round()) for i in range(len(images))]  # type: ignore[index,arg-type]


def test_a_class_is_a_folder_in_sorted_order(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "2.png", 20)
    put(tmp_path / "dog" / "10.PNG", 10)
    put(tmp_path / "cat" / "deeper" / "1.png", 5)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    images = image_folder(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 1]
    assert values(images) == [5, 10, 20]
    assert images[0].shape == (3, 4, 6)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "b.png", 2)
    put(tmp_path / "a.png", 1)
    images = image_folder(tmp_path, "mine")
    assert (images.name, images.classes, images.labels, values(images)) == ("mine", (), None, [1, 2])


def test_grey_palette_and_transparent_images_become_rgb_or_grey(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 9, mode="L")
    put(tmp_path / "b.png", 9, mode="RGBA")
    Image.new("RGB", (6, 4), (9, 9, 9)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "c.png")
    assert all(image.shape == (3, 4, 6) and (image == 9).all() for image in image_folder(tmp_path))
    assert all(image.shape == (1, 4, 6) for image in image_folder(tmp_path, channels=1))


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 255, (4, 6))
    put(tmp_path / "b.png", 0, (8, 8))
    images = image_folder(tmp_path)
    with pytest.raises(ValueError, match="differ in size"):
        images.batch([0, 1])
    batch = images.batch([0, 1], size=5)
    assert batch.shape == (2, 3, 5, 5)
    assert batch.mean((1, 2, 3)).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_empty_and_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="found none; check the path"):
        image_folder(tmp_path)
    put(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="found none in dog"):
        image_folder(tmp_path)


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[:600])
    (tmp_path / "b.png").write_bytes(b"not an image")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "c.png")
    images = image_folder(tmp_path)
    with pytest.raises(DataError, match=r"a\.jpg: expected an image, found a damaged file"):
        images[0]
    with pytest.raises(DataError, match=r"b\.png: expected an image"):
        images[1]
    with pytest.raises(DataError, match=r"c\.png: expected 8 bits a channel, found mode I;16"):
        images[2]


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[images\]'"):
        image_folder(tmp_path)


def test_the_digest_follows_the_bytes_of_the_files(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    before = image_folder(tmp_path).digest()
    assert image_folder(tmp_path).digest() == before
    put(tmp_path / "a.png", 2)
    assert image_folder(tmp_path).digest() != before


def test_imagenet_and_its_corrupted_version(tmp_path: Path) -> None:
    put(tmp_path / "val" / "n02" / "x.JPEG", 200)
    put(tmp_path / "val" / "n01" / "y.JPEG", 100)
    put(tmp_path / "c" / "noise" / "shot_noise" / "3" / "n01" / "y.JPEG", 50)
    images = imagenet(tmp_path)
    assert (images.name, images.classes, values(images)) == ("imagenet-val", ("n01", "n02"), [100, 200])
    noisy = imagenet_c(tmp_path / "c", "shot_noise", 3)
    assert (noisy.name, values(noisy)) == ("imagenet-c-shot_noise-3", [50])
    assert values(imagenet_c(tmp_path / "c" / "noise", "shot_noise", 3)) == [50]
    with pytest.raises(DataError, match="shot_noise/4"):
        imagenet_c(tmp_path / "c", "shot_noise", 4)
    with pytest.raises(ValueError, match="severity"):
        imagenet_c(tmp_path, "shot_noise", 0)
    put(tmp_path / "flat" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="one folder for each wnid, found images without"):
        imagenet(tmp_path / "flat")


def test_textures(tmp_path: Path) -> None:
    put(tmp_path / "dtd" / "images" / "banded" / "banded_0002.jpg", 7)
    for root in (tmp_path, tmp_path / "dtd"):
        assert textures(root).classes == ("banded",)
    with pytest.raises(DataError, match="Describable Textures"):
        textures(tmp_path / "absent")


def test_tiny_imagenet_reads_both_layouts(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    put(root / "train" / "n02" / "images" / "n02_0.JPEG", 20)
    put(root / "train" / "n01" / "images" / "n01_0.JPEG", 10)
    train = tiny_imagenet(tmp_path, "train")
    assert (train.classes, values(train)) == (("n01", "n02"), [10, 20])
    for i, value in enumerate((100, 200, 50)):
        put(root / "val" / "images" / f"val_{i}.JPEG", value)
    rows = ["val_0.JPEG\tn02\t0\t0\t62\t57", "val_1.JPEG\tn01\t0\t0\t63\t63", "val_2.JPEG\tn01\t0\t0\t63\t63"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    val = tiny_imagenet(root)
    assert val.labels is not None
    assert (val.classes, val.labels.tolist(), values(val)) == (("n01", "n02"), [0, 0, 1], [200, 50, 100])
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG: no such file, but .*val_annotations\.txt names it"):
        tiny_imagenet(root)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")
    with pytest.raises(DataError, match="expected 2 columns, found fewer in row 1"):
        tiny_imagenet(root)


def test_places365_with_and_without_its_list(tmp_path: Path) -> None:
    for i in (1, 2):
        put(tmp_path / "val_256" / f"Places365_val_0000000{i}.jpg", 100 * i)
    assert places365(tmp_path).labels is None
    (tmp_path / "places365_val.txt").write_text(
        "Places365_val_00000002.jpg 1\nPlaces365_val_00000001.jpg 0\n"
    )
    images = places365(tmp_path)
    assert images.labels is not None
    assert (images.classes, images.labels.tolist(), values(images)) == (("0", "1"), [1, 0], [200, 100])
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/a/airplane_cabin 1\n")
    assert places365(tmp_path).classes == ("/a/airfield", "/a/airplane_cabin")
    (tmp_path / "places365_val.txt").write_text("Places365_val_00000002.jpg one\n")
    with pytest.raises(DataError, match="expected a number after each name"):
        places365(tmp_path)


def test_pacs(tmp_path: Path) -> None:
    put(tmp_path / "PACS" / "sketch" / "dog" / "1.jpg", 30)
    assert pacs(tmp_path, "sketch").name == "pacs-sketch"
    assert pacs(tmp_path / "PACS", "sketch").classes == ("dog",)
    with pytest.raises(ValueError, match="domain must be one of art_painting, cartoon, photo, sketch"):
        pacs(tmp_path, "paintings")


def test_omniglot_has_a_class_for_each_character_or_none(tmp_path: Path) -> None:
    put(tmp_path / "images_background" / "Greek" / "character02" / "0394_01.png", 255, mode="L")
    put(tmp_path / "images_background" / "Greek" / "character01" / "0393_01.png", 0, mode="L")
    images = omniglot(tmp_path, channels=1)
    assert images.classes == ("Greek/character01", "Greek/character02")
    assert images[1].shape == (1, 4, 6)
    put(tmp_path / "flat" / "omniglot" / "1.png")
    assert omniglot(tmp_path / "flat").labels is None
