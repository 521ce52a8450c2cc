"""Estimates of accuracy without labels: AETTA's equations by hand, and a low estimate for a collapsed model."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from testtime.metrics import aetta, consistency, diversity, dropout_disagreement


def test_disagreement_and_spread_by_hand() -> None:
    torch.manual_seed(0)
    z, head = torch.randn(30, 6), nn.Linear(6, 4)
    found, spread = dropout_disagreement(z, head, torch.Generator().manual_seed(3), rate=0.3, passes=5)
    rng = torch.Generator().manual_seed(3)
    w, b, x = head.weight.detach().numpy(), head.bias.detach().numpy(), z.numpy().astype(float)
    plain = (x @ w.T + b).argmax(1)
    changed, mean = [], np.zeros(4)
    for _ in range(5):
        kept = (torch.rand(30, 6, generator=rng) >= 0.3).numpy()
        logits = x * kept / 0.7 @ w.T + b
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        changed.append(np.mean(logits.argmax(1) != plain))
        mean += p.mean(0) / 5
    assert found == pytest.approx(np.mean(changed))
    assert spread == pytest.approx(-(mean * np.log(mean)).sum() / math.log(4), abs=1e-6)


def test_the_estimate_by_hand() -> None:
    found = aetta([0.3, 0.1, 0.5], [0.9, 0.5, 0.2], classes=5)
    one = 0.6 * 0.3 + 0.4 * (0.3 / 0.9**3)
    two = 0.6 * one + 0.4 * min(0.1 / 0.5**3, 0.8)
    three = 0.6 * two + 0.4 * 0.8  # no worse than chance
    assert found == pytest.approx([100 * (1 - e) for e in (one, two, three)])
    assert len(aetta([], [], 5)) == 0


def test_a_model_that_predicts_one_class_gets_a_low_estimate() -> None:
    head = nn.Linear(3, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    other, spread = dropout_disagreement(torch.rand(8, 3), head, torch.Generator().manual_seed(0))
    assert other == 0
    assert spread < 0.01
    small = aetta([0.02] * 20, [spread] * 20, 3)[-1]
    assert small == pytest.approx(100 / 3, abs=0.1)


def test_diversity_is_entropy_over_its_maximum() -> None:
    assert diversity([3, 3, 3]) == pytest.approx(1)
    assert diversity([0, 5, 0]) == 0
    assert diversity([1, 2, 1]) == pytest.approx(-(0.5 * math.log(0.25) + 0.5 * math.log(0.5)) / math.log(3))


@pytest.mark.parametrize(("count", "rate"), [(0, 0.4), (3, 0.0), (3, 1.0)])
def test_missing_features_and_wrong_rates_are_refused(count: int, rate: float) -> None:
    with pytest.raises(ValueError, match="rate in"):
        dropout_disagreement(torch.rand(count, 2), nn.Linear(2, 2), torch.Generator(), rate)


def test_consistency_by_hand() -> None:
    groups = np.array([[15, 5], [0, 0], [5, 5]])
    p = groups / groups.sum()
    both = p[p > 0]
    shares, sizes = p.sum(0), p.sum(1)[[0, 2]]
    entropy = -(shares * np.log(shares)).sum()
    mutual = entropy - (sizes * np.log(sizes)).sum() + (both * np.log(both)).sum()  # H(y) + H(g) - H(y, g)
    assert consistency(0.2, groups) == pytest.approx(100 * 0.8 * (1 - mutual / entropy) ** 2)
    assert consistency(0.1, [[15, 5]]) == pytest.approx(90)  # a single cluster
    assert consistency(0.1, [[15, 5, 0], [15, 5, 0]]) == pytest.approx(
        90
    )  # few classes, independent of the clusters
    assert consistency(0.0, [[9, 0], [0, 9]]) == 0  # a class for each cluster
    assert consistency(0.0, [[9, 0], [9, 0]]) == 0  # a single class is not informative
