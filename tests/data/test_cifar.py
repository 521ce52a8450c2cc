import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testtime.data import CIFAR100_CLASSES, cifar10, cifar100, cifar_c
from testtime.errors import DataError

Array = np.ndarray[Any, Any]


def pixels(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def binary(path: Path, data: Array, *labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.array(column, np.uint8)[:, None] for column in labels]
    path.write_bytes(np.concatenate([*columns, data], 1).tobytes())


def python(path: Path, data: Array, **labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {b"data": data, **{key.encode(): value for key, value in labels.items()}}
    path.write_bytes(pickle.dumps(table, protocol=2))


def test_binary_batches_hold_a_label_and_planes_of_red_green_blue(tmp_path: Path) -> None:
    data = pixels(3)
    binary(tmp_path / "cifar-10-batches-bin" / "test_batch.bin", data, [7, 0, 9])
    for root in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        images = cifar10(root, complete=False)
        assert images.name == "cifar10-test"
        assert images.labels is not None
        assert images.labels.tolist() == [7, 0, 9]
        assert images.classes[7] == "horse"
        assert np.array_equal(images[2].numpy(), data[2].reshape(3, 32, 32))


def test_training_batches_are_joined_in_order(tmp_path: Path) -> None:
    for i in (1, 2):
        binary(tmp_path / "cifar-10-batches-bin" / f"data_batch_{i}.bin", pixels(2, i), [i, i])
    images = cifar10(tmp_path, "train", complete=False)
    assert images.labels is not None
    assert images.labels.tolist() == [1, 1, 2, 2]
    assert np.array_equal(images[3].numpy().ravel(), pixels(2, 2)[1])
    with pytest.raises(DataError, match="expected 10000 records of 3073 bytes, found 6146 bytes"):
        cifar10(tmp_path, "train")


def test_a_full_batch_is_complete(tmp_path: Path) -> None:
    binary(tmp_path / "test_batch.bin", np.zeros((10_000, 3072), np.uint8), [3] * 10_000)
    assert len(cifar10(tmp_path)) == 10_000


def test_python_batches_are_the_same_images(tmp_path: Path) -> None:
    data = pixels(3)
    python(tmp_path / "py" / "cifar-10-batches-py" / "test_batch", data, labels=[7, 0, 9])
    binary(tmp_path / "bin" / "cifar-10-batches-bin" / "test_batch.bin", data, [7, 0, 9])
    assert (
        cifar10(tmp_path / "py", complete=False).digest()
        == cifar10(tmp_path / "bin", complete=False).digest()
    )


def test_cifar100_gives_the_fine_labels(tmp_path: Path) -> None:
    data = pixels(2)
    binary(tmp_path / "bin" / "cifar-100-binary" / "test.bin", data, [4, 1], [99, 17])
    python(tmp_path / "py" / "cifar-100-python" / "test", data, fine_labels=[99, 17], coarse_labels=[4, 1])
    first, second = (cifar100(tmp_path / kind, complete=False) for kind in ("bin", "py"))
    assert first.labels is not None
    assert [first.classes[i] for i in first.labels] == ["worm", "castle"]
    assert first.digest() == second.digest()
    assert len(CIFAR100_CLASSES) == 100
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)


def test_truncated_missing_and_mislabelled_batches_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected the folder cifar-10-batches-bin"):
        cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    binary(path, pixels(2), [0, 1])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin: .*found 6145 bytes; it is damaged"):
        cifar10(tmp_path, complete=False)
    with pytest.raises(DataError, match=r"data_batch_1\.bin: no such file"):
        cifar10(tmp_path, "train")
    binary(path, pixels(2), [0, 10])
    with pytest.raises(DataError, match="labels from 0 to 10, but 10 classes"):
        cifar10(tmp_path, complete=False)
    with pytest.raises(ValueError, match="split must be one of train, test"):
        cifar10(tmp_path, "val")


def test_python_batches_without_their_parts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    python(path, pixels(2), labels=[1])
    with pytest.raises(DataError, match="found 2 images and 1 labels"):
        cifar10(tmp_path, complete=False)
    python(path, pixels(2)[:, :100], labels=[1, 2])
    with pytest.raises(DataError, match=r"expected 'data' as uint8 \(N, 3072\)"):
        cifar10(tmp_path, complete=False)


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.array([3, 8] * 5))
    return tmp_path


