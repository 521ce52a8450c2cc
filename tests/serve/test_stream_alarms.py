"""The alarms of streams: a share of the batches is compared with the shipped model beside the requests."""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from testtime.laws.worlds import WORLDS, classified
from testtime.methods import Source, Tent
from testtime.serve.alarms import AlarmState, StreamAlarms
from testtime.serve.guards import AlarmOptions
from testtime.wrap import Guarded

ALL = AlarmOptions(share=1.0)


def calibrated() -> Guarded:
    guard = Guarded(Source(WORLDS["batchnorm"].network()))
    guard.prepare([classified(64, torch.Generator().manual_seed(0))[0]])
    return guard


def batches(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [classified(16, rng)[0] for _ in range(count)]


def answers(guard: Guarded, x: Tensor, shift: int) -> Tensor:
    return one_hot((guard.shipped_prediction(x)[1] + shift) % 5, 5).float()


def test_worse_answers_raise_the_alarm_of_their_stream_once() -> None:
    guard, raised = calibrated(), []
    with StreamAlarms(guard, ALL, waiting=100, now=lambda: 7.0) as alarms:
        alarms.raised = lambda stream, state: raised.append((stream, state))
        for x in batches(8):
            alarms.offer(x, answers(guard, x, 0), "good")
            alarms.offer(x, answers(guard, x, 1), "bad")
        alarms.settle()
    good, bad = alarms.state("good"), alarms.state("bad")
    assert (good.raised, good.samples, good.time) == (False, 128, None)
    assert good.evidence < 1.01
    assert (bad.raised, bad.samples, bad.time) == (True, 128, 7.0)
    assert [(stream, state.raised) for stream, state in raised] == [("bad", True)]
    assert raised[0][1].evidence >= 1 / ALL.probability
    alarms.clear("bad")
    assert alarms.state("bad") == AlarmState()
    assert alarms.state("good") == good


def test_the_share_is_chosen_by_the_number_of_the_batch() -> None:
    guard, x = calibrated(), batches(1)[0]
    with StreamAlarms(guard, AlarmOptions(share=0.25, seed=3), waiting=200) as alarms:
        for name in ("a", "b"):
            for _ in range(100):
                alarms.offer(x, answers(guard, x, 0), name)
        alarms.settle()
    assert alarms.state("a") == alarms.state("b")
    assert 100 < alarms.state("a").samples < 800


def test_what_does_not_fit_is_left_out_and_a_failure_is_passed_over() -> None:
    guard, x, going = calibrated(), batches(1)[0], threading.Event()
    with StreamAlarms(guard, ALL, waiting=2) as alarms:
        alarms.thread.busy = lambda: not going.is_set()
        logits = answers(guard, x, 0)
        for _ in range(6):
            alarms.offer(x, logits, "a")
        alarms.offer(x[:0], logits[:0], "a")
        going.set()
        alarms.settle()
        alarms.offer(x[:, :1], logits, "a")  # not images of the model
        alarms.settle()
        alarms.offer(x, logits, "a")
        alarms.settle()
    assert 3 <= alarms.dropped <= 4  # two wait, and one may be in the thread
    assert alarms.state("a").samples == 16 * (7 - alarms.dropped)


def test_the_reference_takes_the_calibration_of_the_guard_that_serves() -> None:
    network, x = WORLDS["batchnorm"].network(), batches(1)[0]
    serving = Guarded(Tent(network))
    serving.prepare([classified(64, torch.Generator().manual_seed(0))[0]])
    reference = StreamAlarms.reference_of(network, serving)
    want = serving.shipped_prediction(x)
    for _ in range(3):
        serving(x)
    found = reference.shipped_prediction(x)
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
    assert found[2].unique().numel() > 1
    own = StreamAlarms.reference_of(
        network, Tent(network), [classified(64, torch.Generator().manual_seed(0))[0]]
    )
    assert torch.equal(own.shipped_prediction(x)[1], found[1])
