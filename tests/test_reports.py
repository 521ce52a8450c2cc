"""Warnings that are given once."""

import warnings

import pytest

from testtime.errors import AdapterWarning
from testtime.reports import PATIENCE, Reports


def caught(action, times):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(times):
            action()
    return [str(w.message) for w in found if issubclass(w.category, AdapterWarning)]


def test_a_warning_comes_once_after_patience_batches_without_an_update():
    reports = Reports("Tent")
    assert caught(lambda: reports.not_updated("no sample selected"), PATIENCE - 1) == []
    (text,) = caught(lambda: reports.not_updated("no sample selected"), 10 * PATIENCE)
    assert text.startswith(f"Tent has updated nothing in {PATIENCE} batches (no sample selected)")


@pytest.mark.parametrize("before", [0, PATIENCE - 1])
def test_an_update_ends_the_count_for_good(before):
    reports = Reports("Tent")
    caught(lambda: reports.not_updated("x"), before)
    reports.updated()
    assert caught(lambda: reports.not_updated("x"), 3 * PATIENCE) == []


def test_a_batch_without_predictions_is_reported_once():
    reports = Reports("Tent")
    assert len(caught(lambda: reports.not_predicted("every image holds NaN"), 5)) == 1
    assert reports.refused
