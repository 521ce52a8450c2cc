"""DANN against a plain loop of its two objectives, without a reversal layer; its schedules against numpy."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import batch, net
from testtime import methods
from testtime.methods import Tent
from testtime.source.dann import DANNOptions, learning_rate, reversal, reverse_gradient, train_dann


def source(count: int = 3, size: int = 12) -> list[tuple[Tensor, Tensor]]:
    return [batch(size, 700 + i) for i in range(count)]


def target(count: int = 2, size: int = 8) -> list[Tensor]:
    return [batch(size, 800 + i, drift=1.0)[0] for i in range(count)]


def critic() -> list[Tensor]:
    """The first weights of the domain classifier: what a training of no step at all has drawn."""
    drawn: list[Tensor] = []
    init = nn.Linear.reset_parameters

    def note(self: nn.Linear) -> None:
        init(self)
        drawn.extend([self.weight.detach().clone(), self.bias.detach().clone()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "reset_parameters", note)
        train_dann(net(), source(), target(), 0, options=DANNOptions(hidden=16), seed=3, title=None)
    return [t.double() for t in drawn]


def test_schedules_by_hand() -> None:
    for p in np.linspace(0, 1, 7):
        np.testing.assert_allclose(reversal(p, 7.0), np.tanh(7.0 * p / 2), atol=1e-15)
        np.testing.assert_allclose(learning_rate(p, 0.3, 5.0, 0.6), 0.3 * np.exp(-0.6 * np.log(1 + 5 * p)))
    assert reversal(0.0) == 0
    assert learning_rate(1.0) == 0.01 / 11**0.75


def test_reversal_is_exact_and_turns_the_gradient() -> None:
    z = torch.tensor([1e8, -0.1, 3.0], requires_grad=True)
    y = reverse_gradient(z, 0.7)
    assert torch.equal(y, z)
    (g,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0])).sum(), z)
    np.testing.assert_allclose(g.numpy(), [-0.7, -1.4, -2.1], rtol=1e-6)


def test_equals_the_loop() -> None:
    """The features descend L_y - lambda L_d, the head L_y, the domain classifier L_d."""
    plain, w, velocity = net().train(), critic(), {}
    assert [tuple(t.shape) for t in w] == [(16, 32), (16,), (16, 16), (16,), (1, 16), (1,)]
    body = [p for k, p in plain.named_parameters() if not k.startswith("8.")]
    for step in range(12):
        (x, y), other, progress = source()[step % 3], target()[step % 3 % 2], step / 12
        v = [t.clone().requires_grad_() for t in w]
        z = plain[:8](torch.cat([x, other]))
        told = ((z @ v[0].T + v[1]).relu() @ v[2].T + v[3]).relu() @ v[4].T + v[5]
        p = torch.sigmoid(told)[:, 0]
        l_y = F.cross_entropy(plain[8](z[:12]), y)
        l_d = -(1 - p[:12]).log().mean() - p[12:].log().mean()
        strength = 2 / (1 + np.exp(-10 * progress)) - 1
        gradients = torch.autograd.grad(l_y - strength * l_d, body, retain_graph=True)
        gradients += torch.autograd.grad(l_y, list(plain[8].parameters()), retain_graph=True)
        gradients += torch.autograd.grad(l_d, v)
        with torch.no_grad():
            for i, (t, g) in enumerate(zip([*body, *plain[8].parameters(), *w], gradients, strict=True)):
                velocity[i] = 0.9 * velocity.get(i, 0) + g
                t -= 0.02 / (1 + 10 * progress) ** 0.75 * velocity[i]
    ours, given = (
        train_dann(net(), source(), target(), 4, 0.02, options=DANNOptions(hidden=16), seed=3, title=None),
        net(),
    )
    assert list(ours.state_dict()) == list(given.state_dict())
    for k, v in plain.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[k].numpy(), v.numpy(), rtol=0, atol=1e-9, err_msg=k)
    assert (ours[0].weight - given[0].weight).abs().max() > 1e-2
    assert not ours.training


@pytest.mark.slow
def test_features_of_the_domains_come_together() -> None:
    """Over five draws of a world whose third coordinate tells the domain, on the mean: not in each, for it is a game."""

    def draw(n: int, third: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 4, generator=rng, dtype=torch.float64)
        x[:, 2] = third + 0.3 * x[:, 2]
        return x, (x[:, 0] > 0).long()

    def apart(network: nn.Module, x: Tensor, other: Tensor) -> float:
        z, of_other = network[0](x), network[0](other)
        return ((z.mean(0) - of_other.mean(0)).norm() / torch.cat([z, of_other]).std(0).norm()).item()

    distances: dict[float, list[float]] = {0.0: [], 10.0: []}
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(torch.rand(p.shape, generator=rng) - 0.5)
        there, here = [draw(64, 0.0, rng) for _ in range(8)], [draw(64, 2.0, rng)[0] for _ in range(8)]
        x, other = draw(512, 0.0, rng)[0], draw(512, 2.0, rng)[0]
        for gamma, found in distances.items():
            trained = train_dann(
                network, there, here, 20, 0.01, gamma, options=DANNOptions(hidden=32), title=None
            )
            with torch.no_grad():
                found.append(apart(trained, x, other))
    assert np.mean(distances[10.0]) < np.mean(distances[0.0]), distances


def test_the_longer_domain_is_a_pass() -> None:
    """The shorter begins anew, and no batch is left out."""
    shown: list[tuple[float, float]] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            shown.append((x[0].item(), x[-1].item()))
            return self.fc(x)

    one = torch.ones(2, 1)
    train_dann(
        Net(),
        [(k * one, torch.tensor([0, 1])) for k in range(2)],
        [k * one for k in (10, 11, 12)],
        2,
        title=None,
    )
    assert shown == [(0, 10), (1, 11), (0, 12)] * 2


def test_training_goes_on_where_it_was_left(tmp_path: Path) -> None:
    class Power(Exception):
        pass

    class Cut(list[tuple[Tensor, Tensor]]):
        shown = 0

        def __iter__(self) -> object:  # type: ignore[override]
            self.shown += 1
            if self.shown == 3:
                raise Power
            return super().__iter__()

    def dropping() -> nn.Module:
        return nn.Sequential(*net()[:8], nn.Dropout(0.3), net()[8])

    file, whole = (
        tmp_path / "dann.safetensors",
        train_dann(dropping(), source(), target(), 4, options=DANNOptions(hidden=8), title=None),
    )
    with pytest.raises(Power):
        train_dann(
            dropping(), Cut(source()), target(), 4, options=DANNOptions(hidden=8), file=file, title=None
        )
    torch.rand(5)  # dropout does not draw from the global generator
    state = torch.get_rng_state()
    again = train_dann(
        dropping(), source(), target(), 4, options=DANNOptions(hidden=8), file=file, title=None
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    with pytest.raises(ValueError, match="belongs to another training"):
        train_dann(dropping(), source(), target(), 5, options=DANNOptions(hidden=8), file=file, title=None)


def test_gives_a_network_like_the_callers() -> None:
    given = net().requires_grad_(False)
    before = copy.deepcopy(given.state_dict())
    ours = train_dann(given, source(1), target(1), 1, options=DANNOptions(hidden=8), title=None)
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())
    assert [type(m) for m in ours.modules()] == [type(m) for m in given.modules()]
    assert not any(p.requires_grad or p.grad is not None for p in ours.parameters())
    assert Tent(ours)(target()[0]).updated
    assert "train_dann" not in methods.__all__  # adapters alone are there


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="got 3 of the source and 0 of the target"):
        train_dann(net(), source(), [], title=None)
    with pytest.raises(TypeError, match="got tuple; give the images alone"):
        train_dann(net(), source(), source(), title=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected images of one form"):
        train_dann(net(), source(), [torch.rand(2, 3, 4, 4)], title=None)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear layer"):
        train_dann(nn.Flatten(), source(), target(), title=None)
