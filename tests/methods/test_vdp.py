"""VDP against a plain loop of its equations, and its sensitivity against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from small_world import by_batch, jitter, net, stream
from testtime.methods.vdp import VDP, Prompted, Sensitivity
from testtime.parts import adam, generator, sgd

SIZE = (3, 8, 8)


class Loop:
    """Its equations with four images by name and one whole, frozen network."""

    def __init__(self) -> None:
        self.network = by_batch(copy.deepcopy(net())).requires_grad_(False)
        zero = torch.zeros(SIZE, dtype=torch.float64)
        self.d, self.g, self.d_slow, self.g_slow, self.s = (zero.clone() for _ in range(5))

    def step(self, x: Tensor, clock: int) -> Tensor:
        slow = self.d_slow + self.g_slow
        answer = self.network(x + slow)
        views = [self.network(jitter(x, generator(3, clock, f"view {i}")) + slow) for i in range(3)]
        label = ((views[0] + views[1] + views[2]) / 3).softmax(1)
        d, g = self.d.clone().requires_grad_(), self.g.clone().requires_grad_()
        loss = -(label * self.network(x + d + g).log_softmax(1)).sum(1).mean()
        loss.backward(inputs=[d, g])
        self.s = 0.8 * self.s + 0.2 * g.grad**2
        g = g.detach().requires_grad_(), g.grad
        held = 50 * (self.s / self.s.max() * (g[0] - self.g_slow) ** 2).sum()
        held.backward()
        self.d = self.d - 2.0 * d.grad
        self.g = self.g - 2.0 * (g[1] + g[0].grad)
        self.d_slow = 0.9 * self.d_slow + 0.1 * self.d
        self.g_slow = 0.9 * self.g_slow + 0.1 * self.g
        return answer


def test_equals_the_loop() -> None:
    reference = Loop()
    ours = VDP(
        net(),
        SIZE,
        sgd(2.0, momentum=0),
        views=3,
        hold=50,
        decay=0.9,
        sensitivity_decay=0.8,
        augment=jitter,
        seed=3,
    )
    for clock, x in enumerate(stream([16, 5, 1, 16, 12, 16])):
        expected, looked = reference.step(x, clock), ours.predict(x)
        y = ours(x)
        assert torch.equal(y.logits, looked.logits)
        np.testing.assert_allclose(y.logits.numpy(), expected.numpy(), rtol=0, atol=1e-10)
    assert (reference.d - reference.g).abs().max() > 1e-3
    assert reference.d.abs().max() > 1e-2


def test_sensitivity_is_a_running_mean_of_squares() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 2, 3, 3))
    ours, mean = Sensitivity(torch.zeros(2, 3, 3, dtype=torch.float64), 0.7), np.zeros((2, 3, 3))
    assert ours().abs().max() == 0
    for g in gradients:
        ours.update(torch.from_numpy(g))
        mean = 0.7 * mean + 0.3 * g**2
    np.testing.assert_allclose(ours().numpy(), mean / mean.max())


def test_what_is_sensitive_is_held() -> None:
    data = stream([16] * 8)
    moved = []
    for hold in (0.0, 0.45):
        a = VDP(net(), SIZE, sgd(1.0, momentum=0), views=2, hold=hold, decay=0.9)
        for x in data:
            a(x)
        moved.append((a.sensitivity() * a._adapted[1].abs()).sum().item())
    assert moved[1] < 0.8 * moved[0]


def test_the_network_stays_and_it_begins_as_the_source() -> None:
    model, x = net(), stream([12])[0]
    a = VDP(model, SIZE, adam(0.1), views=2)
    np.testing.assert_allclose(a(x).numpy(), by_batch(net())(x).detach().numpy(), atol=1e-12)
    shared = {p.data_ptr() for p in model.parameters()}
    assert sum(p.data_ptr() in shared for p in a.model.parameters()) == len(shared)
    assert [k for k in a.state_dict() if k.startswith("model")] == [
        "model.network.specific",
        "model.network.agnostic",
    ]


def test_prompts_are_scaled_to_the_images() -> None:
    x = stream([4])[0]
    prompted = Prompted(net(), (3, 16, 16))
    with torch.no_grad():
        prompted.specific.copy_(torch.rand(3, 16, 16))
    small = prompted.specific.unflatten(1, (8, 2)).unflatten(3, (8, 2)).mean((2, 4))
    torch.testing.assert_close(prompted(x), net()(x + small), rtol=0, atol=1e-12)


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match=r"these images of \(3, 8, 8\); expected 1 channels"):
        VDP(net(), (1, 8, 8))(stream([4])[0])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        VDP(net(), views=0)
