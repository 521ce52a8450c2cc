"""The tables and figures of the S4T paper as studies, each one command: ``testtime multitask bench NAME``."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from testtime.adapter import Adapter
from testtime.methods import S4T, Source, Tent
from testtime.multitask.network import MultiTaskNet
from testtime.multitask.presets import Preset
from testtime.multitask.study import Row, Study
from testtime.norm import running_statistics
from testtime.parts.optimizers import adam, sgd

__all__ = ["STUDIES"]


def plain(net: MultiTaskNet, preset: Preset) -> nn.Module:
    """The network alone."""
    return net


def synchronized(net: MultiTaskNet, preset: Preset, **changes: Any) -> nn.Module:
    """The network with the synchronizer."""
    return preset.synchronized(net, **changes)


def source(model: nn.Module, rate: float, seed: int) -> Adapter:
    return Source(model)


def s4t(model: nn.Module, rate: float, seed: int, **arguments: Any) -> Adapter:
    return S4T(model, sgd(rate, weight_decay=1e-6), seed=seed, **arguments)


def tent(model: nn.Module, rate: float, seed: int) -> Adapter:
    return Tent(model, adam(rate), norm=running_statistics, seed=seed)


RATES = (2e-5, 1e-3, 1e-2, 1e-1, 1.0)
BASE = Row("Base", "plain", plain, source)
BN_ONLY = Row("BN only", "plain", plain, tent)
BN_ONLY_S4T = Row("BN only (S4T's network)", "s4t", synchronized, s4t)
TENT = Row("TENT", "plain", plain, tent, (1e-3, 1e-5, 1e-4, 1e-2))
OURS = Row("S4T", "s4t", synchronized, s4t, RATES)
RELEASED_CODE = Row("S4T (released loss)", "s4t", synchronized, partial(s4t, preset="released"), RATES)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "table1",
            "Test-time training of four tasks at once, from one style of house to another",
            (BASE, BN_ONLY, BN_ONLY_S4T, TENT, OURS, RELEASED_CODE),
            published="tables 1 and 7",
        ),
    )
}
