"""NYUD-v2: the published releases and the values that are read from them."""

from pathlib import Path

import h5py
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


def test_only_requested_tasks_are_read(tmp_path):
    write(tmp_path, "atrc")
    (tmp_path / "normals" / "0000.png").write_bytes(b"damaged")
    found = nyud(tmp_path, tasks=["depth"])
    assert [set(s.labels) for s in found] == [{"depth"}] * 3
    with pytest.raises(DataError, match=r"0000\.png: expected an image, found a damaged file"):
        nyud(tmp_path, tasks=["normals"], axes=(1, 1, 1))[0]


def test_a_missing_label_is_absent(tmp_path):
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
def test_the_axes_of_normals_are_determined_from_depth(signs):
    stored = [unit_normals(np.broadcast_to(n * np.array(signs), (SIZE, SIZE, 3))) for n in NORMALS]
    depth = [torch.from_numpy(plane(n)).float()[None] for n in NORMALS]
    assert axes_from_depth(zip(stored, depth, strict=True)) == signs


def test_axes_that_depth_does_not_determine_are_required(tmp_path):
    wall = unit_normals(np.broadcast_to([0.0, 0.0, 1.0], (SIZE, SIZE, 3)))
    with pytest.raises(DataError, match="give axes="):
        axes_from_depth([(wall, torch.ones(1, SIZE, SIZE))])
    write(tmp_path, "atrc")
    fixed = nyud(tmp_path, tasks=["normals"], axes=(1, 1, 1))[0].labels["normals"][:, 0, 0]
    np.testing.assert_allclose(fixed, NORMALS[0] * STORED, atol=0.02)


def test_lists_and_folders_of_other_systems_are_read(tmp_path):
    write(tmp_path, "atrc", 2)
    (tmp_path / "gt_sets" / "val.txt").write_bytes("\ufeff0000\r\n\r\n0007\r\n".encode())
    for name in ("images", "depth", "normals", "segmentation", "edge"):
        for clutter in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0000.png", "readme.txt"):
            (tmp_path / name / clutter).write_bytes(b"x")
    found = nyud(tmp_path, tasks=["depth", "semseg"])
    assert (found.name, [s.name for s in found]) == ("nyud-atrc-val", ["0000", "0007"])


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:\\secret"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    write(tmp_path, "atrc", 1)
    (tmp_path / "gt_sets" / "val.txt").write_text(f"0000\n{name}\n")
    with pytest.raises(DataError, match="no file below this folder"):
        nyud(tmp_path, tasks=["depth"])


def test_values_of_another_range_are_refused(tmp_path):
    write(tmp_path / "a", "mti", 1)
    path = tmp_path / "a" / "depth" / "0000.npy"
    npy(path, np.full((SIZE, SIZE), 2000, np.uint16))
    with pytest.raises(DataError, match=r"0000\.npy: expected metres in floats, found uint16"):
        nyud(tmp_path / "a", tasks=["depth"])[0]
    npy(path, np.full((SIZE, SIZE), 2000.0))
    with pytest.raises(DataError, match="found a median of 2000; divide"):
        nyud(tmp_path / "a", tasks=["depth"])[0]
    npy(path, np.zeros(SIZE))
    with pytest.raises(DataError, match=r"0000\.npy: expected depth of the form \(H, W\)"):
        nyud(tmp_path / "a", tasks=["depth"])[0]
    npy(tmp_path / "a" / "edge" / "0000.npy", np.full((SIZE, SIZE), 255.0))
    with pytest.raises(
        DataError, match=r"0000\.npy: expected edges \(H, W\) in \[0, 1\], found .* up to 255"
    ):
        nyud(tmp_path / "a", tasks=["edge"])[0]
    place = tmp_path / "b" / "val"
    npy(place / "image" / "0.npy", np.full((SIZE, SIZE, 3), 255.0))
    npy(place / "label" / "0.npy", np.full((SIZE, SIZE), np.nan))
    with pytest.raises(DataError, match=r"floats \(H, W, 3\) in \[0, 1\], found .* up to 255"):
        nyud(tmp_path / "b")[0]
    npy(place / "image" / "0.npy", np.zeros((SIZE, SIZE, 3)))
    with pytest.raises(DataError, match=r"0\.npy: expected classes as whole numbers, found nan"):
        nyud(tmp_path / "b")[0]


def official(root: Path, count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The authors' file with so many images of 6 x 4 pixels: images, depth and stored classes, as they are in Matlab."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 3, count), np.uint8)
    depths, stored = rng.random((4, 6, count)).astype(np.float32) + 1, rng.integers(0, 5, (4, 6, count))
    depths[0, 0] = 0
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"], file["labels"] = images.T, depths.T, stored.astype(np.uint16).T
    mat(root / "splits.mat", trainNdxs=np.array([[2]]), testNdxs=np.array([[1], [3]]))
    return images, depths, stored


def test_the_release_of_the_authors(tmp_path):
    images, depths, stored = official(tmp_path)
    found = nyud(tmp_path)
    assert (found.name, found.tasks, len(found)) == ("nyud-official-val", ("depth",), 2)
    assert nyud_layout(tmp_path) == "official"
    with pytest.raises(DataError, match=r"classMapping40\.mat: no such file; expected the class of 40"):
        nyud(tmp_path, tasks=["semseg"])
    mapping = np.array([[40, 3, 1, 40]])
    mat(tmp_path / "classMapping40.mat", mapClass=mapping)
    found = nyud(tmp_path)
    assert (found.tasks, found.classes[2]) == (("semseg", "depth"), "cabinet")
    sample = found[1]  # the third image
    assert sample.name == "0003"
    np.testing.assert_allclose(sample.image.numpy(), images[..., 2].transpose(2, 0, 1) / 255, rtol=1e-6)
    assert sample.labels["depth"][0, 0, 0].isnan()
    np.testing.assert_allclose(sample.labels["depth"][0, 1:], depths[1:, :, 2])
    forty = np.concatenate([[0], mapping[0]])[stored[..., 2]]
    assert np.array_equal(sample.labels["semseg"], np.where(forty == 0, IGNORE, forty - 1))
    assert nyud(tmp_path, "train")[0].name == "0002"
    mat(tmp_path / "classMapping40.mat", mapClass=mapping[:, :2])
    with pytest.raises(DataError, match="expected classes below 3, found 4"):
        nyud(tmp_path)[1]
    mat(tmp_path / "splits.mat", trainNdxs=np.array([[2]]), testNdxs=np.array([[4]]))
    with pytest.raises(DataError, match=r"splits\.mat: expected indices from 1 to 3"):
        nyud(tmp_path, tasks=["depth"])
