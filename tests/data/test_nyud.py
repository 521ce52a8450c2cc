"""NYUD-v2: four releases written as they are published, and the values that come back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from testtime.data import IGNORE, nyud, nyud_layout
from testtime.data.pixels import axes_from_depth, unit_normals
from testtime.errors import DataError

SIZE = 32
NORMALS = np.array([[0.3, 0.5, 0.8], [-0.4, 0.2, 0.9], [0.5, -0.4, 0.7]])
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)
STORED = np.array([-1, 1, -1])  # how the fixtures' normals count, against (right, up, to the viewer)


def plane(normal: np.ndarray) -> np.ndarray:
    """Depth (H, W) of the plane through (0, 0, -2) with this normal, under a field of view of 53 degrees."""
    v, u = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE - 0.5
    return 2 * normal[2] / (normal[2] - normal[0] * u + normal[1] * v)


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(
        path, quality=100, subsampling=0
    ) if path.suffix == ".jpg" else Image.fromarray(array).save(path)


def npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def mat(path: Path, **values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, values)


def labels(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stored ids 0 to 40, depth with a hole, stored normals with a hole, edges."""
    ids = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) + i) % 41
    depth = plane(NORMALS[i])
    depth[0, :5] = 0
    normals = np.broadcast_to(NORMALS[i] * STORED, (SIZE, SIZE, 3)).copy()
    normals[-4:] = 0
    return ids.astype(np.uint8), depth, normals, np.eye(SIZE, dtype=np.uint8) * 255


def coded(normals: np.ndarray) -> np.ndarray:
    return np.rint((normals + 1) / 2 * 255).astype(np.uint8)


def write(root: Path, layout: str, count: int = 3) -> Path:
    names = [f"{7 * i:04d}" for i in range(count)]
    (root / "gt_sets").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate(names):
        ids, depth, normals, edges = labels(i)
        image = np.full((SIZE, SIZE, 3), 10 * (i + 1), np.uint8)
        png(root / "images" / (name + (".png" if layout == "atrc" else ".jpg")), image)
        if layout == "astmt":
            mat(root / "segmentation" / f"{name}.mat", segmentation=ids.astype(np.float32))
            mat(root / "depth" / f"{name}.mat", depth=depth.astype(np.float32))
        else:
            png(root / "segmentation" / f"{name}.png", ids)
            npy(root / "depth" / f"{name}.npy", depth.astype(np.float32)[..., None] if i else depth)
        if layout == "mti":
            npy(root / "normals" / f"{name}.npy", normals.astype(np.float32))
            npy(root / "edge" / f"{name}.npy", (edges / 255).astype(np.float32))
        else:
            png(root / "normals" / (name + (".jpg" if layout == "astmt" else ".png")), coded(normals))
            png(root / "edge" / f"{name}.png", edges)
    return root


@pytest.mark.parametrize("layout", ["astmt", "mti", "atrc"])
def test_three_releases_hold_the_same_labels(tmp_path, layout):
    write(tmp_path / "NYUD_MT", layout)
    found = nyud(tmp_path, "val")
    assert (found.name, len(found), len(found.classes)) == (f"nyud-{layout}-val", 3, 40)
    assert found.tasks == ("semseg", "depth", "normals", "edge")
    assert nyud_layout(tmp_path / "NYUD_MT") == layout
    for i, sample in enumerate(found):
        ids, depth, _, edges = labels(i)
        assert sample.name == f"{7 * i:04d}"
        assert sample.image.shape == (3, SIZE, SIZE)
        assert sample.image.mean().item() == pytest.approx(10 * (i + 1) / 255, abs=1e-6)
        y = sample.labels
        assert y["semseg"].dtype == torch.int64
        assert np.array_equal(y["semseg"], np.where(ids == 0, IGNORE, ids.astype(int) - 1))
        assert y["depth"].shape == (1, SIZE, SIZE)
        assert y["depth"][0, 0, :5].isnan().all()
        assert y["depth"].isnan().sum() == 5
        np.testing.assert_allclose(y["depth"][0, 1:], depth[1:], rtol=1e-6)
        assert np.array_equal(y["edge"][0], edges / 255)
        near = slice(0, SIZE - 8)  # a JPEG's blocks ring at the border of the hole
        want = np.broadcast_to(NORMALS[i][:, None, None], (3, SIZE, SIZE))[:, near]
        np.testing.assert_allclose(y["normals"][:, near], want, atol=0.02)
        np.testing.assert_allclose(y["normals"][:, near].norm(dim=0), 1.0, atol=1e-6)
        assert y["normals"][:, -2:].isnan().all()


