"""Taskonomy in its two layouts: 16-bit files, splits with bare carriage returns, views matched by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.data import FORBIDDEN_BUILDINGS, IGNORE, TASKONOMY17, taskonomy
from testtime.data.omnidata import read_split
from testtime.errors import DataError

SIZE = 32
DOMAINS = (
    "rgb",
    "depth_zbuffer",
    "depth_euclidean",
    "normal",
    "edge_occlusion",
    "edge_texture",
    "segment_semantic",
)


def arrays(value: int) -> dict[str, np.ndarray]:
    ramp = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE)
    depth = (512 * (value + 1) + ramp).astype(np.uint16)
    depth[0] = 65535
    normal = np.full((SIZE, SIZE, 3), (127, 229, 204), np.uint8)  # down and towards the viewer, as stored
    normal[0] = 127
    ids = (ramp % 18).astype(np.uint8)
    return {
        "rgb": np.full((SIZE, SIZE, 3), 10 * value, np.uint8),
        "depth_zbuffer": depth,
        "depth_euclidean": depth[::-1].copy(),
        "normal": normal,
        "edge_occlusion": np.where(ramp < 100, 205, np.where(ramp < 200, 60000, 0)).astype(np.uint16),
        "edge_texture": np.where(ramp < 100, 65535, 0).astype(np.uint16),
        "segment_semantic": ids,
    }


def write(root: Path, layout: str, views: dict[str, list[tuple[int, int]]]) -> Path:
    for building, pairs in views.items():
        for value, (point, view) in enumerate(pairs):
            for domain, array in arrays(value).items():
                where = f"{domain}/taskonomy/{building}" if layout == "omnidata" else f"{building}/{domain}"
                short = {"segment_semantic": "segmentsemantic"}.get(
                    domain, domain
                )  # as the releases abbreviate
                path = root / where / f"point_{point}_view_{view}_domain_{short}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            where = f"point_info/taskonomy/{building}" if layout == "omnidata" else f"{building}/point_info"
            pose = {
                "camera_location": [1.0, 2.0, 3.0],
                "camera_rotation_final": [np.pi / 2, 0.0, np.pi / 2],
                "field_of_view_rads": 2 * np.arctan(0.5),
                "resolution": SIZE,
            }
            path = root / where / f"point_{point}_view_{view}_domain_fixatedpose.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(pose))
    return root


VIEWS = {"allensville": [(2, 0), (10, 1)], "beechwood": [(0, 0)], "rough": [(0, 0)]}


@pytest.mark.parametrize("layout", ["omnidata", "first"])
def test_both_layouts_hold_the_same_labels(tmp_path, layout):
    write(tmp_path, layout, VIEWS)
    found = taskonomy(tmp_path)
    assert (found.name, found.classes) == ("taskonomy", TASKONOMY17)
    assert found.tasks == ("semseg", "depth", "normals", "edge")
    names = [s.name for s in found]
    assert names == ["allensville/point_2_view_0", "allensville/point_10_view_1", "beechwood/point_0_view_0"]
    sample, ramp = found[1], np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    assert sample.image.mean().item() == pytest.approx(10 / 255)
    y = sample.labels
    assert y["depth"][0, 0].isnan().all()  # 65535
    np.testing.assert_allclose(y["depth"][0, 1:], 2 + ramp[1:] / 512)
    want = np.array([127, -229 + 255, 204]) * 2 / 255 - 1  # y points up
    np.testing.assert_allclose(y["normals"][:, 5, 5], want / np.linalg.norm(want), atol=1e-6)
    assert y["normals"][1, 5, 5] < 0
    assert y["normals"][:, 0].isnan().all()
    assert y["edge"][0, 0, 0].item() == pytest.approx(205 / 409.6)
    assert y["edge"].max() == 1.0
    raw = ramp % 18
    assert np.array_equal(y["semseg"], np.where(raw == 0, IGNORE, raw - 1))
    assert (TASKONOMY17[13 - 1], TASKONOMY17[3 - 1]) == ("sink", "chair")
    camera = found.camera(0)
    assert (camera.fx, camera.cx, camera.width) == (pytest.approx(SIZE), SIZE / 2, SIZE)
    np.testing.assert_allclose(
        camera.pose[:3, :3] @ [0, 0, -1], [-1, 0, 0], atol=1e-12
    )  # the viewing direction is -x
    np.testing.assert_allclose(camera.pose[:3, :3] @ [0, 1, 0], [0, 0, 1], atol=1e-12)  # upright
    assert camera.pose[:3, 3].tolist() == [1, 2, 3]


def test_extra_tasks_are_read_on_request(tmp_path):
    write(tmp_path, "omnidata", VIEWS)
    y = taskonomy(tmp_path, ["distance", "edge_texture"])[0].labels
    assert set(y) == {"distance", "edge_texture"}
    assert y["distance"][0, -1].isnan().all()
    assert y["edge_texture"].unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match="tasks must be among semseg"):
        taskonomy(tmp_path, ["keypoints"])


def test_splits_are_read_with_all_line_endings(tmp_path):
    write(tmp_path, "omnidata", VIEWS)
    table = tmp_path / "train_val_test_tiny.csv"
    for end in (b"\r", b"\r\n", b"\n"):
        rows = [b"id,train,val,test", b"allensville,0,1,0", b"beechwood,1,0,0", b"rough,1,0,0"]
        table.write_bytes(end.join(rows) + end)
        assert [s.name for s in taskonomy(tmp_path, [], "train", table)] == ["beechwood/point_0_view_0"]
        found = taskonomy(tmp_path, ["depth"], "val", table)
        assert (found.name, len(found)) == ("taskonomy-val", 2)
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        taskonomy(tmp_path, split="dev", splits=table)
    with pytest.raises(ValueError, match="go together"):
        taskonomy(tmp_path, split="train")
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"expected the columns id, train, val, test, found \['a', 'b'\]"):
        taskonomy(tmp_path, split="train", splits=table)
    assert "rough" in FORBIDDEN_BUILDINGS


def test_views_are_intersected_or_partly_labelled(tmp_path):
    write(tmp_path, "omnidata", VIEWS)
    (tmp_path / "normal/taskonomy/allensville/point_2_view_0_domain_normal.png").unlink()
    (tmp_path / "rgb/taskonomy/allensville/point_10_view_1_domain_rgb.png").unlink()
    assert [s.name for s in taskonomy(tmp_path)] == ["beechwood/point_0_view_0"]
    assert [s.name for s in taskonomy(tmp_path, ["depth"])] == [
        "allensville/point_2_view_0",
        "beechwood/point_0_view_0",
    ]
    loose = taskonomy(tmp_path, partial_labels=True)
    assert [set(s.labels) for s in loose] == [
        {"semseg", "depth", "edge"},
        {"semseg", "depth", "normals", "edge"},
    ]
    (tmp_path / "normal/taskonomy/beechwood/point_0_view_0_domain_normal.png").unlink()
    with pytest.raises(DataError, match="expected labels of 'normals', found those of depth"):
        taskonomy(tmp_path, ["normals", "depth"], buildings=["beechwood"])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"expected rgb/taskonomy/<name>/ or <name>/rgb/ with images"):
        taskonomy(tmp_path)
    write(tmp_path, "first", VIEWS)
    with pytest.raises(DataError, match=r"images of wiconisco \(1 of 2 are not here\)"):
        taskonomy(tmp_path, buildings=["beechwood", "wiconisco"])
    (tmp_path / "beechwood/point_info/point_0_view_0_domain_fixatedpose.json").write_text("{}")
    with pytest.raises(DataError, match="expected camera_location"):
        taskonomy(tmp_path, buildings=["beechwood"]).camera(0)
    Image.new("L", (SIZE, SIZE), 18).save(
        tmp_path / "beechwood/segment_semantic/point_0_view_0_domain_segmentsemantic.png"
    )
    with pytest.raises(DataError, match="expected ids 1 to 17, found 18"):
        taskonomy(tmp_path, ["semseg"], buildings=["beechwood"])[0]


def test_a_split_with_other_columns_names_its_line(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_bytes("\ufeffid,train,val,test\r\na,1,0,0\r\n\r\nb,1,0,0\r\n".encode())
    assert read_split(path, "train") == ["a", "b"]
    for line in ("c,1,0", "c,1,0,0,1"):
        path.write_text(f"id,train,val,test\na,1,0,0\n{line}\n")
        with pytest.raises(DataError, match=rf"splits\.csv: expected 4 columns .* found the line '{line}'"):
            read_split(path, "train")


@pytest.mark.parametrize(("rows", "message"), [
    ("b1,yes", "expected 0 or 1 in the column train, found 'yes' of b1"),
    ("b1,1.0", "found '1.0' of b1"),
    (f'"{"x" * 200_000}",1', "expected a table of the splits, found otherwise"),
])  # fmt: skip
def test_tables_of_splits_with_other_values_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    table = tmp_path / "split.csv"
    table.write_text(f"id,train\n{rows}\n")
    with pytest.raises(DataError, match=message):
        read_split(table, "train")
