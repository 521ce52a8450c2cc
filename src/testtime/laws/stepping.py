"""The step: what an answer is, when it was computed, and what may move meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter, state_hash
from testtime.intake.named import called
from testtime.intake.sharing import Stateful
from testtime.laws.batches import cast, fed, filled, joined, numbers
from testtime.laws.trial import (
    Make,
    adapted,
    answers,
    built,
    deviation,
    flat,
    grown,
    inner,
    predicted,
    require,
    same,
    same_answers,
    still,
)
from testtime.laws.worlds import World, ambient
from testtime.methods.source import Source
from testtime.norm import EMAStatistics, ema_statistics
from testtime.prediction import Prediction, TaskPredictions

__all__ = [
    "alive",
    "any_batch",
    "any_precision",
    "bounded",
    "deterministic",
    "each_alone",
    "frozen_is_frozen",
    "no_future",
    "no_residue",
    "null_step",
    "one_tick",
    "order_equivariant",
    "output_timing",
    "same_form",
    "survives_nonfinite",
]


def same_form(make: Make, world: World) -> None:
    """An answer has the form of the model's logits, one validity per image, one score and mask entry per image or pixel."""
    network, adapter = world.network(), built(make, world)
    for size in (16, 5, 2, 1):
        x = world.stream(1, size)[0]
        with torch.no_grad():
            output = called(network, x)
        for how in (adapter, adapter.predict):
            with ambient():
                y = how(fed(x))
            _well_formed(y, output, f"{'adapter' if how is adapter else 'predict'}(x) on {size} images")


def _well_formed(y: Any, output: Any, what: str) -> None:
    def form(t: Tensor) -> tuple[Any, ...]:
        return tuple(t.shape), t.dtype, t.device

    places: list[tuple[int, ...]]
    if isinstance(output, Mapping):
        n = len(next(iter(output.values())))
        require(
            isinstance(y, TaskPredictions),
            f"{what}: the answer is a {type(y).__name__}, expected TaskPredictions",
        )
        require(
            list(y) == list(output), f"{what}: the answer has the tasks {list(y)}, the model {list(output)}"
        )
        pairs, places = [(f"the output {k!r}", y[k], output[k]) for k in y], [(n,)]
    else:
        n = len(output)
        require(
            isinstance(y, Prediction), f"{what}: the answer is a {type(y).__name__}, expected a Prediction"
        )
        each = (n, *output.shape[2:])
        score = tuple(y.score.shape) == each and y.score.is_floating_point()
        require(score, f"{what}: score is {form(y.score)}, expected {each}, floating")
        pairs, places = [("the answer", y, output)], [(n,), each]
    for name, mine, models in pairs:
        require(form(mine) == form(models), f"{what}: {name} is {form(mine)}, the model's {form(models)}")
    for name, mask in {"valid": y.valid, **{f"selected[{k!r}]": v for k, v in y.selected.items()}}.items():
        expected = [(n,)] if name == "valid" else places
        require(
            tuple(mask.shape) in expected and mask.dtype == torch.bool,
            f"{what}: {name} is {form(mask)}, expected {' or '.join(map(str, expected))}, bool",
        )
    require(isinstance(y.updated, bool), f"{what}: updated is a {type(y.updated).__name__}, expected a bool")


def alive(make: Make, world: World) -> None:
    """After a few batches the adapted parameters have moved, and the answers differ from the source's."""
    adapter, batches, probe = built(make, world), world.stream(6), world.stream(1, seed=3)[0]
    before = [p.detach().clone() for p in adapted(adapter)]
    answers(adapter, batches)
    with torch.no_grad():
        source = flat(called(world.network(), probe))
    if before:
        moved = max(deviation(p, b) for p, b in zip(adapted(adapter), before, strict=True))
        require(moved > 0, f"none of the {len(before)} adapted parameters moved in {len(batches)} batches")
    require(
        deviation(predicted(adapter, probe), source) > 0,
        f"after {len(batches)} batches it answers as the source model",
    )


def frozen_is_frozen(make: Make, world: World) -> None:
    """What is not declared to move, by adapt() or as state, stays bitwise: weights and constant buffers."""
    adapter = built(make, world)
    moving = {id(t) for m in adapter.modules() if isinstance(m, Stateful) for t in m.moving().values()}
    frozen = {k: v for k, v in [*adapter.named_parameters(), *adapter.named_buffers()] if id(v) not in moving}
    before = {k: v.detach().clone() for k, v in frozen.items()}
    answers(adapter, world.stream(4))
    now = dict([*adapter.named_parameters(), *adapter.named_buffers()])
    for name, value in before.items():
        same(now[name], value, f"{name}, which is not declared to move,")


