"""The exchange of states: the same as through state_dict, for every method, and equal to an adapter alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_session import images, network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from testtime.adapter import Adapter, state_hash
from testtime.methods import EATA, NOTE, SAR, T3A, CoTTA, RoTTA, SoTTA, Tent
from testtime.norm import ema_statistics
from testtime.parts.optimizers import sgd
from testtime.serve import Session, SessionOptions
from testtime.serve.swapping import Slots
from testtime.wrap import Episodic, ResetEvery, Window


def wide() -> nn.Module:
    """With a layer whose tensors are too large for blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 160), nn.Linear(160, 3))
        return nn.Sequential(*net).eval()


MAKE = {
    "wide": lambda: CoTTA(wide(), views=2),
    "tent": lambda: Tent(network()),
    "momentum": lambda: Tent(network(), optimizer=sgd(0.01, momentum=0.9)),
    "statistics": lambda: Tent(network(), norm=ema_statistics),
    "half": lambda: Tent(network().bfloat16()),
    "cotta": lambda: CoTTA(network(), views=2),
    "eata": lambda: EATA(network(), classes=3),
    "note": lambda: NOTE(network(), classes=3, capacity=8),
    "rotta": lambda: RoTTA(network(), classes=3, capacity=8),
    "sar": lambda: SAR(network(), classes=3),
    "sotta": lambda: SoTTA(network(), classes=3, capacity=8),
    "t3a": lambda: T3A(network()),
    "window": lambda: Window(Tent(network()), size=6),
    "reset": lambda: ResetEvery(Episodic(Tent(network())), 3),
}


def made(name: str) -> Adapter:
    adapter = MAKE[name]()
    if adapter.source != "none":
        adapter.prepare([images(500, 16)])
    return adapter


def batch(i: int, like: Adapter) -> torch.Tensor:
    kind = next((p.dtype for p in like.parameters()), torch.float32)
    return images(i).to(kind)


@pytest.mark.parametrize("name", MAKE)
def test_two_states_take_turns_in_one_adapter(name: str) -> None:
    adapter, alone = made(name), (made(name), made(name))
    slots = Slots(adapter)
    expected = adapter.state_dict().keys() - slots.learned().keys()
    assert sorted(slots.names()) == sorted(expected)
    assert slots.hash() == state_hash(adapter)
    waiting = slots.copy()
    for i in range(6):
        for other in (0, 1):
            x = batch(10 * i + other, adapter)
            assert torch.equal(adapter(x).logits, alone[other](x).logits)
            assert slots.hash() == state_hash(adapter) == state_hash(alone[other])
            waiting = slots.exchange(waiting)
    for other in (1, 0):
        waiting = slots.exchange(waiting)
        named = slots.named(slots.copy())
        assert all(torch.equal(v, named[k]) for k, v in alone[other].state_dict().items() if k in named)


