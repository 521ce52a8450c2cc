"""Composition: adapters go into wrappers and modules, and declare correct facts."""

from __future__ import annotations

import copy
import inspect

from torch import nn

from testtime.adapter import state_hash
from testtime.laws.trial import Make, answers, built, grown, inner, require, same, same_answers
from testtime.laws.worlds import Meter, World
from testtime.wrap import Episodic, ResetEvery

__all__ = ["composes", "declared"]


def composes(make: Make, world: World) -> None:
    """It works inside Episodic and ResetEvery, as a deep copy, and as a part of a module that is saved."""
    batches = world.stream(4)
    alone = [answers(built(make, world), [x])[0] for x in batches[:3]]

    episodic = built(lambda model: Episodic(make(model)), world)
    same_answers([answers(episodic, [x])[0] for x in batches[:3]], alone, "inside Episodic")
    reset = built(lambda model: ResetEvery(make(model), 2), world)
    y = answers(reset, batches[:3])[2]
    same(y, alone[2], "inside ResetEvery(..., 2), the third answer")

    adapter = grown(make, world, batches[:2])
    before = state_hash(adapter)
    twin = copy.deepcopy(adapter)
    ahead = answers(twin, batches[2:])
    require(state_hash(adapter) == before, "running a deep copy changed the original")
    same_answers(answers(adapter, batches[2:]), ahead, "a deep copy")

    parent = nn.ModuleDict({"a": adapter})
    saved, expected = parent.state_dict(), {f"a.{k}": v for k, v in adapter.state_dict().items()}
    names = saved.keys() ^ expected.keys()
    require(
        not names,
        f"a parent module saves {len(names)} entries too many or too few, first {sorted(names)[:3]}",
    )
    for name, value in expected.items():
        same(saved[name], value, f"{name}, saved by a parent module,")


def declared(make: Make, world: World) -> None:
    """Arguments are attributes of the same name; the declared cost is what was counted, in whole batches."""
    network = world.network()
    meter = network.meter
    assert isinstance(meter, Meter)
    adapter = built(make, world, network)
    for a in inner(adapter):
        for name in list(inspect.signature(type(a).__init__).parameters)[1:]:
            require(hasattr(a, name), f"{type(a).__name__} takes {name!r}, but has no attribute {name!r}")
    size, counted = 4 * world.batch, (0.0, 0.0)
    for x in world.stream(4, size):
        meter.forwards = meter.backwards = 0
        answers(adapter, [x])
        counted = max(counted[0], meter.forwards / size), max(counted[1], meter.backwards / size)
    cost = tuple(adapter.cost)
    require(cost == counted, f"declared cost (forwards, backwards) {cost}, counted {counted}")
