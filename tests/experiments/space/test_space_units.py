"""Units of test-space training: everything is made once, and no label of the test space is learned from."""

import base64
import io
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from space_speck import SPECK, Speck

from testtime.experiments.experiment import closure
from testtime.experiments.space.analyses import ALL, MAE, SENSED, SENSORS, TEACHER, WHOLE, Variant
from testtime.experiments.space.planning import MEASURES, Planner
from testtime.experiments.space.presets import PRESETS
from testtime.experiments.space.units import labelled_scenes, read_teacher, read_views, trained
from testtime.experiments.store import Workspace, execute
from testtime.scenes.disk import read_scenes
from testtime.scenes.places import Place, Views, houses
from testtime.space.loader import Batches
from testtime.space.shards import Shards

Image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install -e '.[space]'")

HOME = houses((0,))
FROZEN = replace(MAE, frozen=True)


@pytest.fixture(scope="module")
def speck(tmp_path_factory):
    return Speck(tmp_path_factory.mktemp("space"))


def space(speck, unit):
    """The workspace that a unit had."""
    needs = {name: speck.made(need) for name, need in unit.needs.items()}
    return Workspace(unit.described()["parameters"], {}, needs, speck.root, speck.root, lambda share: None)


def kinds(unit):
    return [one.kind.partition(":")[2] for one in closure([unit])]


def test_a_variant_is_measured_once(speck):
    first = speck.result(SENSED)
    assert set(first) == {"mIoU", "IoU"}
    assert 0 <= first["mIoU"] <= 100
    files = {p: p.stat().st_mtime_ns for p in speck.root.rglob("*") if p.is_file()}
    assert speck.result(replace(SENSED, name="another name")) == first
    after = {p: p.stat().st_mtime_ns for p in speck.root.rglob("*") if p.is_file()}
    assert after == files


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the values were recorded with AVX512; training follows the rounding of the processor",
)
def test_results_are_those_of_the_version_before_the_engine(speck):
    """Values of the class Lab for this preset and seed 0."""
    assert speck.result(SENSED)["mIoU"] == pytest.approx(1.9053676423320824, abs=1e-6)
    later = replace(
        SENSED, test=Place(shift="cold", moved=1), later=(Place(shift="cold", moved=1),), more=0.67
    )
    assert speck.result(later)["mIoU"] == pytest.approx(2.048983650909473, abs=1e-6)
    assert speck.result(MAE)["mIoU"] == pytest.approx(2.0029757115668674, abs=1e-6)


def test_another_test_house_shares_pre_training_and_transfer():
    planner = Planner(SPECK)
    here, there = (planner.measured(replace(SENSED, test=Place(house))) for house in (0, 1))
    assert here.address != there.address
    assert here.needs["transfer"] == there.needs["transfer"]
    assert kinds(here).count("pretraining") == 1


def test_every_modality_has_its_stream_and_the_transfer_set_gives_images_alone(speck):
    unit = speck.planner.pretraining(WHOLE)
    model = trained(speck.made(unit))
    assert [s.name for s in model.streams] == ["rgb", *(f"tok_{n}" for n in ALL if n != "boxes"), "boxes"]
    assert {s.name: s.vocabulary for s in model.streams}["tok_depth"] == 9
    outside = Shards(speck.made(unit.needs["outside"]).folder)
    assert [s.name for s in outside.streams] == ["rgb", "tok_rgb"]
    own = Shards(speck.made(speck.planner.shards(SPECK.space(HOME), SENSORS, SENSED)).folder)
    assert {s.name for s in own.streams} == {"rgb", *(f"tok_{name}" for name in SENSORS)}  # no semseg


def test_pre_training_starts_where_the_seed_says_and_moves(speck):
    def token(seed, **changes):
        return trained(speck.made(Planner(SPECK, seed).pretraining(replace(SENSED, **changes)))).mask_token

    assert not torch.equal(token(0), token(1))
    assert not torch.equal(token(0), token(0, effort=0.0))


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
        Variant("nowhere", "mm", SENSORS)
    with pytest.raises(ValueError, match="expected places and a frame of each"):
        Views(houses((1, 2)), 1)
    with pytest.raises(ValueError, match="whole houses, or parts"):
        Views((Place(1), Place(2, room=0)), 4)
    planner = Planner(SPECK)
    with pytest.raises(ValueError, match="no measure 'mIou'"):
        planner.measured(SENSED, "mIou")
    with pytest.raises(ValueError, match="TTT-MAE needs TST-MAE"):
        planner.measured(WHOLE, "mIoU after")
    with pytest.raises(ValueError, match="retrieval needs TST-MM with depth and features"):
        planner.measured(SENSED, "depth R@1")


