"""Metrics against definitions written out in numpy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from testtime import metrics
from testtime.adapter import Adapter
from testtime.methods import Source
from testtime.metrics import Cost, Samples, summarise

RNG = np.random.default_rng(0)
TABLE_1 = [(81.73, 77.89, 79.76), (78.05, 67.64, 72.47), (87.49, 97.66, 92.30), (69.52, 46.91, 56.02)]


def scores(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    known, unknown = RNG.normal(0, 1, 60), RNG.normal(0.7, 1, 45)
    return (known.round(0), unknown.round(0)) if ties else (known, unknown)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_probability_of_the_right_order(ties: bool) -> None:
    known, unknown = scores(ties)
    pairs = [(k < u) + 0.5 * (k == u) for k in known for u in unknown]
    assert metrics.auroc(known, unknown) == pytest.approx(100 * np.mean(pairs))


@pytest.mark.parametrize("ties", [False, True])
def test_oscr_is_the_area_under_its_curve(ties: bool) -> None:
    known, unknown = scores(ties)
    correct = RNG.random(60) < 0.7
    thresholds = np.concatenate([[-np.inf], np.unique(np.concatenate([known, unknown]))])
    rate = [np.mean(correct & (known <= t)) for t in thresholds]
    false = [np.mean(unknown <= t) for t in thresholds]
    area = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(false, false[1:], rate, rate[1:], strict=False))
    assert metrics.oscr(known, unknown, correct) == pytest.approx(100 * area)


@pytest.mark.parametrize("ties", [False, True])
def test_fpr_at_95_takes_the_lowest_threshold_that_admits_enough(ties: bool) -> None:
    known, unknown = scores(ties)
    threshold = min(t for t in known if np.mean(known <= t) >= 0.95)
    assert metrics.fpr_at(known, unknown) == pytest.approx(100 * np.mean(unknown <= threshold))


def test_perfect_and_useless_scores() -> None:
    assert metrics.auroc([0, 1], [2, 3]) == 100
    assert metrics.auroc([2, 3], [0, 1]) == 0
    assert metrics.auroc([1, 1], [1, 1]) == 50
    assert metrics.fpr_at([0, 1], [2, 3]) == 0
    assert np.isnan(metrics.auroc([], [1]))
    assert np.isnan(metrics.auroc([np.nan], [1]))


@pytest.mark.parametrize(("accuracy", "auroc", "published"), TABLE_1)
def test_h_score_is_that_of_the_paper(accuracy: float, auroc: float, published: float) -> None:
    assert metrics.h_score(accuracy, auroc) == pytest.approx(published, abs=0.011)


def test_calibration_error_by_hand_and_in_batches() -> None:
    confidence = RNG.random(200)
    correct = RNG.random(200) < confidence**2
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(confidence, correct) == pytest.approx(100 * total)
    error = metrics.CalibrationError()
    for part in np.array_split(np.arange(200), 7):
        error.update(confidence[part], correct[part])
    assert error.value() == pytest.approx(100 * total)
    with pytest.warns(DeprecationWarning, match=r"CalibrationError\.value"):
        assert error.compute() == error.value()


def test_nll_and_brier_by_hand() -> None:
    logits, labels = RNG.normal(0, 3, (30, 5)), RNG.integers(0, 5, 30)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert metrics.nll(logits, labels) == pytest.approx(-np.log(p[np.arange(30), labels]))
    assert metrics.brier(logits, labels) == pytest.approx(((p - np.eye(5)[labels]) ** 2).sum(1))
    assert np.isfinite(metrics.nll([[1000.0, 0.0]], [1])).all()


def samples(visits: int = 2, batches: int = 3, size: int = 20) -> Samples:
    n = visits * batches * size
    label = np.where(np.arange(n) % 2, -1, RNG.integers(0, 3, n)).astype(np.int32)
    known = label >= 0
    return Samples(
        batch=np.repeat(np.arange(visits * batches), size).astype(np.int32),
        visit=np.repeat(np.arange(visits), batches * size).astype(np.int32),
        label=label,
        predicted=np.where(RNG.random(n) < 0.6, np.maximum(label, 0), 1).astype(np.int32),
        score=RNG.normal(~known, 1).astype(np.float32),
        confidence=RNG.random(n).astype(np.float32),
        nll=np.where(known, 1.0, np.nan).astype(np.float32),
        brier=np.where(known, 0.5, np.nan).astype(np.float32),
        selected={"maximised": RNG.random(n) < 0.3},
    )


def test_summary_averages_over_domains_and_takes_h_of_the_averages() -> None:
    s = samples()
    figures = summarise(s, ["fog", "snow"])
    acc, area = [], []
    for visit in (0, 1):
        here = s.visit == visit
        known = here & (s.label >= 0)
        acc.append(100 * np.mean(s.predicted[known] == s.label[known]))
        area.append(metrics.auroc(s.score[known], s.score[here & (s.label < 0)]))
    average = figures["average"]
    assert average["accuracy"] == pytest.approx(np.mean(acc))
    assert average["error"] == pytest.approx(100 - np.mean(acc))
    assert average["auroc"] == pytest.approx(np.mean(area))
    assert average["h_score"] == pytest.approx(2 / (1 / np.mean(acc) + 1 / np.mean(area)))
    assert average["nll"] == 1.0
    assert [d["domain"] for d in figures["domains"]] == ["fog", "snow"]
    assert figures["time"]["visit"] == [0, 0, 0, 1, 1, 1]
    known, taken = s.label >= 0, s.selected["maximised"]
    assert figures["filters"]["all"]["known_maximised"] == pytest.approx(100 * taken[known].mean())
    first = known & (s.batch == 0)
    assert figures["filters"]["time"]["known_maximised"][0] == pytest.approx(100 * taken[first].mean())


def test_a_rejected_image_counts_as_unknown_and_as_wrong() -> None:
    s = samples()
    s.score[0], s.predicted[0] = np.nan, -1
    filled = s.score.copy()
    filled[0] = np.inf
    here = s.visit == 0
    expected = metrics.auroc(filled[here & s.known], filled[here & ~s.known])
    assert summarise(s, ["a", "b"])["domains"][0]["auroc"] == pytest.approx(expected)
    assert not s.correct[0]


class Twice(Adapter):
    """An adapter with two forward passes and one backward pass."""

    cost = (2, 1)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.adapt(self.model.parameters(), lambda p: torch.optim.SGD(p, lr=0.1))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.model(x)
        logits = self.model(x)
        self.update(logits.square().mean())
        return logits


class Net(nn.Sequential):
    """A type that only this test counts."""


def test_cost_counts_every_pass_through_copies_of_the_network() -> None:
    net = Net(nn.Flatten(), nn.Linear(12, 3))
    adapter = Twice(net)
    with Cost(net) as cost:
        for _ in range(3):
            adapter(torch.rand(5, 3, 2, 2))
    adapter(torch.rand(5, 3, 2, 2))  # after it closed
    assert (cost.forwards, cost.backwards) == (30, 15)


def test_forgetting_leaves_the_adapter_unchanged() -> None:
    net = Net(nn.Flatten(), nn.Linear(12, 3))
    adapter = Twice(net)
    x = torch.rand(8, 3, 2, 2)
    y = net(x).argmax(1)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    assert metrics.forgetting(adapter, [(x, y), (x, (y + 1) % 3)]) == 50.0
    assert all(torch.equal(before[k], v) for k, v in adapter.state_dict().items())


def test_the_label_minus_1_is_unknown_and_others_are_refused() -> None:
    logits = np.array([[0.0, 5.0], [5.0, 0.0], [0.0, 0.0]])
    for metric, value in ((metrics.nll, np.log(2)), (metrics.brier, 0.5)):
        found = metric(logits, [-1, -1, 1])
        assert np.isnan(found[:2]).all()
        assert found[2] == pytest.approx(value)
        for wrong in ([0, 1, 2], [0, 1, -2], [0, 1, 0.5], [True, False, True], [0, 1]):
            with pytest.raises(ValueError, match="label"):
                metric(logits, wrong)
        with pytest.raises(ValueError, match=r"expected logits \(N, C\)"):
            metric(logits[0], [0])


def test_answers_to_unknown_images_do_not_count() -> None:
    correct = [1.0, 0.0, np.nan, 1.0]
    assert metrics.accuracy(correct) == pytest.approx(200 / 3)
    assert np.isnan(metrics.accuracy([np.nan]))
    assert metrics.calibration_error([0.5, 0.5, 0.9, 0.5], correct) == pytest.approx(100 / 6)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: metrics.accuracy([3, 5, 1]), "compare predictions with labels first"),
    (lambda: metrics.accuracy([-1, 1]), "got -1"),
    (lambda: metrics.oscr([0.0, 1.0], [2.0], [3, 1]), "got 3"),
    (lambda: metrics.oscr([0.0, 1.0], [2.0], [True]), "an answer for each of the 2 known images"),
    (lambda: metrics.auroc([[0.0, 1.0]], [[2.0, 3.0]]), r"a score for each image \(N,\), got \(1, 2\)"),
    (lambda: metrics.fpr_at([[0.0, 1.0]], [2.0]), "a score for each image"),
    (lambda: metrics.fpr_at([0.0, 1.0], [2.0], accepted=0.0), "accepted is a share above 0"),
    (lambda: metrics.fpr_at([0.0, 1.0], [2.0], accepted=95), "accepted is a share above 0"),
    (lambda: metrics.h_score(-5.0, 50.0), "expected percent from 0 to 100"),
    (lambda: metrics.calibration_error([90.0], [True]), r"probabilities in \[0, 1\], got 90"),
    (lambda: metrics.calibration_error([0.9], [7]), "got 7"),
    (lambda: metrics.calibration_error([0.9, 0.5], [True]), "a confidence for each answer"),
    (lambda: metrics.calibration_error([0.9], [True], bins=0), "bins must be at least 1"),
    (lambda: metrics.MeanIoU(2).update(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 0.5)), "integers"),
    (lambda: metrics.MeanIoU(2).update(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1).bool()), "integers"),
])  # fmt: skip
def test_values_that_a_metric_does_not_take_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("labels", [[[0], [1]], [0.5, 1.0], [True, False], [7, 0], [-2, 0], [0]])
def test_forgetting_refuses_labels_that_are_no_classes(labels: list[object]) -> None:
    adapter = Source(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    with pytest.raises(ValueError, match="labels"):
        metrics.forgetting(adapter, [(torch.zeros(2, 3, 2, 2), torch.tensor(labels))])
