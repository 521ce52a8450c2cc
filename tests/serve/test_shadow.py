"""Candidates in shadow: their share, the judgement, what does not fit, and a candidate that fails."""

import pytest
import torch
from torch import nn

from testtime.adapter import state_hash
from testtime.methods import BNAdapt, Source, Tent
from testtime.selection import Advice, Candidate
from testtime.serve.shadow import Shadow


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).eval()


def batch(seed: int, n: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_candidates_learn_from_their_share_of_one_stream():
    net = network()
    tent, alone = Tent(net), Tent(net)
    with Shadow({"tent": tent, "bn": BNAdapt(net)}, Source(net), share=0.5, least=16, every=1) as shadow:
        for seed in range(6):
            shadow.offer(batch(seed), "hall")
            shadow.offer(batch(100 + seed), "door")
            shadow.settle()
    for seed in (1, 3, 5):
        alone(batch(seed))
    assert state_hash(tent) == state_hash(alone)
    found = shadow.judgement
    assert (found.stream, found.images, found.dropped, dict(found.errors)) == ("hall", 24, 0, {})
    assert found.advice is not None
    assert {one.name for one in found.advice.candidates} == {"tent", "bn"}


def test_a_busy_server_leaves_images_out_and_memory_is_bounded():
    net, busy = network(), [True]
    shadow = Shadow(
        {"tent": Tent(net)},
        Source(net),
        share=1.0,
        window=3,
        least=8,
        every=1,
        waiting=2,
    )
    shadow.thread.busy = lambda: busy[0]
    with shadow:
        for seed in range(12):
            shadow.offer(batch(seed), "hall")
        busy[0] = False
        shadow.settle()
        shadow.offer(batch(0), "hall")
        shadow.settle()
    assert 72 <= shadow.judgement.dropped <= 80  # two wait, and one may be in the thread
    assert shadow.judgement.images <= 24
    assert len(shadow._seen["tent"]) <= 3


def test_a_candidate_that_fails_is_stopped_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch):
    net = network()
    bad = Tent(net)
    monkeypatch.setattr(bad, "step", lambda x: 1 / 0)
    with Shadow({"bad": bad, "tent": Tent(net)}, Source(net), share=1.0, least=8, every=1) as shadow:
        for seed in range(2):
            shadow.offer(batch(seed), "hall")
        shadow.settle()
    assert shadow.judgement.errors["bad"].startswith("stopped: ZeroDivisionError")
    assert shadow.judgement.advice is not None
    assert shadow.judgement.advice.name == "tent"
    with pytest.raises(ValueError, match=r"share of the requests in \(0, 1\]"):
        Shadow({"tent": Tent(net)}, Source(net), share=0)


def test_answers_that_cannot_be_judged_leave_the_thread_alive(caplog: pytest.LogCaptureFixture) -> None:
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    tent = Tent(dense)
    with Shadow({"tent": tent}, Source(dense), share=1.0, least=8, every=1) as shadow:
        for seed in range(3):
            shadow.offer(batch(seed), "hall")
            shadow.settle()
        assert shadow.thread._thread.is_alive()
    found = shadow.judgement
    assert (found.stream, found.images, found.dropped, found.advice) == ("hall", 24, 0, None)
    assert found.errors["tent"].startswith("not judged: ValueError: ")
    assert int(tent.clock) == 3
    assert sum("the candidates were not judged" in line for line in caplog.messages) == 1


def test_a_judgement_that_failed_once_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    with Shadow({"tent": Tent(net)}, Source(net), share=1.0, least=8, every=1) as shadow:
        with monkeypatch.context() as patch:
            patch.setattr("testtime.serve.shadow.recommend", lambda *_: 1 / 0)
            shadow.offer(batch(0), "hall")
            shadow.settle()
            assert (shadow.judgement.images, shadow.judgement.advice) == (8, None)
            assert shadow.judgement.errors == {"tent": "not judged: ZeroDivisionError: division by zero"}
        with monkeypatch.context() as patch:
            patch.setattr("testtime.serve.shadow.appearance_features", lambda x: 1 / 0)
            shadow.offer(batch(1), "hall")  # no candidate gets it
            shadow.settle()
            assert shadow.thread.error == "ZeroDivisionError: division by zero"
        shadow.offer(batch(2), "hall")
        shadow.settle()
    assert (shadow.judgement.images, shadow.judgement.errors) == (16, {})
    assert shadow.judgement.advice is not None


@pytest.mark.parametrize(("gain", "recommended"), [(0.4, "tent"), (4.0, "bn")])
def test_a_small_gain_is_no_reason_for_a_change(
    monkeypatch: pytest.MonkeyPatch, gain: float, recommended: str
) -> None:
    found = [
        Candidate(name, accuracy, 0.0, 90.0, 90.0, 0.0, 90.0, 0.0, 5.0, ())
        for name, accuracy in (("bn", 80 + gain), ("tent", 80.0))
    ]
    monkeypatch.setattr("testtime.serve.shadow.recommend", lambda *_: Advice("bn", ("why",), tuple(found)))
    net = network()
    with Shadow({"tent": Tent(net), "bn": BNAdapt(net)}, Source(net), share=1.0, least=8) as shadow:
        shadow.offer(batch(0), "hall")
        shadow.settle()
    advice = shadow.judgement.advice
    assert advice is not None
    assert advice.name == recommended
    assert advice.reasons[-1] == "why"
