"""ITTA against plain loops of its equations, at training and at test; its parts against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import batch, net, stream
from testtime.methods.itta import ITTA
from testtime.models.resnet import ResNet
from testtime.parts import generator, sgd
from testtime.source.itta import (
    AdaptiveGroup,
    Consistent,
    LearnedConsistency,
    alignment,
    mix_style,
    train_itta,
    with_adaptive,
)


def examples(count: int = 3, size: int = 12) -> list[tuple[Tensor, Tensor]]:
    return [batch(size, 900 + i) for i in range(count)]


def plain_style(x: Tensor, seed: int, step: int) -> Tensor:
    """Every image in the style of the one before it in a drawn order."""
    rng = generator(seed, step, "style 0")
    order = torch.randperm(len(x), generator=rng).tolist()
    share = torch.rand(len(x), generator=rng).double()
    out = []
    for i, image in enumerate(x):
        other = x[order[order.index(i) - 1]]
        (m, s), (n, t) = (
            (v.mean((1, 2)), (v.var((1, 2), correction=0) + 1e-6).sqrt())
            for v in (image.detach(), other.detach())
        )
        m, s, n, t = (v[:, None, None] for v in (m, s, n, t))
        out.append((image - m) / s * (share[i] * s + (1 - share[i]) * t) + share[i] * m + (1 - share[i]) * n)
    return torch.stack(out)


def forward(
    p: dict[str, Tensor], theta: dict[str, Tensor], x: Tensor, style: tuple[int, int] | None
) -> Tensor:
    """The features of small_world's network, its weights and adaptive parameters by name."""
    for k in ("0", "3"):
        x = F.conv2d(x, p[f"{k}.weight"], p.get(f"{k}.bias"), stride=1 if k == "0" else 2, padding=1)
        x = x * theta[f"{k}.scale"].view(1, -1, 1, 1) + theta[f"{k}.shift"].view(1, -1, 1, 1)
        if style is not None and k == "0":
            x = plain_style(x, *style)
        n = str(int(k) + 1)
        mean, var = p[f"{n}.running_mean"].view(1, -1, 1, 1), p[f"{n}.running_var"].view(1, -1, 1, 1)
        x = (x - mean) / (var + 1e-5).sqrt() * p[f"{n}.weight"].view(1, -1, 1, 1) + p[f"{n}.bias"].view(
            1, -1, 1, 1
        )
        x = x.clamp(min=0)
    return F.adaptive_avg_pool2d(x, 2).flatten(1)


def weighed(w: list[Tensor], gap: Tensor) -> Tensor:
    return (((gap @ w[0].T).clamp(min=0) @ w[1].T) ** 2).mean()


IDENTITY = {
    "0.scale": torch.ones(6, dtype=torch.float64),
    "0.shift": torch.zeros(6, dtype=torch.float64),
    "3.scale": torch.ones(8, dtype=torch.float64),
    "3.shift": torch.zeros(8, dtype=torch.float64),
}


