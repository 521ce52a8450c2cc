"""The tables and figures of the S4T paper as studies, each one command: ``testtime multitask bench NAME``.

Every method is given the same networks, tasks, batches and steps. But for ActMAD, whose paper keeps the source statistics,
every one normalises as the S4T paper does: by the batch while it learns, by running statistics while it is measured.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from testtime.adapter import Adapter
from testtime.methods import NCTTT, S4T, TIPI, TTT, ActMAD, ClusT3, Source, Tent, TTTFlow, TTTPlusPlus
from testtime.models.assisted import Assisted, Branch
from testtime.models.multitask import MultiTaskNet
from testtime.models.synchronizer import legacy_order
from testtime.multitask.presets import NOISE, Preset
from testtime.multitask.protocol import Protocol
from testtime.multitask.study import Row, Study
from testtime.norm import running_statistics, source_statistics
from testtime.parts.optimizers import adam, sgd
from testtime.source.clust3 import Projectors
from testtime.source.nc_ttt import NoiseDiscriminator
from testtime.source.ttt import RotationBranch
from testtime.source.ttt_plus_plus import ContrastiveBranch

__all__ = ["STUDIES"]


def plain(net: MultiTaskNet, preset: Preset) -> nn.Module:
    """The network alone."""
    return net


def synchronized(net: MultiTaskNet, preset: Preset, only: str | None = None, **changes: Any) -> nn.Module:
    """The network with the synchronizer, of all tasks or of one."""
    return preset.synchronized(net, None if only is None else {only: preset.tasks[only]}, **changes)


def assisted(net: MultiTaskNet, preset: Preset, branch: Callable[[Any], Branch]) -> nn.Module:
    """The network with another method's branch."""
    return Assisted(net, branch(net.encoder.channels))


def source(model: nn.Module, rate: float, seed: int) -> Adapter:
    return Source(model)


def by_sgd(
    method: Callable[..., Adapter], model: nn.Module, rate: float, seed: int, **arguments: Any
) -> Adapter:
    settings = {"norm": running_statistics, **arguments}
    momentum, decay = settings.pop("momentum", 0.0), settings.pop("weight_decay", 0.0)
    return method(model, sgd(rate, momentum, decay), **_drawing(method, seed), **settings)


def by_adam(
    method: Callable[..., Adapter], model: nn.Module, rate: float, seed: int, **arguments: Any
) -> Adapter:
    return method(model, adam(rate), **_drawing(method, seed), **{"norm": running_statistics, **arguments})


def _drawing(method: Callable[..., Adapter], seed: int) -> dict[str, int]:
    """The seed as an argument, for a method that takes one."""
    return {"seed": seed} if "seed" in inspect.signature(method).parameters else {}


s4t = partial(by_sgd, S4T, weight_decay=1e-6)

BASE = Row("Base", "plain", plain, source)
BN_ONLY = Row("BN only", "plain", plain, partial(by_adam, Tent))
OF_S4T = "S4T's network, "
S4T_BASE = Row(f"{OF_S4T}not adapted", "s4t", synchronized, source)
S4T_BN_ONLY = Row(f"{OF_S4T}BN only", "s4t", synchronized, s4t)
SGD, ADAM = (1e-3, 1e-4, 1e-2, 1e-1), (1e-3, 1e-5, 1e-4, 1e-2)
SYNCHRONIZED = (2e-5, 1e-4, 1e-3, 3e-3, 1e-2)
OURS = Row("S4T", "s4t", synchronized, s4t, SYNCHRONIZED)

BASELINES = (
    Row("TENT", "plain", plain, partial(by_adam, Tent), ADAM),
    Row("TIPI", "plain", plain, partial(by_adam, TIPI), ADAM),
    Row("TTT", "ttt", partial(assisted, branch=RotationBranch), partial(by_sgd, TTT), SGD),
    Row(
        "TTT++",
        "ttt++",
        partial(assisted, branch=partial(ContrastiveBranch, outputs=32)),
        partial(by_sgd, TTTPlusPlus, momentum=0.9, queue=64),
        SGD,
        prepare=True,
    ),
    Row(
        "TTTFlow",
        "plain",
        plain,
        partial(by_sgd, TTTFlow, momentum=0.9, weight_decay=5e-4, passes=3),
        SGD,
        prepare=True,
    ),
    Row(
        "ClusT3",
        "clust3",
        partial(assisted, branch=lambda c: Projectors([c])),
        partial(by_adam, ClusT3),
        ADAM,
    ),
    Row(
        "ActMAD",
        "plain",
        plain,
        partial(by_sgd, ActMAD, momentum=0.9, weight_decay=5e-4, norm=source_statistics),
        SGD,
        prepare=True,
    ),
    Row("NC-TTT", "nc-ttt", partial(assisted, branch=NoiseDiscriminator), partial(by_adam, NCTTT), ADAM),
)


