"""Variants of test-space training: two teachers, a larger network, synthesised views, another transfer set, adaptation."""

from dataclasses import replace

import pytest
import torch
from space_speck import SPECK, Speck

from testtime.experiments.experiment import closure
from testtime.experiments.space.analyses import (
    ADAPTED,
    FLOOR,
    GENERAL,
    HOME,
    MAE,
    SENSED,
    STRONG,
    TEACHER,
    WHOLE,
)
from testtime.experiments.space.planning import Planner
from testtime.experiments.space.presets import PRESETS
from testtime.experiments.space.units import labeller, read_teacher, read_views, trained
from testtime.experiments.store import Workspace
from testtime.space.walks import StoredFrames

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install -e '.[space]'")
EIGHT = replace(SPECK, frames=8)
"""A frame of each of the generalist's houses."""
TWO = replace(WHOLE, labellers="two")


def units(unit, kind):
    return {one.name: one for one in closure([unit]) if one.kind.endswith(f":{kind}")}


@pytest.fixture(scope="module")
def speck(tmp_path_factory):
    return Speck(tmp_path_factory.mktemp("space"))


def test_of_two_teachers_the_stronger_gives_all_but_the_features():
    planner = Planner(SPECK)
    unit = planner.pretraining(TWO)
    usual, strong = planner.teacher(), planner.teacher(strong=True)
    assert usual.address != strong.address
    assert "width" not in usual.parameters  # results of before stay
    assert strong.parameters["width"] == 8
    assert strong.parameters["views"]["places"][0]["house"] == 300
    shards = unit.needs["shards"]
    assert (shards.needs["teacher"].address, shards.needs["teacher features"].address) == (
        strong.address,
        usual.address,
    )
    for name in ("classes", "object_edge"):
        assert shards.needs[f"tokenizer {name}"].needs["teacher"].address == strong.address
    features = shards.needs["tokenizer features"]
    assert features.needs["teacher features"].address == usual.address
    assert "teacher" not in features.needs
    assert planner.measured(STRONG).needs["teacher"].address == strong.address
    assert planner.measured(TEACHER).needs["teacher"].address == usual.address
    assert PRESETS["tiny"].strong.frames == 2000


def test_a_larger_network_differs_in_its_size_alone():
    small, large = (Planner(SPECK).pretraining(replace(SENSED, larger=larger)) for larger in (False, True))
    assert small.needs["shards"].address == large.needs["shards"].address
    assert (small.parameters["model"]["size"]["dim"], large.parameters["model"]["size"]["dim"]) == (12, 96)
    scratch = Planner(SPECK).transfer(replace(FLOOR, larger=True))
    assert scratch.parameters["encoder"]["size"]["dim"] == 96


def test_a_transfer_set_of_another_style_is_learned_from_and_mixed_in():
    planner = Planner(SPECK)
    plain, other = (planner.transfer(replace(SENSED, outside=style)) for style in ("", "minimal"))
    for unit in (other, other.needs["pretraining"].needs["outside"]):
        assert {place["style"] for place in unit.parameters["views"]["places"]} == {"minimal"}
    assert {place["style"] for place in plain.parameters["views"]["places"]} == {"other"}
    space = [unit.needs["pretraining"].needs["shards"].address for unit in (plain, other)]
    assert space[0] == space[1]


def test_a_generalist_is_trained_on_in_the_place_for_as_long():
    planner = Planner(EIGHT)
    unit = planner.pretraining(ADAPTED)
    assert unit.needs["earlier"].address == planner.pretraining(GENERAL).address
    assert unit.parameters["recipe"]["steps"] == planner.pretraining(WHOLE).parameters["recipe"]["steps"]
    assert list(unit.needs["shards"].parameters["views"]["places"]) == [vars(HOME[0])]


def test_synthesised_frames_stand_in_for_those_of_the_house_alone():
    planner = Planner(SPECK)
    unit = planner.pretraining(replace(MAE, synthetic=True))
    made = units(unit, "synthesis")
    assert len(made) == 1
    shards = unit.needs["shards"]
    assert set(shards.needs) == {"frames", "tokenizer rgb"}
    assert "frames" in shards.needs["tokenizer rgb"].needs
    assert "frames" not in unit.needs["outside"].needs
    test = planner.measured(replace(MAE, synthetic=True))
    assert "frames" not in test.needs  # evaluated on frames as they are


def test_they_are_trained_and_measured(speck):
    every = replace(TWO, larger=True, synthetic=True, outside="minimal")
    assert 0 <= speck.result(every)["mIoU"] <= 100
    unit = speck.planner.pretraining(every)
    model = trained(speck.made(unit))
    assert model.dim == 96
    shards = unit.needs["shards"]
    needs = {name: speck.made(need) for name, need in shards.needs.items()}
    work = Workspace(shards.described()["parameters"], {}, needs, speck.root, speck.root, lambda share: None)
    widths = {name: labeller(work, name).modalities["features"].channels for name in ("classes", "features")}
    assert widths == {"classes": 15 * 8, "features": 15 * 16}  # four stages of ResNets of width 8 and 16
    strong = read_teacher(speck.made(speck.planner.teacher(strong=True)))
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(labeller(work, "boxes").classes(x), strong.classes(x))
    found = read_views(work)
    assert isinstance(found, StoredFrames)
    assert (len(found), found.tasks) == (4, ("depth", "normals"))
    real = speck.planner.shards(SPECK.space(HOME), ("rgb",), MAE)
    rendered = read_views(replace(work, needs={n: speck.made(u) for n, u in real.needs.items()}))
    assert [tuple(found[i].image.shape) for i in range(4)] == [
        tuple(rendered[i].image.shape) for i in range(4)
    ]
    assert not torch.equal(found[0].image, rendered[0].image)


@pytest.mark.slow
def test_an_adapted_generalist_is_measured(speck):
    planner = Planner(EIGHT)
    assert 0 <= speck.made(planner.measured(ADAPTED)).result["mIoU"] <= 100
    before, after = (trained(speck.made(planner.pretraining(v))) for v in (GENERAL, ADAPTED))
    assert not torch.equal(before.mask_token, after.mask_token)
