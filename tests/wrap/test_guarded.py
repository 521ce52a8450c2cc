"""Guarded serves an adapter where it is better than the shipped model, and undoes what broke it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testtime
from testtime import adam, state_hash
from testtime.laws.worlds import WORLDS, classified
from testtime.methods import Source, Tent
from testtime.wrap import Guarded, GuardOptions, competence
from testtime.wrap.checks import Checks, Verdict
from testtime.wrap.evidence import Evidence


def network() -> nn.Module:
    return WORLDS["batchnorm"].network()


def drawn(n: int, seed: int, of: int | None = None) -> tuple[Tensor, Tensor]:
    """Images and classes like those the network was trained on, of one class if given."""
    rng = torch.Generator().manual_seed(seed)
    x, y = classified(8 * n if of is not None else n, rng)
    rows = torch.nonzero(y == of)[:n, 0] if of is not None else slice(n)
    return x[rows], y[rows]


@pytest.fixture(scope="module")
def calibration() -> list[Tensor]:
    return [drawn(64, seed)[0] for seed in (100, 101)]


def dark(x: Tensor) -> Tensor:
    """A drift on which the shipped model fails."""
    return 0.35 * x


def right(adapter: testtime.Adapter, batches: list[tuple[Tensor, Tensor]]) -> float:
    return float(torch.cat([adapter(x).argmax(1) == y for x, y in batches]).float().mean())


def test_it_serves_the_adapter_where_the_shipped_model_fails(calibration: list[Tensor]) -> None:
    batches = [(dark(x), y) for x, y in (drawn(64, seed) for seed in range(8))]
    guarded = Guarded(Tent(network()))
    guarded.prepare(calibration)
    shipped, alone = right(Source(network()), batches), right(Tent(network()), batches)
    assert alone > shipped + 0.2
    assert right(guarded, batches) > alone - 0.03
    assert guarded.serving == "adapter"


def test_batches_of_one_class_are_served_by_the_shipped_model(calibration: list[Tensor]) -> None:
    batches = [drawn(48, 10 + c, of=c) for c in range(5) for _ in range(2)]
    guarded = Guarded(Tent(network(), optimizer=adam(1e-2)))
    guarded.prepare(calibration)
    shipped, alone = (right(a, batches) for a in (Source(network()), Tent(network(), optimizer=adam(1e-2))))
    assert alone < shipped - 0.2
    assert right(guarded, batches) >= shipped - 0.01
    assert guarded.serving == "source"
    assert [event.kind for event in guarded.events] == ["skip"]


@pytest.mark.parametrize("calibrated", [True, False])
def test_after_a_stretch_of_one_class_nothing_is_lost(calibration: list[Tensor], calibrated: bool) -> None:
    guarded = Guarded(Tent(network(), optimizer=adam(1e-2)))
    if calibrated:
        guarded.prepare(calibration)
    for seed in range(40):
        guarded(drawn(32, seed, of=3)[0])
    later = [drawn(64, 200 + seed) for seed in range(6)]
    assert right(guarded, later) >= right(Source(network()), later) - 0.01


def test_copies_of_one_image_teach_nothing() -> None:
    guarded = Guarded(Tent(network()))
    x = drawn(1, 0)[0].expand(16, -1, -1, -1)
    before = state_hash(guarded.adapter)
    assert not guarded(x).updated
    assert state_hash(guarded.adapter) == before
    assert [event.kind for event in guarded.events] == ["skip"]
    assert guarded.events[0].step == 0


def test_a_collapsed_adapter_is_restored(calibration: list[Tensor]) -> None:
    guarded = Guarded(Tent(network(), optimizer=adam(1e-9)), options=GuardOptions(patience=2))
    guarded.prepare(calibration)
    healthy = state_hash(guarded.adapter)
    bias = [p for name, p in guarded.adapter.named_parameters() if "bias" in name and p.requires_grad][-1]
    with torch.no_grad():
        bias.add_(torch.linspace(-20, 20, len(bias)))
    assert state_hash(guarded.adapter) != healthy
    kinds = []
    for seed in range(8):
        guarded(dark(drawn(64, seed)[0]))
        kinds += [event.kind for event in guarded.events]
    assert "restore" in kinds
    assert (
        float((bias.detach() - dict(network().named_parameters())["network.features.4.bias"]).abs().max())
        < 1e-3
    )


def test_trust_saves_checks_and_predict_asks_the_adapter(calibration: list[Tensor]) -> None:
    guarded = Guarded(Source(network()), options=GuardOptions(check=0.25, exposure=0.1))
    guarded.prepare(calibration)
    meter = guarded.reference.shipped.network.meter
    used = []
    for seed in range(40):
        x, meter.forwards = drawn(32, seed)[0], 0
        guarded(x)
        used.append(meter.forwards // 32)
    assert guarded.trusted
    assert used[0] == 5
    assert used.count(1) >= 12
    assert guarded.diagnostics["entropy"] > 0


def test_saved_and_loaded_it_goes_on(tmp_path: Path, calibration: list[Tensor]) -> None:
    guarded = Guarded(Tent(network()), options=GuardOptions(window=64))
    guarded.prepare(calibration)
    guarded(dark(drawn(32, 0)[0]))
    testtime.save(guarded, tmp_path / "saved")
    other = testtime.load(tmp_path / "saved", network())
    x = dark(drawn(32, 1)[0])
    assert torch.equal(guarded(x).logits, other(x).logits)
    assert state_hash(guarded) == state_hash(other)
    assert other.options.window == 64
    assert other.serving == guarded.serving


def test_two_votes_overrule_the_adapter() -> None:
    guarded = Guarded(Source(network()), options=GuardOptions(margin=0.0))
    x = drawn(32, 0)[0]
    shipped, bn = guarded.reference(x)[0].argmax(1), guarded.reference.bn(x).argmax(1)
    guarded.evidence.estimates = torch.tensor([1.0, 0.0])  # the adapter is preferred everywhere
    other = torch.where(bn == shipped, (shipped + 1) % 5, bn)  # where BN statistics disagree, it is with them
    y = testtime.Prediction(8 * nn.functional.one_hot(other, 5).float())
    verdict = guarded.checks.judge(x, y, None, copies=False)
    assert 0 < int((bn != shipped).sum()) < 32
    assert torch.equal(verdict.answer.argmax(1), torch.where(bn == shipped, shipped, bn))


def test_votes_are_counted_and_few_of_them_confirm_nothing() -> None:
    evidence = Evidence(256)
    for confirmed in (6, 1):
        evidence.take_votes(torch.ones(8, dtype=torch.bool), torch.arange(8) < confirmed)
    fade = 0.5 ** (8 / 64)
    assert evidence.votes.tolist() == pytest.approx([8 * fade + 8, 6 * fade + 1])
    assert not evidence.confirmed()
    evidence.votes = torch.tensor([8.0, 8.0])
    assert evidence.confirmed()
    evidence.votes = torch.tensor([40.0, 23.0])
    assert not evidence.confirmed()
    evidence.clear()
    assert evidence.votes.tolist() == [0, 0]


def test_a_confirmed_adapter_is_not_outvoted_where_the_shipped_model_is_probably_wrong(
    calibration: list[Tensor],
) -> None:
    guarded = Guarded(Source(network()), options=GuardOptions(margin=0.0))
    guarded.prepare(calibration)
    guarded.competence.disputes = torch.empty(0)
    own, shipped = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0])
    bn = nn.functional.one_hot(torch.tensor([0, 0, 1]), 5).float()
    right = torch.tensor([0.2, 0.6, 0.2])
    guarded.evidence.estimates = torch.tensor([0.7, 0.0])
    assert guarded.checks.preferred(right, own, shipped, bn).tolist() == [False, False, True]
    guarded.evidence.votes = torch.tensor([20.0, 15.0])
    assert guarded.checks.preferred(right, own, shipped, bn).tolist() == [True, False, True]
    guarded.evidence.votes = torch.tensor([20.0, 9.0])
    assert guarded.checks.preferred(right, own, shipped, bn).tolist() == [False, False, True]


def test_lost_votes_add_up_and_end_the_trust(calibration: list[Tensor]) -> None:
    guarded = Guarded(Source(network()), options=GuardOptions(check=0.25, exposure=0.1))
    guarded.prepare(calibration)
    evidence, all_of_them = guarded.evidence, torch.ones(2, dtype=torch.bool)
    for seed in range(12):
        guarded(drawn(32, seed)[0])
    assert guarded.trusted
    for _ in range(6):  # two votes a check
        evidence.take_votes(all_of_them, ~all_of_them)
    assert evidence.doubt() == pytest.approx(1.5**12, rel=1e-3)
    for seed in range(12, 20):
        guarded(drawn(32, seed)[0])
        if guarded.events:
            break
    assert not guarded.trusted
    evidence.take_votes(torch.ones(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool))
    assert evidence.doubt() == 1.0


def test_a_batch_that_is_checked_twice_counts_once(
    calibration: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = Guarded(Tent(network()))
    guarded.prepare(calibration)
    for seed in range(8):
        guarded(x := drawn(48, seed)[0])
    guarded.interval.fill_(1)
    guarded.waiting.fill_(2)
    found: list[dict[str, Tensor]] = []
    judge = guarded.checks.judge

    def judged(_: Checks, *args: Any, **named: Any) -> Verdict:
        found.append({k: v.clone() for k, v in guarded.evidence.moving().items()})
        return replace(judge(*args, **named), strange=True)

    monkeypatch.setattr(Checks, "judge", judged)
    guarded(x)  # by the shipped model first, which finds something strange, then in full
    assert len(found) == 2
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    monkeypatch.setattr(guarded, "_trusts", lambda *_: False)
    assert not guarded._still_trusted(x, guarded.adapter(x))
    after = guarded.evidence.moving()
    assert all(torch.equal(found[2][k], after[k]) for k in after)


@pytest.mark.parametrize(
    ("known", "overruled", "trusted"),
    [(100, 1, True), (100, 5, False), (20, 1, False), (0, 0, True), (0, 1, False)],
)
def test_unknown_samples_do_not_dilute_what_is_overruled(known: int, overruled: int, trusted: bool) -> None:
    guarded = Guarded(Source(network()), options=GuardOptions(window=64))
    guarded.evidence.overruled = torch.tensor([200.0, 0.0])
    x = drawn(100, 0)[0]
    right = torch.where(torch.arange(100) < known, 0.8, 0.2)
    verdict = replace(
        guarded.checks.judge(x, guarded.adapter.predict(x), None, copies=False),
        right=right,
        overruled=overruled / 100,
    )
    assert guarded._trusts(verdict, 100) is trusted
    fade = 0.5 ** (known / 256)
    assert guarded.evidence.overruled.tolist() == pytest.approx([200 * fade + known, overruled], rel=1e-5)
    assert guarded.trusted is trusted


@pytest.mark.parametrize(("share", "credible"), [(0.05, True), (0.4, False)])
def test_corrections_are_credible_while_no_more_than_the_expected_errors(
    share: float, credible: bool
) -> None:
    evidence = Evidence(256)
    right = torch.cat([torch.full((60,), 0.95), torch.full((60,), 0.6)])
    corrected = torch.arange(120) % 60 < round(60 * share)
    evidence.take_corrections(right, corrected, None)
    gain = math.log(1.95) * 60 * share + math.log(0.95) * 60 * (1 - share)
    assert float(evidence.excess[1]) == pytest.approx(min(max(gain, 0.0), 2 * math.log(20)), abs=1e-4)
    assert bool(evidence.corrects(right).all()) is credible
    assert evidence.excessive() is not credible
    assert not bool(evidence.corrects(torch.tensor([0.4])).any())  # not probably right: the estimates decide


@pytest.mark.parametrize(("changes", "steady", "shown"), [(2, (3, 4), 20), (10, (3, 4), 0), (2, (4, 4), 0)])
def test_consistent_corrections_are_answered_where_many_are_not_expected(
    calibration: list[Tensor], changes: int, steady: tuple[int, int], shown: int
) -> None:
    guarded = Guarded(Source(network()))
    guarded.prepare(calibration)
    guarded.competence.disputes = torch.empty(0)  # the calibration speaks for the shipped model here
    right, shipped = torch.full((64,), 0.95), torch.zeros(64, dtype=torch.int64)
    own = torch.cat([torch.ones(20, dtype=torch.int64), shipped[20:]])
    guarded.evidence.estimates = torch.tensor([0.8, 0.8])
    guarded.evidence.take_corrections(right, own != shipped, torch.arange(64) < changes)
    guarded.evidence.take_steady(*(torch.arange(44) < n for n in steady))
    assert guarded.evidence.excessive()
    bn = nn.functional.one_hot(own, 5).float()
    assert int(guarded.checks.preferred(right, own, shipped, bn).sum()) == shown
    guarded.evidence.take_corrections(right, own != shipped, None)  # a check that does not tell
    assert not bool(guarded.checks.preferred(right, own, shipped, bn).any())


def test_a_check_counts_whose_predictions_are_steady(calibration: list[Tensor]) -> None:
    guarded = Guarded(Source(network()), options=GuardOptions(window=64))
    guarded.prepare(calibration)
    x = drawn(64, 0, of=3)[0]  # one class: BN statistics contradict what the shipped model knows
    logits, features = guarded.reference(x)
    shipped, right = logits.argmax(1), guarded.competence.probability(logits, features)
    own = guarded.reference.bn(x).argmax(1)  # an adapter that BN statistics always confirm
    other = guarded.reference(guarded.disturb(x))[0].argmax(1)
    changes = torch.arange(64) % 7 == 0
    y, disturbed = (nn.functional.one_hot(v % 5, 5).float() for v in (own, own + changes))
    agreed = (own == shipped) & (right >= 0.5)
    assert int(((own != shipped) & (right >= 0.5)).sum()) > 0
    guarded.evidence.steady = torch.tensor([10.0, 20.0])
    guarded.checks.judge(x, testtime.Prediction(y), disturbed, copies=False)
    found = [int((agreed & changes).sum()), int((agreed & (other != shipped)).sum())]
    fade = 0.5 ** (int(agreed.sum()) / 64)
    expected = [10 * fade + found[0], 20 * fade + found[1]]
    assert guarded.evidence.steady.tolist() == pytest.approx(expected, rel=1e-5)
    assert found[0] > 0


def test_no_empty_batch_reaches_the_model(calibration: list[Tensor]) -> None:
    guarded = Guarded(Source(network()))
    guarded.prepare(calibration)
    for x in drawn(64, 0)[0].split(
        1
    ):  # single images: the first that BN statistics contradict, and that is known
        (logits, features), bn = guarded.reference(x), guarded.reference.bn(x)
        known = bool(guarded.competence.probability(logits, features) >= 0.5)
        if known and int(bn.argmax()) != int(logits.argmax()):
            break
    else:
        pytest.fail("BN statistics contradict no image")
    sizes: list[int] = []
    guarded.reference.shipped.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    guarded.checks.judge(x, testtime.Prediction(bn), bn, copies=False)
    assert sizes == [1]


def test_a_state_without_bets_loads() -> None:
    guarded = Guarded(Tent(network()))
    guarded(drawn(8, 0)[0])
    new = (
        "bet",
        "plain",
        "excess",
        "corrections",
        "unsure",
        "steady",
        "votes",
        "recent",
        "usual",
        "among",
        "disputes",
    )
    saved = {
        k: v for k, v in guarded.state_dict().items() if k.split(".")[-1] not in new and "rest." not in k
    }
    other = Guarded(Tent(network()))
    other.load_state_dict(saved)
    assert torch.equal(other.evidence.other, guarded.evidence.other)
    assert other.evidence.unsure.tolist() == [1.0, 0.0]
    assert float(other.evidence.bet) == 0.0
    assert (float(other.competence.usual), int(other.rest.left)) == (2.0, 0)  # it never rests
    with pytest.raises(ValueError, match=r"1 entries are missing \(first \['evidence.other'"):
        other.load_state_dict({k: v for k, v in saved.items() if k != "evidence.other"})


def test_a_calibration_of_few_errors_keeps_the_ratio(
    monkeypatch: pytest.MonkeyPatch, calibration: list[Tensor]
) -> None:
    found = {}
    same = torch.arange(10)
    plain = same + 1 * (same < 4)  # four of ten are wrong, and one changes
    sure = torch.ones(10)
    window = competence._Window(same, same, plain, plain + 1 * (same < 1), sure, same[:, None], 11)
    assert window.rates() == pytest.approx((0.4, 0.1))
    for windows in (0, 1):  # in each of 13 drifts at least
        monkeypatch.setattr(competence, "_windows", lambda *_, n=windows: iter([window] * n))
        monkeypatch.setattr(competence.Competence, "_fit_disputes", lambda *_: torch.empty(0))
        guarded = Guarded(Source(network()))
        guarded.prepare(calibration)
        found[windows] = float(guarded.competence.ratio)
    assert found == {0: 2.5, 1: 4.0}


def test_what_it_refuses() -> None:
    tent = Tent(network())
    tent(drawn(4, 0)[0])
    with pytest.raises(ValueError, match="has processed 1 batches"):
        Guarded(tent)
    with pytest.raises(TypeError, match="several tasks"):
        Guarded(Tent(WORLDS["dense"].network().network))
    with pytest.raises(ValueError, match="exposure in"):
        GuardOptions(exposure=2.0)
