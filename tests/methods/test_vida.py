"""ViDA against a plain loop of the published behaviour; its adapters against numpy."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import batch, by_batch, jitter, net, stream
from testtime.methods.vida import ViDA, ViDAOptions
from testtime.parts import adam, generator, identity, sgd
from testtime.source.vida import DomainAdapter, train_vida, with_adapters


def examples() -> list[tuple[Tensor, Tensor]]:
    return [batch(20, 900 + i) for i in range(3)]


class Published:
    """The published step, written anew on weights by name; both scales are set, unless as released."""

    def __init__(
        self,
        network: nn.Module,
        threshold: float,
        rates: tuple[float, float],
        decays: tuple[float, float],
        chance: float | None = None,
    ):
        self.chance, self.low = chance, 1.0  # with a chance as released
        self.source = [p.detach().clone() for p in network.parameters()]
        self.student, self.teacher = by_batch(copy.deepcopy(network)), by_batch(copy.deepcopy(network))
        self.student.requires_grad_(True)
        named = list(self.student.named_parameters())
        new = [p for n, p in named if "_up" in n or "_down" in n]
        old = [p for n, p in named if not ("_up" in n or "_down" in n)]
        self.optimizer = torch.optim.SGD(
            [{"params": old, "lr": rates[0]}, {"params": new, "lr": rates[1]}], momentum=0.9
        )
        self.threshold, self.decays, self.u = threshold, decays, []

    def scales(self, low: float, high: float) -> None:
        for model in (self.student, self.teacher):
            for m in model.modules():
                if isinstance(m, DomainAdapter):
                    m.low, m.high = low, high

    def step(self, x: Tensor, clock: int) -> Tensor:
        self.scales(self.low if self.chance is not None else 1.0, 1.0)
        with torch.no_grad():
            seen = np.stack(
                [self.teacher(jitter(x, generator(3, clock, f"view {i}"))).numpy() for i in range(4)]
            )
        u = seen.var(axis=0, ddof=1).mean() * 5
        self.u.append(u)
        self.low, high = (1 - u, 1 + u) if u >= self.threshold else (1 + u, 1 - u)
        self.scales(self.low, high if self.chance is None else 1.0)
        answer = self.teacher(x).detach()
        loss = -(answer.softmax(1) * self.student(x).log_softmax(1)).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for (n, s), t in zip(self.student.named_parameters(), self.teacher.parameters(), strict=True):
                d = self.decays["_up" in n or "_down" in n]
                t.copy_(d * t + (1 - d) * s)
            if self.chance is not None:
                total, rng = sum(p.numel() for p in self.source), generator(3, clock, "restoration")
                draws = torch.rand(total, generator=rng).split([p.numel() for p in self.source])
                for p, first, u in zip(self.student.parameters(), self.source, draws, strict=True):
                    mask = (u < self.chance).view_as(p).to(p)
                    p.copy_(first * mask + p * (1 - mask))
        return answer


@pytest.mark.parametrize("released", [False, True])
def test_equals_the_published_loop(released: bool) -> None:
    network = train_vida(net(), examples(), passes=2, rate=1e-2, high_rank=6, title=None)
    reference = Published(network, 0.235, (0.02, 0.05), (0.9, 0.8), 0.05 if released else None)
    ours = ViDA(
        network,
        sgd(0.02),
        views=4,
        options=ViDAOptions(
            adapter_rate=2.5,
            scale=5,
            adapter_decay=0.8,
            allotment="released" if released else "paper",
            restoration=0.05 if released else 0.0,
        ),
        threshold=0.235,
        decay=0.9,
        augment=jitter,
        seed=3,
    )
    for clock, x in enumerate(stream([16] * 12)):
        expected, looked = reference.step(x, clock), ours.predict(x)
        y = ours(x)
        assert torch.equal(y.logits, looked.logits)
        np.testing.assert_allclose(y.logits.numpy(), expected.numpy(), rtol=0, atol=1e-9)
    assert min(reference.u) < 0.235 <= max(reference.u), reference.u


def test_an_adapter_is_two_products_of_matrices() -> None:
    rng = np.random.default_rng(0)
    linear = DomainAdapter(nn.Linear(5, 4).double(), 2, 3)
    weights = {n: rng.normal(size=p.shape) for n, p in linear.named_parameters()}
    linear.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
    linear.low, linear.high = 0.7, 1.3
    x = rng.normal(size=(6, 5))
    low = x @ weights["low_down.weight"].T @ weights["low_up.weight"].T
    high = x @ weights["high_down.weight"].T @ weights["high_up.weight"].T
    expected = x @ weights["layer.weight"].T + weights["layer.bias"] + 0.7 * low + 1.3 * high
    np.testing.assert_allclose(linear(torch.from_numpy(x)).detach().numpy(), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_beside_a_convolution_they_are_two_one_after_the_other(groups: int, padding: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        form = {"stride": 2, "padding": 1, "padding_mode": padding}
        conv = nn.Conv2d(4, 6, 3, groups=groups, **form).double()
        adapter = DomainAdapter(conv, 1, 2)
        nn.init.normal_(adapter.high_up.weight)
        nn.init.normal_(adapter.low_up.weight)
        x = torch.rand(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    adapter.low, adapter.high = 0.8, 1.2
    low, high = adapter.low_up(adapter.low_down(x)), adapter.high_up(adapter.high_down(x))
    expected = conv(x) + 0.8 * low + 1.2 * high
    torch.testing.assert_close(adapter(x), expected)
    of = (x, conv.weight, *(m.weight for m in (adapter.low_up, adapter.low_down, adapter.high_down)))
    found = torch.autograd.grad(adapter(x).square().sum(), of)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), of))


def test_where_adapters_stand() -> None:
    def beside(model: nn.Module, **arguments: object) -> list[str]:
        return [
            n
            for n, m in with_adapters(model, 1, 2, **arguments).named_modules()
            if isinstance(m, DomainAdapter)
        ]

    assert beside(net()) == ["0", "3"]  # no linear layer but the head
    block = nn.TransformerEncoderLayer(8, 2, 16)
    assert beside(nn.Sequential(nn.Linear(3, 8), block, nn.Linear(8, 2))) == ["0"]
    assert beside(net(), layers=["8"]) == ["8"]
    with pytest.raises(ValueError, match="this model has none"):
        with_adapters(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="7 is a Flatten"):
        with_adapters(net(), layers=["7"])
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        with_adapters(net(), 0, 2)


def test_training_moves_the_adapters_alone_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    whole = train_vida(net(), examples(), 3, 1e-2, high_rank=4, title=None)
    file = tmp_path / "vida.safetensors"
    train_vida(net(), examples(), 2, 1e-2, high_rank=4, file=file, title=None)
    again = train_vida(net(), examples(), 3, 1e-2, high_rank=4, file=file, title=None)
    for (n, p), q in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), n
    assert torch.equal(whole[0].layer.weight, net()[0].weight)
    assert whole[0].high_up.weight.abs().max() > 0
    x, y = batch(200, 5, drift=0.5)
    before, after = (F.cross_entropy(m(x), y).item() for m in (net(), whole))
    assert after < before + 0.05


def test_begins_as_the_source() -> None:
    x = stream([12])[0]
    a = ViDA(net(), adam(1e-2), views=2, high_rank=4, augment=identity)
    np.testing.assert_allclose(a(x).numpy(), by_batch(net())(x).detach().numpy(), atol=1e-12)
    named = ViDA(net(), views=2, high_rank=4, options=ViDAOptions(layers=["8"]))
    assert isinstance(named.model.get_submodule("network.8"), DomainAdapter)
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        ViDA(net(), views=1)
    with pytest.raises(ValueError, match="allotment is 'paper' or 'released', got 'code'"):
        ViDA(net(), options=ViDAOptions(allotment="code"))  # type: ignore[arg-type]
