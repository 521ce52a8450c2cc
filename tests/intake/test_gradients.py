"""A model that lets no gradient through is refused, whatever the method; a filter that selects nothing is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from testtime.adapter import Adapter, state_hash
from testtime.intake.gradients import explained, gradients, require_gradient
from testtime.methods import (
    EATA,
    ETA,
    PAFKIP,
    PETAL,
    PL,
    SAR,
    T3A,
    TTT,
    CoTTA,
    EcoTTA,
    SoTTA,
    Source,
    Tent,
)
from testtime.methods.paf_kip import PAFKIPOptions
from testtime.methods.sotta import SoTTAOptions

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
X = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Blocked(nn.Module):
    """A network whose forward loses its graph in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        )
        self.head_norm = nn.BatchNorm2d(8) if "norm after" in how else nn.Identity()
        self.head = nn.Linear(8, 5)
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        if self.how.startswith("reentrant"):
            return checkpoint(self.body, x, use_reentrant=True)
        if self.how.startswith("not reentrant"):
            return checkpoint(self.body, x, use_reentrant=False)
        if self.how.startswith("no_grad"):
            with torch.no_grad():
                return self.body(x)
        if self.how.startswith("inference_mode"):
            with torch.inference_mode():
                return self.body(x)
        return self.body(x).detach() if self.how.startswith("detach") else self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.head_norm(self.features(x)).mean(dim=(2, 3)))


METHODS: dict[str, Callable[[nn.Module], Adapter]] = {
    "Tent": Tent,
    "ETA": lambda m: ETA(m, 5, margin=2.0),
    "EATA": lambda m: EATA(m, 5, margin=2.0),
    "SAR": lambda m: SAR(m, 5, margin=2.0, skip=()),
    "SoTTA": lambda m: SoTTA(m, 5, capacity=16, frequency=16, threshold=0.0, options=SoTTAOptions(skip=())),
    "PAFKIP": lambda m: PAFKIP(m, 5),
    "PAFKIP batched": lambda m: PAFKIP(m, 5, options=PAFKIPOptions(batched=True)),
    "TTT": TTT,
}


def run(adapter: Adapter) -> Tensor:
    prepare(adapter)
    return adapter(X)


def prepare(adapter: Adapter) -> None:
    if adapter.source != "none":
        adapter.prepare([X, X])


@pytest.mark.parametrize("how", ["reentrant", "no_grad", "inference_mode", "detach"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_gradients_is_refused(method: str, how: str) -> None:
    adapter = METHODS[method](Blocked(how))
    born = state_hash(adapter)
    with pytest.raises(ValueError, match=r"no gradient of the model's output .* use_reentrant=False"):
        run(adapter)
    assert int(adapter.clock) == 0
    assert adapter.source != "none" or state_hash(adapter) == born


@pytest.mark.parametrize("how", ["inference_mode, norm after"])
def test_inference_tensors_before_an_adapted_layer_are_refused(how: str) -> None:
    with pytest.raises(ValueError, match="no gradient of the model's output"):
        run(Tent(Blocked(how)))


def test_a_reentrant_checkpoint_behind_an_adapted_layer_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Blocked("reentrant"))
    with pytest.raises(ValueError, match="use_reentrant=False"):
        run(Tent(model))


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_is_not_reentrant_adapts_as_the_plain_model(method: str) -> None:
    plain, other = METHODS[method](Blocked("plain")), METHODS[method](Blocked("not reentrant"))
    torch.testing.assert_close(run(other), run(plain))
    assert int(plain.clock) == 1
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


def test_the_part_with_gradients_adapts_alone() -> None:
    tent = Tent(Blocked("no_grad, norm after"))
    before = tent.state_dict()
    assert run(tent).updated
    moved = {k for k, v in tent.state_dict().items() if k.startswith("model") and not v.equal(before[k])}
    assert {name.split(".")[-2] for name in moved} <= {"layer", "head_norm"}
    assert all("head_norm" in name for name in moved)
    assert moved


def test_methods_that_take_no_gradient_are_not_concerned() -> None:
    for make in (Source, T3A):
        assert run(make(Blocked("no_grad"))).valid.all()


@pytest.mark.parametrize(
    "make",
    [
        lambda m: ETA(m, 5, margin=0.0),
        lambda m: SAR(m, 5, margin=0.0, skip=()),
        lambda m: PL(m, threshold=1.0),
    ],
)
def test_a_filter_that_selects_nothing_is_fine(make: Callable[[nn.Module], Adapter]) -> None:
    y = make(Blocked("plain"))(X)
    assert y.valid.all()
    assert not y.updated


@pytest.mark.parametrize(
    "make",
    [lambda m: CoTTA(m, views=2), lambda m: PETAL(m, views=2), lambda m: EcoTTA(m, passes=1)],
    ids=["cotta", "petal", "ecotta"],
)
def test_a_penalty_on_the_weights_does_not_hide_it(make: Callable[[nn.Module], Adapter]) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Blocked("plain")

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).detach()

    with pytest.raises(ValueError, match="no gradient of the model's output"):
        run(make(Silent()))


class Spare(nn.Module):
    """A network with a layer that its forward does not use, as GoogLeNet's auxiliary heads in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.spare = Blocked("plain"), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_not_used_stays_and_the_others_adapt(method: str) -> None:
    adapter, plain = METHODS[method](Spare().eval()), METHODS[method](Blocked("plain"))
    torch.testing.assert_close(run(adapter), run(plain))
    torch.testing.assert_close(adapter.predict(X).logits, plain.predict(X).logits)
    spare = [
        v for k, v in adapter.state_dict().items() if "spare" in k and k.endswith("weight") and "model" in k
    ]
    assert all(v.equal(torch.ones(8)) for v in spare)


def test_gradients_of_unused_parameters_are_none() -> None:
    used, unused = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    assert gradients(used.square(), [used, unused]) == (torch.tensor(4.0), None)
    with pytest.raises(ValueError, match="no gradient of the model's output"):
        gradients(used.square(), [unused])
    with pytest.raises(ValueError, match="no gradient of the model's output"):
        gradients(torch.zeros(()), [used])


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained():
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_one_output_with_a_graph_is_enough() -> None:
    net = nn.Linear(2, 2)
    y = net(torch.zeros(1, 2))
    require_gradient(net, {"a": y.detach(), "b": [y]})
    with pytest.raises(ValueError, match="no gradient"):
        require_gradient(net, {"a": y.detach()})
    with torch.no_grad():
        require_gradient(net, y.detach())
    require_gradient(net.requires_grad_(False), y.detach())
