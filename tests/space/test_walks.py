"""A walk of one's own: which frames are held out, what they are evaluated on, and the frames as they are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.data import IGNORE
from testtime.errors import DataError
from testtime.scenes.groups import GROUPS
from testtime.space import walks
from testtime.space.walks import StoredFrames, Walk, grouped, write_frames

pytest.importorskip("cv2", reason="pip install -e '.[scenes]'")


def walk_of(folder, count=20, depth=True, size=(24, 32)):
    (folder / "rgb").mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((*size, 3), 10 * i, np.uint8)).save(folder / "rgb" / f"{i}.png")
        if depth:
            (folder / "depth").mkdir(exist_ok=True)
            metres = np.full(size, 1000 + i, np.uint16)
            metres[:, :4] = 0
            Image.fromarray(metres).save(folder / "depth" / f"{i}.png")
    return folder


def label(folder, frames, names=("couch", "keyboard", "Office-Chair"), size=(24, 32)):
    (folder / "labels").mkdir()
    (folder / "labels" / "classes.txt").write_text("\n".join(names))
    for i in frames:
        ids = np.full(size, i % 3, np.uint8)
        ids[:2] = 255
        Image.fromarray(ids).save(folder / "labels" / f"{i}.png")


def test_two_of_ten_blocks_are_held_out(tmp_path):
    walk = Walk(walk_of(tmp_path / "room"), fov=60)
    assert walk.test == [4, 5, 14, 15]
    assert sorted([*walk.train, *walk.test]) == list(range(20))
    assert walk.measured == ("depth",)
    assert walk.sensors == ("rgb", "depth", "normals", "edge")
    assert Walk(tmp_path / "room").sensors == ("rgb", "depth", "edge")  # no intrinsics, no normals


def test_labelled_frames_are_held_out_and_grouped(tmp_path):
    room = walk_of(tmp_path / "room", depth=False)
    label(room, (0, 1, 8))
    walk = Walk(room)
    assert (walk.test, walk.measured) == ([0, 1, 8], ("semseg",))
    assert walk.write(tmp_path / "out", (16, 16), 5, 2) == {
        "train": 5,
        "test": 2,
        "normals": "there is no depth",
    }
    train, test = (StoredFrames(tmp_path / "out" / part) for part in ("train", "test"))
    assert (len(train), train.tasks, train[0].image.shape) == (5, (), (3, 16, 21))  # at the aspect of 24 x 32
    assert (len(test), test.tasks, test.classes) == (2, ("semseg",), tuple(GROUPS))
    assert test[1].image.shape == (3, 16, 16)
    assert test[1].image.mean().item() == pytest.approx(80 / 255)
    named = [test[i].labels["semseg"] for i in range(2)]
    assert set(named[0].unique().tolist()) == {list(GROUPS).index("sofa"), IGNORE}
    assert set(named[1].unique().tolist()) == {list(GROUPS).index("chair"), IGNORE}
    assert (named[1][:1] == IGNORE).all()


def test_of_many_labelled_frames_those_in_the_blocks_are_held_out(tmp_path):
    most = [i for i in range(20) if i not in (4, 5, 14, 15)]
    label(walk_of(tmp_path / "room", depth=False), [*most, 14])
    assert Walk(tmp_path / "room").test == [14]
    label(walk_of(tmp_path / "gaps"), most)
    with pytest.raises(
        DataError, match=r"16 of 20 frames have labels, none of them in the third or the eighth"
    ):
        Walk(tmp_path / "gaps")


def test_depth_is_stored_in_metres_and_nothing_is_made_twice(tmp_path, monkeypatch):
    walk = Walk(walk_of(tmp_path / "room"), fov=60)
    walk.write(tmp_path / "out", (12, 12), 100, 100)
    test = StoredFrames(tmp_path / "out" / "test")
    depth = test[3].labels["depth"]
    assert depth.shape == (1, 12, 12)
    assert depth[depth.isfinite()].unique().tolist() == [pytest.approx(1.015)]
    assert StoredFrames(tmp_path / "out" / "train")[0].labels["depth"].isnan().any()
    (tmp_path / "out" / "test" / "000001.safetensors").unlink()
    made = []
    monkeypatch.setattr(walks, "write_tensors", lambda path, tensors: made.append(path.name))
    walk.write(tmp_path / "out", (12, 12), 100, 100)
    assert made == ["000001.safetensors"]


def test_another_walk_has_another_digest(tmp_path):
    first = Walk(walk_of(tmp_path / "a")).digest
    assert Walk(tmp_path / "a").digest == first
    other = walk_of(tmp_path / "b" / "a")
    assert Walk(other).digest == first  # the place on the disk does not count
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(other / "rgb" / "19.png")
    assert Walk(other).digest != first
    label(tmp_path / "a", (3,))
    assert Walk(tmp_path / "a").digest != first


def test_a_missing_label_of_a_task_is_unknown(tmp_path):
    walk = Walk(walk_of(tmp_path / "room"))
    (found,) = [write_frames(tmp_path / "out", walk.data.subset([2]), ("depth", "semseg"))]
    assert (found[0].labels["semseg"] == IGNORE).all()
    assert torch.equal(found[0].image, walk.data[2].image)


def test_labels_of_a_video_are_beside_it(tmp_path):
    import cv2

    writer = cv2.VideoWriter(str(tmp_path / "walk.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 2, (32, 24))
    for i in range(12):
        writer.write(np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8))
    writer.release()
    label(tmp_path, ())
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "labels" / "frame_000004.png")
    (tmp_path / "labels").rename(tmp_path / "walk-labels")
    walk = Walk(tmp_path / "walk.avi")
    assert (walk.name, walk.measured) == ("walk", ("semseg",))
    assert [walk.data[i].name for i in walk.test] == ["frame_000004"]
    assert walk.label(walk.test[0]).unique().tolist() == [list(GROUPS).index("sofa")]


def test_bad_walks_are_refused_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"expected a video, .*7scenes \(seq-\*/frame-\*\.color\.\*\).*; found nothing"
    ):
        Walk(tmp_path / "empty")
    with pytest.raises(DataError, match="at least 10 frames, found 9"):
        Walk(walk_of(tmp_path / "short", 9))
    with pytest.raises(DataError, match="expected depth or labels of some frames to evaluate on"):
        Walk(walk_of(tmp_path / "plain", depth=False))
    label(tmp_path / "plain", ())
    (tmp_path / "plain" / "labels" / "classes.txt").unlink()
    with pytest.raises(DataError, match="labels: expected classes.txt"):
        Walk(tmp_path / "plain")
    (tmp_path / "plain" / "labels" / "classes.txt").write_text("spaceship\n")
    with pytest.raises(DataError, match=r"expected names of classes such as wall, .*, found spaceship"):
        Walk(tmp_path / "plain")
    with pytest.raises(DataError, match="stored frames"):
        StoredFrames(tmp_path / "short")


def test_every_group_is_its_own():
    names = [name for members in GROUPS.values() for name in members]
    owner = [number for number, members in enumerate(GROUPS.values()) for _ in members]
    assert grouped(names)[: len(names)].tolist() == owner
