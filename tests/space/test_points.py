"""Points: everything is made once, in folders named by what it depends on, and no label of the test space is learned from."""

import json
from dataclasses import replace

import pytest
import torch
from space_speck import SPECK

from testtime.space.points import ALL, SENSORS, Lab, Point
from testtime.space.presets import PRESETS, Views

pytest.importorskip("PIL", reason="pip install 'testtime[images]'")
pytest.importorskip("embreex", reason="pip install 'testtime[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install 'testtime[space]'")

SENSED = Point("sensory", "mm", SENSORS, (0,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


def test_a_point_is_run_once_and_read_afterwards(folder):
    lab = Lab(SPECK, folder)
    first = lab.result(SENSED)
    assert set(first) >= {"mIoU", "IoU", "seconds", "objective", "seed"}
    assert 0 <= first["mIoU"] <= 100
    files = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert Lab(SPECK, folder).result(SENSED) == json.loads(json.dumps(first))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == files


def test_another_test_house_shares_pre_training_and_transfer(folder):
    lab = Lab(SPECK, folder)
    lab.result(SENSED)
    models = sorted(p.name for p in (folder / "models").iterdir())
    lab.result(replace(SENSED, name="elsewhere", test=1))
    assert sorted(p.name for p in (folder / "models").iterdir()) == models
    assert len(list((folder / "points").glob("*-in-1-0.json"))) == 1


def test_every_modality_has_its_stream_and_the_transfer_set_gives_pictures_alone(folder):
    lab = Lab(SPECK, folder)
    whole = Point("all", "mm", ALL, (0,))
    model = lab.pretrained(whole)
    names = [s.name for s in model.streams]
    assert names == ["rgb", *(f"tok_{n}" for n in ALL if n != "boxes"), "boxes"]
    assert {s.name: s.vocabulary for s in model.streams}["tok_depth"] == 9
    outside = lab.shards(SPECK.outside, ("rgb",), (0,))
    assert [s.name for s in outside.streams] == ["rgb", "tok_rgb"]
    frames = lab.frames(SPECK.space((0,)), SENSORS)
    assert set(frames[0]) == set(SENSORS)  # no semseg


def test_pre_training_starts_where_the_seed_says_and_moves(folder):
    lab, other = Lab(SPECK, folder), Lab(SPECK, folder, seed=1)
    a, b = lab.pretrained(SENSED), other.pretrained(SENSED)
    assert not torch.equal(a.mask_token, b.mask_token)
    assert torch.equal(a.mask_token, Lab(SPECK, folder).pretrained(SENSED).mask_token)


def test_the_number_of_frames_does_not_depend_on_the_number_of_houses():
    for houses in ((0,), (0, 1), (0, 1, 2, 3)):
        assert SPECK.space(houses).frames == 4
    assert PRESETS["tiny"].space(range(16)).frames == 400
    assert PRESETS["tiny"].test(3) == Views((3,), 100, cameras=1)


def test_houses_of_training_and_of_labels_are_not_the_test_houses():
    for preset in PRESETS.values():
        known = {*preset.outside.houses, *preset.teacher.houses}
        assert not known & set(range(100))
        assert not set(preset.outside.houses) & set(preset.teacher.houses)


def test_mistakes():
    with pytest.raises(ValueError, match="a pre-training needs houses"):
        Point("nowhere", "mm", SENSORS)
    with pytest.raises(ValueError, match="expected houses and a frame of each"):
        Views((1, 2), 1)
