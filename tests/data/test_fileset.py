"""Samples in files: decoded on demand, without the labels of missing files, with optional cameras."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.data import Camera, FileSet
from testtime.data.pixels import levels, metres
from testtime.errors import DataError


def make(root: Path, camera: bool = True) -> FileSet:
    for i in range(3):
        Image.new("RGB", (4, 2), (i, 0, 0)).save(root / f"{i}.png")
        if i != 1:
            Image.fromarray(np.full((2, 4), 300 * i, np.uint16)).save(root / f"{i}-depth.png")

    def seen(key: str) -> Camera:
        pose = np.eye(4)
        pose[0, 3] = int(key)
        return Camera(4, 2, 1, 1, 2, 1, pose)

    return FileSet(
        "three",
        ["0", "1", "2"],
        lambda key, task: root / (f"{key}.png" if task == "image" else f"{key}-depth.png"),
        {"depth": lambda path: metres(levels(path), 0.01)},
        camera=seen if camera else None,
    )


def test_samples_have_the_labels_whose_files_exist(tmp_path):
    found = make(tmp_path)
    assert [(s.name, set(s.labels)) for s in found] == [("0", {"depth"}), ("1", set()), ("2", {"depth"})]
    assert found[-1].labels["depth"].tolist() == [[[6.0] * 4] * 2]
    assert found[0].labels["depth"].isnan().all()
    x, labels = found.batch(range(3))
    assert (x.shape, labels["depth"].shape) == ((3, 3, 2, 4), (3, 1, 2, 4))
    (tmp_path / "2.png").unlink()
    assert len(found) == 3  # no file is read yet
    with pytest.raises(DataError, match=r"2\.png: no such file; expected an image"):
        found[2]


def test_a_subset_keeps_its_cameras(tmp_path):
    found = make(tmp_path)
    chosen = found.subset([2, 0])
    assert [s.name for s in chosen] == ["2", "0"]
    assert [chosen.camera(i).pose[0, 3] for i in (0, 1, -1)] == [2, 0, 0]
    with pytest.raises(IndexError, match="no sample 3, there are 3"):
        found.subset([3])
    with pytest.raises(DataError, match="three: no poses"):
        make(tmp_path, camera=False).camera(0)


def test_an_invalid_camera_is_refused():
    with pytest.raises(ValueError, match=r"got OPENCV_FISHEYE \(0\)"):
        Camera(4, 2, 1, 1, 2, 1, np.eye(4), "OPENCV_FISHEYE")
    with pytest.raises(DataError, match="pose of 4 x 4 finite numbers"):
        Camera(4, 2, 1, 1, 2, 1, np.full((4, 4), np.inf))


def test_numbers_are_read_as_stored(tmp_path):
    for name, array in (
        ("8.png", np.array([[0, 255]], np.uint8)),
        ("16.png", np.array([[256, 65535]], np.uint16)),
    ):
        Image.fromarray(array).save(tmp_path / name)
        assert np.array_equal(levels(tmp_path / name), array)
    palette = Image.fromarray(np.array([[3, 200]], np.uint8))
    palette.putpalette([7] * 768)
    palette.save(tmp_path / "p.png")
    assert levels(tmp_path / "p.png").tolist() == [[3, 200]]
    depth = metres(np.array([[0, 512, 65535, 1]]), 1 / 512, (65535,))
    assert torch.equal(depth.nan_to_num(-1), torch.tensor([[[0, 1, -1, 1 / 512]]]))
    with pytest.raises(DataError, match=r"depth of the form \(H, W\), found \(2, 2, 3\)"):
        metres(np.zeros((2, 2, 3)), 1.0)


def test_a_task_without_any_label_is_refused_but_not_in_a_subset(tmp_path):
    found = make(tmp_path)
    assert found.subset([1])[0].labels == {}
    for path in tmp_path.glob("*-depth.png"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"0-depth\.png: no such file, and none of the 3 samples of three has its annotation"
    ):
        FileSet(
            "three",
            ["0", "1", "2"],
            lambda key, task: tmp_path / (f"{key}.png" if task == "image" else f"{key}-depth.png"),
            {"depth": lambda path: metres(levels(path), 0.01)},
        )


@pytest.mark.parametrize(
    "wrong",
    [{"fx": 0.0}, {"fy": float("nan")}, {"cx": float("inf")}, {"width": 0}, {"height": -1}, {"fx": -5.0}],
)
def test_invalid_intrinsics_are_refused(wrong):
    facts = {"width": 4, "height": 2, "fx": 1.0, "fy": 1.0, "cx": 2.0, "cy": 1.0, "pose": np.eye(4)}
    with pytest.raises(DataError, match="focal lengths above 0 and finite numbers"):
        Camera(**{**facts, **wrong})