def test_every_measure_of_a_variant(speck):
    found = speck.result(WHOLE, "depth R@1")
    for asked in ("depth", "picture"):
        assert 0 <= found[f"{asked} R@1"] <= found[f"{asked} R@5"] == 100  # three frames
    assert found["chance R@1"] == pytest.approx(100 / 3)
    drawn = speck.made(speck.planner.retrieved()).result
    light, dark = (Image.open(io.BytesIO(base64.b64decode(drawn[tone]))) for tone in ("light", "dark"))
    assert (
        light.size == dark.size == (6 + 8 * (112 + 6), 26 + 3 * (112 + 6))
    )  # twice one asked for and three found
    assert 0 <= speck.result(SENSED, "CIDEr-D")["scene graph F"] <= 100
    found = speck.result(FROZEN, "mIoU after")
    assert found["mIoU before"] == speck.result(FROZEN)["mIoU"]
    assert 0 <= found["mIoU after"] <= 100


def test_what_is_distilled_is_decoded_before_any_transfer(speck):
    unit = speck.planner.measured(WHOLE, "decoded mIoU")
    assert "segmenter" not in kinds(unit)
    found = speck.made(unit).result
    assert set(found) == {*MEASURES["decoding"], "IoU"}
    assert 0 <= found["decoded mIoU"] <= 100
    with pytest.raises(ValueError, match="decoding needs TST-MM with depth and classes"):
        speck.planner.measured(SENSED, "agreement")


def test_the_transfer_sets_images_bring_every_modality_if_asked(speck):
    mixed = replace(WHOLE, mixin_modalities="all_pseudo")
    unit = speck.planner.pretraining(mixed)
    outside = Shards(speck.made(unit.needs["outside"]).folder)
    model, plain = (trained(speck.made(one)) for one in (unit, speck.planner.pretraining(WHOLE)))
    assert [s.name for s in outside.streams] == [s.name for s in model.streams]
    assert not torch.equal(model.mask_token, plain.mask_token)
    assert "mixin_modalities" not in speck.planner.pretraining(WHOLE).parameters  # results of before stay


def test_the_layer_decay_of_a_variant_is_that_of_its_transfer():
    planner = Planner(SPECK)
    slow, own = (planner.transfer(replace(SENSED, decay=decay)) for decay in (0.3, 0.0))
    assert slow.parameters["recipe"]["layer_decay"] == 0.3
    assert own.parameters["recipe"]["layer_decay"] == SPECK.transfer.layer_decay
    assert slow.needs["pretraining"].address == own.needs["pretraining"].address
    assert PRESETS["tiny-slow"] == replace(PRESETS["tiny"], transfer=PRESETS["tiny-slow"].transfer)
    assert PRESETS["demo-slow"] == replace(PRESETS["demo"], transfer=PRESETS["tiny-slow"].transfer)


def test_boxes_are_measured(speck):
    pytest.importorskip("pycocotools", reason="pip install -e '.[space]'")
    assert 0 <= speck.result(SENSED, "AP50")["AP50"] <= 100


def test_the_pseudo_labeller_is_judged_as_it_is(speck):
    unit = speck.planner.measured(TEACHER)
    assert "segmenter" not in kinds(unit)
    x, labels = labelled_scenes(space(speck, unit)).batch(range(3))
    answer, truth = read_teacher(speck.made(unit.needs["teacher"])).classes(x), labels["semseg"]
    iou = {
        c: 100 * ((answer == c) & (truth == c)).sum() / ((answer == c) & (truth != 255) | (truth == c)).sum()
        for c in range(13)
        if (truth == c).any()
    }
    found = list(speck.made(unit).result["IoU"].values())
    assert {c: found[c] for c in iou} == pytest.approx({c: float(value) for c, value in iou.items()})


