"""Walkthroughs: upright pictures, depth that lies on them, frames of videos extracted once, normals of depth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.errors import DataError
from testtime.space import walkthrough
from testtime.space.walkthrough import (
    Walkthrough,
    extract_frames,
    is_walkthrough,
    sharp,
    sharpness,
)

K = np.array([[50.0, 0, 32], [0, 55.0, 24], [0, 0, 1]])


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Blocks of 4 x 4 pixels of one colour each."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)


def save(path: Path, array: np.ndarray, orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


# --- pictures


def test_pictures_come_in_the_order_of_a_person_and_with_their_values(tmp_path):
    for number in (10, 9, 1):
        save(tmp_path / f"IMG_{number}.png", picture(seed=number))
    walk = Walkthrough(tmp_path)
    assert [s.name for s in walk] == ["IMG_1", "IMG_9", "IMG_10"]
    assert walk.tasks == ()
    assert walk.name == tmp_path.name
    assert np.array_equal((walk[1].image * 255).permute(1, 2, 0).numpy(), picture(seed=9))
    assert [s.name for s in walk.subset([2, 0])] == ["IMG_10", "IMG_1"]
    with pytest.raises(IndexError, match="no frame 3, there are 3"):
        walk[3]


def test_pictures_are_turned_as_exif_says(tmp_path):
    turned = {
        1: lambda x: x,
        3: lambda x: x[::-1, ::-1],
        6: lambda x: np.rot90(x, -1),
        8: lambda x: np.rot90(x),
    }
    turned |= {2: lambda x: x[:, ::-1], 5: lambda x: x.transpose(1, 0, 2)}
    turned |= {7: lambda x: np.rot90(x, 2).transpose(1, 0, 2)}
    for orientation, turn in turned.items():
        save(tmp_path / f"{orientation}" / "a.png", picture(), orientation)
        found = Walkthrough(tmp_path / f"{orientation}")[0].image
        assert np.array_equal((found * 255).permute(1, 2, 0).numpy(), turn(picture()))


def test_depth_as_stored_is_turned_with_its_picture_and_upright_depth_is_not(tmp_path):
    depth = np.arange(24 * 32, dtype=np.float32).reshape(24, 32) + 1
    for orientation, turn in {6: lambda x: np.rot90(x, -1), 8: np.rot90, 5: np.transpose}.items():
        folder = tmp_path / str(orientation)
        save(folder / "a.png", picture(), orientation)
        (folder / "depth").mkdir()
        for stored in (depth / 100, np.ascontiguousarray(turn(depth)) / 100):
            np.save(folder / "depth" / "a.npy", stored)
            found = Walkthrough(folder)[0].labels["depth"]
            assert np.array_equal(found[0].numpy(), turn(depth) / 100)


def test_large_pictures_are_averaged_and_their_camera_follows(tmp_path):
    save(tmp_path / "rgb" / "a.png", picture(48, 64).repeat(2, 0).repeat(2, 1))
    (tmp_path / "intrinsics.json").write_text(json.dumps({"fx": 100, "fy": 90, "cx": 63, "cy": 47}))
    walk = Walkthrough(tmp_path, longest=32)
    image = walk[0].image
    assert image.shape == (3, 24, 32)
    # Each new pixel lies in the middle of half a block; two thirds or more of its weight are the block's.
    exact = torch.from_numpy(picture(48, 64)[::2, ::2]).permute(2, 0, 1) / 255
    assert float((image - exact).abs().mean()) < 0.12
    assert walk.camera(0).k.tolist() == [[25, 0, 15.75], [0, 22.5, 11.75], [0, 0, 1]]


def test_a_field_of_view_replaces_intrinsics(tmp_path):
    save(tmp_path / "a.png", picture())
    k = Walkthrough(tmp_path, fov=90).camera(0).k
    assert np.allclose(k, [[16, 0, 16], [0, 16, 12], [0, 0, 1]], atol=1e-9)
    with pytest.raises(DataError, match=r"no intrinsics are known; give fx, fy, cx, cy"):
        Walkthrough(tmp_path).camera(0)
    with pytest.raises(DataError, match=r"expected intrinsics of an upright picture of 32 x 24"):
        Walkthrough(tmp_path, intrinsics=(900, 900, 960, 540)).camera(0)
    with pytest.raises(DataError, match=r"expected fx, fy, cx, cy in pixels, all above 0"):
        Walkthrough(tmp_path, intrinsics=(900, 900, 960))


def test_depth_in_millimetres_and_in_metres(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png", picture())
    millimetres = np.full((12, 16), 1500, np.uint16)
    millimetres[0, 0], millimetres[0, 1] = 0, 65535
    save(tmp_path / "depth" / "a.png", millimetres)
    metres = np.full((24, 32), 2.5, np.float32)
    metres[3, 4], metres[5, 6] = 0, np.nan
    np.save(tmp_path / "depth" / "b.npy", metres)
    a, b = (s.labels["depth"] for s in Walkthrough(tmp_path))
    # Depth of half the size: each of its pixels stands for four.
    assert a.shape == b.shape == (1, 24, 32)
    assert a[0, :2, :4].isnan().all()
    assert float((a[0, 2:] - 1.5).abs().max()) < 1e-6
    assert float((a[0, :2, 4:] - 1.5).abs().max()) < 1e-6
    assert b.isnan().sum() == 2
    assert bool(b[0, 3, 4].isnan())
    assert float(b[0, 0, 0]) == 2.5
    assert Walkthrough(tmp_path, depth=False).tasks == ()


def test_bad_depth_is_refused(tmp_path):
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture())
    save(tmp_path / "depth" / "a.png", np.full((24, 32), 900, np.uint16))
    with pytest.raises(DataError, match=r"b\.png \(16 bits.*1 of 2 pictures lack depth"):
        Walkthrough(tmp_path)
    np.save(tmp_path / "depth" / "b.npy", np.full((24, 24), 1.0))
    with pytest.raises(
        DataError, match=r"expected depth with the aspect ratio of the picture \(32 x 24\), found 24 x 24"
    ):
        Walkthrough(tmp_path)[1]
    np.save(tmp_path / "depth" / "b.npy", np.full((24, 32), 1800.0))
    with pytest.raises(DataError, match=r"found a median of 1800; divide"):
        Walkthrough(tmp_path)[1]
    np.save(tmp_path / "depth" / "b.npy", np.full((24, 32), 1800))
    with pytest.raises(DataError, match=r"expected metres in floats, found int64"):
        Walkthrough(tmp_path)[1]
    (tmp_path / "depth" / "b.npy").unlink()
    save(tmp_path / "depth" / "b.png", np.full((24, 32), 90, np.uint8))
    with pytest.raises(DataError, match=r"expected numbers of 16 bits, found 8 bits"):
        Walkthrough(tmp_path)[1]


def test_bad_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected pictures .* found none"):
        Walkthrough(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"x")
    with (
        pytest.warns(
            UserWarning, match=r"left out 1 of 1 images, which Pillow does not read here \(\.heic\)"
        ),
        pytest.raises(DataError, match=r"found files of \.heic; export them as JPEG"),
    ):
        Walkthrough(tmp_path)
    with pytest.warns(UserWarning, match="left out 1"):
        assert not is_walkthrough(tmp_path)
    (tmp_path / "a.heic").unlink()
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert is_walkthrough(tmp_path)
    with pytest.raises(DataError, match=r"a\.jpg: expected an image, found a damaged file"):
        Walkthrough(tmp_path)[0]
    save(tmp_path / "a.png", picture())
    with pytest.raises(DataError, match=r"expected one picture of each name"):
        Walkthrough(tmp_path)
    (tmp_path / "a.jpg").unlink()
    save(tmp_path / "a.png", np.full((24, 32), 900, np.uint16))
    with pytest.raises(DataError, match=r"found mode I;16; is it depth\?"):
        Walkthrough(tmp_path)[0]


def test_sharpness_is_the_variance_of_the_laplacian():
    image = torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(1))
    grey = 255 * np.einsum("chw,c->hw", image.numpy().astype(float), [0.299, 0.587, 0.114])
    laplacian = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, 9)
        for x in range(1, 11)
    ]
    assert sharpness(image) == pytest.approx(np.var(laplacian), rel=1e-5)
    assert sharp([10, 10, 4, 10], 0.5) == [0, 1, 3]
    assert sharp([10, 10, 4, 10], 0.3) == [0, 1, 2, 3]
    assert sharp([0.1], 0.9) == [0]


def test_blurred_pictures_are_left_out(tmp_path):
    for i in range(5):
        array = picture(seed=i)
        save(tmp_path / f"{i}.png", np.full_like(array, 128) + (array // 16 if i == 2 else array // 4))
    assert Walkthrough(tmp_path, blur=0.5).keys == ["0", "1", "3", "4"]
    assert len(Walkthrough(tmp_path)) == 5


# --- videos


@pytest.fixture
def video(tmp_path) -> Path:
    """Thirty frames at ten a second, each of one grey but for a bright square; numbers 12 and 20 lack the square."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(30):
        frame = np.full((48, 64, 3), 2 * i, np.uint8)
        if i not in (12, 20):
            frame[8:24, 16:40] = (0, 60, 250)
        writer.write(frame)
    writer.release()
    return path


