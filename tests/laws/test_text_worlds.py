"""Adapters of models that take token ids, or dictionaries of tensors, obey every law too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_planted_bugs import Sound
from torch import Tensor

from testtime import sgd
from testtime.intake.named import NamedTensors
from testtime.laws import CLASSES, Case, broken_laws, parametrize_with_laws
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
from testtime.wrap import Window

BOTH = ("tokens", "dictionary")
SHARES = {"null_step": "answers with assignments that samples of like features share, not with the logits"}
PROTOTYPES = {
    "null_step": "answers with products of features and prototypes, not with the logits of the head"
}
VOTES = {"null_step": "answers with the vote of remembered features, not with the logits of the head"}
WINDOW = {"null_step": "it answers under the statistics of the window, not of the batch"}

FAST = [
    Case("Tent", Tent, worlds=BOTH),
    Case("BNAdapt", BNAdapt, worlds=["dictionary"]),
    Case("T3A", partial(T3A, supports=2), PROTOTYPES, BOTH),
    Case("Window-Tent", lambda model: Window(Tent(model), size=24), WINDOW, BOTH),
]
OTHERS = [
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


BUGS = [WritesIntoTheMask, SortsTheMasks, ChecksTheIdsAlone, LeavesTheMaskBehind]


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