def test_a_stream_costs_its_state_alone(tmp_path: Path) -> None:
    with Session(Tent(network()), tmp_path) as session:
        session.submit(images(0), "a")
        session.submit(images(0), "b")
        size = sum(v.nbytes for v in session.adapter.state_dict().values())
        assert session.status("a").bytes == session.status("b").bytes == size
        norm = sum(p.nbytes for m in network() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
        assert size <= 3 * norm + 8 + 2 * 8  # with Adam's two moments and its counts


def test_an_estimated_range_belongs_to_its_stream(tmp_path: Path) -> None:
    """One camera sends values up to 255, another up to 1: neither is judged by the other."""
    with Session(Tent(network()), tmp_path, options=SessionOptions()) as session:
        with pytest.warns(UserWarning, match="first images lie in about"):
            loud = session.submit(images(0) * 255, "loud")
        quiet = session.submit(images(0), "quiet")
        assert loud.refused == quiet.refused == (None,) * 4
        assert session.submit(images(1) * 255, "quiet").refused == ("out of range",) * 4
        assert session.submit(images(1) * 255, "loud").refused == (None,) * 4
    with Session.resume(network(), tmp_path) as session:
        assert session.submit(images(2) * 255, "quiet").refused == ("out of range",) * 4
        assert session.submit(images(2) * 255, "loud").refused == (None,) * 4


def interleaved(directory: Path, streams: int, requests: int) -> None:
    options = SessionOptions(snapshot_every=0, streams=streams)
    order = torch.randperm(streams * requests, generator=torch.Generator().manual_seed(0)).tolist()
    done = [0] * streams
    found: dict[tuple[int, int], tuple[torch.Tensor, str]] = {}
    session = Session(Tent(network()), directory, options=options)
    for place in order:
        i = place % streams
        answer = session.submit(images(1000 * i + done[i], 2), f"s{i}")
        found[i, done[i]] = answer.logits, answer.state
        done[i] += 1
    alone = Tent(network())
    for i in range(streams):
        alone.reset()
        for j in range(requests):
            y = alone(images(1000 * i + j, 2))
            logits, state = found[i, j]
            assert torch.equal(y.logits, logits)
            assert state_hash(alone)[:16] == state
    session.close()


def test_interleaved_streams(tmp_path: Path) -> None:
    interleaved(tmp_path, 12, 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_interleaved_streams(tmp_path: Path) -> None:
    interleaved(tmp_path, 1000, 5)


class Operations(TorchDispatchMode):
    """Counts the operations of torch, and the tensors that they take."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.tensors = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        self.tensors += sum(isinstance(a, Tensor) for a in args)
        self.tensors += sum(len(a) for a in args if isinstance(a, list))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layers", [1, 20])
def test_an_exchange_visits_blocks_and_no_modules(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(layers)), nn.Flatten(), nn.Linear(108, 3)).eval()
    adapter = Tent(net)
    slots = Slots(adapter)
    waiting = slots.exchange(slots.copy())
    adapter(images(0))
    visited: list[nn.Module] = []
    real = nn.Module.named_modules
    monkeypatch.setattr(nn.Module, "named_modules", lambda m, *a, **k: visited.append(m) or real(m, *a, **k))
    slots.hash()
    with Operations() as count:
        slots.exchange(waiting)
    assert visited == []
    assert (count.calls, count.tensors) == (5, 8)  # a block and the count of steps, whatever the layers


def test_a_parameter_whose_memory_others_use_keeps_it() -> None:
    adapter, alone = Tent(network()), Tent(network())
    seen = adapter._adapted[0].detach()
    slots = Slots(adapter)
    start, waiting = slots.copy(), slots.copy()
    adapter(images(0))
    alone(images(0))
    assert torch.equal(seen, adapter._adapted[0])
    assert slots.hash() == state_hash(adapter) == state_hash(alone)
    assert torch.equal(slots.weights(), torch.cat([p.detach() for p in alone._adapted]))
    moved = slots.exchange(waiting)
    assert torch.equal(seen, network()[1].weight)
    assert all(torch.equal(v, slots.named(moved)[k]) for k, v in alone.state_dict().items())
    slots.exchange(moved)
    assert slots.hash() == state_hash(alone)
    slots.exchange(start)
    assert slots.hash() == state_hash(Tent(network()))


def test_an_optimizer_that_replaces_its_tensors_stays_on_the_blocks() -> None:
    class Replacing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["momentum_buffer"] = state["momentum_buffer"].clone()

    def made() -> Tent:
        return Tent(network(), optimizer=lambda p: Replacing(p, lr=0.1, momentum=0.9))

    adapter, alone = made(), made()
    slots = Slots(adapter)
    waiting = slots.copy()
    for i in range(3):
        adapter(images(i))
        alone(images(i))
        assert slots.hash() == state_hash(adapter) == state_hash(alone)
        waiting = slots.exchange(waiting)
        assert slots.hash() != state_hash(alone)
        waiting = slots.exchange(waiting)
    with torch.no_grad():
        adapter._optimizer.state[adapter._adapted[0]]["momentum_buffer"] = torch.zeros(9)
        adapter.clock += 1
    with pytest.raises(RuntimeError, match="keeps their shapes and types"):
        slots.hash()