def test_a_video_is_taken_apart_by_time_or_by_number(video, tmp_path):
    folder = extract_frames(video, tmp_path / "frames", fps=2.5)
    assert [p.name for p in sorted(folder.glob("*.jpg"))] == [f"frame_{i:06d}.jpg" for i in range(0, 30, 4)]
    walk = Walkthrough(folder)
    for i in range(8):
        assert float(walk[i].image[:, 40, 60].mean() * 255) == pytest.approx(8 * i, abs=3)
    red, green, blue = (walk[0].image[:, 16, 28] * 255).tolist()
    assert red > 220
    assert 40 < green < 80
    assert blue < 30
    every = Walkthrough(extract_frames(video, tmp_path / "every", every=12, longest=32))
    assert every.keys == ["frame_000000", "frame_000012", "frame_000024"]
    assert every[0].image.shape == (3, 24, 32)
    # Intrinsics of the video hold for its smaller frames.
    assert Walkthrough(tmp_path / "every", intrinsics=(60, 60, 32, 24)).camera(0).k[0].tolist() == [30, 0, 16]


def test_blurred_frames_of_a_video_are_left_out(video, tmp_path):
    folder = extract_frames(video, tmp_path / "frames", every=4)
    assert Walkthrough(folder, blur=0.5).keys == [f"frame_{i:06d}" for i in (0, 4, 8, 16, 24, 28)]
    known = json.loads((folder / "video.json").read_text())
    assert known["seen"] == 30
    assert known["size"] == [48, 64]
    assert known["frames"]["frame_000000"] == sharpness(Walkthrough(folder)[0].image)


