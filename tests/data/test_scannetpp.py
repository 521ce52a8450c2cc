"""ScanNet++: the folders of the release, the fisheye's cameras in two worlds, and the iPhone's packed depth."""

import json
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.data import (
    IGNORE,
    iphone_depth,
    scannetpp_cameras,
    scannetpp_dslr,
    scannetpp_frames,
    scannetpp_iphone,
    scannetpp_scenes,
    unpack_iphone_depth,
)
from testtime.errors import DataError

SIZE = 32
SCENE = "0a5c013435"
LENS = (20.0, 21.0, 15.5, 16.5)
FISHEYE = (0.1, -0.02, 0.003, -0.0004)
NAMES = ("DSC00001.JPG", "DSC00002.JPG", "DSC00010.JPG", "DSC00020.JPG")
HALF = np.sqrt(0.5)


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def colmap(folder: Path, camera: str, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"# Camera list\n#   CAMERA_ID, MODEL, ...\n1 {camera}\n")
    rows = ["# Image list"]
    for i, name in enumerate(names):  # a quarter turn about x: the viewing direction is the world's y
        rows += [
            f"{i + 1} {HALF} {HALF} 0 0 {i} 2 3 1 {name}",
            "1.0 2.0 -1 3.0 4.0 -1 5.0 6.0 7" if i else "",
        ]
    (folder / "images.txt").write_text("\n".join(rows) + "\n")


def write(root: Path) -> Path:
    dslr = root / "data" / SCENE / "dslr"
    (root / "splits").mkdir(parents=True)
    (root / "splits" / "nvs_sem_train.txt").write_text(f"{SCENE}\n7b6477cb95\n")
    frames = []
    for i, name in enumerate(NAMES):
        picture(dslr / "resized_images" / name, np.full((SIZE, SIZE, 3), 60 * i, np.uint8))
        pose = np.eye(4)
        pose[0, 3] = i
        frames.append(
            {"file_path": name, "mask_path": name.replace("JPG", "png"), "transform_matrix": pose.tolist()}
        )
    frames[1]["is_bad"] = True
    frames[0]["is_bad"] = False
    table = dict(zip(("fl_x", "fl_y", "cx", "cy"), LENS, strict=True)) | {"w": SIZE, "h": SIZE}
    table |= {f"k{i + 1}": k for i, k in enumerate(FISHEYE)} | {"camera_model": "OPENCV_FISHEYE"}
    table |= {"frames": frames[:3], "test_frames": frames[3:]}
    (dslr / "nerfstudio").mkdir()
    (dslr / "nerfstudio" / "transforms.json").write_text(json.dumps(table))
    numbers = " ".join(map(str, (*LENS, *FISHEYE)))
    colmap(dslr / "colmap", f"OPENCV_FISHEYE {SIZE} {SIZE} {numbers}", NAMES)
    return root


def write_labels(root: Path) -> Path:
    for i, name in enumerate(NAMES[:3]):
        depth = np.full((SIZE, SIZE), 2500 + i, np.uint16)
        depth[0] = 0
        picture(root / "data" / SCENE / "dslr" / "render_depth" / f"{Path(name).stem}.png", depth)
    ids = np.full((SIZE, SIZE), 2, np.uint8)
    ids[0] = 255
    picture(root / "sem" / SCENE / "DSC00001.png", ids)
    picture(root / "sem" / SCENE / "DSC00010.JPG.png", ids)
    (root / "metadata" / "semantic_benchmark").mkdir(parents=True)
    (root / "metadata" / "semantic_benchmark" / "top100.txt").write_text("wall\nceiling\nfloor\n")
    return root / "sem"


def test_the_frames_of_the_dslr_and_their_metadata(tmp_path):
    write(tmp_path)
    assert scannetpp_scenes(tmp_path, "nvs_sem_train") == [SCENE, "7b6477cb95"]
    frames = scannetpp_frames(tmp_path, SCENE)
    assert [(f.name, f.is_bad, f.is_test) for f in frames] == [
        ("DSC00001.JPG", False, False),
        ("DSC00002.JPG", True, False),
        ("DSC00010.JPG", False, False),
        ("DSC00020.JPG", False, True),
    ]
    camera = frames[2].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == LENS
    assert (camera.model, camera.distortion) == ("OPENCV_FISHEYE", FISHEYE)
    assert camera.pose[:3, 3].tolist() == [2, 0, 0]
    assert frames[2].mask == "DSC00010.png"
    for part, bad, count in (("train", False, 2), ("train", True, 3), ("test", False, 1), ("all", True, 4)):
        assert len(scannetpp_dslr(tmp_path, [SCENE], part, bad)) == count


