"""Every world is alive: its network knows its task, filters select some, and a stream hurts."""

import math

import pytest
import torch

from testtime.intake.named import called
from testtime.laws import CLASSES, WORLDS
from testtime.laws.batches import parts_of
from testtime.laws.worlds import reworded
from testtime.parts import entropy


@pytest.mark.parametrize("name", ["batchnorm", "groupnorm", "vit"])
def test_is_alive(name: str) -> None:
    world = WORLDS[name]
    with torch.no_grad():
        network = world.network()
        x, label = world.task(400, torch.Generator().manual_seed(11))
        assert (network(x).argmax(1) == label).float().mean() > 0.75  # chance is 0.2
        for batch in world.stream(4, 64):
            logits = network(batch)
            h = entropy(logits) / math.log(CLASSES)
            assert len(logits.argmax(1).unique()) >= 3
            assert 0.1 < (h < 0.4).float().mean() < 0.95
            assert (logits.softmax(1).amax(1) > 0.5).float().mean() > 0.4


def test_the_dense_world_is_alive() -> None:
    world = WORLDS["dense"]
    with torch.no_grad():
        network = world.network()
        x, truth = world.task(200, torch.Generator().manual_seed(11))
        y = network(x)
        assert {k: tuple(v.shape) for k, v in y.items()} == {
            "semseg": (200, CLASSES, 8, 8),
            "depth": (200, 1, 8, 8),
        }
        right = (y["semseg"].argmax(1) == truth["semseg"]).float().mean()
        error = (y["depth"] - truth["depth"]).abs().mean()
        assert right > 0.5  # chance is 0.2
        assert error < 0.1  # always saying 0.75: 0.25
        drifted, _ = network(world.stream(2, 64)[-1])["semseg"].softmax(1).max(1)
        assert 0.3 < drifted.mean() < 0.95


@pytest.mark.parametrize("name", ["tokens", "dictionary"])
def test_the_worlds_of_words_are_alive(name: str) -> None:
    world, rng = WORLDS[name], torch.Generator().manual_seed(11)
    network = world.network()
    x, label = world.task(400, rng)
    assert (called(network, x).argmax(1) == label).float().mean() > 0.75  # chance is 0.2
    hurt = called(network, reworded(x, 1.0, rng)).argmax(1) == label
    assert 0.5 < hurt.float().mean() < 0.9
    for batch in world.stream(4, 64):
        h = entropy(called(network, batch)) / math.log(CLASSES)
        assert 0.1 < (h < 0.4).float().mean() < 0.95


def test_streams_and_networks_are_the_same_each_time() -> None:
    for world in WORLDS.values():
        for one, other in zip(world.stream(2), world.stream(2), strict=True):
            for value, again in zip(parts_of(one).values(), parts_of(other).values(), strict=True):
                assert value.equal(again)
                assert value.data_ptr() != again.data_ptr()
        first, another = (parts_of(world.stream(2, seed=seed)[0]) for seed in (0, 1))
        assert not any(value.equal(another[name]) for name, value in first.items())


def test_the_meter_counts_images_and_follows_copies() -> None:
    import copy

    network = WORLDS["batchnorm"].network()
    network(torch.rand(3, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        copy.deepcopy(network)(torch.rand(4, 3, 8, 8))
    assert (network.meter.forwards, network.meter.backwards) == (7, 3)
