"""The alarm on shadow traffic: error rate over a long stream, delay, state, and the excess of the risk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testtime.laws.worlds import WORLDS, classified
from testtime.methods import Tent
from testtime.metrics.sequences import BETS, reserve
from testtime.serve.guards import AlarmOptions, Guarded, ShadowAlarm, risk_excess


def evidence(values: np.ndarray, tolerance: float) -> np.ndarray:
    """The evidence after each value of several streams (R, N), computed for all streams together."""
    sizes = np.asarray(BETS)[:, None] / (1 + tolerance)
    wealth, found = np.zeros((len(BETS), len(values))), np.empty(values.shape)
    for i, x in enumerate(values.T):
        wealth = (wealth + (reserve(i) - reserve(i + 1)) / len(BETS)) * (1 + sizes * (x - tolerance))
        found[:, i] = wealth.sum(axis=0) + reserve(i + 1)
    return found


def excesses(rng: np.random.Generator, runs: int, samples: int, mean: float) -> np.ndarray:
    """Excesses of the risk in {-1, 0, 1}: 10 % of the predictions differ, and the mean is as given."""
    draws = rng.random((runs, samples))
    return np.where(draws < 0.05 + mean / 2, 1.0, np.where(draws < 0.1, -1.0, 0.0))


@pytest.mark.slow
def test_error_rate_over_a_million_samples_of_200_streams() -> None:
    """2 % of 10^6 samples are shadow traffic; the mean excess is as high as the tolerance allows."""
    rng, raised = np.random.default_rng(0), 0
    raised = int((evidence(excesses(rng, 200, 20_000, 0.01), 0.01) >= 20).any(axis=1).sum())
    print("alarms in 200 streams:", raised)
    assert raised <= 10


def test_error_rate_and_delay_on_shorter_streams() -> None:
    rng = np.random.default_rng(1)
    quiet = evidence(excesses(rng, 200, 2000, 0.01), 0.01)
    assert int((quiet >= 20).any(axis=1).sum()) <= 10
    worse = np.concatenate(
        [excesses(rng, 50, 2000, 0.0), np.where(rng.random((50, 300)) < 0.3, 1.0, 0.0)], axis=1
    )
    found = evidence(worse, 0.01) >= 20
    assert not found[:, :2000].any(axis=1).sum() > 5
    assert found[:, -1].all()
    assert np.median(found[:, 2000:].argmax(axis=1)) < 100  # samples of shadow traffic


def test_the_alarm_counts_as_its_formula_and_continues_from_its_state() -> None:
    values = excesses(np.random.default_rng(2), 1, 200, 0.05)[0]
    alarm, other = ShadowAlarm(), ShadowAlarm()
    alarm.observe(torch.from_numpy(values[:90]))
    other.load_state_dict(alarm.state_dict())
    alarm.observe(torch.from_numpy(values[90:]))
    other.observe(torch.from_numpy(values[90:]))
    expected = evidence(values[None], 0.01)[0]
    assert np.isclose(alarm.evidence, expected[-1])
    assert alarm.evidence == other.evidence
    assert alarm.raised == bool((expected >= 20).any())
    with pytest.raises(ValueError, match="state of a ShadowAlarm"):
        other.load_state_dict({"wealth": torch.zeros(1)})
    with pytest.raises(ValueError, match="excesses of the risk"):
        alarm.observe(torch.tensor([2.0]))


def test_an_alarm_stays_until_it_is_cleared() -> None:
    alarm = ShadowAlarm()
    assert alarm.observe(torch.ones(100))
    assert alarm.observe(-torch.ones(1000))
    alarm.clear()
    assert (alarm.raised, alarm.samples, alarm.evidence) == (False, 0, 1.0)


def test_shadow_traffic_is_a_share_and_a_function_of_the_seed() -> None:
    alarm = ShadowAlarm(AlarmOptions(share=0.1))
    due = [alarm.due(i) for i in range(3000)]
    assert 0.07 < np.mean(due) < 0.13
    assert due == [ShadowAlarm(AlarmOptions(share=0.1)).due(i) for i in range(3000)]
    with pytest.raises(ValueError, match="share in"):
        AlarmOptions(share=0.0)


def test_the_excess_is_zero_on_agreement_and_counts_what_the_shipped_model_knows() -> None:
    guarded = Guarded(Tent(WORLDS["batchnorm"].network()))
    rng = torch.Generator().manual_seed(0)
    guarded.prepare([classified(64, rng)[0]])
    x = classified(32, rng)[0]
    x[3, 0, 0, 0] = torch.nan
    known, shipped, right = guarded.shipped_prediction(x)
    assert known.logical_not().nonzero().flatten().tolist() == [3]
    same = torch.nn.functional.one_hot(shipped, 5).float()
    assert risk_excess(guarded, x, same).abs().max() == 0
    other = torch.nn.functional.one_hot((shipped + 1) % 5, 5).float()
    found = risk_excess(guarded, x, other)
    assert torch.allclose(found[known], 2 * right[known] - 1)
    assert found[3] == 0
    assert found[known].mean() > 0.5