def test_training_equals_the_loop() -> None:
    """The network by its two losses, f_w by the gradient of the alignment; Adam by hand."""
    both = train_itta(net(), examples(), 2, 1e-2, alpha=0.7, seed=3, title=None)
    p = {k: v.detach().clone() for k, v in net().state_dict().items()}
    w = [v.clone() for v in LearnedConsistency(32, seed=3).double().state_dict().values() if v.dim() == 2]
    # the first weights are drawn in float32
    body = [k for k in dict(net().named_parameters()) if not k.startswith("8.")]
    moved = [*body, "8.weight", "8.bias"]
    first, second = {}, {}
    for step in range(6):
        x, y = examples()[step % 3]
        q = {k: v.clone().requires_grad_(k in moved) for k, v in p.items() if v.is_floating_point()}
        v = [t.clone().requires_grad_() for t in w]
        z, other = forward(q, IDENTITY, x, None), forward(q, IDENTITY, x, (3, step))
        logits = z @ q["8.weight"].T + q["8.bias"]
        main, gap = F.cross_entropy(logits, y), weighed(v, z - other)
        of_main = torch.cat(
            [g.flatten() for g in torch.autograd.grad(main, [q[k] for k in body], retain_graph=True)]
        )
        of_gap = torch.cat(
            [g.flatten() for g in torch.autograd.grad(gap, [q[k] for k in body], create_graph=True)]
        )
        apart = ((of_main / of_main.norm() - of_gap / of_gap.norm()) ** 2).sum()
        gradient = dict(enumerate(torch.autograd.grad(apart, v, retain_graph=True)))
        total = main + 0.7 * gap
        gradient |= dict(zip(moved, torch.autograd.grad(total, [q[k] for k in moved]), strict=True))
        for k, g in gradient.items():
            first[k] = 0.9 * first.get(k, 0) + 0.1 * g
            second[k] = 0.999 * second.get(k, 0) + 0.001 * g**2
            rate = 1e-2 / (1 - 0.9 ** (step + 1))
            change = rate * first[k] / ((second[k] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            if isinstance(k, int):
                w[k] = w[k] - change
            else:
                p[k] = p[k] - change
    ours = {k.replace(".group", ""): v for k, v in both.network.state_dict().items()}
    for k in moved:
        np.testing.assert_allclose(ours[k].numpy(), p[k].numpy(), rtol=0, atol=1e-8, err_msg=k)
    for a, b in zip(both.consistency.parameters(), w, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-8)
    assert all(torch.equal(ours[k], v) for k, v in IDENTITY.items())
    assert (p["0.weight"] - net()[0].weight).abs().max() > 1e-2


def test_adapting_equals_the_loop() -> None:
    both = train_itta(net(), examples(), 1, 1e-3, seed=3, title=None)
    p = {k.replace(".group", ""): v for k, v in both.network.state_dict().items()}
    w, theta = list(both.consistency.parameters()), {k: v.clone() for k, v in IDENTITY.items()}
    velocity = {k: torch.zeros_like(v) for k, v in theta.items()}
    ours = ITTA(both, sgd(0.5), seed=4)
    assert ours.source == "none"
    for clock, x in enumerate(stream([16, 5, 1, 12, 16])):
        t = {k: v.clone().requires_grad_() for k, v in theta.items()}
        gap = weighed(w, forward(p, t, x, None) - forward(p, t, x, (4, clock)))
        for k, g in zip(t, torch.autograd.grad(gap, list(t.values())), strict=True):
            velocity[k] = 0.9 * velocity[k] + g
            theta[k] = theta[k] - 0.5 * velocity[k]
        expected = forward(p, theta, x, None) @ p["8.weight"].T + p["8.bias"]
        y = ours(x)
        np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=0, atol=1e-9)
        assert torch.equal(y.logits, ours.predict(x).logits)
    assert max((theta[k] - IDENTITY[k]).abs().max() for k in theta) > 1e-3
    names = {k.removeprefix("model.network.network.") for k in ours.state_dict() if k.startswith("model.")}
    assert names == set(IDENTITY)


def test_style_by_hand() -> None:
    rng = np.random.default_rng(0)
    x, partner, share = rng.normal(size=(3, 2, 4, 5)), np.array([2, 0, 1]), np.array([0.0, 0.3, 1.0])
    got = mix_style(*(torch.from_numpy(v) for v in (x, partner, share))).numpy()
    np.testing.assert_allclose(got[2], x[2], atol=1e-12)
    for i, (j, a) in enumerate(zip(partner, share, strict=True)):
        np.testing.assert_allclose(
            got[i].mean((1, 2)), a * x[i].mean((1, 2)) + (1 - a) * x[j].mean((1, 2)), atol=1e-12
        )
        np.testing.assert_allclose(
            got[i].std((1, 2)), a * x[i].std((1, 2)) + (1 - a) * x[j].std((1, 2)), atol=1e-5
        )


def test_alignment_is_an_angle() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=7), rng.normal(size=7)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    got = alignment([torch.from_numpy(3 * a[:2]), torch.from_numpy(3 * a[2:])], [torch.from_numpy(b)])
    np.testing.assert_allclose(got.item(), 2 - 2 * cosine, rtol=1e-12)


