"""Every adapter obeys every law, but for what its paper says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from testtime import adam, methods, sgd
from testtime.laws import CLASSES, Case, parametrize_with_laws
from testtime.laws.check import CLASSIFICATION
from testtime.laws.worlds import DENSE_TASKS, ambient
from testtime.methods import (
    ATLAS,
    CAFA,
    CMF,
    EATA,
    ETA,
    FOA,
    ITTA,
    LAME,
    MEMO,
    NCTTT,
    NHL,
    NOTE,
    OSTTA,
    PAFKIP,
    PETAL,
    PL,
    RMT,
    ROID,
    RPL,
    S4T,
    SANTA,
    SAR,
    SHOTIM,
    STAMP,
    T3A,
    TIPI,
    TTT,
    TTTMAE,
    VDP,
    ActMAD,
    AdaContrast,
    AdaNPC,
    BNAdapt,
    ClusT3,
    Core,
    CoTTA,
    DeYO,
    EcoTTA,
    MetaDMoE,
    RoTTA,
    SoTTA,
    Source,
    Tent,
    TTTFlow,
    TTTPlusPlus,
    UniEnt,
    UniEntPlus,
    ViDA,
)
from testtime.methods.adacontrast import AdaContrastOptions
from testtime.methods.atlas import ATLASOptions
from testtime.methods.nc_ttt import NCTTTOptions
from testtime.methods.rmt import RMTOptions
from testtime.methods.stamp import STAMPOptions
from testtime.methods.ttt_plus_plus import TTTPlusPlusOptions
from testtime.methods.vida import ViDAOptions
from testtime.multitask import Assisted, Synchronizer, SynchronizerOptions
from testtime.parts import random_crop_flip
from testtime.source.meta_dmoe import Recipe, train_meta_dmoe

DRAWS = {"order_equivariant": "draws an augmentation for each image, by its place in the batch"}
INTEGRATED = {"null_step": "answers with three models, one of them under source statistics (eq. 10, 11)"}
VIEWS = {"null_step": "answers with the mean over augmented views"}
UNSURE = {
    "null_step": "where the source model is unsure it answers with the mean over augmented views (eq. 4)"
}
OBSERVES = {"null_step": "the statistics it answers with follow its memory, whatever the learning rate"}


def synchronized(model: nn.Module) -> S4T:
    with ambient():
        branch = Synchronizer(
            DENSE_TASKS,
            16,
            8,
            size=8,
            patch=2,
            width=16,
            depth=1,
            decoder_depth=1,
            heads=2,
            options=SynchronizerOptions(ratio=0.5),
        )
    branch = branch.to(next(model.parameters()).dtype)
    return S4T(Assisted(model, branch), optimizer=sgd(1e-1))


def distilling(model: nn.Module) -> MetaDMoE:
    unseen = [(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))]
    untrained = train_meta_dmoe(model, {"a": unseen, "b": unseen}, Recipe(0, 0, 0), title=None)
    return MetaDMoE(untrained, when="every")


TRAIN_MODE = {
    "null_step": "answers in train mode, by the batch's statistics; predict by the running ones (section 4.1)"
}
OBSERVING = {
    "null_step": "answers by the statistics of the batch, and looks by the running ones, as its code does"
}
APART = {
    "declared": "its loss goes through the encoder and the decoder alone, a quarter of the patches of each copy; the meter "
    "counts images that go through the network"
}
CERTAIN = {"declared": "its second forward is of those alone whose entropy is low enough"}
SHARES = {"null_step": "answers with assignments that images of like features share, not with the logits"}
PROTOTYPES = {
    "null_step": "answers with products of features and prototypes, not with the logits of the head"
}
VOTES = {"null_step": "answers with the vote of remembered features, not with the logits of the head"}
WARMED = {"null_step": "both models are warmed up on the source before the first batch"}
DIVERSE = {
    "declared": "its second forward is of those alone that are diverse enough (diversity weighting)",
    "null_step": "reweights its answers by how frequent the classes are in the batch (prior correction)",
}
FOLLOWS = {"null_step": "answers by running statistics, which follow the stream whatever the learning rate"}
META = {
    "null_step": "its meta networks are trained on the source and normalise by the batch before they adapt"
}
HEBBIAN = {
    "null_step": "its first convolution learns by its own responses, without any optimizer (soft Hebbian rule)"
}
PARTNERS = {"order_equivariant": "draws whose style an image takes on by their places in the batch"}
ALONE = {"null_step": "answers image by image, each normalised by itself (a single test point)"}
PROMPTS = {
    "null_step": "answers with prompts beside the tokens of the image, which the source model does not have"
}
PIXELS = (*CLASSIFICATION, "pixels")
TASKS = (*CLASSIFICATION, "dense")  # an encoder and heads
EVERYWHERE = (*PIXELS, "dense")

CASES = [
    Case("ActMAD", ActMAD, worlds=EVERYWHERE),
    Case("BNAdapt", BNAdapt, worlds=["batchnorm", "pixels", "dense"]),
    Case("CAFA", CAFA),
    Case("ClusT3", partial(ClusT3, passes=1), worlds=TASKS),
    Case("CMF", partial(CMF, classes=CLASSES), DIVERSE),
    Case("Core", Core, worlds=PIXELS),
    Case("CoTTA", partial(CoTTA, views=4, scales=(0.5, 1.0)), DRAWS | UNSURE, PIXELS),
    Case("DeYO", partial(DeYO, classes=CLASSES), CERTAIN),
    Case("EATA", partial(EATA, classes=CLASSES), worlds=PIXELS),
    Case("ETA", partial(ETA, classes=CLASSES), worlds=PIXELS),
    Case("FOA", partial(FOA, population=6), PROMPTS, ["vit"]),
    Case("MEMO", partial(MEMO, views=2, augment=random_crop_flip), DRAWS | ALONE),
    Case("NCTTT", partial(NCTTT, options=NCTTTOptions(passes=1)), worlds=TASKS),
    Case("OSTTA", OSTTA, worlds=PIXELS),
    Case("PAFKIP", partial(PAFKIP, classes=CLASSES), DRAWS | INTEGRATED),
    Case("PL", PL, worlds=PIXELS),
    Case("ROID", partial(ROID, classes=CLASSES), DIVERSE),
    Case("RoTTA", partial(RoTTA, classes=CLASSES, capacity=16, frequency=16), OBSERVES, ["batchnorm"]),
    Case("RPL", RPL, worlds=PIXELS),
    Case("SANTA", SANTA),
    Case("SAR", partial(SAR, classes=CLASSES), worlds=PIXELS),
    Case("SHOTIM", SHOTIM),
    Case("SoTTA", partial(SoTTA, classes=CLASSES, capacity=16, frequency=16, threshold=0.5), OBSERVES),
    Case(
        "STAMP",
        partial(STAMP, classes=CLASSES, views=3, alpha=0.8, options=STAMPOptions(capacity=64)),
        DRAWS | VIEWS,
    ),
    Case("S4T", synchronized, TRAIN_MODE, ["dense"]),
    Case("Source", Source, {"alive": "adapts nothing"}, EVERYWHERE),
    Case("TIPI", TIPI, worlds=EVERYWHERE),
    Case("TTT", partial(TTT, optimizer=sgd(1e-2)), worlds=TASKS),
    Case("Tent", Tent, worlds=EVERYWHERE),
    Case("TTTFlow", partial(TTTFlow, passes=1, hidden=16), worlds=TASKS),
    Case("TTTMAE", partial(TTTMAE, optimizer=sgd(1e-2), copies=4), APART, ["autoencoder"]),
    Case("TTTPlusPlus", partial(TTTPlusPlus, options=TTTPlusPlusOptions(projection=8)), OBSERVING, TASKS),
    Case("UniEnt", partial(UniEnt, classes=CLASSES)),
    Case("UniEntPlus", partial(UniEntPlus, classes=CLASSES)),
    Case("NOTE", partial(NOTE, classes=CLASSES, capacity=16, frequency=16), OBSERVES),
    Case("LAME", LAME, SHARES),
    Case("T3A", partial(T3A, supports=2), PROTOTYPES),
    Case("AdaNPC", partial(AdaNPC, capacity=64), VOTES),
    Case("RMT", partial(RMT, projection=16, options=RMTOptions(replay=64)), WARMED),
    Case("PETAL", partial(PETAL, views=3), DRAWS | UNSURE),
    Case(
        "AdaContrast",
        partial(AdaContrast, options=AdaContrastOptions(begin=16, capacity=32)),
        DRAWS | FOLLOWS,
    ),
    Case("VDP", partial(VDP, size=(3, 8, 8), optimizer=adam(1e-2), views=3)),
    Case(
        "ViDA",
        partial(ViDA, optimizer=adam(1e-2), high_rank=8, views=3, options=ViDAOptions(scales=(0.5, 1.0))),
        DRAWS,
        PIXELS,
    ),
    Case("NHL", partial(NHL, rate=0.1), HEBBIAN),
    Case("ITTA", partial(ITTA, passes=2), PARTNERS, ["batchnorm", "groupnorm"]),
    Case("EcoTTA", partial(EcoTTA, passes=2), META, ["batchnorm", "groupnorm", "pixels"]),
    Case("ATLAS", partial(ATLAS, classes=CLASSES, options=ATLASOptions(tasks=("contrast", "fog")))),
    Case("MetaDMoE", distilling),
]


ELSEWHERE = [
    "ADCSD",
    "DiffTPT",
    "RLCF",
    "TDA",
    "TPT",
    "ZERO",
]  # of forecasters and of image and text: their own folders


def test_every_method_is_tried() -> None:
    assert sorted([*(case.name for case in CASES), *ELSEWHERE]) == sorted(methods.__all__)


@parametrize_with_laws(CASES, rotate=True, every=3)
def test_obeys(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_with_laws(CASES)
def test_obeys_in_every_world(check: Callable[[], None]) -> None:
    check()
