"""The caller's world: an adapter leaves it as it found it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testtime.adapter import state_hash
from testtime.laws.batches import fed, parts_of
from testtime.laws.trial import Make, answers, built, flat, predicted, require, same, same_answers
from testtime.laws.worlds import World, ambient
from testtime.prediction import Prediction

__all__ = ["ambient_untouched", "any_grad_context", "label_blind", "source_untouched", "tensors_owned"]


def source_untouched(make: Make, world: World) -> None:
    """The caller's model stays bitwise as it was: parameters, buffers, requires_grad and training mode."""
    network = world.network()
    network.train()  # a caller may hand over a model in training mode, and part of it frozen
    parameters = list(network.parameters())
    parameters[0].requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    flags, modes = [p.requires_grad for p in parameters], [m.training for m in network.modules()]
    kinds = [type(m) for m in network.modules()]

    adapter = built(make, world, network)
    answers(adapter, world.stream(3))
    predicted(adapter, world.stream(1)[0])
    adapter.reset()

    require(kinds == [type(m) for m in network.modules()], "layers of the caller's model were replaced")
    for name, value in network.state_dict().items():
        same(value, before[name], f"the caller's {name}")
    require(
        flags == [p.requires_grad for p in parameters], "requires_grad of the caller's parameters changed"
    )
    require(
        modes == [m.training for m in network.modules()], "the training mode of the caller's model changed"
    )
    require(all(p.grad is None for p in parameters), "gradients were left in the caller's parameters")


def tensors_owned(make: Make, world: World) -> None:
    """A batch is not changed, and neither it nor its answer is kept: writing on them later is harmless."""
    adapter = built(make, world)
    held: list[Tensor] = []
    with ambient():
        for x in world.stream(4):
            given = fed(x)
            holds = parts_of(given)
            y = adapter(given)
            require(parts_of(given).keys() == holds.keys(), "the names in the caller's dictionary changed")
            for name, value in parts_of(x).items():
                same(parts_of(given)[name], value, f"the caller's batch ({name}), during the call,")
            outputs = [y.logits, y.score] if isinstance(y, Prediction) else list(y.values())
            graph = any(output.grad_fn is not None or output.requires_grad for output in outputs)
            require(not graph, "the answer carries a graph")
            held += [*holds.values(), *outputs, y.valid, *y.selected.values()]
    probe = world.stream(1, seed=3)[0]
    before, hash_before = predicted(adapter, probe), state_hash(adapter)
    for tensor in held:
        tensor.fill_(1 if tensor.dtype == torch.bool else 0.123)
    require(state_hash(adapter) == hash_before, "overwriting past batches or answers changed the state")
    same(predicted(adapter, probe), before, "predict() after past batches or answers were overwritten")


def ambient_untouched(make: Make, world: World) -> None:
    """No call touches the global random generators, the grad mode or the default dtype."""
    network, batches = world.network(), world.stream(2)

    def everything() -> None:
        adapter = make(network)
        if adapter.source != "none":
            adapter.prepare(world.source())
        adapter(batches[0])
        adapter.predict(batches[1])
        state = adapter.state_dict()
        adapter(batches[1])
        adapter.load_state_dict(state)
        adapter.reset()

    for mode in (torch.enable_grad, torch.no_grad):
        python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is the point
        with ambient(), mode():
            before = _surroundings()
            everything()
            after = _surroundings()
        moved = random.getstate() != python or str(np.random.get_state()) != str(numpy_state)  # noqa: NPY002
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        require(not moved, "the global generator of python or numpy was used")
        for name, value in before.items():
            require(after[name] == value, f"the caller's {name} changed")


def _surroundings() -> dict[str, Any]:
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def any_grad_context(make: Make, world: World) -> None:
    """Built and called under grad, no_grad or inference_mode, the adapter answers and learns the same."""
    batches, probe = world.stream(3), world.stream(1, seed=3)[0]

    def run(build: Callable[[], Any], call: Callable[[], Any]) -> tuple[list[Prediction], str]:
        network = world.network()
        with build():
            adapter = built(make, world, network)
        with call():
            inputs = [fed(x) for x in [*batches, probe]]  # inference tensors, inside inference mode
            with ambient():
                ys = [flat(adapter(x)) for x in inputs[:-1]]
                ys.append(flat(adapter.predict(inputs[-1])))
        return ys, state_hash(adapter)

    expected, expected_hash = run(torch.enable_grad, torch.enable_grad)
    for build, call in (
        (torch.enable_grad, torch.no_grad),
        (torch.enable_grad, torch.inference_mode),
        (torch.inference_mode, torch.inference_mode),
        (torch.inference_mode, torch.enable_grad),
    ):
        where = f"built under {build.__name__}, called under {call.__name__}"
        ys, hashed = run(build, call)
        same_answers(ys, expected, where)
        require(hashed == expected_hash, f"{where}: the state differs from the one under enable_grad")


def label_blind(make: Make, world: World) -> None:
    """What predicts and learns takes the inputs and nothing else, so that no label can reach it."""
    adapter = built(make, world)
    methods: list[tuple[str, Callable[..., Any]]] = [
        (name, getattr(adapter, name)) for name in ("step", "_predict_batch", "forward", "predict")
    ]
    for name, method in methods:
        parameters = list(inspect.signature(method).parameters)
        require(
            len(parameters) == 1,
            f"{type(adapter).__name__}.{name} takes {parameters}, expected the inputs alone",
        )
