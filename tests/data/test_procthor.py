"""ProcTHOR: houses line by line, events written and read back."""

import gzip
import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from testtime.data import IGNORE, dump_event, procthor, procthor_houses, procthor_records
from testtime.errors import DataError

SIZE = 32
CLASSES = ("Floor", "Chair", "Bed")


def event(yaw: float = 90.0, horizon: float = 30.0, **parts: object) -> SimpleNamespace:
    colours = np.zeros((SIZE, SIZE, 3), np.uint8)  # background has no object
    colours[16:] = (1, 2, 3)
    colours[4:8, 10:20] = (200, 100, 50)
    colours[20:24, 5:9] = (7, 7, 7)
    depth = np.full((SIZE, SIZE), 1.5004, np.float32)
    depth[0], depth[1] = 70.0, np.nan
    values = {
        "frame": np.full((SIZE, SIZE, 3), 51, np.uint8),
        "depth_frame": depth,
        "instance_segmentation_frame": colours,
        "color_to_object_id": {
            (1, 2, 3): "Floor",
            (200, 100, 50): "Chair|1|2",
            (7, 7, 7): "Mug|0|0",
            (9, 9, 9): "Bed|1",
        },
        "instance_detections2D": {"Chair|1|2": np.array([10, 4, 20, 8])},
        "metadata": {
            "agent": {"rotation": {"x": 0.0, "y": yaw, "z": 0.0}, "cameraHorizon": horizon},
            "cameraPosition": {"x": 1.0, "y": 1.5, "z": 2.0},
            "fov": 90.0,
            "objects": [
                {"objectId": "Chair|1|2", "objectType": "Chair"},
                {"objectId": "Mug|0|0", "objectType": "Mug"},
            ],
        },
    }
    return SimpleNamespace(**(values | parts))


def test_an_event_is_written_and_read_back(tmp_path):
    dump_event(tmp_path, "house_1", "000000", event(), CLASSES)
    dump_event(tmp_path, "house_0", "000003", event(instance_segmentation_frame=None), CLASSES)
    found = procthor(tmp_path)
    assert (found.name, found.tasks, found.classes) == ("procthor", ("semseg", "depth"), CLASSES)
    assert [s.name for s in found] == ["house_0/000003", "house_1/000000"]
    assert [set(s.labels) for s in found] == [{"depth"}, {"semseg", "depth"}]
    sample = found[1]
    assert sample.image.unique().tolist() == pytest.approx([0.2])
    depth = sample.labels["depth"]
    assert depth[0, :2].isnan().all()  # too far, and not a number
    np.testing.assert_allclose(depth[0, 2:], 1.5)
    ids = sample.labels["semseg"]
    assert (ids[5, 12], ids[30, 0], ids[21, 6], ids[0, 0]) == (1, 0, IGNORE, IGNORE)
    assert np.asarray(Image.open(tmp_path / "house_1" / "depth" / "000000.png")).dtype == np.uint16
    boxes = procthor_records(tmp_path, "house_1")["000000"]["boxes"]
    assert [(b["instance"], b["object"], b["class"], b["box"]) for b in boxes] == [
        (1, "Chair|1|2", "Chair", [10, 4, 20, 8]),
        (2, "Floor", "Floor", [0, 16, 32, 32]),
        (3, "Mug|0|0", "Mug", [5, 20, 9, 24]),
    ]
    instance = np.asarray(Image.open(tmp_path / "house_1" / "instance" / "000000.png"))
    assert (instance.dtype, instance[5, 12], instance[30, 0], instance[0, 0]) == (np.uint16, 1, 2, 0)


@pytest.mark.parametrize("yaw", [0.0, 90.0, 200.0])
@pytest.mark.parametrize("horizon", [0.0, 30.0, -10.0])
def test_the_pose_is_right_handed_and_has_the_direction_of_the_agent(tmp_path, yaw, horizon):
    dump_event(tmp_path, "h", "0", event(yaw, horizon), CLASSES)
    camera = procthor(tmp_path).camera(0)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (pytest.approx(16), pytest.approx(16), 16, 16)
    turn = camera.pose[:3, :3]
    np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    a, b = np.radians(yaw), np.radians(horizon)
    forward = np.array([np.sin(a) * np.cos(b), -np.sin(b), np.cos(a) * np.cos(b)])  # Unity's, z forward
    np.testing.assert_allclose(turn @ [0, 0, -1], forward * [1, 1, -1], atol=1e-12)
    assert (turn @ [1, 0, 0])[1] == pytest.approx(0)  # no roll
    assert (turn @ [0, 1, 0])[1] > 0
    assert camera.pose[:3, 3].tolist() == [1, 1.5, -2]


