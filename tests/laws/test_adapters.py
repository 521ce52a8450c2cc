"""Every adapter obeys every law, but for what its paper says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from testtime import methods
from testtime.laws import CLASSES, Case, parametrize_with_laws
from testtime.methods import (
    EATA,
    ETA,
    OSTTA,
    PAFKIP,
    STAMP,
    BNAdapt,
    CoTTA,
    RoTTA,
    SoTTA,
    Source,
    Tent,
    UniEnt,
    UniEntPlus,
)

DRAWS = {"order_equivariant": "draws an augmentation for each image, by its place in the batch"}
INTEGRATED = {"null_step": "answers with three models, one of them under source statistics (eq. 10, 11)"}
VIEWS = {"null_step": "answers with the mean over augmented views"}
UNSURE = {
    "null_step": "where the source model is unsure it answers with the mean over augmented views (eq. 4)"
}
OBSERVES = {"null_step": "the statistics it answers with follow its memory, whatever the learning rate"}

CASES = [
    Case("BNAdapt", BNAdapt, worlds=["batchnorm"]),
    Case("CoTTA", partial(CoTTA, views=3), DRAWS | UNSURE),
    Case("EATA", partial(EATA, classes=CLASSES)),
    Case("ETA", partial(ETA, classes=CLASSES)),
    Case("OSTTA", OSTTA),
    Case("PAFKIP", partial(PAFKIP, classes=CLASSES), DRAWS | INTEGRATED),
    Case("RoTTA", partial(RoTTA, classes=CLASSES, capacity=16, frequency=16), OBSERVES, ["batchnorm"]),
    Case("SoTTA", partial(SoTTA, classes=CLASSES, capacity=16, frequency=16, threshold=0.5), OBSERVES),
    Case("STAMP", partial(STAMP, classes=CLASSES, views=3, alpha=0.8, capacity=64), DRAWS | VIEWS),
    Case("Source", Source, {"alive": "adapts nothing"}),
    Case("Tent", Tent),
    Case("UniEnt", partial(UniEnt, classes=CLASSES)),
    Case("UniEntPlus", partial(UniEntPlus, classes=CLASSES)),
]


def test_every_method_is_tried() -> None:
    assert sorted(case.name for case in CASES) == sorted(methods.__all__)


@parametrize_with_laws(CASES)
def test_obeys(check: Callable[[], None]) -> None:
    check()
