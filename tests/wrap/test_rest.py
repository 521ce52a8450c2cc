"""An adapter that loses against a shipped model which knows its inputs rests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import testtime
from testtime import state_hash
from testtime.laws.worlds import WORLDS, classified
from testtime.methods import Tent
from testtime.wrap import Guarded
from testtime.wrap.rest import Rest


def network() -> nn.Module:
    return WORLDS["batchnorm"].network()


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return classified(n, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard that was calibrated and has followed a stream of single images until the adapter rests."""
    guarded = Guarded(Tent(network()))
    guarded.prepare([images(64, seed)[0] for seed in (100, 101, 102)])
    for x in images(60, 0)[0].split(1):
        if int(guarded.rest.left) == 32:
            break
        guarded(x)
    folder = tmp_path_factory.mktemp("rest") / "saved"
    testtime.save(guarded, folder)
    return folder


def opened(folder: Path) -> Guarded:
    guarded = testtime.load(folder, network())
    assert isinstance(guarded, Guarded)
    return guarded


def counted(guarded: Guarded) -> list[int]:
    """A list that grows with every step of the adapter inside, also with those that are taken back."""
    calls: list[int] = []
    guarded.adapter.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def known(guarded: Guarded, n: int, seed: int = 7) -> Tensor:
    """Images that the shipped model surely knows."""
    x = images(400, seed)[0]
    return x[guarded.shipped_prediction(x)[2] >= 0.9][:n]


def test_on_clean_single_images_hardly_any_step_is_taken(saved: Path) -> None:
    guarded = opened(saved)
    x, y = images(300, 3)
    steps = counted(guarded)
    right = sum(int(guarded(one).argmax(1)) == int(label) for one, label in zip(x.split(1), y, strict=True))
    shipped = int((guarded.reference(x)[0].argmax(1) == y).sum())
    assert len(steps) < 60
    assert right >= shipped - 1


def test_in_a_rest_the_shipped_model_answers_with_one_forward(saved: Path) -> None:
    guarded = opened(saved)
    x = known(guarded, 4)
    logits, adapter, meter = (
        guarded.reference(x)[0],
        state_hash(guarded.adapter),
        guarded.reference.shipped.network.meter,
    )
    for i, one in enumerate(x.split(1)):
        assert guarded.resting
        right = float(guarded.shipped_prediction(one)[2])
        predicted, meter.forwards = guarded.predict(one).logits, 0
        y = guarded(one)
        assert meter.forwards == 1
        assert not y.updated
        assert torch.equal(y.logits, predicted)
        torch.testing.assert_close(y.logits[0], logits[i])
    assert (guarded.serving, state_hash(guarded.adapter)) == ("source", adapter)
    assert guarded.diagnostics["update_norm"] == 0
    assert guarded.diagnostics["estimated_accuracy"] == pytest.approx(100 * right)


def test_a_rest_begins_from_the_last_healthy_state(saved: Path) -> None:
    guarded = opened(saved)
    healthy = guarded.healthy.known()
    assert int(guarded.adapter.clock) == int(healthy["clock"])
    guarded.rest.end()
    bias = [p for name, p in guarded.adapter.named_parameters() if "bias" in name and p.requires_grad][-1]
    with torch.no_grad():
        bias += torch.linspace(-5, 5, len(bias))
    y = guarded(known(guarded, 1))
    assert (guarded.resting, int(guarded.rest.left), y.updated) == (True, 64, False)
    state = guarded.adapter.state_dict()
    assert state.keys() == healthy.keys()
    assert all(torch.equal(value, healthy[name]) for name, value in state.items())
    assert guarded.diagnostics["update_norm"] > 5


def test_the_diagnostics_say_which_batches_the_adapter_rested_in(saved: Path) -> None:
    guarded = opened(saved)
    steps, x = counted(guarded), known(guarded, 40)
    rested = []
    for one in x.split(1):
        before = len(steps)
        guarded(one)
        rested.append(guarded.diagnostics["resting"])
        assert rested[-1] == float(len(steps) == before)
    assert rested == [1.0] * 32 + [0.0] + [1.0] * 7  # the batch that ends a rest is checked