def test_houses_are_read_one_at_a_time(tmp_path):
    house = {"rooms": [{"id": "room|2", "roomType": "Kitchen"}], "walls": [], "objects": [], "doors": []}
    lines = "\n".join(json.dumps(house | {"metadata": {"seed": i}}) for i in range(3))
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write(lines + "\n")
    assert [h["metadata"]["seed"] for h in procthor_houses(tmp_path / "train.jsonl.gz")] == [0, 1, 2]
    (tmp_path / "val.jsonl").write_text(lines + '\n{"rooms": [], "walls": []}\n')
    houses = procthor_houses(tmp_path / "val.jsonl")
    assert [next(houses)["metadata"]["seed"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="after 3 of them .a house has objects, this line has none"):
        next(houses)
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "train.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(DataError, match="expected houses of ProcTHOR as JSON"):
        list(procthor_houses(tmp_path / "cut.jsonl.gz"))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"classes\.json: no such file"):
        procthor(tmp_path)
    dump_event(tmp_path, "h", "0", event(), CLASSES)
    with pytest.raises(DataError, match="expected the classes of this call, found others"):
        dump_event(tmp_path, "h", "1", event(), ("Floor",))
    with pytest.raises(DataError, match="lacks 'agent'; see AgentEvent"):
        dump_event(tmp_path, "h", "1", event(metadata={}), CLASSES)
    with pytest.raises(DataError, match=r"frames\.jsonl: no such file; expected a frame on each line"):
        procthor(tmp_path, ["g"])
    (tmp_path / "h" / "frames.jsonl").write_text('{"frame": "0"}\n')
    with pytest.raises(DataError, match="expected pose and fx of 0"):
        procthor(tmp_path).camera(0)
    (tmp_path / "h" / "frames.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="dump it again"):
        procthor(tmp_path)


@pytest.mark.parametrize("frame", ["../../secret", "/etc/passwd", "a/b", "", 7, None])
def test_frames_that_leave_the_folder_are_refused(tmp_path, frame):
    dump_event(tmp_path, "house", "000000", event(), CLASSES)
    (tmp_path / "house" / "frames.jsonl").write_text(json.dumps({"frame": frame}) + "\n")
    with pytest.raises(DataError, match=r"house.*(the name of each frame|no file below this folder)"):
        procthor(tmp_path)


def test_damaged_lines_classes_and_depth_of_8_bits_are_named(tmp_path):
    dump_event(tmp_path, "house", "000000", event(), CLASSES)
    Image.new("L", (32, 32), 90).save(tmp_path / "house" / "depth" / "000000.png")
    with pytest.raises(DataError, match=r"000000\.png: expected numbers of 16 bits"):
        procthor(tmp_path)[0]
    for line in ("[" * 100_000, "[]", "{"):
        (tmp_path / "house" / "frames.jsonl").write_text(line)
        with pytest.raises(DataError, match=r"frames\.jsonl: expected a frame on each line"):
            procthor(tmp_path)
    for text in ("{}", "[1]", "[" * 100_000):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(DataError, match=r"classes\.json: expected"):
            procthor(tmp_path)


def test_a_line_that_expands_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("testtime.data.procthor"), "LINE", 1000)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b" " * 5000)
    with pytest.raises(DataError, match="a line of more than 1000 bytes"):
        next(procthor_houses(tmp_path / "a.jsonl.gz"))


def test_frames_come_in_natural_order(tmp_path):
    for frame in ("10", "9", "1"):
        dump_event(tmp_path, "house", frame, event(), CLASSES)
    assert procthor(tmp_path).keys == ["house/1", "house/9", "house/10"]
