"""The state of an adapter as a value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from testtime import Adapter, sgd
from testtime.adapter import state_hash
from testtime.methods import EATA, PAFKIP, T3A, CoTTA, RoTTA, Source, Tent
from testtime.state import all_finite
from testtime.wrap import Episodic, Repeat


def adapter():
    torch.manual_seed(0)
    return Tent(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)))


def images(seed):
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_all_finite_finds_a_single_bad_value():
    assert all_finite([])
    assert all_finite([torch.zeros(3), torch.ones(2)])
    assert not all_finite([torch.zeros(3), torch.tensor([1.0, float("nan")])])
    assert not all_finite([torch.tensor([float("inf")])])


def test_a_state_names_what_moves_and_nothing_else():
    state = adapter().state_dict()
    moved = {name for name in state if name.startswith("model.")}
    assert moved == {"model.1.weight", "model.1.bias"} or all("1." in name for name in moved)
    assert len(moved) == 2
    assert state["clock"] == 0
    assert {name.rpartition(".")[2] for name in state if name.startswith("optimizer.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


@pytest.mark.parametrize("optimizer", [1e-3, "adam", torch.optim.SGD([torch.zeros(1)], 0.1)])
def test_an_optimizer_that_is_no_factory_is_refused(optimizer):
    kind = type(optimizer).__name__
    with pytest.raises(
        TypeError, match=rf"optimizer= is a function that makes .* testtime.adam\(1e-3\) .* got {kind}"
    ):
        Tent(adapter().model, optimizer)


def test_a_state_is_independent_of_the_adapter():
    one = adapter()
    one(images(0))
    state = one.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    one(images(1))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_a_refused_state_leaves_the_adapter_as_it_was():
    one = adapter()
    one(images(0))
    before, wrong = one.state_dict(), one.state_dict()
    name = next(n for n in wrong if n.endswith("exp_avg_sq"))
    wrong[name] = -wrong[name] - 1
    with pytest.raises(ValueError, match="negative, which it can never be"):
        one.load_state_dict(wrong)
    del wrong[name]
    with pytest.raises(ValueError, match=r"1 entries are missing"):
        one.load_state_dict(wrong)
    after = one.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_reset_restores_the_initial_state():
    one, fresh = adapter(), adapter()
    one(images(0))
    one.reset()
    born = fresh.state_dict()
    assert all(torch.equal(value, born[name]) for name, value in one.state_dict().items())


def chain(depth):
    torch.manual_seed(0)
    blocks = [m for _ in range(depth) for m in (nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))]
    return nn.Sequential(nn.Conv2d(1, 2, 3), *blocks, nn.Flatten(), nn.Linear(72, 3))


@pytest.fixture
def visited(monkeypatch):
    """The modules that walks over trees have come past."""
    modules, walk = [], nn.Module.named_modules

    def counted(self, *args, **kwargs):
        modules.append(self)
        return walk(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    return modules


def visits(visited, call):
    visited.clear()
    call()
    return len(visited)


def test_reset_and_load_take_a_bounded_number_of_walks(visited):
    for depth in (4, 16):
        one = Tent(chain(depth))
        fresh, state = state_hash(one), one.state_dict()
        one(images(0))
        moved = state_hash(one)
        nn.Identity().registers = nn.Identity()  # what was found before no longer holds
        walk = visits(visited, lambda: list(one.named_modules()))  # noqa: B023
        assert visits(visited, one.reset) <= 2 * walk
        assert state_hash(one) == fresh
        one(images(0))
        assert state_hash(one) == moved
        nn.Identity().registers = nn.Identity()
        assert visits(visited, lambda: one.load_state_dict(state)) <= 2 * walk  # noqa: B023
        assert state_hash(one) == fresh


@pytest.mark.parametrize(
    "make",
    [
        Source,
        Tent,
        lambda net: EATA(net, 3, fisher_alpha=0),
        lambda net: RoTTA(net, 3, capacity=4, frequency=2),
        lambda net: CoTTA(net, views=2),
        T3A,
        lambda net: PAFKIP(net, 3),
        lambda net: Episodic(Repeat(Tent(net), 3)),
    ],
)
def test_a_step_walks_over_no_tree(make, visited):
    one = make(chain(2))
    for m in one.modules():
        if hasattr(m, "_mirror"):
            m._mirror.open = False  # it copies the model until it has decided
    one(images(0))
    one(images(1))
    assert visits(visited, lambda: one(images(2))) == 0


def test_an_adapter_does_not_move_without_its_values() -> None:
    one, x = adapter(), images(0)
    one(x)
    before = state_hash(one)
    with pytest.raises(ValueError, match="meta device have no values"):
        one.to("meta")
    with pytest.raises(ValueError, match=r"to_empty\(\) moves tensors without their values"):
        one.to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"to_empty\(\) moves"):
        nn.Sequential(one).to_empty(device="cpu")
    assert state_hash(one) == before
    assert one(x).isfinite().all()


def test_parameters_of_another_tree_are_refused_and_left_as_they_are() -> None:
    class Outside(Adapter):
        def __init__(self, model: nn.Module, parameters: Callable[[nn.Module], Any]) -> None:
            super().__init__(model)
            self.adapt(parameters(model), sgd(0.1))

    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)
    before = [(p.data_ptr(), p.clone()) for p in net.parameters()]
    with pytest.raises(ValueError, match=r"Outside adapts a parameter \(3, 12\) that is not in self.model"):
        Outside(net, lambda m: m.parameters())
    assert all(p.data_ptr() == at and p.equal(v) for (at, v), p in zip(before, net.parameters(), strict=True))
    assert not any(p.requires_grad for p in net.parameters())
    with pytest.raises(ValueError, match=r"parameter \(\) .*a module around the model"):
        Outside(net, lambda m: [nn.Parameter(torch.zeros(()))])
    with pytest.raises(TypeError, match=r"takes parameters of self.model, got str"):
        Outside(net, lambda m: ["weight"])
