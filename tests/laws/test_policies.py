"""Norm policies: under each of them an adapter obeys the laws, and a step advances statistics once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.laws import CLASSES, WORLDS, Case, parametrize_with_laws
from testtime.methods import EATA, Source, Tent
from testtime.norm import (
    NormPolicy,
    UnMixStatistics,
    alpha_statistics,
    batch_statistics,
    ema_statistics,
    iabn,
    observing,
    robust_statistics,
    running_statistics,
    source_statistics,
    unmix_tns,
)

POLICIES = {
    "source": source_statistics,
    "batch": batch_statistics,
    "alpha": partial(alpha_statistics, alpha=0.3),
    "ema": partial(ema_statistics, decay=0.8),
    "robust": robust_statistics,
    "running": running_statistics,
    "iabn": partial(iabn, k=1.0),
    "unmix": partial(unmix_tns, components=4),
}
LOOKS = {"alive": "adapts nothing: the policy learns only while it observes"}
STILL = {"source": {"alive": "adapts nothing"}, "robust": LOOKS, "running": LOOKS}
TRAINS = {
    "null_step": "what it learns from is normalised as in training (S4T, section 4.1); predict looks with the stored ones"
}
OBSERVED = {"robust": TRAINS, "running": TRAINS, "iabn": TRAINS}
CASES = [
    Case(f"Tent-{name}", partial(Tent, norm=norm), OBSERVED.get(name, {}), ["batchnorm"])
    for name, norm in POLICIES.items()
]
WITHOUT_GRADIENTS = [
    Case(f"Source-{name}", partial(Source, norm=norm), STILL.get(name, {}), worlds=["batchnorm"])
    for name, norm in POLICIES.items()
]


@parametrize_with_laws(CASES, every=3)
def test_obeys(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_with_laws([*CASES, *WITHOUT_GRADIENTS])
def test_obeys_every_law_also_without_gradients(check: Callable[[], None]) -> None:
    check()


class Looks(Adapter):
    """Forwards the batch, and then other images, several times in one step."""

    cost: ClassVar = (4, 0)

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module], times: int) -> None:
        super().__init__(norm(model))
        self.norm, self.times = norm, times

    def step(self, x: Tensor) -> Tensor:
        with observing(self):
            logits = self.model(x)
            for i in range(1, self.times):
                self.model(x / (i + 1))
        return logits


@pytest.mark.parametrize("name", POLICIES)
def test_many_forwards_in_a_step_are_one_observation(name: str) -> None:
    world = WORLDS["batchnorm"]
    once, often = (Looks(world.network(), POLICIES[name], times) for times in (1, 4))
    for x in world.stream(3):
        assert once(x).equal(often(x))
    for key, value in once.state_dict().items():
        assert value.equal(often.state_dict()[key]), key


@pytest.mark.parametrize("name", POLICIES)
def test_looking_proposes_nothing(name: str) -> None:
    world = WORLDS["batchnorm"]
    adapter = Source(world.network(), norm=POLICIES[name])
    adapter.predict(world.stream(1)[0])
    assert all(m.proposal is None for m in adapter.modules() if isinstance(m, NormPolicy))
    assert int(adapter.clock) == 0


def test_a_step_that_fails_forgets_its_proposal() -> None:
    class Fails(Looks):
        def step(self, x: Tensor) -> Tensor:
            super().step(x)
            raise RuntimeError("the disk is full")

    world = WORLDS["batchnorm"]
    adapter = Fails(world.network(), POLICIES["ema"], 1)
    before = adapter.state_dict()
    with pytest.raises(RuntimeError, match="the disk is full"):
        adapter(world.stream(1)[0])
    assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items())
    assert all(m.proposal is None for m in adapter.modules() if isinstance(m, NormPolicy))


def test_unmixed_statistics_go_under_any_method() -> None:
    world = WORLDS["batchnorm"]
    eata = EATA(unmix_tns(world.network(), components=4), classes=CLASSES)
    eata.prepare(world.source())
    born = {k: v for k, v in eata.state_dict().items() if k.endswith(".mean")}
    layers = [m for m in eata.model.modules() if isinstance(m, NormPolicy)]
    assert [type(m) for m in layers] == [UnMixStatistics] * 2
    assert [eata(x).updated for x in world.stream(2)] == [True, True]
    assert all(not v.equal(born[k]) for k, v in eata.state_dict().items() if k.endswith(".mean"))
    eata.reset()
    assert all(eata.state_dict()[k].equal(v) for k, v in born.items())
