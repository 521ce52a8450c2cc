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
    imagenet_wnids,
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


def break_(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def values(images: object) -> list[int]:
    return [int(images[i].float().mean().round()) for i in range(len(images))]  # type: ignore[index,arg-type]


def test_a_class_is_a_folder_in_natural_order(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "2.png", 20)
    put(tmp_path / "dog" / "10.PNG", 10)
    put(tmp_path / "cat" / "deeper" / "1.png", 5)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    images = image_folder(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 1]
    assert values(images) == [5, 20, 10]
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


def test_images_beside_class_folders_are_left_out_or_refused(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "preview.png"):
        put(tmp_path / name)
    with pytest.warns(
        UserWarning, match=r"found 1 images \(preview\.png\) beside the class folders cat, dog"
    ):
        images = image_folder(tmp_path)
    assert images.labels is not None
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1])
    put(tmp_path / "other.png")
    with pytest.raises(
        DataError, match=r"found 2 images \(other\.png, preview\.png\) beside .*; move the images"
    ):
        image_folder(tmp_path)


def test_classes_with_numbers_are_in_numeric_order_and_frames_in_that_of_time(tmp_path: Path) -> None:
    for value, name in enumerate(("2/frame_2.png", "2/frame_10.png", "10/a.png", "100/a.png")):
        put(tmp_path / name, value)
    images = image_folder(tmp_path)
    assert (images.classes, values(images)) == (("2", "10", "100"), [0, 1, 2, 3])


def test_hidden_copies_are_no_images(tmp_path: Path) -> None:
    for name in (
        "cat/1.png",
        "cat/.ipynb_checkpoints/1.png",
        "cat/._1.png",
        "__MACOSX/1.png",
        ".git/x/1.png",
    ):
        put(tmp_path / name)
    images = image_folder(tmp_path)
    assert (images.classes, len(images)) == (("cat",), 1)