def test_a_frozen_encoder_stays_what_pre_training_made_of_it(speck):
    unit = speck.planner.transfer(FROZEN)
    before = trained(speck.made(unit.needs["pretraining"])).encoder.state_dict()
    after = trained(speck.made(unit)).encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_pre_training_goes_on_with_the_same_tokens_where_the_place_has_changed(speck):
    later = replace(SENSED, later=(Place(0, shift="cold", moved=1),), more=0.67)
    unit, before = speck.planner.pretraining(later), speck.planner.pretraining(SENSED)
    assert unit.needs["earlier"].address == before.address
    tokens = [one for one in closure([unit]) if one.kind.endswith(":tokenizer")]
    assert {one.address for one in tokens} == {
        one.address for one in closure([before]) if one.kind.endswith(":tokenizer")
    }
    made = speck.made(unit)
    assert not torch.equal(trained(speck.made(before)).mask_token, trained(made).mask_token)
    lines = (made.folder / "losses.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 1  # two of three steps


def test_a_killed_pre_training_continues_from_its_checkpoint(speck, tmp_path, monkeypatch):
    preset = replace(SPECK, recipe=replace(SPECK.recipe, every=1))
    unit = Planner(preset).pretraining(SENSED)
    whole, steps, compact = speck.made(unit), [], Batches.compact

    def killed(batches, step):
        steps.append(step)
        if steps == [0, 1, 2]:
            raise OSError("killed")
        return compact(batches, step)

    other = Speck(tmp_path)
    for need in unit.needs.values():
        other.made(need)
    monkeypatch.setattr(Batches, "compact", killed)
    assert execute(unit.described(), str(tmp_path))["error"] == "OSError: killed"
    again = other.made(unit)
    assert steps == [0, 1, 2, 2]
    weights = [load_file(made.folder / "model.safetensors") for made in (whole, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_value_of_the_preset_is_another_unit():
    first = Planner(SPECK).measured(SENSED)
    for changes in ({"tokenizer_steps": 3}, {"frames": 5}, {"labelled": 3}, {"components": "rgb_to_all"}):
        other = Planner(replace(SPECK, **changes)).measured(SENSED)
        assert (other.address == first.address) == (
            changes == {"labelled": 3}
        )  # which this variant does not use
    half = replace(SPECK, recipe=replace(SPECK.recipe, precision="bfloat16"))
    assert Planner(half).measured(SENSED).address != first.address
    assert Planner(half, float32=True).measured(SENSED).address == first.address


def test_an_untrained_teacher_is_another(speck):
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    yes, no = (read_teacher(speck.made(speck.planner.teacher(taught))) for taught in (True, False))
    assert not torch.equal(yes.features(x), no.features(x))
    a, b = (replace(SENSED, modalities=("rgb", "features"), taught=taught) for taught in (True, False))
    units = [speck.planner.pretraining(variant) for variant in (a, b)]
    assert units[0].address != units[1].address
    first, second = (unit.needs["shards"].needs for unit in units)
    assert first["tokenizer rgb"].address == second["tokenizer rgb"].address
    assert first["tokenizer features"].address != second["tokenizer features"].address


def test_labels_of_the_place_itself_are_few_or_all_for_as_many_steps():
    planner = Planner(SPECK)
    few, every, usual = (
        planner.transfer(Variant("p", "scratch", labels=labels)) for labels in ("few", "space", "outside")
    )
    assert [unit.parameters["few"] for unit in (few, every, usual)] == [2, None, None]
    assert [unit.parameters["recipe"]["epochs"] for unit in (few, every, usual)] == [2, 1, 1]  # of 2, 4, 4
    elsewhere = planner.transfer(Variant("p", "scratch", labels="few", test=Place(1)))
    assert few.address != elsewhere.address


def test_a_part_of_a_house_is_seen_by_the_cameras_that_stand_there(speck):
    part = replace(SENSED, test=Place(0, room=0, rings=2))
    planner = Planner(replace(SPECK, tests=2))
    unit = planner.measured(part)
    scenes = read_views(space(speck, replace(unit, needs=planner.scenes(planner.preset.test(part.test)))))
    records = [scenes.spaces[s].records[row] for s, row in scenes.places]
    assert len(records) == 2
    assert all(r["room"] == 0 and r["ring"] < 2 for r in records)
    other = planner.measured(replace(SENSED, test=Place(0, room=40)))
    assert other.needs["scenes 0"].address == unit.needs["scenes 0"].address  # rendered once for both
    with pytest.raises(ValueError, match="0 of 48 cameras stand there, 2 are needed"):
        read_views(space(speck, replace(other, needs={"scenes 0": other.needs["scenes 0"]})))


def test_many_houses_are_rendered_by_several_units():
    units = Planner(PRESETS["tiny"]).scenes(PRESETS["tiny"].teacher)
    assert [len(unit.parameters["spaces"]) for unit in units.values()] == [10, 10, 10, 10]
    assert units["scenes 3"].parameters["spaces"][-1]["seed"] == 239


def test_rendered_houses_are_those_of_the_recipe(speck):
    made = speck.made(speck.planner.scenes(SPECK.outside)["scenes 0"])
    found = read_scenes(made.folder, made.result["spaces"])
    assert made.result["spaces"] == ["other_00100", "other_00101"]
    assert [len(one) for one in found.spaces] == [2, 2]
