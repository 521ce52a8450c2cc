"""7-Scenes: millimetres of 16 bits, poses, splits; on real frames, one view warped onto another."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.data import seven_scenes
from testtime.errors import DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def write(root: Path) -> Path:
    for number in (1, 2, 10):
        folder = root / f"seq-{number:02d}"
        folder.mkdir(parents=True)
        for i in range(2):
            stem = folder / f"frame-{i:06d}"
            Image.new("RGB", (32, 32), (number, 0, 0)).save(f"{stem}.color.png")
            depth = np.full((32, 32), 1500 + i, np.uint16)
            depth[0], depth[1] = 0, 65535
            Image.fromarray(depth).save(f"{stem}.depth.png")
            pose = np.eye(4)
            pose[:3, 3] = number, 2, 3
            Path(f"{stem}.pose.txt").write_text(
                "\n".join("\t ".join(f"{v:.7e}" for v in row) for row in pose)
            )
    (root / "TrainSplit.txt").write_text("sequence1\nsequence10\n")
    (root / "TestSplit.txt").write_text("sequence2\n")
    return root


def test_depth_poses_and_splits(tmp_path):
    scene = write(tmp_path / "chess")
    found = seven_scenes(scene, "train")
    assert (found.name, found.tasks) == ("7scenes-chess-train", ("depth",))
    assert [s.name for s in found] == [f"seq-{n}/frame-00000{i}" for n in ("01", "10") for i in (0, 1)]
    depth = found[1].labels["depth"]
    assert depth[0, :2].isnan().all()
    np.testing.assert_allclose(depth[0, 2:], 1.501)
    camera = found.camera(2)
    assert (camera.fx, camera.cx, camera.width) == (585, 320, 32)
    assert camera.pose.tolist() == [[1, 0, 0, 10], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]]
    (scene / "camera-intrinsics.txt").write_text("5 0 3\n0 6 4\n0 0 1")
    assert seven_scenes(scene, "test").camera(0).k.tolist() == [[5, 0, 3], [0, 6, 4], [0, 0, 1]]
    assert len(seven_scenes(scene)) == 6
    assert len(seven_scenes(scene, sequences=[10])) == 2


def test_depth_is_reprojected_to_the_colour_camera(tmp_path):
    scene = write(tmp_path / "chess")
    (scene / "camera-intrinsics.txt").write_text("20 0 16\n0 20 16\n0 0 1")
    rows, columns = np.mgrid[:32, :32]
    stored = 1000 + 40 * rows + columns
    Image.fromarray(stored.astype(np.uint16)).save(scene / "seq-01" / "frame-000000.depth.png")
    seen = seven_scenes(scene, sequences=[1], colour_lens=(10.0, 0.0))[0].labels["depth"][0].numpy()
    expected = np.full((32, 32), np.nan)  # pixel by pixel, the nearest wins
    for y, x in np.ndindex(32, 32):
        v, u = (int(np.rint((c - 16) / 2 + 16)) for c in (y, x))
        expected[v, u] = np.nanmin([expected[v, u], stored[y, x] / 1000])
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert np.isnan(seen[:7]).all()
    aside = seven_scenes(scene, sequences=[1], colour_lens=(20.0, 0.2))[0].labels["depth"][0].numpy()
    for y, x in ((10, 20), (20, 12)):
        z = stored[y, x] / 1000
        assert aside[y, x - round(20 * 0.2 / z)] == pytest.approx(z)
    camera = seven_scenes(scene, sequences=[1], colour_lens=(10.0, 0.0)).camera(0)
    assert (camera.fx, camera.fy, camera.cx) == (10, 10, 16)
    with pytest.raises(ValueError, match="in pixels and positive, got -1"):
        seven_scenes(scene, colour_lens=(-1, 0))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="expected the folder seq-01, found none"):
        seven_scenes(tmp_path)
    scene = write(tmp_path / "chess")
    with pytest.raises(DataError, match="expected the folder seq-03, found seq-"):
        seven_scenes(scene, sequences=[3])
    (scene / "seq-01" / "frame-000000.pose.txt").write_text("1 2 3")
    found = seven_scenes(scene)
    with pytest.raises(DataError, match="expected 4 x 4 numbers"):
        found.camera(0)
    (scene / "seq-01" / "frame-000000.depth.png").unlink()
    assert found[0].labels == {}


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data ({SHARED}) is not here")
def test_a_real_frame_lands_on_the_next_by_depth_pose_and_intrinsics():
    data = ROOT / ".data"
    if not (data / "7scenes").exists():
        subprocess.run([sys.executable, SHARED / "unpack.py", "--to", data, "rgbd_7scenes"], check=True)
    found = seven_scenes(data / "7scenes")
    assert len(found) == 63
    gaps = []
    for i in (5, 20, 40):
        here, there = found.camera(i), found.camera(i + 1)
        depth, target = (found[j].labels["depth"][0].double().numpy() for j in (i, i + 1))
        v, u = np.mgrid[: here.height : 4, : here.width : 4]
        z = depth[v, u]
        points = np.stack([(u - here.cx) / here.fx * z, -(v - here.cy) / here.fy * z, -z, np.ones_like(z)])
        points = np.linalg.inv(there.pose) @ here.pose @ points[:, np.isfinite(z)]
        z = -points[2]
        column = np.rint(points[0] / z * there.fx + there.cx).astype(int)
        row = np.rint(-points[1] / z * there.fy + there.cy).astype(int)
        seen = (column >= 0) & (column < there.width) & (row >= 0) & (row < there.height)
        gaps.append(np.nanmedian(np.abs(target[row[seen], column[seen]] - z[seen])))
    assert max(gaps) < 0.015  # metres


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-inf -inf -inf -inf\n" * 4, r"expected 4 x 4 finite numbers, found \[\[-inf"),
        ("nan 0 0 0\n" * 4, "expected 4 x 4 finite numbers"),
        ("1 0 0 0\n" * 3, "expected 4 x 4 numbers"),
        ("1 0 0 0\n0 1 0 0 7\n0 0 1 0\n0 0 0 1\n", "such as '0 1 0 0 7'"),
        ("1 0 0 x\n" * 4, "could not convert string to float: 'x'"),
        ("", "found an empty file"),
    ],
)
def test_invalid_poses_name_their_file(tmp_path, text, message):
    scene = write(tmp_path / "chess")
    (scene / "seq-01" / "frame-000001.pose.txt").write_text(text)
    with pytest.raises(DataError, match=rf"frame-000001\.pose\.txt: .*{message}"):
        seven_scenes(scene).camera(1)


def test_invalid_intrinsics_and_depth_of_8_bits_are_refused(tmp_path):
    scene = write(tmp_path / "chess")
    (scene / "camera-intrinsics.txt").write_text("-5 0 3\n0 6 4\n0 0 1")
    with pytest.raises(DataError, match="focal lengths above 0"):
        seven_scenes(scene, depth=False).camera(0)
    (scene / "camera-intrinsics.txt").unlink()
    Image.new("L", (32, 32), 200).save(scene / "seq-01" / "frame-000000.depth.png")
    with pytest.raises(DataError, match=r"000000\.depth\.png: expected numbers of 16 bits, found 8 bits"):
        seven_scenes(scene)[0]


@pytest.mark.parametrize("line", ["sequence", "sequence1 2", "1.5"])
def test_invalid_lines_of_a_split_name_the_list(tmp_path, line):
    scene = write(tmp_path / "chess")
    (scene / "TrainSplit.txt").write_text(f"sequence1\n{line}\n")
    with pytest.raises(
        DataError, match=rf"TrainSplit\.txt: expected lines such as 'sequence3', found '{line}'"
    ):
        seven_scenes(scene, "train")


def test_files_of_operating_systems_are_ignored(tmp_path):
    scene = write(tmp_path / "chess")
    (scene / "TrainSplit.txt").write_bytes("\ufeffsequence1\r\n\r\n".encode())
    for name in ("._frame-000000.color.png", "Thumbs.db"):
        (scene / "seq-01" / name).write_bytes(b"x")
    (scene / "seq-xx").mkdir()
    assert len(seven_scenes(scene, "train")) == 2
