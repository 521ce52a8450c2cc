"""What the base does by itself, on small methods made for the purpose; the laws try the rest on real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter, state_hash
from testtime.intake.sharing import Stateful
from testtime.methods import RoTTA
from testtime.norm import EMAStatistics, ema_statistics, norm_affine
from testtime.parts import adam, sgd
from testtime.parts.optimizers import OptimizerFactory
from testtime.prediction import Prediction


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def images(n: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


class Descends(Adapter):
    """Lowers the mean square of its logits; ``spoil`` breaks one step on purpose."""

    def __init__(self, optimizer: OptimizerFactory = sgd(0.1, momentum=0.9), spoil: str = "") -> None:  # noqa: B008
        super().__init__(ema_statistics(network(), decay=0.5))
        self.spoil = spoil
        self.adapt(norm_affine(self.model), optimizer)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    seen: Tensor

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.seen += len(x)
        if self.spoil == "loss":
            self.update(logits.mean() * torch.nan)
        elif self.spoil == "gradient":
            self.update((logits - logits.detach()).abs().pow(0.5).mean())
        elif self.spoil == "update":
            self.update([torch.full_like(p, 1e38) for p in self._adapted])
            self.update([torch.full_like(p, 3e38) for p in self._adapted])
        elif self.spoil == "answer":
            self.update(logits.square().mean())
            return logits * torch.nan
        elif self.spoil == "raise":
            self.update(logits.square().mean())
            raise RuntimeError("out of memory")
        else:
            self.update(logits.square().mean())
        return logits


class Learns(Adapter):
    """Wants the mean of its source."""

    source = "statistics"

    class Mean(Stateful):
        learned = True
        value: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("value", torch.zeros(()))

    def __init__(self) -> None:
        super().__init__(network())
        self.mean = self.Mean()

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.mean.value = torch.stack([x.mean() for x in batches]).mean()

    def step(self, x: Tensor) -> Tensor:
        return self.model(x) + self.mean.value


def test_sgd_with_momentum_by_hand() -> None:
    adapter, plain = Descends(), ema_statistics(network(), decay=0.5)
    parameters = [p.requires_grad_(True) for p in norm_affine(plain)]
    velocity = [torch.zeros_like(p) for p in parameters]
    for step in range(3):
        x = images(seed=step)
        # The reference takes the statistics that the adapter normalised with.
        for mine, its in zip(_policies(plain), _policies(adapter), strict=True):
            mine.mean, mine.var, mine.proposal = its.mean.clone(), its.var.clone(), None
        logits = plain(x)
        gradients = torch.autograd.grad(logits.square().mean(), parameters)
        torch.testing.assert_close(adapter(x).logits, logits.detach())
        for p, v, g in zip(parameters, velocity, gradients, strict=True):
            v.mul_(0.9).add_(g)
            p.data.sub_(0.1 * v)
        for p, q in zip(parameters, adapter._adapted, strict=True):
            torch.testing.assert_close(p, q)


def _policies(model: nn.Module) -> list[EMAStatistics]:
    return [m for m in model.modules() if isinstance(m, EMAStatistics)]


@pytest.mark.parametrize(
    ("spoil", "failed"),
    [("loss", "loss"), ("gradient", "gradient"), ("update", "gradient"), ("answer", "answer")],
)  # the norm of the gradients of "update" overflows
def test_a_step_that_diverges_costs_one_adaptation(spoil: str, failed: str) -> None:
    adapter = Descends()
    adapter(images())
    adapter.spoil = spoil
    before, look = adapter.state_dict(), adapter.predict(images(seed=1))
    y = adapter(images(seed=1))
    assert y.equal(look)
    assert (y.updated, y.failed, look.failed) == (False, failed, "")
    after = adapter.state_dict()
    assert after.pop("clock") == before.pop("clock") + 1
    assert all(after[k].equal(before[k]) for k in before)
    adapter.spoil = ""
    y = adapter(images(seed=2))
    assert (y.updated, y.failed) == (True, "")


def test_a_step_that_raises_leaves_the_state() -> None:
    adapter = Descends()
    adapter(images())
    before = state_hash(adapter)
    adapter.spoil = "raise"
    with pytest.raises(RuntimeError, match="out of memory"):
        adapter(images(seed=1))
    assert state_hash(adapter) == before


def test_state_holds_what_moves_and_nothing_else() -> None:
    names = set(Descends().state_dict())
    layer = "model.network.1.layer"
    assert names == {
        "clock", "seen", "model.network.1.mean", "model.network.1.var", f"{layer}.weight", f"{layer}.bias",
        "optimizer.network.1.layer.weight.momentum_buffer", "optimizer.network.1.layer.bias.momentum_buffer",
    }  # fmt: skip


def test_bad_images_get_a_typed_answer() -> None:
    x, adapter, clean = images(4), Descends(), Descends()
    x[1, 0, 0, 0], x[3] = torch.nan, torch.inf
    y, z = adapter(x), clean(x[[0, 2]])
    assert y.valid.tolist() == [True, False, True, False]
    assert y.isnan().all(dim=1).tolist() == [False, True, False, True]
    assert y.score.isnan().tolist() == [False, True, False, True]
    assert y[[0, 2]].equal(z.logits)
    assert y.updated
    assert adapter.seen.item() == 2
    assert state_hash(adapter) == state_hash(clean)


def test_no_image_is_no_step() -> None:
    adapter = Descends()
    before = state_hash(adapter)
    for y in (adapter(images(0)), adapter.predict(images(0))):
        assert y.shape == (0, 3)
        assert y.score.shape == (0,)
    assert adapter(torch.full_like(images(2), torch.nan)).isnan().all()
    assert state_hash(adapter) == before


def test_what_is_not_a_batch_of_images_is_refused() -> None:
    adapter = Descends()
    with pytest.raises(TypeError, match=r"expected a batch of images as a torch.Tensor .* got list"):
        adapter([1.0])
    with pytest.raises(TypeError, match=r"got torch.uint8; convert them"):
        adapter((images() * 255).byte())
    with pytest.raises(ValueError, match="add the batch dimension"):
        adapter(torch.rand(3))


def test_reset_restores_the_initial_state_and_the_optimizer_forgets() -> None:
    adapter = Descends(adam(1e-2))
    birth = state_hash(adapter)
    first = [adapter(images(seed=i)) for i in range(3)]
    assert state_hash(adapter) != birth
    adapter.reset()
    assert state_hash(adapter) == birth
    assert all(adapter(images(seed=i)).equal(y) for i, y in enumerate(first))


def test_prepare_changes_the_initial_state_and_reset_keeps_it() -> None:
    adapter = Learns()
    adapter.prepare([images(seed=1), images(seed=2)])
    taught = adapter.mean.value.clone()
    assert taught.equal(torch.stack([images(seed=1).mean(), images(seed=2).mean()]).mean())
    adapter(images())
    adapter.reset()
    assert adapter.mean.value.equal(taught)
    assert int(adapter.clock) == 0
    other = Learns()
    other.load_state_dict(adapter.state_dict())
    assert other(images()).equal(adapter(images()))


def test_a_foreign_state_is_refused_by_name() -> None:
    state = Descends().state_dict()
    with pytest.raises(ValueError, match=r"2 entries are missing .*2 are unknown"):
        Descends(sgd(0.1, momentum=0.0)).load_state_dict(
            {k: v for k, v in state.items() if not k.endswith(".mean") and k != "seen"}
        )
    wrong = state | {"model.network.1.layer.weight": torch.zeros(7)}
    with pytest.raises(
        ValueError, match=r"model.network.1.layer.weight|network.1.layer.weight has shape \(4,\)"
    ):
        Descends().load_state_dict(wrong)


def test_nothing_to_adapt_is_refused() -> None:
    class Nothing(Adapter):
        def __init__(self) -> None:
            super().__init__(nn.Linear(2, 2))
            self.adapt(norm_affine(self.model), sgd())

    with pytest.raises(ValueError, match="this model has none"):
        Nothing()


def test_update_without_adapt_is_refused() -> None:
    class Forgot(Adapter):
        def step(self, x: Tensor) -> Tensor:
            self.update(self.model(x).sum())
            return x

    with pytest.raises(RuntimeError, match=r"called update\(\) without adapt\(\)"):
        Forgot(nn.Linear(2, 2))(torch.rand(1, 2))


def test_a_method_without_a_step_is_refused() -> None:
    with pytest.raises(TypeError, match="has no step"):
        Adapter(nn.Linear(2, 2))(torch.rand(1, 2))


def test_gradients_at_hand_are_taken_as_they_are() -> None:
    class Given(Adapter):
        def __init__(self) -> None:
            super().__init__(network())
            self.adapt(norm_affine(self.model), sgd(0.5, momentum=0.0))

        def step(self, x: Tensor) -> Tensor:
            self.update([torch.ones_like(self._adapted[0]), None])
            return self.model(x)

    adapter = Given()
    weight, bias = (p.detach().clone() for p in adapter._adapted)
    assert adapter(images()).updated
    assert adapter._adapted[0].equal(weight - 0.5)
    assert adapter._adapted[1].equal(bias)


def test_train_and_eval_change_nothing() -> None:
    adapter = Descends()
    assert adapter.train() is adapter
    assert not any(m.training for m in adapter.model.modules())


def test_moves_to_another_type_with_its_state_and_its_initial_state() -> None:
    adapter = Descends(adam(1e-2))
    adapter(images())
    adapter.double()
    y = adapter(images(seed=1).double())
    assert y.dtype == torch.float64
    adapter.reset()
    kinds = {k: v.dtype for k, v in adapter.state_dict().items() if v.is_floating_point() and v.dim()}
    assert set(kinds.values()) == {torch.float64}


def test_state_hash_sees_every_bit() -> None:
    one, other = Descends(), Descends()
    assert state_hash(one) == state_hash(other)
    with torch.no_grad():
        p = other._adapted[0]
        p[0] = torch.nextafter(p[0], torch.tensor(9.0))
    assert state_hash(one) != state_hash(other)


def test_details_of_an_answer_are_kept() -> None:
    class Says(Adapter):
        def step(self, x: Tensor) -> Tensor:
            return Prediction(self.model(x), score=torch.arange(float(len(x))))

    assert Says(network())(images(3)).score.tolist() == [0, 1, 2]


WRONG_STATES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "nothing": (lambda s: None, "expected a state as state_dict"),
    "meta": (lambda s: {k: v.to("meta") for k, v in s.items()}, "expected dense values"),
    "sparse": (lambda s: {k: v.to_sparse() for k, v in s.items()}, "expected dense values"),
    "a negative variance": (lambda s: {**s, "model.network.1.var": -s["model.network.1.var"]}, "negative"),
    "negative steps": (lambda s: {k: v - 9 if k.endswith("step") else v for k, v in s.items()}, "negative"),
    "too large": (
        lambda s: {k: v * 1e300 if v.is_floating_point() else v for k, v in doubled(s).items()},
        "NaN or inf",
    ),
    "fewer images": (lambda s: {**s, "memory.images": s["memory.images"][:3]}, "8 places, the saved state 3"),
    "fewer labels": (lambda s: {**s, "memory.label": s["memory.label"][:3]}, "memory.label has shape"),
}


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


@pytest.mark.parametrize("kind", WRONG_STATES)
def test_a_state_that_can_lead_nowhere_is_refused(kind: str) -> None:
    change, message = WRONG_STATES[kind]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    rotta, x = RoTTA(net, classes=5, capacity=8, frequency=8), torch.rand(8, 3, 8, 8)
    rotta(x)
    before = state_hash(rotta)
    with pytest.raises((TypeError, ValueError), match=message):
        rotta.load_state_dict(change(rotta.state_dict()))
    assert state_hash(rotta) == before
    rotta.load_state_dict(doubled(rotta.state_dict()))
    assert state_hash(rotta) == before