def null_step(make: Make, world: World) -> None:
    """At a learning rate of zero, predict, step and the source under the same norm policy answer the same."""
    adapter, network = still(built(make, world)), world.network()
    norms: list[Any] = [a.norm for a in inner(adapter) if callable(getattr(a, "norm", None))]
    with ambient():
        # An adapter that does not declare its policy is compared with its own network, which keeps the policy it has.
        source = Source(network, norm=norms[0]) if norms else Source(inner(built(make, world))[-1].model)
    for i, x in enumerate(world.stream(3)):
        unadapted, stepped, expected = (
            predicted(adapter, x),
            answers(adapter, [x])[0],
            answers(source, [x])[0],
        )
        same(stepped, expected, f"batch {i}: the step, against the source model,", 1e-6)
        same(unadapted, expected, f"batch {i}: predict, against the source model,", 1e-6)


def output_timing(make: Make, world: World) -> None:
    """The declared output is true: "after" feels its update, "before" does not, "teacher" is no student."""
    batches = world.stream(5)
    declared = built(make, world).output
    require(
        declared in ("before", "after", "teacher"),
        f"output is {declared!r}, expected 'before', 'after' or 'teacher'",
    )
    learning, resting, felt = built(make, world), still(built(make, world)), 0.0
    for x in batches if declared != "teacher" else ():
        resting.load_state_dict(learning.state_dict())
        felt = max(felt, deviation(answers(learning, [x])[0], answers(resting, [x])[0]))
        if declared == "after" and felt > 0:
            break
    if declared == "before":
        require(felt == 0, f"output is 'before', but the answer feels its own batch's update by {felt:.3g}")
    if declared == "after":
        require(felt > 0, "output is 'after', but no answer feels its own batch's update")
    student, probe = grown(make, world, batches[:2]), world.stream(1, seed=3)[0]
    before = predicted(student, probe)
    with torch.no_grad():
        for p in adapted(student):
            p.mul_(1.5)
    change = deviation(predicted(student, probe), before)
    if declared == "teacher":
        require(
            change == 0,
            f"output is 'teacher', but the answer follows the student's parameters by {change:.3g}",
        )
    elif adapted(student):
        require(
            change > 0, f"output is {declared!r}, but the answer does not depend on the adapted parameters"
        )


def deterministic(make: Make, world: World) -> None:
    """Two instances on one stream answer and end the same, whatever the state of the global generators."""
    one, other = built(make, world), built(make, world)
    for i, x in enumerate(world.stream(4)):
        with ambient(10):
            first = flat(one(fed(x)))
        with ambient(11 + i):
            second = flat(other(fed(x)))
        same(second, first, f"another instance, under another global seed: answer {i}")
    require(state_hash(one) == state_hash(other), "the states of two instances differ")


def order_equivariant(make: Make, world: World) -> None:
    """Permuting the images of a batch permutes the answers (in float64, to 1e-5)."""
    *past, x = (cast(x, torch.float64) for x in world.stream(4))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    straight = answers(grown(make, world, past, world.network().double()), [x])[0]
    permuted = answers(grown(make, world, past, world.network().double()), [x[order]])[0]
    same(permuted, straight[order], "the answer to the permuted batch", 1e-5)


def any_batch(make: Make, world: World) -> None:
    """One image, two, none, ragged, constant, all filtered out or all taken: nothing is NaN."""

    def try_on(network: nn.Module, batches: list[Any], what: str) -> None:
        adapter = built(make, world, network)
        for i, (x, y) in enumerate(zip(batches, answers(adapter, batches), strict=True)):
            bad = int((~torch.isfinite(y)).sum())
            require(y.shape == (len(x), *y.shape[1:]), f"{what}: {len(x)} images got {len(y)} answers")
            require(
                bad == 0 and y.valid.all(),
                f"{what}: {bad} values of answer {i} (to {len(x)} images) are not finite",
            )
        for name, value in adapter.state_dict().items():
            bad = int(value.isnan().sum())
            require(bad == 0, f"{what}: {bad} values of {name} in the state are NaN")

    x = world.stream(1)[0]
    constant = [filled(x, v) for v in (0.0, 0.5, 1.0)]
    for size in (1, 2):
        try_on(world.network(), world.stream(4, size), f"batches of {size}")
    try_on(world.network(), [x[:0], x, x[:0], x[:3], x[:1], x, x[:7]], "ragged batches, the first one empty")
    images = isinstance(x, Tensor) and x.dim() == 4
    last = [x.contiguous(memory_format=torch.channels_last)] * 2 if images else [x]
    try_on(
        world.network(), [*last, *constant, x], "two batches of channels-last images, then constant images"
    )
    for scale, what in ((0.0, "predictions that know nothing"), (1e3, "predictions that are certain")):
        network = world.network()
        with torch.no_grad():
            for p in list(network.parameters())[-2:]:
                p.mul_(scale)
        try_on(network, world.stream(3), what)


