"""Warnings that are given once."""

import warnings

import pytest

from testtime.errors import AdapterWarning
from testtime.notices import PATIENCE, Notices


def caught(action, times):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(times):
            action()
    return [str(w.message) for w in found if issubclass(w.category, AdapterWarning)]


def test_a_warning_comes_once_after_patience_batches_without_an_update():
    notices = Notices("Tent")
    assert caught(lambda: notices.not_updated("no sample selected"), PATIENCE - 1) == []
    (text,) = caught(lambda: notices.not_updated("no sample selected"), 10 * PATIENCE)
    assert text.startswith(f"Tent has updated nothing in {PATIENCE} batches (no sample selected)")


@pytest.mark.parametrize("before", [0, PATIENCE - 1])
def test_an_update_ends_the_count_for_good(before):
    notices = Notices("Tent")
    caught(lambda: notices.not_updated("x"), before)
    notices.updated()
    assert caught(lambda: notices.not_updated("x"), 3 * PATIENCE) == []


def test_a_batch_without_predictions_is_reported_once():
    notices = Notices("Tent")
    assert len(caught(lambda: notices.not_predicted("every image holds NaN"), 5)) == 1
    assert notices.refused
