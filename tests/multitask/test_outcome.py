"""Outcomes: a curve against a base and its controls, recomputed by hand."""

import math

import pytest

from testtime.multitask.outcome import Outcome
from testtime.multitask.protocol import Curve

HIGHER = {"semseg": True, "depth": False}
BASE = {"semseg": 20.0, "depth": 1.0}


def curve(semseg: list[float], depth: list[float]) -> Curve:
    return Curve([0, 1, 2], {"semseg": semseg, "depth": depth}, HIGHER)


def test_gains_are_relative_to_the_base_and_to_the_controls() -> None:
    ours = curve([22.0, 26.0, 24.0], [1.0, 0.9, 0.8])
    controls = [curve([20.0, 21.0, 22.0], [1.0] * 3), curve([20.0, 20.0, 20.0], [1.0] * 3)]
    found = Outcome.of(ours, BASE, controls, 1_500_000, 2.0)
    assert found.gains == pytest.approx([5.0, 20.0, 20.0])  # (10 + 0)/2, (30 + 10)/2, (20 + 20)/2
    assert found.last == pytest.approx(20.0)
    assert found.before == pytest.approx(5.0)
    assert found.oracle == pytest.approx(20.0)
    assert found.own == pytest.approx((100 * 2 / 22 + 20) / 2)
    assert found.beyond == pytest.approx(20.0 - (5.0 + 0.0) / 2)
    assert (found.millions, found.seconds) == (1.5, 2.0)
    assert found.step_variance == pytest.approx(0.5)  # best at the steps 1 and 2


def test_without_controls_or_movement_there_is_nothing_to_compare() -> None:
    still = Outcome.of(curve([20.0] * 3, [1.0] * 3), BASE)
    assert still.gains == [0.0] * 3
    assert all(map(math.isnan, (still.beyond, still.step_variance, still.warping, still.similarity)))


def test_a_curve_of_json_has_nan_where_a_value_is_missing() -> None:
    read = Curve.read(
        {"steps": [0], "values": {"semseg": [None], "depth": [1.0]}, "higher_is_better": HIGHER}
    )
    assert math.isnan(read.values["semseg"][0])
    assert read.values["depth"] == [1.0]