def test_the_cameras_of_colmap_have_the_right_directions(tmp_path):
    write(tmp_path)
    found = scannetpp_dslr(tmp_path, [SCENE])
    assert [s.name for s in found] == [f"{SCENE}/DSC00001.JPG", f"{SCENE}/DSC00010.JPG"]
    camera = found.camera(1)
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.distortion) == (*LENS, FISHEYE)
    # world to camera: (x, y, z) -> (x, -z, y) + (2, 2, 3), x right, y down, z forward
    np.testing.assert_allclose(camera.pose[:3, 3], [-2, -3, 2], atol=1e-12)  # where that is 0
    np.testing.assert_allclose(camera.pose[:3, :3] @ [0, 0, -1], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(camera.pose[:3, :3] @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    assert np.linalg.det(camera.pose) == pytest.approx(1)


def test_rendered_depth_and_rasterised_semantics_are_read_where_they_are(tmp_path):
    semantics = write_labels(write(tmp_path))
    found = scannetpp_dslr(tmp_path, [SCENE], "all", bad=True, semantics=semantics)
    assert (found.tasks, found.classes) == (("depth", "semseg"), ("wall", "ceiling", "floor"))
    sets = [set(s.labels) for s in found]
    assert sets == [{"depth", "semseg"}, {"depth"}, {"depth", "semseg"}, set()]
    y = found[2].labels
    assert y["depth"][0, 0].isnan().all()
    np.testing.assert_allclose(y["depth"][0, 1:], 2.502)
    assert (y["semseg"][0] == IGNORE).all()
    assert (y["semseg"][1:] == 2).all()
    with pytest.raises(DataError, match="expected labels of 'semseg', found those of depth"):
        scannetpp_dslr(tmp_path, [SCENE], tasks=["semseg"])


def depth(i: int) -> np.ndarray:
    frame = np.full((192, 256), 1.25 + i, np.float32)
    frame[0] = 0
    return frame


def deflated(frames: list[np.ndarray]) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return b"".join(packer.compress(f.tobytes()) for f in frames) + packer.flush()


def test_depth_in_one_stream_and_frame_by_frame(tmp_path):
    path = tmp_path / "depth.bin"
    frames = [depth(i) for i in range(3)]
    for packed in (
        deflated(frames),
        b"".join(struct.pack("<I", len(z)) + z for z in (zlib.compress(f.tobytes()) for f in frames)),
    ):
        path.write_bytes(packed)
        assert [np.array_equal(a, b) for a, b in zip(iphone_depth(path), frames, strict=True)] == [True] * 3
        path.write_bytes(packed[:-9])
        with pytest.raises(DataError, match="expected frames of depth, found damage"):
            list(iphone_depth(path))


def test_depth_compressed_by_lz4_requires_lz4(tmp_path, monkeypatch):
    payload = b"\xf0not zlib"
    (tmp_path / "depth.bin").write_bytes(struct.pack("<I", len(payload)) + payload)
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(ImportError, match="pip install lz4"):
        next(iphone_depth(tmp_path / "depth.bin"))

    def decompress(data: bytes, uncompressed_size: int) -> bytes:
        assert (data, uncompressed_size) == (payload, 192 * 256 * 2)
        return np.full(192 * 256, 1234, "<u2").tobytes()

    block = types.ModuleType("lz4.block")
    block.decompress, block.LZ4BlockError = decompress, RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lz4", types.ModuleType("lz4"))
    monkeypatch.setitem(sys.modules, "lz4.block", block)
    (frame,) = iphone_depth(tmp_path / "depth.bin")
    np.testing.assert_allclose(frame, 1.234)


def test_the_frames_of_the_iphone(tmp_path):
    phone = tmp_path / "data" / SCENE / "iphone"
    phone.mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"expected frame_000000\.jpg and on, found none; take them out of .*ffmpeg"
    ):
        scannetpp_iphone(tmp_path, [SCENE])
    for i in range(3):
        picture(phone / "rgb" / f"frame_{i:06d}.jpg", np.full((384, 512, 3), 80 * i, np.uint8))
    (phone / "depth.bin").write_bytes(deflated([depth(i) for i in range(3)]))
    with pytest.raises(DataError, match="unpack it once with unpack_iphone_depth"):
        scannetpp_iphone(tmp_path, [SCENE])
    assert scannetpp_iphone(tmp_path, [SCENE], []).tasks == ()
    assert unpack_iphone_depth(tmp_path, SCENE, every=2) == 2
    stored = np.asarray(Image.open(phone / "depth" / "frame_000002.png"))
    assert (stored.dtype, stored[5, 5]) == (np.uint16, 3250)
    ids = np.zeros((384, 512), np.uint8)
    ids[:, 256:] = 1
    picture(tmp_path / "sem" / SCENE / "frame_000000.png", ids)
    colmap(phone / "colmap", "PINHOLE 512 384 400 400 256 192", ("frame_000000.jpg",))
    found = scannetpp_iphone(tmp_path, [SCENE], semantics=tmp_path / "sem", classes=("a", "b"))
    assert [set(s.labels) for s in found] == [{"depth", "semseg"}, set(), {"depth"}]
    sample = found[0]
    assert sample.image.shape == (3, 192, 256)
    assert sample.labels["depth"][0, 0].isnan().all()
    assert (sample.labels["depth"][0, 1:] == 1.25).all()
    assert np.array_equal(sample.labels["semseg"], ids[::2, ::2])
    assert found[2].image.mean().item() == pytest.approx(160 / 255, abs=5e-3)
    camera = found.camera(0)
    assert (camera.fx, camera.cx, camera.height, camera.width) == (200, 128, 192, 256)
    with pytest.raises(DataError, match="has no pose of this frame"):
        found.camera(1)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match="expected the scene abc of ScanNet"):
        scannetpp_dslr(tmp_path, ["abc"])
    with pytest.raises(DataError, match=r"nvs_test\.txt: no such file; expected the scenes of the split"):
        scannetpp_scenes(tmp_path, "nvs_test")
    write(tmp_path)
    dslr = tmp_path / "data" / SCENE / "dslr"
    (dslr / "colmap" / "cameras.txt").write_text("1 RADIAL 4 4 1 2 2 0 0\n")
    with pytest.raises(DataError, match="expected a model of SIMPLE_PINHOLE"):
        scannetpp_cameras(tmp_path, SCENE)
    (dslr / "nerfstudio" / "transforms.json").write_text('{"frames": [{}]}')
    with pytest.raises(DataError, match="expected w, h, fl_x"):
        scannetpp_frames(tmp_path, SCENE)
    (dslr / "nerfstudio" / "transforms.json").write_text("{")
    with pytest.raises(DataError, match="the frames of a scene as JSON, found otherwise"):
        scannetpp_frames(tmp_path, SCENE)


