"""A model that is trained on after wrapping is noticed, and nothing else is taken for it."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from testtime.adapter import state_hash
from testtime.intake.frozen import Frozen
from testtime.intake.sharing import share
from testtime.methods import T3A, Source, Tent
from testtime.norm import ema_statistics

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).eval()


def step_of(make: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def step(model: nn.Module) -> None:
        optimizer = make(model.parameters(), lr=1e-3)
        model(X).square().mean().backward()
        optimizer.step()

    return step


def in_training_mode(model: nn.Module) -> None:
    with torch.no_grad():
        model.train()(X)
    model.eval()


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[3].bias[0] += 1


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "SGD": step_of(torch.optim.SGD),
    "Adam": step_of(torch.optim.Adam),
    "a loop over parameters": step_of(lambda p, lr: torch.optim.SGD(p, lr, foreach=False)),
    "load_state_dict": lambda model: model.load_state_dict(network().state_dict()),
    "running statistics": in_training_mode,
    "in-place edit": in_place,
    "initialisation": lambda model: nn.init.zeros_(model[0].weight),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "make", [Tent, Source, lambda m: Tent(ema_statistics(m)), lambda m: Source(nn.DataParallel(m))]
)
def test_a_change_of_the_source_model_is_noticed(change: str, make: Callable[..., Tent]) -> None:
    model = network()
    adapter = make(model)
    adapter(X)
    CHANGES[change](model)
    for call in (adapter, adapter.predict):
        with pytest.raises(ValueError, match=r"has changed since .* copy\.deepcopy\(model\)"):
            call(X)
    assert make(model)(X).valid.all()  # what the message says


def test_a_change_before_the_first_call_is_noticed() -> None:
    model = network()
    adapter = Tent(model)
    in_place(model)
    with pytest.raises(ValueError, match="has changed since"):
        adapter(X)


def test_an_adapter_on_a_copy_is_independent() -> None:
    model = network()
    adapter, expected = Tent(copy.deepcopy(model)), Tent(network())(X)
    in_place(model)
    assert adapter(X).equal(expected)


def test_adapters_on_one_model_do_not_disturb_each_other() -> None:
    model = network()
    adapters = [Tent(model), Source(model), T3A(model), Tent(model), Source(share(model))]
    for _ in range(2):
        for adapter in adapters:
            assert adapter(X).valid.all()
            adapter.predict(X)


def test_an_adapter_on_the_model_of_another_notices_that_one_learn() -> None:
    tent = Tent(network())
    source = Source(tent.model)
    tent(X)
    with pytest.raises(ValueError, match="has changed since"):
        source(X)


def test_what_shares_no_memory_may_change() -> None:
    model = network()
    moved = Source(model).double()
    assert moved(X.double()).valid.all()
    in_place(model)
    assert moved(X.double()).valid.all()
    model = network()
    stays = Source(model)
    model.double()  # the caller's model has new memory
    in_place(model)
    assert stays(X).valid.all()


def test_a_copied_adapter_is_independent() -> None:
    model = network()
    other = copy.deepcopy(Tent(model))
    in_place(model)
    assert other(X).updated


def test_the_source_model_may_be_deleted() -> None:
    model = network()
    adapter = Tent(model)
    del model
    gc.collect()
    assert adapter(X).updated


def test_flags_and_modes_are_no_change() -> None:
    model = network()
    adapter = Tent(model)
    adapter(X)
    model.requires_grad_(False).train().eval().requires_grad_(True)
    model(X).sum().backward()
    model.zero_grad()
    model.to("cpu").float()
    assert adapter(X).updated


def test_the_name_of_what_changed_is_given() -> None:
    model = network()
    tree, frozen = share(model), Frozen()
    frozen.check(tree)
    in_place(model)
    with pytest.raises(ValueError, match=r"^network\.3\.bias of the model that this Logits was built on"):
        frozen.check(tree)


def test_sparse_and_integer_buffers_are_taken() -> None:
    model = network()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    model.register_buffer("index", torch.arange(3))
    adapter = Source(model)
    assert adapter(X).valid.all()
    model.index.add_(1)
    with pytest.raises(ValueError, match="index of the model"):
        adapter(X)


class Counts(nn.Module):
    """Counts its forwards in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y: torch.Tensor = self.net(x)
        return y


def test_a_model_that_writes_into_its_buffers_is_refused() -> None:
    adapter = Tent(Counts())
    before = state_hash(adapter)
    with pytest.raises(
        ValueError, match=r"writes into its buffer model\.network\.calls .* only if self\.training"
    ):
        adapter(X)
    assert state_hash(adapter) == before


def test_predictions_that_wrote_into_a_buffer_are_refused() -> None:
    adapter = Tent(Counts())
    adapter.predict(X)
    for call in (adapter.predict, adapter):
        with pytest.raises(ValueError, match=r"writes into its buffer model\.network\.calls"):
            call(X)


def test_an_adapter_can_be_pickled_after_a_call() -> None:
    adapter = Tent(network())
    adapter(X)
    other = pickle.loads(pickle.dumps(adapter))
    assert other(X).equal(adapter(X))
    assert state_hash(other) == state_hash(adapter)
