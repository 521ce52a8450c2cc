"""Replica in the format of Omnidata: both layouts, depth of 16 bits, poses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.data import IGNORE, replica
from testtime.errors import DataError

SIZE = 32


def write(root: Path, layout: str, scenes: tuple[str, ...] = ("room_0", "office_1")) -> Path:
    for scene in scenes:
        for view in range(2):
            depth = np.full((SIZE, SIZE), 1024 + view, np.uint16)
            depth[:4] = 65535
            ids = np.full((SIZE, SIZE), 40 + view, np.uint8)
            ids[:, 0] = 0
            files = {
                "rgb": np.full((SIZE, SIZE, 3), 100 + view, np.uint8),
                "depth_zbuffer": depth,
                "normal": np.full((SIZE, SIZE, 3), (127, 127, 255), np.uint8),
                "semantic": ids,
            }
            turn = np.pi / 3
            pose = {
                "camera_location": [0.5, -1.0, 1.5],
                "camera_rotation_final_quaternion": [np.cos(turn / 2), 0, 0, np.sin(turn / 2)],
                "camera_rotation_final": [9, 9, 9],
                "field_of_view_rads": 2 * np.arctan(0.25),
                "resolution": SIZE,
                "point_uuid": 7,
                "view_id": view,
                "camera_uuid": "c",
            }
            for domain in (*files, "point_info"):
                where = f"{domain}/replica/{scene}" if layout == "starter" else f"{scene}/{domain}"
                short = "fixatedpose" if domain == "point_info" else domain
                path = root / where / f"point_7_view_{view}_domain_{short}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if domain == "point_info":
                    path.with_suffix(".json").write_text(json.dumps(pose))
                else:
                    Image.fromarray(files[domain]).save(path.with_suffix(".png"))
        if layout == "annotator":
            (root / scene / "mesh.ply").write_text("ply\n")
            (root / scene / "camera_poses.json").write_text("[]")
    return root


@pytest.mark.parametrize("layout", ["starter", "annotator"])
def test_both_layouts_hold_the_same_labels_and_poses(tmp_path, layout):
    write(tmp_path, layout)
    found = replica(tmp_path, classes=[f"c{i}" for i in range(102)], first_class=1)
    assert found.tasks == ("semseg", "depth", "normals")
    assert [s.name for s in found] == [
        f"{s}/point_7_view_{v}" for s in ("office_1", "room_0") for v in (0, 1)
    ]
    y = found[1].labels
    assert y["depth"][0, :4].isnan().all()
    assert (y["depth"][0, 4:] == 1025 / 512).all()
    np.testing.assert_allclose(y["normals"][:, 3, 3], [0, 0, 1], atol=0.01)
    assert (y["semseg"][:, 0] == IGNORE).all()
    assert (y["semseg"][:, 1:] == 40).all()
    camera = found.camera(2)
    assert camera.fx == pytest.approx(2 * SIZE)
    np.testing.assert_allclose(camera.pose[:3, 0], [0.5, np.sqrt(0.75), 0], atol=1e-12)
    assert camera.pose[:3, 3].tolist() == [0.5, -1.0, 1.5]


def test_scenes_splits_and_partial_labels(tmp_path):
    write(tmp_path, "starter")
    assert {s.name.split("/")[0] for s in replica(tmp_path, [], ["room_0"])} == {"room_0"}
    (tmp_path / "s.csv").write_bytes(b"id,train,val,test\rroom_0,1,0,0\roffice_1,0,0,1\r")
    assert len(replica(tmp_path, [], None, "test", tmp_path / "s.csv")) == 2
    (tmp_path / "depth_zbuffer/replica/room_0/point_7_view_0_domain_depth_zbuffer.png").unlink()
    loose, tight = (replica(tmp_path, ["depth"], ["room_0"], partial_labels=p) for p in (True, False))
    assert ([set(s.labels) for s in loose], len(tight)) == ([set(), {"depth"}], 1)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"expected rgb/replica/<name>/ or <name>/rgb/"):
        replica(tmp_path)
    write(tmp_path, "annotator")
    with pytest.raises(DataError, match="expected labels of 'edge', found those of depth, normals, semseg"):
        replica(tmp_path, ["edge"])
    for path in (tmp_path / "room_0" / "point_info").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no such file; expected the camera of a view"):
        replica(tmp_path, [], ["room_0"]).camera(0)
    with pytest.raises(IndexError, match="no sample 4, there are 4"):
        replica(tmp_path)[4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"field_of_view_rads": 0},
        {"field_of_view_rads": float("nan")},
        {"camera_location": 5},
        {"camera_location": [0, 1]},
        {"camera_location": [0, 1, float("-inf")]},
        {"camera_rotation_final_quaternion": [0, 0, 0, 0]},
        {"camera_rotation_final_quaternion": [float("nan"), 0, 0, 1]},
        {"resolution": 0},
    ],
)
def test_invalid_poses_name_their_file(tmp_path, wrong):
    write(tmp_path, "annotator")
    path = tmp_path / "room_0" / "point_info" / "point_7_view_0_domain_fixatedpose.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(DataError, match=r"point_7_view_0_domain_fixatedpose\.json: expected camera_location"):
        replica(tmp_path, [], ["room_0"]).camera(0)


def test_deep_json_and_depth_of_8_bits_are_refused(tmp_path):
    write(tmp_path, "annotator")
    path = tmp_path / "room_0" / "point_info" / "point_7_view_0_domain_fixatedpose.json"
    path.write_text("[" * 100_000)
    Image.new("L", (SIZE, SIZE), 90).save(
        tmp_path / "room_0/depth_zbuffer/point_7_view_0_domain_depth_zbuffer.png"
    )
    found = replica(tmp_path, ["depth"], ["room_0"])
    with pytest.raises(DataError, match=r"fixatedpose\.json: expected the camera of a view as JSON"):
        found.camera(0)
    with pytest.raises(DataError, match="expected numbers of 16 bits, found 8 bits"):
        found[0]
