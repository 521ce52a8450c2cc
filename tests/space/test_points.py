"""Points: everything is made once, in folders named by what it depends on, and no label of the test space is learned from."""

import json
from dataclasses import replace

import pytest
import torch
from space_speck import SPECK

from testtime.space.measures import family_of
from testtime.space.points import ALL, SENSORS, Lab, Point
from testtime.space.presets import PRESETS, Place, Views, houses

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install -e '.[space]'")

HOME = houses((0,))
SENSED = Point("sensory", "mm", SENSORS, HOME)


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
    lab.result(replace(SENSED, name="elsewhere", test=Place(1)))
    assert sorted(p.name for p in (folder / "models").iterdir()) == models
    assert len(list((folder / "points").glob("*-segmentation-in-*.json"))) == 2


def test_every_modality_has_its_stream_and_the_transfer_set_gives_pictures_alone(folder):
    lab = Lab(SPECK, folder)
    whole = Point("all", "mm", ALL, HOME)
    model = lab.pretrained(whole)
    names = [s.name for s in model.streams]
    assert names == ["rgb", *(f"tok_{n}" for n in ALL if n != "boxes"), "boxes"]
    assert {s.name: s.vocabulary for s in model.streams}["tok_depth"] == 9
    outside = lab.shards(SPECK.outside, ("rgb",), whole)
    assert [s.name for s in outside.streams] == ["rgb", "tok_rgb"]
    frames = lab.frames(SPECK.space(HOME), SENSORS)
    assert set(frames[0]) == set(SENSORS)  # no semseg


def test_pre_training_starts_where_the_seed_says_and_moves(folder):
    lab, other = Lab(SPECK, folder), Lab(SPECK, folder, seed=1)
    a, b = lab.pretrained(SENSED), other.pretrained(SENSED)
    assert not torch.equal(a.mask_token, b.mask_token)
    assert torch.equal(a.mask_token, Lab(SPECK, folder).pretrained(SENSED).mask_token)


def test_the_number_of_frames_does_not_depend_on_the_number_of_houses():
    for count in (1, 2, 4):
        assert SPECK.space(houses(range(count))).frames == 4
    tiny = PRESETS["tiny"]
    assert tiny.space(houses(range(16))).frames == tiny.frames // 16 * 16
    assert tiny.test(Place(3)) == Views((Place(3),), tiny.tests, cameras=1)


def test_houses_of_training_and_of_labels_are_not_the_test_houses():
    for preset in PRESETS.values():
        known = {p.house for p in (*preset.outside.places, *preset.teacher.places)}
        assert not known & set(range(100))
        assert not {*preset.outside.places} & {*preset.teacher.places}


def test_mistakes():
    with pytest.raises(ValueError, match="a pre-training needs places"):
        Point("nowhere", "mm", SENSORS)
    with pytest.raises(ValueError, match="expected places and a frame of each"):
        Views(houses((1, 2)), 1)
    with pytest.raises(ValueError, match="whole houses, or parts"):
        Views((Place(1), Place(2, room=0)), 4)
    with pytest.raises(ValueError, match="nothing is measured as 'mIou'"):
        family_of("mIou")


def test_every_measure_of_a_point(folder):
    lab = Lab(SPECK, folder)
    whole = Point("all", "mm", ALL, HOME)
    found = lab.result(whole, "depth R@1")
    for asked in ("depth", "picture"):
        assert 0 <= found[f"{asked} R@1"] <= found[f"{asked} R@5"] == 100  # three frames
    assert found["chance R@1"] == pytest.approx(100 / 3)
    assert 0 <= lab.result(whole, "CIDEr-D")["scene graph F"] <= 100
    frozen = Point("frozen", "mae", ("rgb",), HOME, frozen=True)
    found = lab.result(frozen, "mIoU after")
    assert found["mIoU before"] == lab.result(frozen)["mIoU"]
    assert 0 <= found["mIoU after"] <= 100
    with pytest.raises(ValueError, match="TTT-MAE needs TST-MAE"):
        lab.result(whole, "mIoU after")
    with pytest.raises(ValueError, match="retrieval needs TST-MM with depth and features"):
        lab.result(SENSED, "depth R@1")