def survives_nonfinite(make: Make, world: World) -> None:
    """Samples with NaN, infinity or values far out of range are refused, in calls and in ``prepare``, as if absent."""
    clean = world.stream(3)
    if numbers(clean[0]) is None:  # token ids are finite
        return
    far = (torch.inf, 1e4, -300.0) if isinstance(clean[0], Tensor) else (torch.inf, torch.nan, -torch.inf)
    _prepare_is_screened(make, world)
    dirty, masks = [], []
    for i, x in enumerate(clean):
        bad = x[:3].clone()
        values = numbers(bad)
        assert values is not None
        values[0], values[1].view(-1)[i * 9 % values[1].numel()], values[2, 1] = torch.nan, far[i], -torch.inf
        dirty.append(joined([bad[:1], x[:5], bad[1:2], x[5:], bad[2:]]))
        mask = torch.ones(len(x) + 3, dtype=torch.bool)
        mask[[0, 6, len(x) + 2]] = False
        masks.append(mask)
    one, other = built(make, world), built(make, world)
    for i, (y, z, good) in enumerate(zip(answers(one, dirty), answers(other, clean), masks, strict=True)):
        require(
            torch.equal(y.valid, good),
            f"batch {i}: {int((y.valid != good).sum())} images are wrongly (in)valid",
        )
        same(y[good], z.logits, f"batch {i}: the rows of the good images")
        require(y[~good].isnan().all(), f"batch {i}: a refused image was answered")
        same(predicted(one, dirty[i])[good], predicted(other, clean[i]).logits, "predict on the good images")
    require(
        state_hash(one) == state_hash(other), "the state differs from that of the run without the bad images"
    )
    y = answers(one, [_not_finite(clean[0], torch.nan)])[0]
    answers(other, [clean[0][:0]])
    require(y.isnan().all() and not y.valid.any(), "a batch of NaN was answered")
    require(
        state_hash(one) == state_hash(other), "a batch of NaN changed the state otherwise than an empty batch"
    )


def _prepare_is_screened(make: Make, world: World) -> None:
    """Source batches with bad images have the effect of the good ones alone; batches that a call refuses are refused."""
    source = world.source()
    dirty = [joined([x, x[:2]]) for x in source]
    for x in dirty:
        values = numbers(x)
        assert values is not None
        values[-2].view(-1)[0], values[-1].view(-1)[-1] = torch.nan, 1e4 if values is x else torch.inf
    with ambient():
        one, other = make(world.network()), make(world.network())
        if one.source == "none":
            return
        one.prepare(map(fed, [*dirty, _not_finite(source[0], torch.inf)]))
        other.prepare(map(fed, source))
    require(
        state_hash(one) == state_hash(other),
        "prepare learns otherwise from batches that hold images with NaN or a pixel of 1e4 beside the good ones",
    )
    refused: dict[str, Any] = {
        "no batch": [],
        "a batch in place of batches": fed(source[0]),
        "samples of NaN alone": [fed(_not_finite(source[0], torch.nan))],
    }
    if isinstance(source[0], Tensor):
        refused["uint8 images"] = [(x * 255).byte() for x in source]
    else:
        refused["a dictionary of lists"] = [{k: v.tolist() for k, v in fed(x).items()} for x in source]
    for what, batches in refused.items():
        try:
            with ambient():
                one.prepare(batches)
        except (TypeError, ValueError):
            require(
                state_hash(one) == state_hash(other), f"prepare refused {what}, yet the state has changed"
            )
        else:
            require(False, f"prepare took {what}")


def _not_finite(x: Any, value: float) -> Any:
    """The batch with one value in place of all numbers."""
    spoilt = x.clone()
    values = numbers(spoilt)
    assert values is not None
    values.fill_(value)
    return spoilt


def no_residue(make: Make, world: World) -> None:
    """After a reset the adapter answers a stream as one that never processed another."""
    first, second = world.stream(5), world.stream(5, seed=3)
    used = grown(make, world, first)
    used.reset()
    same_answers(answers(used, second), answers(built(make, world), second), "after a reset")