def test_a_killed_extraction_goes_on_and_ends_the_same(video, tmp_path, monkeypatch):
    whole = extract_frames(video, tmp_path / "whole", every=3)
    write, count = walkthrough._write, [0]

    def killed(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] > 4:  # the note is no picture
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(walkthrough, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(video, tmp_path / "killed", every=3)
    assert len(list((tmp_path / "killed").glob("*.jpg"))) == 4
    monkeypatch.setattr(walkthrough, "_write", write)
    before = (tmp_path / "killed" / "frame_000006.jpg").stat().st_mtime_ns
    again = extract_frames(video, tmp_path / "killed", every=3)
    assert (again / "frame_000006.jpg").stat().st_mtime_ns == before
    files = sorted(p.name for p in whole.iterdir())
    assert files == sorted(p.name for p in again.iterdir())
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in files)
    video.write_bytes(video.read_bytes())  # the frames are there: the video is not decoded again
    monkeypatch.setattr(walkthrough, "_grabbed", lambda stream: pytest.fail("decoded again"))
    assert extract_frames(video, tmp_path / "whole", every=3) == whole


def test_bad_videos_are_refused(video, tmp_path):
    with pytest.raises(DataError, match="no such file; expected a video"):
        extract_frames(tmp_path / "none.mp4", tmp_path / "f")
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video" * 50)
    with pytest.raises(DataError, match="OpenCV cannot open; convert it to mp4"):
        extract_frames(damaged, tmp_path / "f")
    extract_frames(video, tmp_path / "f", every=9)
    with pytest.raises(DataError, match="give another folder, or delete it"):
        extract_frames(video, tmp_path / "f", every=10)
    with pytest.raises(ValueError, match="expected fps above 0"):
        extract_frames(video, tmp_path / "f", fps=0)


def test_a_field_of_view_takes_the_place_of_intrinsics(tmp_path):
    save(tmp_path / "a.png", picture(24, 32))
    (tmp_path / "intrinsics.json").write_text(json.dumps({"fx": 40, "fy": 41, "cx": 15, "cy": 11}))
    assert Walkthrough(tmp_path).camera(0).k[0, 0] == 40
    assert Walkthrough(tmp_path, fov=90.0).camera(0).k[0, 0] == pytest.approx(16.0)  # half of the longer side
    with pytest.raises(ValueError, match="expected intrinsics or fov, got both"):
        Walkthrough(tmp_path, intrinsics=(40, 41, 15, 11), fov=90.0)
