"""Methods as rows: arguments in values of JSON, seeds, and resets."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from testtime.build import adapt, argument, build_method
from testtime.errors import AdapterWarning
from testtime.norm import alpha_statistics
from testtime.wrap import Guarded, ResetEvery


def network() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 10))


def test_arguments_are_objects_calls_and_plain_values() -> None:
    assert argument("testtime.norm:alpha_statistics") is alpha_statistics
    assert argument("testtime.parts:adam(1e-3)").lr == 1e-3
    assert argument(["source", "ema"]) == ("source", "ema")
    assert (argument("soft"), argument(0.1), argument(None)) == ("soft", 0.1, None)
    with pytest.raises(ImportError, match="testtime.parts:no_such"):
        argument("testtime.parts:no_such(3)")


def test_a_row_builds_its_method_with_what_it_takes() -> None:
    row = {"method": "PAFKIP", "arguments": {"alpha": 0.25, "models": ["source"]}, "reset_every": 1000}
    adapter = build_method(row, network(), 10, 7)
    assert isinstance(adapter, ResetEvery)
    assert (type(adapter.adapter).__name__, adapter.every, adapter.seed) == ("PAFKIP", 1000, 7)
    assert adapter.adapter.alpha == 0.25
    assert "models=('source',)" in repr(adapter)
    source = build_method({"method": "Source"}, network().eval(), 10, 7)
    assert source(torch.zeros(1, 3, 4, 4)).valid.tolist() == [True]


def test_a_guarded_adapter() -> None:
    guarded = adapt(network(), "tent", guarded=True)
    assert type(guarded).__name__ == "Guarded"
    assert type(guarded.model).__name__ == "Tent"
    own = adapt(network(), "tent", guarded=True, disturb=torch.clone)
    assert isinstance(own, Guarded)
    assert own.own_disturb is torch.clone
    with pytest.raises(ValueError, match="disturb= is of a guarded adapter; pass guarded=True"):
        adapt(network(), "tent", disturb=torch.clone)


def test_a_guard_is_calibrated_on_source_batches_or_warns() -> None:
    x = torch.rand(64, 3, 4, 4)
    guarded = adapt(network(), "tent", guarded=True, source=[x])
    assert guarded.competence.known
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guarded(x[:8])
    with pytest.warns(AdapterWarning, match=r"not calibrated.*prepare"):
        adapt(network(), "tent", guarded=True)(x[:8])