def test_prepare_brings_the_gradients_together() -> None:
    """On the network's own answers f_w learns alone; what it learned survives a reset and does not pile up."""
    images, body = [x for x, _ in examples(4, 16)], [k for k, _ in net().named_parameters() if "8." not in k]

    def apart(ours: ITTA) -> float:
        total, w = 0.0, list(ours.consistency.parameters())
        for step, x in enumerate(images):
            p = {
                k: v.detach().clone().requires_grad_(k in body)
                for k, v in net().state_dict().items()
                if v.dim()
            }
            z, other = forward(p, IDENTITY, x, None), forward(p, IDENTITY, x, (0, 50 + step))
            logits = z @ p["8.weight"].T + p["8.bias"]
            main, wrt = F.cross_entropy(logits, logits.argmax(1)), [p[k] for k in body]
            of_main = torch.autograd.grad(main, wrt, retain_graph=True)
            total += alignment(of_main, torch.autograd.grad(weighed(w, z - other), wrt)).item()
        return total / len(images)

    ours = ITTA(net(), passes=8, rate=1e-2)
    before = apart(ours)
    ours.prepare(images)
    once = ours.state_dict()
    assert apart(ours) < before - 0.05
    assert int(ours.consistency.lessons) == 32
    ours(stream([12])[0])
    ours.reset()
    assert all(torch.equal(v, once[k]) for k, v in ours.state_dict().items())
    ours(stream([12])[0])
    ours.prepare(images)
    assert all(torch.equal(v, once[k]) for k, v in ours.state_dict().items())
    assert [p.shape for p in ours.parameters() if p.requires_grad] == [(6,), (6,), (8,), (8,)]


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

    file, whole = tmp_path / "itta.safetensors", train_itta(net(), examples(), 4, title=None)
    with pytest.raises(Power):
        train_itta(net(), Cut(examples()), 4, file=file, title=None)
    again = train_itta(net(), examples(), 4, file=file, title=None)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    with pytest.raises(ValueError, match="belongs to another training"):
        train_itta(net(), examples(), 4, alpha=2.0, file=file, title=None)


def test_a_trained_network_answers_as_before_until_it_adapts() -> None:
    source, x = net(), stream([9])[0]
    both = train_itta(source, examples(), 0, title=None)
    assert isinstance(both, Consistent)
    np.testing.assert_allclose(both(x).detach().numpy(), source(x).detach().numpy(), atol=1e-12)
    assert all(p.requires_grad for p in source.parameters())
    assert not any(p.requires_grad for p in both.parameters())
    np.testing.assert_allclose(ITTA(both).predict(x).numpy(), source(x).detach().numpy(), atol=1e-12)


def test_works_on_a_network_of_stages() -> None:
    a = ITTA(ResNet(18, 10, 4).eval(), passes=1)
    names = [n for n, m in a.model.named_modules() if isinstance(m, AdaptiveGroup)]
    assert names == [f"network.{n}" for n in ("conv1", "layer1", "layer2", "layer3", "layer4")]
    a.prepare([torch.rand(4, 3, 32, 32)])
    assert a(torch.rand(4, 3, 32, 32)).updated


def test_says_what_it_expects() -> None:
    with pytest.raises(RuntimeError, match="or give it the network of train_itta"):
        ITTA(net())(stream([4])[0])
    with pytest.raises(ValueError, match="this model has none"):
        ITTA(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="this Flatten has none"):
        with_adaptive(net(), ["7"])
    tokens = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(2))
    with pytest.raises(ValueError, match="expected maps"):
        with_adaptive(nn.Sequential(tokens), ["0"])(torch.rand(2, 3, 4, 4))
