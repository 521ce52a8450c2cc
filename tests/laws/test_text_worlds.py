"""Adapters of models that take token ids, or dictionaries of tensors, obey every law too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_planted_bugs import Sound
from torch import Tensor, nn

from testtime import sgd
from testtime.intake.named import NamedTensors
from testtime.laws import CLASSES, Case, broken_laws, parametrize_with_laws
from testtime.laws.batches import cast
from testtime.laws.worlds import WORLDS
from testtime.methods import (
    CAFA,
    EATA,
    ETA,
    LAME,
    NCTTT,
    NOTE,
    OSTTA,
    PL,
    RPL,
    SAR,
    SHOTIM,
    T3A,
    ActMAD,
    AdaNPC,
    BNAdapt,
    ClusT3,
    Core,
    SoTTA,
    Source,
    Tent,
    TTTFlow,
    UniEnt,
    UniEntPlus,
)
from testtime.methods.nc_ttt import NCTTTOptions
from testtime.prediction import Prediction
from testtime.wrap import Guarded, Window

BOTH = ("tokens", "dictionary")
SHARES = {"null_step": "answers with assignments that samples of like features share, not with the logits"}
PROTOTYPES = {
    "null_step": "answers with products of features and prototypes, not with the logits of the head"
}
VOTES = {"null_step": "answers with the vote of remembered features, not with the logits of the head"}
SHIPPED = {
    "null_step": "where the shipped model is competent, the guard answers with it, under source statistics"
}
LATER = {
    "one_tick": "an unusual batch is checked after its step, with the statistics that the step has moved"
}
SPARED = SHIPPED | {"declared": "prepare spares a forward of a checked batch"}
WINDOW = {"null_step": "it answers under the statistics of the window, not of the batch"}


def masked(x: Any) -> Any:
    """The sentences without every sixth word: masked where there is a mask, else replaced by the word before."""
    if isinstance(x, Tensor):
        return torch.where(torch.arange(x.shape[1]) % 6 == 5, x.roll(1, dims=1), x)
    shown = x["attention_mask"] * (torch.arange(x["input_ids"].shape[1]) % 6 != 5)
    return {**x.entries, "attention_mask": shown}


def guarded(model: nn.Module) -> Guarded:
    return Guarded(Tent(model), disturb=masked)


def calibrated(model: nn.Module) -> Guarded:
    """A guard that is calibrated on the source of the model's world."""
    world = "dictionary" if any(isinstance(m, nn.BatchNorm1d) for m in model.modules()) else "tokens"
    found, dtype = guarded(model), next(model.parameters()).dtype
    found.prepare([cast(x[:16], dtype) for x in WORLDS[world].source(2)])
    return found


FAST = [
    Case("Tent", Tent, worlds=BOTH),
    Case("BNAdapt", BNAdapt, worlds=["dictionary"]),
    Case("T3A", partial(T3A, supports=2), PROTOTYPES, BOTH),
    Case("Window-Tent", lambda model: Window(Tent(model), size=24), WINDOW, BOTH),
    Case("Guarded-Tent", guarded, SHIPPED | LATER, BOTH),
]
OTHERS = [
    Case("Guarded-prepared-Tent", calibrated, SPARED | LATER, BOTH),
    Case("Source", Source, {"alive": "adapts nothing"}, BOTH),
    Case("ActMAD", partial(ActMAD, optimizer=sgd(1e-2)), worlds=BOTH),
    Case("AdaNPC", partial(AdaNPC, capacity=64), VOTES, BOTH),
    Case("CAFA", CAFA, worlds=BOTH),
    Case("ClusT3", partial(ClusT3, passes=1), worlds=BOTH),
    Case("Core", Core, worlds=BOTH),
    Case("EATA", partial(EATA, classes=CLASSES), worlds=BOTH),
    Case("ETA", partial(ETA, classes=CLASSES), worlds=BOTH),
    Case("LAME", LAME, SHARES, BOTH),
    Case("NCTTT", partial(NCTTT, options=NCTTTOptions(passes=1)), worlds=BOTH),
    Case("NOTE", partial(NOTE, classes=CLASSES, capacity=16, frequency=16), worlds=["tokens"]),
    Case("OSTTA", OSTTA, worlds=BOTH),
    Case("PL", PL, worlds=BOTH),
    Case("RPL", RPL, worlds=BOTH),
    Case("SAR", partial(SAR, classes=CLASSES), worlds=BOTH),
    Case("SHOTIM", SHOTIM, worlds=BOTH),
    Case(
        "SoTTA",
        partial(SoTTA, classes=CLASSES, capacity=16, frequency=16, threshold=0.5),
        worlds=["tokens"],
    ),
    Case("TTTFlow", partial(TTTFlow, passes=1, hidden=16), worlds=BOTH),
    Case("UniEnt", partial(UniEnt, classes=CLASSES), worlds=BOTH),
    Case("UniEntPlus", partial(UniEntPlus, classes=CLASSES), worlds=BOTH),
]


class WritesIntoTheMask(Sound):
    """Hides the last word of every sentence, in the caller's own mask."""

    broken = "tensors_owned"

    def step(self, x: Any) -> Tensor:
        x["attention_mask"][:, -1] = 0
        return super().step(x)


class SortsTheMasks(Sound):
    """Gives the network the masks in the order of their lengths, and the sentences in that of the batch."""

    broken = "order_equivariant"

    def _mixed(self, x: Any) -> NamedTensors:
        order = x["attention_mask"].sum(dim=1).argsort(stable=True)
        return NamedTensors({**x.entries, "attention_mask": x["attention_mask"][order]})

    def step(self, x: Any) -> Tensor:
        return super().step(self._mixed(x))

    def _predict_batch(self, x: Any) -> Tensor:
        return super()._predict_batch(self._mixed(x))


class ChecksTheIdsAlone(Sound):
    """Lets a sample with NaN beside its words through, with zeros in its place."""

    broken = "survives_nonfinite"

    def forward(self, x: Any) -> Prediction:
        return super().forward(
            {name: torch.nan_to_num(v) if v.is_floating_point() else v for name, v in x.items()}
        )


class LeavesTheMaskBehind(Sound):
    """Removes bad samples from the words, but not from the masks: the neighbours get masks of others."""

    broken = "survives_nonfinite"

    def _admit(self, x: Any, learn: bool) -> tuple[Any, Tensor]:
        admitted, good = super()._admit(x, learn)
        return NamedTensors(
            {**admitted.entries, "attention_mask": x["attention_mask"][: len(admitted)]}
        ), good


def hidden(x: NamedTensors) -> NamedTensors:
    """Masks the first word, in place."""
    x["attention_mask"][:, 0] = 0
    return x


class DisturbsTheCallersWords(Guarded):
    """Gives the user's disturbance the batch itself, which it changes in place."""

    broken = "tensors_owned"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(Tent(model), disturb=hidden)
        self.checks = replace(self.checks, disturb=hidden)


BUGS = [WritesIntoTheMask, SortsTheMasks, ChecksTheIdsAlone, LeavesTheMaskBehind, DisturbsTheCallersWords]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_of_dictionaries_is_caught(bug: Any) -> None:
    others = [
        name for name in ("tensors_owned", "order_equivariant", "survives_nonfinite") if name != bug.broken
    ]
    assert set(broken_laws(bug, worlds=["dictionary"], laws=[bug.broken, *others])) == {bug.broken}


@parametrize_with_laws(FAST, rotate=True)
def test_obeys_with_words(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_with_laws([*FAST, *OTHERS])
def test_obeys_in_both_worlds_of_words(check: Callable[[], None]) -> None:
    check()