def test_a_stream_that_turns_dark_in_a_rest_wakes_it_within_two_images(saved: Path) -> None:
    delays = []
    for seed in range(5):
        guarded = opened(saved)
        assert guarded.resting
        steps, images_seen = counted(guarded), 0
        for one in (0.35 * images(20, 200 + seed)[0]).split(1):
            guarded(one)
            images_seen += 1
            if steps:
                break
        delays.append(images_seen)
    assert max(delays) <= 2


def test_a_sample_that_the_shipped_model_does_not_know_wakes_it(saved: Path) -> None:
    guarded = opened(saved)
    x = 0.35 * images(60, 4)[0]
    unknown = x[guarded.shipped_prediction(x)[2] < 0.5]
    assert len(unknown) > 20
    steps = counted(guarded)
    for one in unknown[:20].split(1):
        guarded(one)
    assert len(steps) == 20


def test_a_batch_longer_than_what_is_left_wakes_it(saved: Path) -> None:
    guarded = opened(saved)
    steps, x = counted(guarded), known(guarded, 70)
    assert len(x) == 70
    guarded(x)
    assert len(steps) == 1
    assert not guarded.resting


def test_it_goes_on_bit_for_bit_from_within_a_rest(saved: Path, tmp_path: Path) -> None:
    guarded = opened(saved)
    for one in known(guarded, 3).split(1):
        guarded(one)
    assert guarded.resting
    testtime.save(guarded, tmp_path / "later")
    other = opened(tmp_path / "later")
    for one in images(80, 5)[0].split(1):
        assert torch.equal(guarded(one).logits, other(one).logits)
    assert state_hash(guarded) == state_hash(other)


def test_without_a_calibration_nothing_rests() -> None:
    guarded = Guarded(Tent(network()))
    steps = counted(guarded)
    for one in images(60, 0)[0].split(1):
        guarded(one)
    assert len(steps) == 60
    assert guarded.rest.lost.tolist() == [0, 0]


def test_a_rest_doubles_while_the_adapter_loses_and_the_model_is_sure() -> None:
    rest, sure = Rest(256), torch.full((4,), 0.97)
    rest.take_check(torch.full((20,), 0.97), 0.1)
    assert not rest.decide(4, 0.9, 0.02)  # two overruled predictions
    rest.take_check(sure, 0.25)
    fade = 0.5 ** (np.array([4, 4]) / np.array([256, 32]))
    assert rest.lost.tolist() == pytest.approx([20 * fade[0] + 4, 2 * fade[0] + 1])
    assert rest.sure.tolist() == pytest.approx([20 * fade[1] + 4, 0.97 * (20 * fade[1] + 4)])
    rest.lost = torch.tensor([24.0, 3.0])
    lengths = []
    for _ in range(5):
        assert rest.decide(4, 0.9, 0.02)
        lengths.append(int(rest.left))
    assert lengths == [8, 16, 32, 64, 64]
    assert not rest.decide(4, 0.98, 0.02)
    assert int(rest.length) == 0
    assert rest.decide(32, 0.9, 0.02)
    assert int(rest.left) == 64
    assert not rest.decide(33, 0.9, 0.02)
    assert not rest.decide(4, 0.9, 0.2)


def test_a_rest_goes_on_while_each_sample_is_known_and_the_mean_holds() -> None:
    rest = Rest(256)
    assert not rest.goes_on(torch.tensor([1.0]), 0.0)
    rest.left, rest.sure = torch.tensor(8), torch.tensor([20.0, 19.0])
    assert rest.goes_on(torch.tensor([0.9]), 0.94)
    assert not rest.goes_on(torch.tensor([0.9]), 0.95)
    assert not rest.goes_on(torch.tensor([0.49, 1.0]), 0.5)
    rest.take_batch(torch.tensor([0.9, 0.9]))
    fade = 0.5 ** (2 / 32)
    assert rest.sure.tolist() == pytest.approx([20 * fade + 2, 19 * fade + 1.8])
    assert int(rest.left) == 6
    assert rest.goes_on(torch.ones(6), 0.9)
    assert not rest.goes_on(torch.ones(7), 0.9)  # longer than what is left