def test_scenes_that_leave_the_folder_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "splits" / "nvs_sem_train.txt").write_text(f"{SCENE}\n../../secret\n")
    with pytest.raises(DataError, match="no file below this folder"):
        scannetpp_scenes(tmp_path, "nvs_sem_train")
    with pytest.raises(DataError, match="no file below this folder"):
        scannetpp_dslr(tmp_path, ["../splits"])


@pytest.mark.parametrize("numbers", ["0 0 0 0 1 2 3", "nan 0 0 1 1 2 3", "1 0 0 0 -inf 2 3", "1 0 0 0 x 2 3"])
def test_invalid_poses_name_their_file_and_line(tmp_path, numbers):
    write(tmp_path)
    path = tmp_path / "data" / SCENE / "dslr" / "colmap" / "images.txt"
    path.write_text(f"1 {numbers} 1 {NAMES[0]}\n")
    with pytest.raises(
        DataError, match=rf"images\.txt: expected a quaternion and a position in the line '1 {numbers}"
    ):
        scannetpp_cameras(tmp_path, SCENE)


def test_frames_of_an_iphone_that_expand_too_far_are_refused(tmp_path):
    packed = zlib.compress(bytes(2**24))
    (tmp_path / "depth.bin").write_bytes(struct.pack("<I", len(packed)) + packed)
    with pytest.raises(DataError, match="expected frames of depth, found damage"):
        list(iphone_depth(tmp_path / "depth.bin"))
    (tmp_path / "depth.bin").write_bytes(struct.pack("<I", 2**32 - 1) + packed)
    with pytest.raises(DataError, match="a frame of 4294967295 bytes ends after"):
        list(iphone_depth(tmp_path / "depth.bin"))