CONTROLS = tuple(
    Row(f"{row.name}'s network, BN only", row.source, row.model, partial(by_adam, Tent))
    for row in BASELINES
    if row.source != "plain"
)


def variant(name: str, key: str, **changes: Any) -> Row:
    """A row of S4T whose synchronizer differs."""
    return Row(name, key, partial(synchronized, **changes), s4t, SYNCHRONIZED)


def controlled(*rows: Row) -> tuple[Row, ...]:
    """The rows, and for each network of S4T the control that only estimates its statistics again."""
    found = list(rows)
    for row in rows:
        if row.source.startswith("s4t") and not any(
            r.source == row.source and len(r.rates) == 1 for r in found
        ):
            found.append(Row(f"{row.name}'s network, BN only", row.source, row.model, s4t))
    return tuple(found)


def misplaced(model: nn.Module, rate: float, seed: int) -> Adapter:
    """S4T as released, on outputs that the released transfer from Taskonomy to NYUD-v2 has put in each other's places."""
    found: Any = model
    orders = ("depth", "edge", "normals", "semseg"), ("semseg", "depth", "normals", "edge")
    return s4t(Assisted(found.network, legacy_order(found.branch, *orders)), rate, seed, preset="released")


ENDS = Protocol(record_every=10)
TASKS = ("semseg", "depth", "normals", "edge")
RATIOS = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "table1",
            "Four tasks adapted at once, from one style of house to another",
            (BASE, BN_ONLY, *BASELINES, *CONTROLS, S4T_BASE, S4T_BN_ONLY, OURS),
            published="tables 1 and 7, figures 3 and 4",
        ),
        Study(
            "components",
            "What each part of S4T contributes",
            controlled(
                BASE,
                S4T_BN_ONLY,
                variant("TBS", "s4t-tbs", projection=False, ratio=0.0),
                variant("TBS + projection", "s4t-r0", ratio=0.0),
                variant("TBS + masks, image reconstruction", "s4t-image", projection=False, reconstruct=True),
                OURS,
                Row("S4T, released loss", "s4t", synchronized, partial(s4t, preset="released"), SYNCHRONIZED),
                Row("S4T, released loss and channel order", "s4t", synchronized, misplaced, SYNCHRONIZED),
            ),
            protocol=ENDS,
            published="table 2",
        ),
        Study(
            "masks",
            "Masking strategies, on tokens of each task",
            controlled(
                BASE,
                variant("(a) random", "s4t-random", layout="per_task", strategy="random"),
                variant("(b) not overlapping", "s4t-disjoint", layout="per_task", strategy="disjoint"),
                variant("(c) same for all", "s4t-same", layout="per_task", strategy="same"),
                variant("(d) hide tasks", "s4t-hide", layout="per_task", strategy="hide"),
                OURS,
            ),
            protocol=ENDS,
            published="table 3",
        ),
        Study(
            "ratio",
            "The share of tokens that is masked",
            controlled(
                BASE,
                *(
                    variant(f"{ratio:g}", f"s4t-r{ratio:g}".replace("s4t-r0.8", "s4t"), ratio=ratio)
                    for ratio in RATIOS
                ),
            ),
            protocol=ENDS,
            published="figure 8",
        ),
        Study(
            "single",
            "One task in the synchronizer, and all four",
            controlled(
                BASE, *(variant(f"only {task}", f"s4t-only-{task}", only=task) for task in TASKS), OURS
            ),
            protocol=ENDS,
            published="table 8",
        ),
        Study(
            "noise",
            "Gaussian noise on the target, its deviation a share of the image's",
            (BASE, S4T_BN_ONLY, OURS),
            protocol=ENDS,
            domains=("target", *(f"target + noise {scale:g}" for scale in NOISE[1:])),
            published="table 5",
        ),
        Study(
            "online",
            "The paper's words: every batch, 40 steps each, online",
            (BASE, BN_ONLY, S4T_BN_ONLY, OURS),
            protocol=Protocol("online_continual", eval_on="adapted_batch", record_every=10),
            published="section 4",
        ),
        Study(
            "episodic",
            "Every batch from the source, 40 steps each",
            (BASE, BN_ONLY, S4T_BN_ONLY, OURS),
            protocol=Protocol("per_batch_episodic", eval_on="adapted_batch", record_every=10),
            published="section 4",
        ),
    )
}
