"""What a guard knows of the shipped model: who is right where BN statistics predict another class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from testtime.laws.worlds import WORLDS, classified
from testtime.methods import Source
from testtime.wrap import Guarded
from testtime.wrap.competence import Competence, Recent, _Window
from testtime.wrap.evidence import Evidence


def logit(p: object) -> np.ndarray:
    q = np.clip(np.asarray(p, float), 0.01, 0.995)
    return np.log(q / (1 - q))


def share(p: object) -> np.ndarray:
    return np.log(np.asarray(p, float) + 0.02)


def test_credit_is_a_logistic_function_of_seven_quantities() -> None:
    competence = Competence()
    right, shipped = torch.tensor([0.0, 0.3, 0.8, 1.0]), torch.tensor([0, 1, 2, 0])
    plain = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [2.0, 1.0, 0.0], [0.0, 5.0, 0.0]])
    classes = torch.tensor([0.5, 0.1, 0.4])
    recent = Recent(torch.tensor(0.7), torch.tensor(0.2), torch.tensor(0.6), classes)
    assert competence.credit(right, shipped, plain, recent) is None
    w = np.array([0.5, -1.0, -0.5, 0.25, 0.75, 1.5, -2.0, 0.3])
    competence.disputes = torch.as_tensor(w, dtype=torch.float32)
    p = np.exp(plain.double().numpy())
    confidence = (p / p.sum(axis=1, keepdims=True)).max(axis=1)
    ones = np.ones(4)
    x = [ones, logit(right), logit(0.7) * ones, logit(0.2) * ones, logit(0.6) * ones, logit(confidence)]
    x += [share([0.5, 0.1, 0.4, 0.5]), share([0.1, 0.4, 0.5, 0.1])]
    found = competence.credit(right, shipped, plain, recent)
    assert found is not None
    assert found.numpy() == pytest.approx(1 / (1 + np.exp(-np.stack(x, axis=1) @ w)), abs=1e-6)


def test_the_probability_among_recent_samples_is_a_logistic_function_of_two_logits() -> None:
    competence = Competence()
    right = torch.tensor([0.0, 0.3, 0.8, 1.0])
    assert torch.equal(competence.probability_among(right, 1.5), right)
    competence.among = torch.tensor([-0.5, 0.75, 0.5])
    score = -0.5 + 0.75 * logit(right) + 0.5 * 1.5
    assert competence.probability_among(right, 1.5).numpy() == pytest.approx(
        1 / (1 + np.exp(-score)), abs=1e-6
    )


def test_recent_samples_weigh_half_after_sixty_four_others() -> None:
    evidence = Evidence(256)
    evidence.recent = torch.tensor([8.0, 20.0, 6.0, 2.0])
    right, disputed = torch.full((64,), 0.25), torch.arange(64) < 16
    found = evidence.with_batch(torch.full((64,), -1.0), right, disputed)
    assert found.tolist() == pytest.approx([4 + 64, 10 - 64, 3 + 16, 1 + 16])
    assert evidence.with_batch(right).tolist() == pytest.approx([4 + 64, 10 + 16, 3, 1])
    assert evidence.recent.tolist() == [8.0, 20.0, 6.0, 2.0]


def test_predictions_with_bn_statistics_weigh_half_after_sixty_four_others() -> None:
    evidence = Evidence(256)
    logits = torch.tensor([[2.0, 0.0, 0.0]]).repeat(48, 1)
    logits = torch.cat([logits, torch.tensor([[0.0, 0.0, 1.0]]).repeat(16, 1)])
    total = 48 * np.exp(2) / (np.exp(2) + 2) + 16 * np.e / (np.e + 2)
    first = evidence.with_plain(logits)
    assert first.tolist() == pytest.approx([64, total, 48, 0, 16], rel=1e-5)
    evidence.plain = torch.tensor([8.0, 5.0, 2.0, 2.0, 4.0])
    assert evidence.with_plain(logits).tolist() == pytest.approx([68, total + 2.5, 49, 1, 18], rel=1e-5)
    evidence.recent = torch.tensor([8.0, 20.0, 6.0, 2.0])
    evidence.overruled = torch.ones(2)
    evidence.clear()  # of what was counted for an adapter
    assert evidence.plain[0] == 8.0
    assert evidence.recent[0] == 8.0
    assert evidence.overruled.tolist() == [0.0, 0.0]


def test_logits_that_are_not_finite_spoil_no_evidence() -> None:
    evidence = Evidence(256)
    logits = torch.tensor([[0.0, torch.nan], [1.0, 1.0]])
    evidence.plain = evidence.with_plain(logits)
    assert evidence.plain.tolist()[:2] == [2.0, 0.5]
    competence = Competence()
    competence.disputes = torch.ones(8)
    recent = Recent(torch.tensor(0.7), torch.tensor(0.2), torch.tensor(0.6), torch.tensor([0.5, 0.5]))
    found = competence.credit(torch.full((2,), 0.5), torch.zeros(2, dtype=torch.int64), logits, recent)
    assert found is not None
    assert bool(found.isfinite().all())


def windows(rng: np.random.Generator) -> list[_Window]:
    """Eight windows in which the share of samples that BN statistics get right rises with the drift."""
    found = []
    for drift in np.linspace(0, 1, 8):
        truth = torch.zeros(64, dtype=torch.int64)
        shipped = torch.as_tensor(rng.random(64) < 0.1 + 0.8 * drift).long()
        plain = torch.as_tensor(rng.random(64) < 0.3).long()
        typical = torch.as_tensor(rng.random(64) * (1.2 - drift), dtype=torch.float32)
        confidence = torch.as_tensor(0.5 + 0.5 * rng.random(64), dtype=torch.float32)
        found.append(_Window(truth, shipped, plain, plain, confidence, typical[:, None], 2))
    return found


def fitted() -> Competence:
    """A competence whose probability is 0.9, 0.7, 0.5 or 0.2 by a single quantity."""
    competence = Competence()
    competence.weights, competence.ends = torch.ones(1), torch.tensor([-0.8, -0.5, -0.2])
    competence.shares = torch.tensor([0.9, 0.7, 0.5, 0.2])
    return competence


def shares(window: _Window) -> np.ndarray:
    return np.select([window.quantities[:, 0] >= e for e in (0.8, 0.5, 0.2)], [0.9, 0.7, 0.5], 0.2)


def test_the_probability_among_recent_samples_is_fitted_to_the_drifts() -> None:
    drawn = windows(np.random.default_rng(0))
    right = torch.cat([w.shipped == w.truth for w in drawn])
    weights = fitted()._fit_among([w.quantities for w in drawn], right)
    own = [logit(shares(w)) for w in drawn]
    x = np.concatenate([np.stack([np.ones(64), v, np.full(64, v.mean())], 1) for v in own])
    w = weights.double().numpy()
    assert x.T @ (1 / (1 + np.exp(-x @ w)) - right.numpy()) + 0.01 * w == pytest.approx(np.zeros(3), abs=1e-3)


def test_credit_is_fitted_to_the_disputes_of_the_calibration() -> None:
    competence = fitted()
    competence.among = torch.tensor([-0.5, 0.75, 0.5])
    drawn = windows(np.random.default_rng(0))
    weights = competence._fit_disputes(drawn)
    rows, good = [], []
    for window in drawn:
        p = logit(shares(window))
        p = 1 / (1 + np.exp(0.5 - 0.75 * p - 0.5 * p.mean()))
        d = float((window.plain != window.shipped).float().mean())
        c = window.confidence.double().numpy()
        ones = float(window.plain.float().mean())  # of two classes
        for i in range(64):
            bn, shipped = int(window.plain[i]), int(window.shipped[i])
            if bn != shipped:
                shares_of = [share(ones if k else 1 - ones) for k in (shipped, bn)]
                rows.append([1.0, *(logit(v) for v in (p[i], p.mean(), d, c.mean(), c[i])), *shares_of])
                good.append(bn == 0)
    x, y, w = np.array(rows), np.array(good, float), weights.double().numpy()
    # The gradient of the penalised likelihood is zero at its minimum.
    assert x.T @ (1 / (1 + np.exp(-x @ w)) - y) + 1.0 * w == pytest.approx(np.zeros(8), abs=1e-3)
    assert competence._fit_disputes(drawn[:1]).numel() == 0  # some ten samples


@pytest.mark.parametrize(("constant", "shown"), [(5.0, 12), (-5.0, 0)])
def test_the_shipped_model_is_not_contradicted_where_it_is_probably_right(
    constant: float, shown: int
) -> None:
    guarded = Guarded(Source(WORLDS["batchnorm"].network()))
    guarded.prepare([classified(64, torch.Generator().manual_seed(0))[0]])
    guarded.competence.disputes = torch.tensor([constant, *[0.0] * 7])
    guarded.evidence.estimates = torch.tensor([0.8, 0.8])
    right, shipped = torch.full((64,), 0.3), torch.zeros(64, dtype=torch.int64)
    own = (torch.arange(64) < 12).long()
    bn = nn.functional.one_hot(own, 5).float()
    preferred = guarded.checks.preferred(right, own, shipped, bn)
    assert int((preferred & (own != shipped)).sum()) == shown
    assert bool(preferred[12:].all())  # both predict the same there
    assert guarded.evidence.recent.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_check_counts_the_disputed_samples() -> None:
    guarded = Guarded(Source(WORLDS["batchnorm"].network()))
    guarded.prepare([classified(64, torch.Generator().manual_seed(0))[0]])
    x = classified(32, torch.Generator().manual_seed(1))[0]
    guarded(x)
    logits, features = guarded.reference(x)
    own, bn = guarded.competence.probability(logits, features), guarded.reference.bn(x)
    typical, disputed = logit(own), int((bn.argmax(1) != logits.argmax(1)).sum())
    w = guarded.competence.among.numpy()
    right = 1 / (1 + np.exp(-(w[0] + w[1] * typical + w[2] * typical.mean())))
    counted = [32, typical.sum(), right.sum(), disputed]
    assert guarded.evidence.recent.tolist() == pytest.approx(counted, rel=1e-4)
    confidence, predicted = bn.softmax(1).max(1)
    assert guarded.evidence.plain[:2].tolist() == pytest.approx([32, float(confidence.sum())], rel=1e-4)
    assert guarded.evidence.plain[2:].tolist() == torch.bincount(predicted, minlength=5).tolist()


def test_windows_of_a_sorted_drift_hold_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spied(by: object, size: int, *_: object) -> Iterator[_Window]:
        sizes.append(size)
        return iter(())

    monkeypatch.setattr("testtime.wrap.competence._windows", spied)
    guarded = Guarded(Source(WORLDS["batchnorm"].network()))
    guarded.prepare([classified(64, torch.Generator().manual_seed(0))[0]])
    assert sizes[:4] == [64, 32, 64, 32]


def test_the_credit_of_an_earlier_state_is_dropped() -> None:
    competence = Competence()
    assert competence.present({"disputes": torch.ones(4)})["disputes"].numel() == 0
    assert competence.present({"disputes": torch.ones(8)})["disputes"].numel() == 8
