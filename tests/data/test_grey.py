import bz2
import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testtime.data import fashion_mnist, mnist, notmnist, read_idx, usps
from testtime.errors import DataError


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return (
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def digits(folder: Path, stem: str = "t10k", packed: bool = True) -> np.ndarray[Any, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", np.array([7, 2, 1], np.uint8))):
        data = idx(array)
        name = f"{stem}-{kind}-ubyte" + (".gz" if packed else "")
        (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return images


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_gzipped_or_plain(tmp_path: Path, packed: bool) -> None:
    images = digits(tmp_path / "mnist", packed=packed)
    for root in (tmp_path, tmp_path / "mnist"):
        found = mnist(root)
        assert found.labels is not None
        assert (found.name, found.labels.tolist()) == ("mnist-test", [7, 2, 1])
        assert np.array_equal(found[1].numpy(), np.repeat(images[1][None], 3, 0))
    assert np.array_equal(mnist(tmp_path, channels=1)[1].numpy()[0], images[1])


def test_the_family_has_its_own_places_and_classes(tmp_path: Path) -> None:
    digits(tmp_path / "FashionMNIST" / "raw", "train")
    fashion = fashion_mnist(tmp_path, "train")
    assert (fashion.name, fashion.classes[7]) == ("fashion_mnist-train", "sneaker")
    digits(tmp_path / "notmnist")
    assert notmnist(tmp_path).classes == tuple("ABCDEFGHIJ")
    for letter, value in (("A", 1), ("B", 2)):
        (tmp_path / "notMNIST_small" / letter).mkdir(parents=True)
        Image.new("L", (28, 28), value).save(tmp_path / "notMNIST_small" / letter / "x.png")
    assert notmnist(tmp_path, channels=1)[1].unique().tolist() == [2]


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\[\.gz\]: no such file"):
        mnist(tmp_path)
    whole = idx(np.zeros((2, 3, 3), np.uint8))
    for data, message in (
        (b"\x89PNG" + whole[4:], "expected the idx magic number 00 00 08, found 89 50 4e 47"),
        (b"\0\0\x0d" + whole[3:], "found 00 00 0d 03"),
        (whole[:-1], r"expected \(2, 3, 3\) values, found 17"),
        (whole[:9], "expected"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_idx(path)
    for data in (b"not gzip", gzip.compress(whole)[:-4]):
        (tmp_path / "x.gz").write_bytes(data)
        with pytest.raises(DataError, match=r"x\.gz: expected a gzipped idx file"):
            read_idx(tmp_path / "x.gz")


def test_images_and_labels_have_to_agree(tmp_path: Path) -> None:
    digits(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(2, np.uint8))))
    with pytest.raises(DataError, match=r"3 images but labels of shape \(2,\)"):
        mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((3, 1), np.uint8))))
    with pytest.raises(DataError, match=r"labels \(N,\), found \(3, 28, 28\) and \(3, 1\)"):
        mnist(tmp_path)


def test_usps_from_folders_and_from_libsvm(tmp_path: Path) -> None:
    for digit in "01":
        folder = tmp_path / "folders" / "usps" / "test" / digit
        folder.mkdir(parents=True)
        Image.new("L", (16, 16), 100 + int(digit)).save(folder / "00000.png")
    images = usps(tmp_path / "folders")
    assert (images.name, images[1].unique().tolist()) == ("usps-test", [101])

    row = " ".join(f"{i + 1}:{-1 + 2 * i / 255:.6f}" for i in range(256))
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(f"10 {row}\n1 {row}\n".encode()))
    packed = usps(tmp_path, channels=1)
    assert packed.labels is not None
    assert packed.labels.tolist() == [9, 0]
    assert packed[0].flatten().tolist() == list(range(256))
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(b"10 1:0.5\n"))
    with pytest.raises(DataError, match="expected rows of a label and 256 values"):
        usps(tmp_path)
    with pytest.raises(DataError, match="USPS: train/<digit>/"):
        usps(tmp_path, "train")


@pytest.mark.parametrize(
    "form", ["{}.idx{}-ubyte", "{0}-idx{1}-ubyte/{0}-idx{1}-ubyte", "{0}.idx{1}-ubyte/{0}.idx{1}-ubyte",
             "{0}-idx{1}-ubyte/{0}.idx{1}-ubyte"]
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_under_the_names_of_mirrors(tmp_path: Path, form: str, packed: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for stem, dims, array in (("t10k-images", 3, images), ("t10k-labels", 1, np.array([7, 2, 1], np.uint8))):
        path = tmp_path / (form.format(stem, dims) + (".gz" if packed else ""))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = mnist(tmp_path, channels=1)
    assert found.labels is not None
    assert found.labels.tolist() == [7, 2, 1]
    assert np.array_equal(found[2].numpy()[0], images[2])


def test_swapped_idx_files_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros((2, 28, 28), np.uint8)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(DataError, match=r"found \(2,\) and \(2, 28, 28\) \(the files are swapped\)"):
        mnist(tmp_path)


def test_idx_files_that_declare_or_expand_to_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31)))
    with pytest.raises(DataError, match="expected 3 sizes of at most"):
        read_idx(path)
    path.write_bytes(gzip.compress(idx(np.zeros((2, 2), np.uint8)) + bytes(10**7)))
    with pytest.raises(DataError, match=r"expected \(2, 2\) values, found more"):
        read_idx(path)


def test_damaged_letters_can_be_skipped(tmp_path: Path) -> None:
    for letter in "AB":
        (tmp_path / "notMNIST_small" / letter).mkdir(parents=True)
        Image.new("L", (28, 28), 2).save(tmp_path / "notMNIST_small" / letter / "x.png")
    (tmp_path / "notMNIST_small" / "A" / "empty.png").write_bytes(b"")
    assert notmnist(tmp_path, skip_damaged=True).skipped == ("A/empty.png",)


@pytest.mark.parametrize(("row", "message"), [
    ("11 1:0", "labels from 0 to 10"), ("0 1:0", "found 0"), ("1.5 1:0", "integers"), ("1 1:nan", "outside of"),
])  # fmt: skip
def test_labels_and_values_of_usps_are_checked(tmp_path: Path, row: str, message: str) -> None:
    rest = " ".join(f"{i}:0" for i in range(2, 257))
    text = f"1 1:0 {rest}\n{row} {rest}\n"
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(text.encode()))
    with pytest.raises(DataError, match=message):
        usps(tmp_path)


@pytest.mark.parametrize(
    ("places", "value"), [(range(256, 0, -1), 0), (range(2, 258), 0), (range(1, 257), 255)]
)
def test_pixels_of_usps_in_another_order_or_range_are_refused(
    tmp_path: Path, places: range, value: int
) -> None:
    text = "1 " + " ".join(f"{place}:{value}" for place in places)
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(text.encode()))
    with pytest.raises(DataError, match="expected rows of a label and 256 values"):
        usps(tmp_path)


def test_empty_lines_of_usps_do_not_count(tmp_path: Path) -> None:
    text = "3 " + " ".join(f"{place}:1" for place in range(1, 257)) + "\n\n"
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(text.encode()))
    assert usps(tmp_path).targets([0]).tolist() == [2]
