"""Frames of a space: layouts recognised by their files, and sensors with normals computed from depth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_house import Changed, small_house

from testtime.data import Camera
from testtime.errors import DataError
from testtime.scenes import SceneSet
from testtime.space.alignment import alignment
from testtime.space.normals import normals_of
from testtime.space.sources import SensorSet, read_space
from testtime.space.walkthrough import Walkthrough

pytest.importorskip("vector_quantize_pytorch")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return small_house()


# --- sensors


def test_normals_are_made_of_depth_where_a_camera_is_known(scenes):
    sensed = SensorSet(Changed(scenes, only="depth"), radius=1)
    assert sensed.tasks == ("depth", "normals", "edge")
    assert sensed.normals == "of depth"
    labels = sensed[2].labels
    exact = normals_of(scenes[2].labels["depth"], scenes.camera(2).k)
    assert torch.equal(labels["normals"].nan_to_num(9), exact.nan_to_num(9))
    assert torch.equal(labels["depth"], scenes[2].labels["depth"])

    class Nowhere(Changed):
        camera = None

        def __getattribute__(self, name: str):
            if name == "camera":
                raise AttributeError(name)
            return super().__getattribute__(name)

    blind = SensorSet(Nowhere(scenes, only="depth"))
    assert blind.tasks == ("depth", "edge")
    assert blind.normals == "no intrinsics are known"
    assert SensorSet(scenes).normals == "sensed"


def test_a_frame_without_a_camera_takes_the_first_that_is_known(scenes):
    class Some(Changed):
        def camera(self, index: int) -> Camera:
            if index != 4:
                raise DataError("not this one")
            return self.data.camera(4)

    found = SensorSet(Some(scenes, only="depth"), radius=1)[7].labels["normals"]
    exact = normals_of(scenes[7].labels["depth"], scenes.camera(4).k)
    assert torch.equal(found.nan_to_num(9), exact.nan_to_num(9))


# --- sources


def test_layouts_are_distinguished(tmp_path, scenes):
    from testtime.scenes import Recipe, make

    make(tmp_path / "scenes", [Recipe(seed=1, frames=2, size=(16, 16))])
    found = read_space(tmp_path / "scenes")
    assert (len(found), found.tasks) == (2, ("depth", "normals"))
    assert [s.name for s in found] == ["default_00001/00000", "default_00001/00001"]

    chess = tmp_path / "chess" / "seq-01"
    chess.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((6, 8, 3), 10, np.uint8)).save(chess / f"frame-{i:06d}.color.png")
        Image.fromarray(np.full((6, 8), 1200, np.uint16)).save(chess / f"frame-{i:06d}.depth.png")
        (chess / f"frame-{i:06d}.pose.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1")
    found = read_space(tmp_path / "chess")
    assert (found.name, found.tasks, len(found)) == ("7scenes-chess", ("depth",), 2)
    assert SensorSet(found).normals == "of depth"

    views = tmp_path / "replica" / "rgb" / "replica" / "room_0"
    views.mkdir(parents=True)
    Image.fromarray(np.full((6, 8, 3), 10, np.uint8)).save(views / "point_0_view_0_domain_rgb.png")
    found = read_space(tmp_path / "replica")
    assert (found.name, found.tasks) == ("replica", ())

    Image.fromarray(np.full((6, 8, 3), 10, np.uint8)).save(tmp_path / "a.png")
    assert isinstance(read_space(tmp_path, "walk-through"), Walkthrough)
    with pytest.raises(
        DataError,
        match=r"the layout of scenes \(spaces/\*/space\.json\), replica .*; found default_00001; where",
    ):
        read_space(chess.parent.parent / "scenes" / "rgb")
    with pytest.raises(DataError, match="no such file or folder"):
        read_space(tmp_path / "none")
    with pytest.raises(ValueError, match="layout must be one of scenes, walk-through"):
        read_space(tmp_path, "mine")


def test_a_video_comes_with_depth_and_intrinsics_beside_it(tmp_path, scenes):
    import cv2

    writer = cv2.VideoWriter(str(tmp_path / "walk.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    (tmp_path / "walk-depth").mkdir()
    for i in range(6):
        picture = (scenes[i].image * 255).round().byte().permute(1, 2, 0).numpy()
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
        metres = scenes[i].labels["depth"][0].numpy()
        millimetres = np.rint(metres * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(tmp_path / "walk-depth" / f"frame_{i:06d}.png")
    writer.release()
    (tmp_path / "intrinsics.json").write_text(json.dumps({"fx": 40, "fy": 40, "cx": 32, "cy": 24}))
    walk = read_space(tmp_path / "walk.avi", frames=tmp_path / "out", every=1, blur=0)
    assert (walk.name, len(walk), walk.tasks) == ("walk", 6, ("depth",))
    for i in range(6):
        assert float((walk[i].image - scenes[i].image).abs().mean()) < 0.03
        assert torch.allclose(walk[i].labels["depth"], scenes[i].labels["depth"], atol=6e-4)
    assert SensorSet(walk).normals == "of depth"
    assert alignment(walk, "depth").warning == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 3}, "every would have no effect on such pictures"),
        ({"blur": 0.9, "fps": 1.0}, "fps, blur would have no effect on such pictures"),
        ({"spaces": ["a"]}, "spaces would have no effect on such pictures"),
        ({"layout": "replica", "fov": 60.0}, "fov would have no effect on the layout replica"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, options, message):
    Image.fromarray(np.full((6, 8, 3), 10, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        read_space(tmp_path, **options)