def no_future(make: Make, world: World) -> None:
    """What comes after time t, in later batches or later in a batch of windows, changes no answer at or before t."""
    batches, other, at = world.stream(4), world.stream(4, seed=3), 2
    rows = len(batches[at]) // 2 if world.in_turn else len(batches[at])
    changed = [*batches[:at], joined([batches[at][:rows], other[at][rows:]]), *other[at + 1 :]]
    with ambient():
        one, two = built(make, world), built(make, world)
        # The answers themselves, not copies: one that is corrected later has met the future.
        first, second = [one(fed(x)) for x in batches[: at + 1]], [two(fed(x)) for x in changed]
    for i, (y, z) in enumerate(zip(first, second[: at + 1], strict=True)):
        past = rows if i == at else len(batches[i])
        same(flat(z).logits[:past], flat(y).logits[:past], f"after another future, answer {i}")


def each_alone(make: Make, world: World) -> None:
    """If it declares ``episodic``, other images before and beside an image change nothing in its answer: prompts are reset."""
    if not built(make, world).episodic:
        return
    batches, other = ([x.double() for x in world.stream(3, seed=seed)] for seed in (0, 3))
    for place in (0, len(batches[-1]) // 2):
        mixed = other[-1].clone()
        mixed[place] = batches[-1][place]
        past, another = (built(make, world, world.network().double()) for _ in range(2))
        first, second = answers(past, batches)[-1], answers(another, [*other[:-1], mixed])[-1]
        same(second[place], first[place], f"among other images, the answer to image {place}", 1e-9)


def bounded(make: Make, world: World) -> None:
    """What the adapter holds, in its state and beside it, does not grow with the length of the stream."""
    batches = world.stream(36, 8)
    adapter = grown(make, world, batches[:24])
    warm = _footprint(adapter, set())
    answers(adapter, batches[24:])
    now = _footprint(adapter, set())
    require(now <= warm, f"it holds {warm} values after 24 batches and {now} after 36")


def _footprint(thing: Any, seen: set[int]) -> int:
    """Tensor elements and container entries reachable from here."""
    if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType | str | bytes | int | float):
        return 0
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return thing.numel()
    if isinstance(thing, MethodType):
        return _footprint(thing.__self__, seen)
    if isinstance(thing, Mapping):
        return len(thing) + sum(_footprint(v, seen) for v in thing.values())
    if hasattr(thing, "__len__") and hasattr(thing, "__iter__"):
        return len(thing) + sum(_footprint(v, seen) for v in thing)
    return sum(_footprint(v, seen) for v in vars(thing).values()) if hasattr(thing, "__dict__") else 0


def one_tick(make: Make, world: World) -> None:
    """Moving statistics advance once per observed batch, however many forwards a step makes."""
    network = ema_statistics(world.network())
    adapter = built(make, world, network)
    policies = {name: m for name, m in adapter.named_modules() if isinstance(m, EMAStatistics)}
    met: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in policies}
    for name, module in policies.items():

        def record(layer: EMAStatistics, inputs: tuple[Tensor, ...], name: str = name) -> None:
            mean, _ = layer.moments(inputs[0].detach())
            met[name].append((layer.mean.clone(), layer.mean.lerp(mean, 1 - layer.decay)))

        module.register_forward_pre_hook(record)
    for x in world.stream(4):
        answers(adapter, [x])
        for name, module in policies.items():
            olds, news = [old for old, _ in met[name]], [new for _, new in met[name]]
            met[name].clear()
            if not olds:
                continue
            drift = max(deviation(old, olds[0]) for old in olds)
            require(drift == 0, f"{name} advanced by {drift:.3g} between two forwards of one step")
            off = min(deviation(module.mean, value) for value in [olds[0], *news])
            require(off <= 1e-6, f"{name} is {off:.3g} away from one step of its moving average")


def any_precision(make: Make, world: World) -> None:
    """In float64, float16, bfloat16 and under autocast it updates, stays finite and answers in the model's type."""
    learns = any(y.updated for y in answers(built(make, world), world.stream(3)))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        network, batches = world.network().to(dtype), [cast(x, dtype) for x in world.stream(3)]
        adapter = built(make, world, network)
        _finite_state(adapter, f"{dtype}, before the first batch")
        ys = answers(adapter, batches)
        for y in ys:
            require(y.dtype == dtype, f"a model in {dtype} is answered in {y.dtype}")
            require(y.valid.all(), f"{dtype}: {int((~y.valid).sum())} answers are not finite")
        require(not learns or any(y.updated for y in ys), f"{dtype}: it updates nothing, and does in float32")
        _finite_state(adapter, f"{dtype}")
    adapter = built(make, world)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = answers(adapter, world.stream(3))
    require(all(bool(y.valid.all()) for y in ys), "under autocast answers are not finite")
    _finite_state(adapter, "under autocast")


def _finite_state(adapter: Adapter, when: str) -> None:
    for name, value in adapter.state_dict().items():
        require(not value.isnan().any(), f"{when}: {name} in the state holds NaN")