def test_classes_one_level_deeper_than_expected_are_named(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/1.png"):
        put(tmp_path / name)
    with pytest.warns(
        UserWarning, match=r"the classes are train, val, but .* such as train/cat; .* give .*train as"
    ):
        assert image_folder(tmp_path).classes == ("train", "val")


def test_damaged_images_are_skipped_and_named_on_demand(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        put(tmp_path / name, 9)
    break_(tmp_path / "cat" / "1.png")
    with pytest.raises(
        DataError,
        match=r"cat/1\.png: expected an image, .*; skip_damaged=True .*skip_damaged=true of testtime run",
    ):
        image_folder(tmp_path)[0]
    images = image_folder(tmp_path, skip_damaged=True)
    assert images.labels is not None
    assert (images.skipped, images.labels.tolist(), values(images)) == (("cat/1.png",), [0, 1], [9, 9])
    assert images.subset([1]).skipped == images.skipped
    break_(tmp_path / "dog" / "1.png")
    with pytest.raises(DataError, match=r"found none in dog \(2 are damaged: cat/1\.png, dog/1\.png\)"):
        image_folder(tmp_path, skip_damaged=True)
    put(tmp_path / "flat" / "a.png")
    break_(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match=r"found none \(1 are damaged: a\.png\)"):
        image_folder(tmp_path / "flat", skip_damaged=True)


WNIDS = {"n02099601": 207, "n03028079": 497, "n07753592": 954}


def test_the_wnids_are_those_of_the_outputs() -> None:
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert {wnid: wnids.index(wnid) for wnid in WNIDS} == WNIDS
    assert (wnids[0], wnids[999]) == ("n01440764", "n15075141")  # tench, toilet tissue


def test_a_part_of_imagenet_has_the_labels_of_the_outputs(tmp_path: Path) -> None:
    for wnid in reversed(WNIDS):
        put(tmp_path / "imagenet-r" / wnid / "a.jpg")
        put(tmp_path / "ImageNet-C" / "noise" / "shot_noise" / "5" / wnid / "a.JPEG")
    for images in (imagenet(tmp_path / "imagenet-r"), imagenet_c(tmp_path, "shot_noise")):
        assert images.labels is not None
        assert images.labels.tolist() == list(WNIDS.values())
        assert images.classes == imagenet_wnids()
    put(tmp_path / "imagenet-r" / "extra" / "a.jpg")
    with pytest.raises(DataError, match="found also extra; move"):
        imagenet(tmp_path / "imagenet-r")


def test_the_folders_of_imagenet_v2_are_numbers_of_outputs(tmp_path: Path) -> None:
    for name in ("0", "2", "10", "999"):
        put(tmp_path / name / "a.jpeg", int(name) % 256)
    images = imagenet(tmp_path)
    assert images.labels is not None
    assert (images.labels.tolist(), values(images)) == ([0, 2, 10, 999], [0, 2, 10, 231])


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


@pytest.mark.parametrize("inner", ["", "images/"])
@pytest.mark.parametrize("left", [True, False])
def test_tiny_imagenet_sorted_into_class_folders(tmp_path: Path, inner: str, left: bool) -> None:
    val = tmp_path / "tiny-imagenet-200" / "val"
    for value, wnid in enumerate(("n01", "n02")):
        put(val / wnid / f"{inner}val_{value}.JPEG", 10 * value)
    if left:  # as scripts leave them that move the images
        (val / "images").mkdir()
        (val / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t62\t57\n")
    images = tiny_imagenet(tmp_path)
    assert images.labels is not None
    assert (images.classes, images.labels.tolist(), values(images)) == (("n01", "n02"), [0, 1], [0, 10])
    (val / "n03").mkdir()
    with pytest.raises(DataError, match="found none in class folders n03"):
        tiny_imagenet(tmp_path)


def test_tiny_imagenet_in_part_keeps_the_numbers_of_all_classes(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    put(root / "val" / "images" / "a.JPEG")
    (root / "val" / "val_annotations.txt").write_bytes("\ufeffa.JPEG\tn02\t0 \r\n\r\n".encode())
    (root / "wnids.txt").write_text("n03\nn02\nn01\n")
    images = tiny_imagenet(tmp_path)
    assert images.labels is not None
    assert (images.classes, images.labels.tolist()) == (("n01", "n02", "n03"), [1])


def test_lists_do_not_lead_out_of_their_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.png")
    root = tmp_path / "tiny-imagenet-200" / "val"
    put(root / "images" / "a.JPEG")
    (root / "val_annotations.txt").write_text("../../../secret.png\tn01\n")
    with pytest.raises(DataError, match=r"a list names '\.\./\.\./\.\./secret\.png'"):
        tiny_imagenet(tmp_path)
    (tmp_path / "val_256").mkdir()
    for name in (tmp_path / "secret.png", "../secret.png"):
        (tmp_path / "places365_val.txt").write_text(f"{name} 0\n")
        with pytest.raises(DataError, match="is no file below this folder"):
            places365(tmp_path)


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
    (tmp_path / "categories_places365.txt").write_text("/a/airplane_cabin 1\n/a/airfield 0\n")
    assert places365(tmp_path).classes == ("/a/airfield", "/a/airplane_cabin")
    (tmp_path / "places365_val.txt").write_text("Places365_val_00000002.jpg one\n")
    with pytest.raises(DataError, match="expected a number after each name"):
        places365(tmp_path)


@pytest.mark.parametrize(("rows", "names", "message"), [
    ("a.jpg 2000000000", None, "expected classes 0 to 364, found 2000000000"),
    ("a.jpg 99999999999999999999", None, "expected a number after each name"),
    ("a.jpg 0\na.jpg 1", None, "expected each image once, found a.jpg more than once"),
    ("a.jpg 1", "/a/x 1\n/b/y 2", "expected each number from 0 to 1 once"),
    ("a.jpg 1", "/a/x 0\n/b/y 0\n/b/z 2", "expected each number from 0 to 2 once"),
])  # fmt: skip
def test_lists_of_wrong_numbers_are_refused(
    tmp_path: Path, rows: str, names: str | None, message: str
) -> None:
    put(tmp_path / "val_256" / "a.jpg")
    (tmp_path / "places365_val.txt").write_text(rows)
    if names is not None:
        (tmp_path / "categories_places365.txt").write_text(names)
    with pytest.raises(DataError, match=message):
        places365(tmp_path)


def test_images_that_a_list_does_not_name_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "val" / "images" / f"{name}.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("b.JPEG\tn01\n")
    with pytest.warns(UserWarning, match=r"left out 1 images that it does not name: a\.JPEG"):
        assert len(tiny_imagenet(tmp_path)) == 1


def test_images_beside_the_class_folders_of_tiny_imagenet_are_named(tmp_path: Path) -> None:
    for wnid in ("n01", "n02"):
        put(tmp_path / "val" / wnid / "a.JPEG")
    put(tmp_path / "val" / "images" / "left.JPEG")
    with pytest.warns(UserWarning, match=r"found 1 images \(left\.JPEG\) beside the class folders n01, n02"):
        assert tiny_imagenet(tmp_path).classes == ("n01", "n02")
    put(tmp_path / "val" / "preview.JPEG")
    with pytest.raises(DataError, match="found 2 images"):
        tiny_imagenet(tmp_path)


def test_numbers_beyond_the_outputs_of_imagenet_are_refused(tmp_path: Path) -> None:
    for number in ("1", "1000"):
        put(tmp_path / number / "a.JPEG")
    with pytest.raises(
        DataError, match="expected folders named by the numbers of outputs, 0 to 999, found 1000"
    ):
        imagenet(tmp_path)


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


@pytest.mark.parametrize("stray", ["preview.png", "Greek/preview.png"])
def test_an_image_beside_the_characters_of_omniglot_makes_no_class(tmp_path: Path, stray: str) -> None:
    for character in ("character01", "character02"):
        put(tmp_path / "Greek" / character / "1.png")
    put(tmp_path / stray)
    with pytest.warns(
        UserWarning, match=r"found 1 images \(preview\.png\) beside the class folders Greek/char"
    ):
        images = omniglot(tmp_path)
    assert images.classes == ("Greek/character01", "Greek/character02")


def test_classes_two_levels_deeper_than_expected_are_named(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        put(tmp_path / "noise" / "fog" / name / "1.png")
    with pytest.warns(UserWarning, match=r"such as noise/fog/n01; .* give .*noise.fog as root"):
        image_folder(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_class_folder_that_is_a_link_to_nothing_moves_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "c" / "1.png")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"b: a link to .*nowhere, which does not exist"):
        image_folder(tmp_path)
