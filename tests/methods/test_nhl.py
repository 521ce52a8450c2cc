"""NHL against a plain loop of its equations: patches in numpy, the neuro-modulator by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import by_batch, net, stream
from testtime.methods.nhl import NHL, NeuroModulated, soft_hebbian
from testtime.models.resnet_cifar import ResNetCIFAR
from testtime.parts import sgd


def rule(w: np.ndarray, x: np.ndarray, temperature: float, padding: int, stride: int) -> np.ndarray:
    """The mean over patches of y_k (x_i - u_k w_ik), one patch after the other."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    (_, _, h, side), changes = w.shape, []
    for image in x:
        for i in range(0, image.shape[1] - h + 1, stride):
            for j in range(0, image.shape[2] - side + 1, stride):
                patch = image[:, i : i + h, j : j + side]
                u = (w * patch).sum((1, 2, 3))
                y = np.exp(u / temperature) / np.exp(u / temperature).sum()
                changes.append(y[:, None, None, None] * (patch[None] - u[:, None, None, None] * w))
    return np.mean(changes, 0)


@pytest.mark.parametrize(("bias", "padding", "stride"), [(True, 1, 1), (False, 0, 2)])
def test_rule_by_hand(bias: bool, padding: int, stride: int) -> None:
    rng = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, stride, padding, bias=bias).double()
    x, w = (torch.randn(s, generator=rng, dtype=torch.float64) for s in [(2, 3, 6, 7), (5, 3, 3, 3)])
    for temperature in (1.0, 0.3):
        expected = rule(w.numpy(), x.numpy(), temperature, padding, stride)
        np.testing.assert_allclose(soft_hebbian(layer, w, x, temperature).numpy(), expected, atol=1e-13)


def test_equals_the_loop() -> None:
    """The rule, then one step of momentum on the entropy, then the answer."""
    data, reference = stream([16, 5, 1, 12, 16, 3, 8, 2, 6, 4]), by_batch(net()).requires_grad_(False)
    w, bias = reference[0].weight.clone(), reference[0].bias
    mixing, shift = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    velocity = [torch.zeros_like(mixing), torch.zeros_like(shift)]

    def answer(x: Tensor, mixing: Tensor, shift: Tensor) -> Tensor:
        u = F.conv2d(x, w, bias, padding=1)
        u = torch.einsum("kl,nlhw->nkhw", mixing, u) + shift.view(1, -1, 1, 1)
        for layer in reference[1:]:
            u = layer(u)
        return u

    ours = NHL(net(), 0.3, 0.7, sgd(0.5))
    for x in data:
        w = w + 0.3 * torch.from_numpy(rule(w.numpy(), x.numpy(), 0.7, 1, 1))
        m, s = mixing.clone().requires_grad_(), shift.clone().requires_grad_()
        p = answer(x, m, s).softmax(1)
        gradients = torch.autograd.grad(-(p * p.log()).sum(1).mean(), (m, s))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        mixing, shift = mixing - 0.5 * velocity[0], shift - 0.5 * velocity[1]
        y = ours(x)
        np.testing.assert_allclose(y.numpy(), answer(x, mixing, shift).numpy(), rtol=0, atol=1e-9)
        assert torch.equal(y.logits, ours.predict(x).logits)
    np.testing.assert_allclose(ours.hebbian.weight.numpy(), w.numpy(), atol=1e-12)
    assert (w - net()[0].weight).abs().max() > 1e-2
    assert (mixing - torch.eye(6, dtype=torch.float64)).abs().max() > 1e-2


def test_filters_come_to_unit_length_along_what_they_win() -> None:
    """Where one neuron wins everything, the rule is Oja's: the filter becomes the mean patch, of length 1."""
    rng = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(2, 1, 1, bias=False).double()
    x = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1)
    w = torch.rand(1, 2, 1, 1, generator=rng, dtype=torch.float64)
    for _ in range(200):
        w = w + 0.05 * soft_hebbian(layer, w, x, 1.0)
    np.testing.assert_allclose(w.flatten().numpy(), [0.6, 0.8], atol=1e-6)


def test_state_is_filters_and_modulator() -> None:
    ours = NHL(net(), rate=0.3)
    first = ours.state_dict()
    assert {k.split(".")[-1] for k in first if not k.startswith("optimizer")} == {
        "clock", "weight", "mixing", "shift"
    }  # fmt: skip
    np.testing.assert_array_equal(
        ours.predict(stream([9])[0]).numpy(), by_batch(net())(stream([9])[0]).detach()
    )
    ours(stream([9])[0])
    moved = {k for k, v in ours.state_dict().items() if not torch.equal(v, first[k])}
    assert {k.split(".")[-1] for k in moved} >= {"clock", "weight", "mixing"}
    ours.reset()
    assert all(torch.equal(v, first[k]) for k, v in ours.state_dict().items())


def test_a_scale_before_batch_statistics_would_do_nothing() -> None:
    """Why the neuro-modulator mixes: of its gradient, the diagonal alone is next to nothing."""
    ours, x = NHL(net(), rate=0.0), stream([16])[0]
    z = ours.model(x).softmax(1)
    (g,) = torch.autograd.grad(-(z * z.log()).sum(1).mean(), [ours.hebbian.mixing])
    assert (g.diagonal() * 1e3).abs().max() < (g - g.diagonal().diag()).abs().max()


def test_finds_the_convolution() -> None:
    def at(adapter: NHL) -> list[str]:
        return [n for n, m in adapter.model.named_modules() if isinstance(m, NeuroModulated)]

    assert at(NHL(net())) == ["network.0"]
    assert at(NHL(net(), layer="3")) == ["network.3"]
    assert at(NHL(ResNetCIFAR(20))) == ["network.conv1"]
    with pytest.raises(ValueError, match="this model has no torch.nn.Conv2d"):
        NHL(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no torch.nn.Conv2d named 'stem'"):
        NHL(net(), layer="stem")
    with pytest.raises(ValueError, match="temperature > 0"):
        NHL(net(), temperature=0.0)
