"""PASCAL-Context: the published folders and the values that are read from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from testtime.data import IGNORE, VOC21, pascal_context
from testtime.data.pascal_context import thinned
from testtime.errors import DataError

SIZE = 32
NAMES = ("2008_000002", "2008_000003", "2010_006103")


def png(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)


def mat(path: Path, **values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, values)


def label_map() -> np.ndarray:
    labels = np.full((SIZE, SIZE), 416, np.uint16)
    labels[:, 16:] = 25
    return labels


def mask(rows: slice, columns: slice = slice(0, SIZE)) -> np.ndarray:
    found = np.zeros((SIZE, SIZE), np.uint8)
    found[rows, columns] = 1
    return found


def structs(rows: list[dict[str, object]]) -> np.ndarray:
    """A Matlab struct array of the fields of the first row."""
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    return array


def anno(people: bool) -> dict[str, object]:
    parts = [("head", slice(0, 4)), ("leye", slice(1, 2)), ("neck", slice(4, 6)), ("lhand", slice(8, 10))]
    parts += [("ruleg", slice(16, 20)), ("rfoot", slice(28, 30))]
    body = structs([{"part_name": name, "mask": mask(rows, slice(0, 8))} for name, rows in parts])
    wheel = structs([{"part_name": "fwheel", "mask": mask(slice(0, 32))}])
    things: list[dict[str, object]] = [
        {"class": "car", "class_ind": 7, "mask": mask(slice(0, 32)), "parts": wheel},
        {"class": "person", "class_ind": 15, "mask": mask(slice(0, 32)), "parts": np.zeros((0, 0))},
    ]
    if people:
        things.append({"class": "person", "class_ind": 15, "mask": mask(slice(0, 32)), "parts": body})
    return {"imname": "x", "objects": structs(things)}


def write(root: Path) -> Path:
    (root / "ImageSets" / "Context").mkdir(parents=True)
    (root / "ImageSets" / "Context" / "val.txt").write_text("\n".join(NAMES) + "\n")
    (root / "JPEGImages").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (SIZE, SIZE), (40 * i,) * 3).save(root / "JPEGImages" / f"{name}.jpg")
        ids = np.full((SIZE, SIZE), i + 9, np.uint8)
        ids[0] = 255
        png(root / "semseg" / ("pascal-context" if i == 2 else "VOC12") / f"{name}.png", ids, "P")
        normals = np.full((SIZE, SIZE, 3), (204, 127, 229), np.uint8)
        normals[:2] = 127
        png(root / "normals_distill" / f"{name}.png", normals)
        saliency = np.full((SIZE, SIZE), 127, np.uint8)
        saliency[3] = 128
        png(root / "sal_distill" / f"{name}.png", saliency)
        mat(root / "pascal-context" / "trainval" / f"{name}.mat", LabelMap=label_map())
        mat(root / "human_parts" / f"{name}.mat", anno=anno(i > 0))
    return root


def test_every_task_of_the_published_folders(tmp_path):
    write(tmp_path / "PASCAL_MT")
    found = pascal_context(tmp_path)
    assert (found.name, len(found), found.classes) == ("pascal-context-val", 3, VOC21)
    assert found.tasks == ("semseg", "normals", "edge", "human_parts", "saliency")
    assert (VOC21[5], VOC21[11], VOC21[20]) == ("bottle", "diningtable", "tvmonitor")
    for i, sample in enumerate(found):
        assert sample.name == NAMES[i]
        assert sample.image.mean().item() == pytest.approx(40 * i / 255, abs=5e-3)
        y = sample.labels
        assert (y["semseg"][0] == IGNORE).all()
        assert (y["semseg"][1:] == i + 9).all()  # the palette's index, not its colour
        want = np.array([204, 127, 229]) * 2 / 255 - 1
        np.testing.assert_allclose(y["normals"][:, 9, 9], want / np.linalg.norm(want), atol=1e-6)
        assert y["normals"][:, :2].isnan().all()
        assert not y["normals"][:, 2:].isnan().any()
        assert y["saliency"].shape == (1, SIZE, SIZE)
        assert y["saliency"].sum() == SIZE
        assert (y["saliency"][0, 3] == 1).all()
        assert set(y["edge"].unique().tolist()) == {0.0, 1.0}
        assert (y["edge"][0, 2:-2].sum(1) == 1).all()  # one pixel wide
        assert y["edge"][0, :, :15].sum() + y["edge"][0, :, 17:].sum() == 0


def test_people_have_six_parts_and_images_without_have_no_label(tmp_path):
    write(tmp_path)
    found = pascal_context(tmp_path, tasks=["human_parts"])
    assert "human_parts" not in found[0].labels
    parts = found[1].labels["human_parts"]
    assert parts.dtype == torch.int64
    rows = parts[:, 0].tolist()
    assert [rows[r] for r in (0, 1, 4, 8, 16, 28, 31)] == [1, 1, 2, 4, 5, 6, 0]
    assert (parts[:, 8:] == 0).all()
    _, batch = found.batch([0, 1])
    assert (batch["human_parts"][0] == IGNORE).all()


def test_normals_of_chosen_classes_and_axes(tmp_path):
    write(tmp_path)
    y = pascal_context(tmp_path, tasks=["normals"], axes=(-1, 1, -1), normal_classes=[25])[0].labels[
        "normals"
    ]
    assert y[:, :, :16].isnan().all()
    assert not y[:, 2:, 16:].isnan().any()
    assert y[0, 9, 20] < 0
    assert y[2, 9, 20] < 0


def test_files_of_other_tasks_need_not_exist(tmp_path):
    write(tmp_path)
    for path in [*(tmp_path / "human_parts").iterdir(), *(tmp_path / "sal_distill").iterdir()]:
        path.unlink()
    (tmp_path / "semseg" / "VOC12" / f"{NAMES[1]}.png").unlink()
    found = pascal_context(tmp_path, tasks=["semseg", "normals"])
    assert [set(s.labels) for s in found] == [{"semseg", "normals"}, {"normals"}, {"semseg", "normals"}]
    with pytest.raises(
        DataError, match="none of the 3 samples of pascal-context-val has its annotation of 'saliency'"
    ):
        pascal_context(tmp_path, tasks=["semseg", "saliency"])
    (tmp_path / "sal_distill").rmdir()
    (tmp_path / "human_parts").rmdir()
    assert "saliency" not in pascal_context(tmp_path).tasks
    with pytest.raises(DataError, match="expected labels of 'saliency', found those of edge, normals"):
        pascal_context(tmp_path, tasks=["saliency"])


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"val\.txt: no such file; expected the names of the split"):
        pascal_context(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, val"):
        pascal_context(tmp_path, "test")
    mat(tmp_path / "pascal-context" / "trainval" / f"{NAMES[0]}.mat", other=label_map())
    with pytest.raises(DataError, match=f"{NAMES[0]}.mat: expected a Matlab file with LabelMap"):
        pascal_context(tmp_path, tasks=["edge"])[0]
    mat(tmp_path / "human_parts" / f"{NAMES[0]}.mat", anno={"imname": "x"})
    with pytest.raises(DataError, match=r"expected anno\.objects with class_ind"):
        pascal_context(tmp_path, tasks=["human_parts"])[0]


def test_thinning_keeps_lines_and_connected_parts():
    line = np.zeros((9, 9), bool)
    line[4, 1:8] = True
    assert (thinned(line) == line).all()
    ring = np.zeros((15, 15), bool)
    ring[2:13, 2:13] = True
    ring[6:9, 6:9] = False
    thin = thinned(ring)
    assert 0 < thin.sum() < 40
    assert not (thin[:-1, :-1] & thin[1:, :-1] & thin[:-1, 1:] & thin[1:, 1:]).any()
    outside = np.zeros_like(thin)  # flood from the corner: the hole stays closed
    outside[0, 0] = True
    for _ in range(60):
        p = np.pad(outside, 1)
        outside = (p[:-2, 1:-1] | p[2:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:] | outside) & ~thin
    assert not outside[7, 7]