def test_the_pseudo_labeller_is_judged_as_it_is(folder):
    lab = Lab(SPECK, folder)
    point = Point("itself", "teacher")
    x, labels = lab.read(SPECK.test(point.test)).batch(range(3))
    answer, truth = lab.teacher().classes(x), labels["semseg"]
    iou = [
        100 * ((answer == c) & (truth == c)).sum() / ((answer == c) & (truth != 255) | (truth == c)).sum()
        for c in range(13)
        if ((truth == c) | ((answer == c) & (truth != 255))).any() and (truth == c).any()
    ]
    found = lab.result(point)["IoU"]
    assert [v for c, v in enumerate(found.values()) if (truth == c).any()] == pytest.approx(
        [float(v) for v in iou]
    )
    assert not list((folder / "transfers").glob("teacher*"))


def test_boxes_are_measured(folder):
    pytest.importorskip("pycocotools", reason="pip install -e '.[space]'")
    assert 0 <= Lab(SPECK, folder).result(SENSED, "AP50")["AP50"] <= 100


def test_a_frozen_encoder_stays_what_pre_training_made_of_it(folder):
    lab = Lab(SPECK, folder)
    frozen = Point("frozen", "mae", ("rgb",), HOME, frozen=True)
    before, after = lab.encoder(frozen).state_dict(), lab.transferred(frozen).encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_pre_training_goes_on_with_the_same_tokens_where_the_place_has_changed(folder):
    lab = Lab(SPECK, folder)
    later = replace(SENSED, later=(Place(0, shift="cold", moved=1),), more=0.67)
    first = lab.pretrained(SENSED)
    before = {p.name for p in (folder / "tokenizers").iterdir()}
    then = lab.pretrained(later)
    assert not torch.equal(first.mask_token, then.mask_token)
    assert {p.name for p in (folder / "tokenizers").iterdir()} == before
    lines = (folder / "models" / lab._model(later) / "losses.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 1  # two of three steps


def test_no_effort_is_the_model_as_it_was_born(folder):
    lab = Lab(SPECK, folder)
    born = lab.pretrained(replace(SENSED, effort=0.0))
    again = Lab(SPECK, folder).pretrained(replace(SENSED, effort=0.0))
    assert torch.equal(born.mask_token, again.mask_token)
    assert not (folder / "models" / lab._model(replace(SENSED, effort=0.0))).exists()


def test_an_untrained_teacher_is_another(folder):
    lab = Lab(SPECK, folder)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(lab.teacher().features(x), lab.teacher(taught=False).features(x))
    a, b = (replace(SENSED, modalities=("rgb", "features"), taught=t) for t in (True, False))
    assert lab._model(a) != lab._model(b)
    assert lab.tokenizer("depth", a).state_dict().keys() == lab.tokenizer("depth", b).state_dict().keys()
    assert len(list((folder / "tokenizers").glob("depth-*"))) == 1


def test_labels_of_the_place_itself_are_few_or_all_for_as_many_steps(folder):
    lab = Lab(SPECK, folder)
    few, every = (Point("p", "scratch", labels=labels) for labels in ("few", "space"))
    assert len(lab._labelled(few)) == 2
    assert len(lab._labelled(every)) == 4
    recipes = [lab._recipe(len(lab._labelled(p)), p) for p in (few, every, Point("p", "scratch"))]
    assert [r.steps(n) for r, n in zip(recipes, (2, 4, 4), strict=True)] == [2, 2, 2]
    elsewhere = replace(few, test=Place(1))
    assert lab._transfer(few) != lab._transfer(elsewhere)


def test_a_part_of_a_house_is_seen_by_the_cameras_that_stand_there(folder):
    part = Place(0, room=0, rings=2)
    scenes = Lab(SPECK, folder).scenes(Views((part,), 2))
    records = [scenes.spaces[s].records[row] for s, row in scenes.places]
    assert len(records) == 2
    assert all(r["room"] == 0 and r["ring"] < 2 for r in records)
    with pytest.raises(ValueError, match="0 of 48 cameras stand there, 2 are needed"):
        Lab(SPECK, folder).scenes(Views((Place(0, room=40),), 2))
