"""The state: a value that holds all that moves, and nothing else does."""

from __future__ import annotations

import torch

from testtime.adapter import state_hash
from testtime.laws.batches import numbers
from testtime.laws.trial import (
    Make,
    answers,
    built,
    grown,
    load,
    predicted,
    require,
    same,
    same_answers,
    saved,
)
from testtime.laws.worlds import World

__all__ = ["predict_is_pure", "reset_is_birth", "restore_is_total", "save_is_enough", "snapshot_is_a_value"]


def reset_is_birth(make: Make, world: World) -> None:
    """A reset restores the initial state, also in an instance that began by loading another state."""
    initial = state_hash(built(make, world))
    adapter = grown(make, world, world.stream(4))
    late = built(make, world)
    late.load_state_dict(adapter.state_dict())
    for how, a in (("after a run", adapter), ("after loading a state", late)):
        a.reset()
        if state_hash(a) != initial:
            what = _difference(a, built(make, world))
            require(False, f"{how}, a reset does not restore the initial state: {what}")


def save_is_enough(make: Make, world: World) -> None:
    """The saved state, through a safetensors file into a fresh instance, continues the run bit for bit, and so does a reset."""
    first, second = world.stream(4), world.stream(4, seed=3)
    adapter = grown(make, world, first)
    file = saved(adapter)
    fresh = make(world.network())  # a state holds what prepare() learned, and the initial state after it
    load(fresh, file)
    same_answers(
        answers(fresh, second), answers(adapter, second), "continued from a file by a fresh instance"
    )
    require(
        state_hash(fresh) == state_hash(adapter),
        lambda: f"the states differ after continuing: {_difference(fresh, adapter)}",
    )
    fresh.reset()
    adapter.reset()
    require(
        state_hash(fresh) == state_hash(adapter),
        lambda: (
            f"a fresh instance that loaded a state resets to another initial state: {_difference(fresh, adapter)}"
        ),
    )


def restore_is_total(make: Make, world: World) -> None:
    """A state loaded into an instance that has met another stream leaves nothing of that stream."""
    first, second = world.stream(4), world.stream(4, seed=3)
    adapter, dirty = grown(make, world, first), grown(make, world, world.stream(5, seed=7))
    file = saved(adapter)
    load(dirty, file)
    require(
        state_hash(dirty) == state_hash(adapter),
        lambda: f"loading left something: {_difference(dirty, adapter)}",
    )
    same_answers(
        answers(dirty, second), answers(adapter, second), "continued from a file by a dirty instance"
    )
    require(
        state_hash(dirty) == state_hash(adapter),
        lambda: f"the states differ after continuing: {_difference(dirty, adapter)}",
    )


def snapshot_is_a_value(make: Make, world: World) -> None:
    """A state taken earlier does not change as the run goes on, and changing it changes no adapter."""
    adapter = grown(make, world, world.stream(3))
    snapshot = adapter.state_dict()
    copy = {name: value.clone() for name, value in snapshot.items()}
    answers(adapter, world.stream(3, seed=3))
    for name, value in copy.items():
        same(snapshot[name], value, f"{name} in a state taken three batches ago")
    adapter.load_state_dict(snapshot)
    before = state_hash(adapter)
    for value in snapshot.values():
        value.fill_(1)
    require(state_hash(adapter) == before, "changing a state after it was loaded changed the adapter")


def predict_is_pure(make: Make, world: World) -> None:
    """predict leaves every byte of the state as it was, and the run goes on as if it had not been called."""
    batches, probe = world.stream(4), world.stream(1, seed=3)[0]
    adapter, undisturbed = (grown(make, world, batches[:2]) for _ in range(2))
    before = state_hash(adapter)
    dirty = probe.clone()
    if (values := numbers(dirty)) is not None:
        values[0] = torch.nan
    for x, what in ((probe, "a batch"), (probe[:1], "one image"), (probe[:0], "no image"), (dirty, "a NaN")):
        predicted(adapter, x)
        require(state_hash(adapter) == before, f"predict on {what} changed the state")
    same(predicted(adapter, probe), predicted(adapter, probe), "predict, called again,")
    same_answers(answers(adapter, batches[2:]), answers(undisturbed, batches[2:]), "after predict")


def _difference(a: torch.nn.Module, b: torch.nn.Module) -> str:
    one, other = a.state_dict(), b.state_dict()
    names = [
        k
        for k in sorted(one.keys() | other.keys())
        if k not in one or k not in other or not one[k].equal(other[k])
    ]
    return f"{len(names)} entries differ, first {names[:3]}"
