"""Wrappers are adapters: around a method they obey the laws that it obeys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from testtime.adapter import Adapter
from testtime.laws import CLASSES, WORLDS, Case, parametrize_with_laws
from testtime.methods import EATA, PAFKIP, EcoTTA, RoTTA, Source, Tent
from testtime.source.label_shift import shifted_heads, with_label_shift
from testtime.wrap import (
    Episodic,
    Guarded,
    LabelShift,
    PriorCorrected,
    Repeat,
    ResetEvery,
    TimeConstrained,
    Window,
)


def around(
    wrap: Callable[[Adapter], Adapter], method: Callable[[nn.Module], Adapter]
) -> Callable[[nn.Module], Adapter]:
    return lambda model: wrap(method(model))


ROTTA = partial(RoTTA, classes=CLASSES, capacity=16, frequency=16)
PAF = partial(PAFKIP, classes=CLASSES)
OF_PAF = {
    "order_equivariant": "PAF draws an augmentation for each image, by its place in the batch",
    "null_step": "KIP answers with three models, one of them under source statistics",
}
COMPANY = {"null_step": "it answers under the statistics of the window, not of the batch"}
AGAIN = {"one_tick": "each of its steps on a batch observes it (S4T, 40 steps in train mode)"}


def with_lively_head(model: nn.Module) -> nn.Module:
    """A head that plainly follows the label distribution, as if it had been trained to."""
    tree = with_label_shift(model, torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]), hidden=8)
    (head,) = shifted_heads(tree)
    rng = torch.Generator().manual_seed(0)
    head.writing.data.copy_(0.2 * torch.randn(head.writing.shape, generator=rng))
    return tree


def prepared(model: nn.Module) -> Adapter:
    """A guard that is calibrated on the source."""
    guarded = Guarded(Tent(model))
    dtype = next(model.parameters()).dtype
    guarded.prepare([x[:16].to(dtype) for x in WORLDS["batchnorm"].source(2)])
    return guarded


FOLLOWS = {"null_step": "its head follows the label distribution, whatever the learning rate"}
META = {"null_step": "meta networks normalise by the batch, whatever they learn"}
MISSED = {"null_step": "what arrives while it learns is answered by another model, under source statistics"}
PRIOR = {"null_step": "it reweights every answer by the classes of its batch"}
LATER = {
    "one_tick": "an unusual batch is checked after its step, with the statistics that the step has moved"
}
SHIPPED = {
    "null_step": "where the shipped model is competent, the guard answers with it, under source statistics"
}
SPARED = SHIPPED | {"declared": "prepare spares a forward of a checked batch"}
CHEAPER = SHIPPED | {"declared": "it predicts at less than the cost of a step"}
EVERY_TWO, WINDOW = partial(ResetEvery, every=2), partial(Window, size=24)

CASES = [
    Case("Episodic-Tent", around(Episodic, Tent)),
    Case("ResetEvery-Tent", around(EVERY_TWO, Tent)),
    Case("ResetEvery-PAFKIP", around(EVERY_TWO, PAF), OF_PAF, ["batchnorm"]),
    Case("Repeat-Tent", around(partial(Repeat, times=3), Tent), AGAIN),
    Case("Window-Tent", around(WINDOW, Tent), COMPANY),
    Case("Window-PAFKIP", around(WINDOW, PAF), OF_PAF, ["batchnorm"]),
    Case("ResetEvery-Window-Tent", around(EVERY_TWO, around(WINDOW, Tent)), COMPANY, ["batchnorm"]),
    Case("TimeConstrained-Tent", lambda model: TimeConstrained(Tent(model), cost=2.0)),
    Case("TimeConstrained-Tent-Source", lambda model: TimeConstrained(Tent(model), Source(model), cost=2.0), MISSED),
    Case("PriorCorrected-Tent", around(PriorCorrected, Tent), PRIOR),
    Case("PriorCorrected-RoTTA", around(partial(PriorCorrected, of="logits"), ROTTA), PRIOR, ["batchnorm"]),
    Case("LabelShift-Tent", around(LabelShift, lambda model: Tent(with_lively_head(model))), FOLLOWS),
    Case("Guarded-Tent", around(Guarded, Tent), SHIPPED | LATER),
]  # fmt: skip
SLOW_CASES = [
    Case("Episodic-EATA", around(Episodic, partial(EATA, classes=CLASSES)), worlds=["batchnorm"]),
    Case("ResetEvery-EcoTTA", around(EVERY_TWO, partial(EcoTTA, passes=2)), META, ["batchnorm"]),
    Case(
        "ResetEvery-RoTTA",
        around(EVERY_TWO, ROTTA),
        {"null_step": "RoTTA's statistics follow its memory, whatever the learning rate"},
        ["batchnorm"],
    ),
    Case("Window-Tent-small", around(partial(Window, size=4, every=3), Tent), worlds=["batchnorm"]),
    Case("PriorCorrected-ResetEvery-PAFKIP", around(PriorCorrected, around(EVERY_TWO, PAF)), OF_PAF | PRIOR, ["batchnorm"]),
    Case("LabelShift-RoTTA", around(LabelShift, lambda model: ROTTA(with_lively_head(model))), FOLLOWS, ["batchnorm"]),
    Case("LabelShift-PAFKIP", around(LabelShift, lambda model: PAF(with_lively_head(model))), OF_PAF | FOLLOWS, ["batchnorm"]),
    Case("Guarded-PAFKIP", around(Guarded, PAF), OF_PAF | SHIPPED | LATER, ["batchnorm"]),
    Case("Guarded-prepared-Tent", prepared, SPARED | LATER, ["batchnorm"]),
    Case("Guarded-RoTTA", around(Guarded, ROTTA), CHEAPER | LATER, ["batchnorm"]),
]  # fmt: skip


@parametrize_with_laws(CASES, rotate=True, every=3)
def test_obeys(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_with_laws(CASES)
def test_obeys_in_every_world(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_with_laws(SLOW_CASES)
def test_rarer_compositions_obey(check: Callable[[], None]) -> None:
    check()