def test_the_release_of_mtan_and_libmtl(tmp_path):
    for i in (0, 2, 10):
        ids, depth, normals, _ = labels(i % 3)
        ids = (ids % 14).astype(np.float32) - 1
        image = np.full((SIZE, SIZE, 3), i / 10)
        folder = tmp_path / "nyuv2" / "train"
        for name, array in (
            ("image", image),
            ("label", ids),
            ("depth", depth[..., None]),
            ("normal", normals),
        ):
            npy(folder / name / f"{i}.npy", array)
    found = nyud(tmp_path, "train")
    assert (found.name, found.tasks, len(found.classes)) == (
        "nyud-mtan-train",
        ("semseg", "depth", "normals"),
        13,
    )
    assert [s.name for s in found] == ["0", "2", "10"]  # by number, not as text
    assert [round(s.image.mean().item(), 6) for s in found] == [0.0, 0.2, 1.0]
    ids = labels(0)[0] % 14
    assert np.array_equal(found[0].labels["semseg"], np.where(ids == 0, IGNORE, ids.astype(int) - 1))
    assert found[0].labels["depth"].isnan().sum() == 5
    np.testing.assert_allclose(found[1].labels["normals"][:, 0, 0], NORMALS[2], atol=1e-6)
    with pytest.raises(ValueError, match="tasks must be among"):
        nyud(tmp_path, "train", ["boxes"])
    with pytest.raises(DataError, match=r"expected labels of 'edge', found those of depth, normals, semseg"):
        nyud(tmp_path, "train", ["edge"])
    with pytest.raises(DataError, match="no such folder; expected NYUD-v2's folder val"):
        nyud(tmp_path)


def test_only_what_is_asked_for_is_read(tmp_path):
    write(tmp_path, "atrc")
    (tmp_path / "normals" / "0000.png").write_bytes(b"damaged")
    found = nyud(tmp_path, tasks=["depth"])
    assert [set(s.labels) for s in found] == [{"depth"}] * 3
    with pytest.raises(DataError, match=r"0000\.png: expected an image, found a damaged file"):
        nyud(tmp_path, tasks=["normals"], axes=(1, 1, 1))[0]


def test_a_label_that_is_not_there_is_absent(tmp_path):
    write(tmp_path, "atrc")
    (tmp_path / "segmentation" / "0007.png").unlink()
    found = nyud(tmp_path, tasks=["semseg", "edge"])
    assert [set(s.labels) for s in found] == [{"semseg", "edge"}, {"edge"}, {"semseg", "edge"}]
    _, batch = found.batch([0, 1])
    assert (batch["semseg"][1] == IGNORE).all()
    (tmp_path / "images" / "0014.png").unlink()
    with pytest.raises(DataError, match=r"0014\.png: no such file; expected an image"):
        found[2]


def test_mixed_missing_and_wrong_files_are_named(tmp_path):
    with pytest.raises(DataError, match="as images/ and gt_sets/ or as train/image/"):
        nyud(tmp_path)
    write(tmp_path, "mti", 1)
    for path in (tmp_path / "edge").iterdir():
        path.rename(path.with_suffix(".png"))
    with pytest.raises(
        DataError, match=r"one release .*, found images \.jpg, edge \.png, segmentation \.png"
    ):
        nyud(tmp_path)
    write(tmp_path / "b", "atrc", 1)
    png(tmp_path / "b" / "segmentation" / "0000.png", np.full((SIZE, SIZE), 41, np.uint8))
    with pytest.raises(DataError, match="expected ids 1 to 40, found 41"):
        nyud(tmp_path / "b", tasks=["semseg"])[0]
    png(tmp_path / "b" / "segmentation" / "0000.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    with pytest.raises(DataError, match="expected one channel of whole numbers"):
        nyud(tmp_path / "b", tasks=["semseg"])[0]
    png(tmp_path / "b" / "segmentation" / "0000.png", np.zeros((SIZE, 8), np.uint8))
    with pytest.raises(DataError, match=r"image's height and width \(32, 32\), found \(32, 8\)"):
        nyud(tmp_path / "b", tasks=["semseg"])[0]
    (tmp_path / "b" / "gt_sets" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: no such file; expected the names of the split"):
        nyud(tmp_path / "b", tasks=["semseg"])


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, -1), (1, -1, 1), (-1, 1, 1)])
def test_the_axes_of_normals_are_measured_by_depth(signs):
    stored = [unit_normals(np.broadcast_to(n * np.array(signs), (SIZE, SIZE, 3))) for n in NORMALS]
    depth = [torch.from_numpy(plane(n)).float()[None] for n in NORMALS]
    assert axes_from_depth(zip(stored, depth, strict=True)) == signs


def test_axes_that_cannot_be_measured_are_asked_for(tmp_path):
    wall = unit_normals(np.broadcast_to([0.0, 0.0, 1.0], (SIZE, SIZE, 3)))
    with pytest.raises(DataError, match="give axes="):
        axes_from_depth([(wall, torch.ones(1, SIZE, SIZE))])
    write(tmp_path, "atrc")
    fixed = nyud(tmp_path, tasks=["normals"], axes=(1, 1, 1))[0].labels["normals"][:, 0, 0]
    np.testing.assert_allclose(fixed, NORMALS[0] * STORED, atol=0.02)
