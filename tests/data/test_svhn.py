import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from testtime.data import svhn
from testtime.errors import DataError


def test_images_come_from_the_last_axis_and_label_10_is_zero(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": x, "y": np.array([[1], [10], [9], [5]], np.uint8)})
    images = svhn(tmp_path)
    assert images.labels is not None
    assert (images.name, images.labels.tolist()) == ("svhn-test", [1, 0, 9, 5])
    assert np.array_equal(images[2].numpy(), x[..., 2].transpose(2, 0, 1))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "svhn" / "train_32x32.mat"
    with pytest.raises(DataError, match=r"train_32x32\.mat: no such file"):
        svhn(tmp_path, "train")
    path.parent.mkdir()
    path.write_bytes(b"\0" * 200)
    with pytest.raises(DataError, match="expected a Matlab file with [Xy], found otherwise"):
        svhn(tmp_path, "train")
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    with pytest.raises(DataError, match="expected a Matlab file with [Xy], found otherwise"):
        svhn(tmp_path, "train")
    savemat(path, {"X": np.zeros((2, 32, 32, 3), np.uint8), "y": np.array([1, 2])})
    with pytest.raises(
        DataError, match=r"expected X as uint8 \(32, 32, 3, N\), found uint8 \(2, 32, 32, 3\)"
    ):
        svhn(tmp_path, "train")
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([1, 2, 3])})
    with pytest.raises(DataError, match=r"2 images but labels of shape \(3,\)"):
        svhn(tmp_path, "train")
    savemat(
        path, {"X": np.random.default_rng(0).integers(0, 9, (32, 32, 3, 9), np.uint8)}, do_compression=True
    )
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="expected a Matlab file with [Xy], found otherwise"):
        svhn(tmp_path, "train")


def test_scipy_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.full((32, 32, 3, 2), 7, np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": x, "y": np.array([[1], [10]], np.uint8)})
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert len(svhn(tmp_path)) == 2


def test_labels_are_1_to_10(tmp_path: Path) -> None:
    for wrong in (11, -1):
        y = np.array([[1], [wrong]], np.int16)
        savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": y})
        with pytest.raises(
            DataError, match=r"test_32x32\.mat: (labels from 1 to 11|expected labels 1 to 10, found -1)"
        ):
            svhn(tmp_path)
