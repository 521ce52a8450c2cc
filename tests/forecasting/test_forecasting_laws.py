"""The adapters of forecasters obey the laws, and ``no_future`` catches what learns from a whole batch of windows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from testtime import Adapter, adam
from testtime.forecasting import GatedCalibration, NormTuning, OutputBias, ScaleShift, revealed_loss
from testtime.laws import WORLDS, Case, broken_laws, parametrize_with_laws
from testtime.methods import ADCSD
from testtime.norm import norm_affine

TURN = {"order_equivariant": "takes the windows of a batch in the order of time, entry by entry (abstract)"}
HERE = ["sequence"]
CASES = [
    Case("ADCSD", ADCSD, TURN, HERE),
    Case("OutputBias", OutputBias, TURN, HERE),
    Case("ScaleShift", ScaleShift, TURN, HERE),
    Case("GatedCalibration", GatedCalibration, TURN, HERE),
    Case("NormTuning", NormTuning, TURN, HERE),
]


@parametrize_with_laws(CASES, every=3)
def test_obeys(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_with_laws(CASES)
def test_obeys_every_law(check: Callable[[], None]) -> None:
    check()


class LearnsFromTheWholeBatch(Adapter):
    """Learns from all windows of a batch at once, and then answers: the first answer has met the last window's truth."""

    needs = ()
    output = "after"
    cost = (2, 1)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.adapt(norm_affine(self.model), adam(1e-3))

    def step(self, x: Tensor) -> dict[str, Tensor]:
        self.update(revealed_loss(self.model, x))
        with torch.no_grad():
            answer: dict[str, Tensor] = self.model(x)
        return answer


def test_only_no_future_catches_what_learns_from_a_whole_batch_of_windows() -> None:
    assert set(broken_laws(LearnsFromTheWholeBatch, worlds=HERE)) == {"no_future"}


def test_the_sequence_world_is_alive() -> None:
    """Its network forecasts better than the last value does, and the stream hurts it."""
    world, rng = WORLDS["sequence"], torch.Generator().manual_seed(3)
    x, truth = world.task(200, rng)
    with torch.no_grad():
        error = (world.network()(x)["forecast"] - truth["forecast"]).square().mean()
        naive = (x[:, -1:] - truth["forecast"]).square().mean()
        first, last = world.stream(4, 64)[0], world.stream(4, 64)[-1]
        revealed = [(world.network()(w[:, :8])["forecast"] - w[:, 8:]).square().mean() for w in (first, last)]
    assert error < 0.2 < naive
    assert revealed[1] > 2 * revealed[0]
    assert tuple(x.shape) == (200, 12, 2)
    assert torch.equal(x[1:, :-1], x[:-1, 1:])  # each window is a step after the one before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_batch_of_windows_is_answered_as_the_windows_alone(case: Case) -> None:
    world = WORLDS["sequence"]
    one, other = case.make(world.network()), case.make(world.network())
    x = world.stream(1, 6)[0]
    together = one(x)["forecast"]
    alone = torch.cat([other(w)["forecast"] for w in x.split(1)])
    assert torch.equal(together, alone)