def test_a_severity_is_a_fifth_of_the_file(corrupted: Path) -> None:
    images = cifar_c(corrupted, "fog", 4)
    array = np.load(corrupted / "CIFAR-10-C" / "fog.npy")
    assert images.name == "cifar10-c-fog-4"
    assert images.labels is not None
    assert images.labels.tolist() == [3, 8]
    assert np.array_equal(images[1].numpy(), array[7].transpose(2, 0, 1))
    assert isinstance(images.images.array.base, np.memmap | np.ndarray)  # type: ignore[attr-defined]


def test_wrong_corrupted_files_are_named(corrupted: Path) -> None:
    folder = corrupted / "CIFAR-10-C"
    with pytest.raises(DataError, match=r"snow\.npy: no such file"):
        cifar_c(corrupted, "snow")
    with pytest.raises(ValueError, match="severity must be 1 to 5, got 6"):
        cifar_c(corrupted, "fog", 6)
    np.save(folder / "labels.npy", np.zeros(9, int))
    with pytest.raises(DataError, match=r"labels\.npy: expected 10 labels, .*, found 9"):
        cifar_c(folder, "fog")
    np.save(folder / "fog.npy", np.zeros((10, 3, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"expected uint8 \(5N, 32, 32, 3\), found uint8 \(10, 3, 32, 32\)"):
        cifar_c(corrupted, "fog")
    whole = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"fog\.npy: expected a numpy array"):
        cifar_c(corrupted, "fog")
    np.save(folder / "fog.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"fog\.npy: expected a numpy array"):
        cifar_c(corrupted, "fog")


def test_a_file_of_one_severity_is_read_on_demand_alone(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(10)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match="five times the same 2, once for each severity, .*one_severity=True"):
        cifar_c(tmp_path, "fog", 5)
    for stored in (labels, np.tile(labels, 5)):
        np.save(tmp_path / "labels.npy", stored)
        found = cifar_c(tmp_path, "fog", 3, one_severity=True)
        assert found.labels is not None
        assert (found.name, found.labels.tolist()) == ("cifar10-c-fog-3", labels.tolist())
        assert np.array_equal(found[9].numpy(), images[9].transpose(2, 0, 1))
    with pytest.raises(DataError, match="expected 10 labels, .* found 50"):
        cifar_c(tmp_path, "fog", 5)


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        (np.zeros((10, 3, 32, 32), np.uint8), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((10, 32, 32, 3), np.float32), "round"),
        (np.zeros((0, 32, 32, 3), np.uint8), "fetch it again"),
        (np.zeros((10, 32, 32), np.uint8), "fetch it again"),
    ],
)
def test_corrupted_images_of_another_form_are_refused(tmp_path: Path, images: Array, remedy: str) -> None:
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.zeros(len(images), int))
    with pytest.raises(DataError, match=rf"fog\.npy: expected uint8 \(5N, 32, 32, 3\), .*{remedy}"):
        cifar_c(tmp_path, "fog")


@pytest.mark.parametrize("labels", [np.array([7, 0, 9]), [np.int64(7), np.uint8(0), np.int32(9)], (7, 0, 9)])
def test_labels_of_a_python_batch_may_be_arrays_and_numpy_numbers(tmp_path: Path, labels: Any) -> None:
    data = pixels(3)
    python(tmp_path / "test_batch", data, labels=labels)
    python(tmp_path / "test", data, fine_labels=labels)
    for images in (cifar10(tmp_path, complete=False), cifar100(tmp_path, complete=False)):
        assert images.labels is not None
        assert images.labels.tolist() == [7, 0, 9]


def test_labels_of_a_python_batch_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    python(path, pixels(2), labels=[0, 10])
    with pytest.raises(DataError, match="test_batch: labels from 0 to 10, but 10 classes"):
        cifar10(tmp_path, complete=False)
    python(path, pixels(2), labels=np.array([0.5, 1.0]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected labels that are integers"):
        cifar10(tmp_path, complete=False)
    python(path, pixels(2), coarse_labels=[0, 1])
    with pytest.raises(DataError, match="no list or array of labels among data, coarse_labels"):
        cifar10(tmp_path, complete=False)
