"""The arguments that reproduce published code: an adapter built with them is saved, loaded and reset bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import testtime
from small_world import CLASSES, batch, net, stream
from testtime.adapter import Adapter, state_hash
from testtime.methods import (
    LAME,
    MEMO,
    NCTTT,
    NOTE,
    OSTTA,
    PAFKIP,
    RMT,
    ROID,
    SANTA,
    SAR,
    SHOTIM,
    STAMP,
    T3A,
    TIPI,
    ActMAD,
    AdaContrast,
    AdaNPC,
    BNAdapt,
    CoTTA,
    SoTTA,
    Tent,
)
from testtime.methods.adacontrast import AdaContrastOptions
from testtime.methods.nc_ttt import NCTTTOptions
from testtime.methods.paf_kip import PAFKIPOptions
from testtime.methods.rmt import RMTOptions
from testtime.methods.roid import ROIDOptions
from testtime.methods.sotta import SoTTAOptions, smoothed_entropy
from testtime.methods.stamp import STAMPOptions
from testtime.norm import alpha_statistics, ema_statistics, source_statistics, unmix_tns
from testtime.parts import adam, katana, random_crop_flip, sgd

SUMMED = partial(smoothed_entropy, over_classes="sum")
SMALL = {"classes": CLASSES, "capacity": 16, "frequency": 16}

PUBLISHED: dict[str, Callable[[nn.Module], Adapter]] = {
    "TIPI": partial(TIPI, optimizer=adam(1e-3), random_start=False),
    "TIPI-ImageNet": partial(TIPI, optimizer=sgd(2.5e-4), entropy_weight=1),
    "STAMP": partial(STAMP, classes=CLASSES, views=3, alpha=0.8, period=None, options=STAMPOptions(
        capacity=8, original=False, count="admission", normalise="held", epsilon=0.0, score="entropy")),
    "SoTTA": partial(SoTTA, **SMALL, threshold=0.5, loss=SUMMED, options=SoTTAOptions(observe_twice=True)),
    "NOTE": partial(NOTE, **SMALL, loss=smoothed_entropy),
    "alpha-BN": partial(BNAdapt, norm=partial(alpha_statistics, alpha=0.1, unbiased=True)),
    "moving average": partial(BNAdapt, norm=partial(ema_statistics, decay=0.9, unbiased=True)),
    "LAME": partial(LAME, affinity="radial", neighbours=2),
    "NC-TTT": partial(NCTTT, opposite=True, options=NCTTTOptions(passes=1)),
    "UnMix-TNS": partial(Tent, norm=partial(unmix_tns, components=4, centred=False, detach_assignment=True)),
    "ActMAD": partial(ActMAD, unbiased=True, batch_average=True),
    "SAR": partial(SAR, classes=CLASSES, optimizer=sgd(0.05), margin=2.0, floor=0.3, recovery="weights"),
    "SAR, algorithm 1": partial(SAR, classes=CLASSES, optimizer=sgd(0.05), margin=2.0, reselect=False),
    "RMT": partial(RMT, projection=16, options=RMTOptions(replay=40, shuffle=False, ensemble="sum")),
    "RMT, DomainNet": partial(RMT, projection=None, options=RMTOptions(replay=40, shuffle=False, ensemble="sum")),
    "SANTA": partial(SANTA, projection=None, augment=partial(katana, alike=True)),
    "AdaNPC": partial(AdaNPC, neighbours=5, threshold=0.3, capacity=None, softmax=True),
    "OSTTA": partial(OSTTA, criterion="ent_ind_ood"),
    "OSTTA, UniEnt+": partial(OSTTA, criterion="ent_unf", alpha=(0.5, 0.2)),
    "PAF+KIP": partial(PAFKIP, classes=CLASSES, margin=2.0, options=PAFKIPOptions(output="after")),
    "AdaContrast": partial(AdaContrast, options=AdaContrastOptions(begin=16, capacity=32, full_batch=None)),
    "MEMO": partial(MEMO, optimizer=sgd(2.5e-4), views=2, augment=random_crop_flip, reset_optimizer=False),
    "T3A": partial(T3A, supports=5, unit=True),
    "SHOT-IM": partial(SHOTIM, optimizer=adam(5e-5), epsilon=(0, 1e-5), norm=source_statistics),
    "ROID": partial(ROID, classes=CLASSES, optimizer=sgd(2.5e-4, nesterov=True), options=ROIDOptions(prior="logits")),
    "CoTTA": partial(CoTTA, optimizer=sgd(0.01), views=2, threshold=0.1, restoration=0.001, symmetric=True),
}  # fmt: skip


def prepared(name: str) -> Adapter:
    """The adapter after ``prepare`` where it needs one, with labels where it takes them."""
    adapter = PUBLISHED[name](net())
    source = [batch(n, 900 + n) for n in (20, 17)]
    if adapter.source != "none":
        adapter.prepare(source if adapter.labelled_source else [x for x, _ in source])
    return adapter


def answers(adapter: Adapter, batches: list[Tensor]) -> list[Tensor]:
    predictions = [adapter(x) for x in batches]
    return [t for y in predictions for t in (y.logits, y.score)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_saved_adapter_goes_on_bit_for_bit_and_a_reset_one_begins_again(name: str, tmp_path: Path) -> None:
    """Over batches of 1 to 12 images, one of them not finite, so that memories fill within a batch and across batches."""
    batches = stream([12, 5, 12, 1, 12, 7, 12, 3, 12, 12, 4, 12, 12, 9, 12])
    batches[4][2] = torch.nan
    ours = prepared(name)
    birth = state_hash(ours)
    first = answers(ours, batches[:12])[:4]
    assert state_hash(ours) != birth
    testtime.save(ours, tmp_path)
    others = [testtime.load(tmp_path, net()), PUBLISHED[name](net()), prepared(name)]
    for other in others[1:]:
        other.load_state_dict(ours.state_dict())
    after = answers(ours, batches[12:])
    for other in others:
        assert all(map(torch.equal, answers(other, batches[12:]), after))
        assert state_hash(other) == state_hash(ours)
    for adapter in (ours, *others):
        adapter.reset()
        assert state_hash(adapter) == birth
        assert all(map(torch.equal, answers(adapter, batches[:2]), first))
