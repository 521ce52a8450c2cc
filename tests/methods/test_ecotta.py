"""EcoTTA against a plain loop of its equations; its groups and its warm-up."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import CLASSES, batch, net, stream
from testtime.adapter import state_hash
from testtime.methods.ecotta import EcoTTA
from testtime.models.resnet import ResNet
from testtime.parts import sgd
from testtime.source.ecotta import MetaGroup, train_meta, with_meta


def examples() -> list[tuple[Tensor, Tensor]]:
    return [batch(32, 900 + i) for i in range(4)]


class Loop:
    """Its equations on one convolution after the other, weights by name."""

    def __init__(self, network: nn.Module, margin: float) -> None:
        self.network, self.margin, self.kept = copy.deepcopy(network), margin, []
        self.meta = {k: p.detach().clone() for k, p in network.named_parameters() if p_is_meta(k)}
        self.velocity = {k: torch.zeros_like(p) for k, p in self.meta.items()}

    def step(self, x: Tensor) -> Tensor:
        w = {k: p.clone().requires_grad_() for k, p in self.meta.items()}
        gaps = []

        def group(k: str, x: Tensor) -> Tensor:
            y = self.network.get_submodule(k).group(x)
            down = F.adaptive_avg_pool2d(x, y.shape[2:])
            c = F.conv2d(down, w[f"{k}.conv.weight"], padding=1)
            n = standard(y) * w[f"{k}.norm.weight"].view(1, -1, 1, 1) + w[f"{k}.norm.bias"].view(1, -1, 1, 1)
            c = standard(c) * w[f"{k}.conv_norm.weight"].view(1, -1, 1, 1) + w[f"{k}.conv_norm.bias"].view(
                1, -1, 1, 1
            )
            out = n + c.clamp(min=0)
            gaps.append((out - y.detach()).abs().mean())
            return out

        z = self.network[1:3](group("0", x))
        z = self.network[4:](group("3", z))
        p = z.softmax(1)
        h = -(p * p.log()).sum(1)
        kept = h < self.margin * np.log(CLASSES)
        self.kept.append(int(kept.sum()))
        loss = 0.7 * (gaps[0] + gaps[1])
        if kept.any():
            loss = loss + h[kept].sum() / kept.sum()
        loss.backward()
        for k, p in w.items():
            self.velocity[k] = 0.9 * self.velocity[k] + p.grad
            self.meta[k] = p.detach() - 0.02 * self.velocity[k]
        return z.detach()


def p_is_meta(name: str) -> bool:
    return ".norm." in name or ".conv." in name or ".conv_norm." in name


def standard(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def test_equals_the_loop() -> None:
    network = train_meta(net(), examples(), 3, title=None)
    reference = Loop(network, 0.05)
    ours = EcoTTA(network, sgd(0.02), hold=0.7, margin=0.05)
    assert ours.source == "none"
    for x in [*stream([16, 5, 1, 12, 16]), torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)]:
        expected, looked = reference.step(x), ours.predict(x)
        y = ours(x)
        assert torch.equal(y.logits, looked.logits)
        np.testing.assert_allclose(y.logits.numpy(), expected.numpy(), rtol=0, atol=1e-9)
    assert len({k > 0 for k in reference.kept}) == 2, reference.kept
    assert {k.removeprefix("model.network.") for k in ours.state_dict() if k.startswith("model.")} == set(
        reference.meta
    )


def test_sets_out_near_the_source_and_learns_its_task() -> None:
    before, x = train_meta(net(), examples(), 0, title=None), batch(64, 5)
    after = train_meta(net(), examples(), 10, title=None)
    close, taught = (F.cross_entropy(m(x[0]), x[1]).item() for m in (before, after))
    source = F.cross_entropy(net()(x[0]), x[1]).item()
    assert abs(close - source) < 0.5
    assert taught < close
    assert (after(x[0]).argmax(1) == x[1]).double().mean() > 0.95
    for name, p in after.named_parameters():
        if not p_is_meta(name):
            assert torch.equal(p, net().get_parameter(name.replace(".group", "")))


def test_training_goes_on_where_it_was_left(tmp_path: Path) -> None:
    class Power(Exception):
        pass

    class Cut(list[tuple[Tensor, Tensor]]):
        shown = 0

        def __iter__(self) -> object:  # type: ignore[override]
            self.shown += 1
            if self.shown == 4:  # the first look is for the statistics
                raise Power
            return super().__iter__()

    file, whole = tmp_path / "meta.safetensors", train_meta(net(), examples(), 4, title=None)
    with pytest.raises(Power):
        train_meta(net(), Cut(examples()), 4, file=file, title=None)
    again = train_meta(net(), examples(), 4, file=file, title=None)
    for p, q in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)


def test_prepare_trains_on_the_networks_own_predictions() -> None:
    ours, x = EcoTTA(net(), passes=3), stream([12])[0]
    ours.prepare([x for x, _ in examples()])
    own = [(x, net()(x).argmax(1)) for x, _ in examples()]
    np.testing.assert_allclose(
        ours.predict(x).numpy(), train_meta(net(), own, 3, title=None)(x).detach().numpy(), atol=1e-10
    )
    once = ours.state_dict()
    ours(x)
    ours.reset()
    assert all(torch.equal(v, once[k]) for k, v in ours.state_dict().items())
    ours(x)
    ours.prepare([x for x, _ in examples()])
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, once[name], rtol=0, atol=1e-10, msg=name)
    assert state_hash(ours)


def test_groups_are_the_stem_and_the_stages() -> None:
    def beside(model: nn.Module, *layers: str) -> list[str]:
        return [n for n, m in with_meta(model, layers or None).named_modules() if isinstance(m, MetaGroup)]

    assert beside(ResNet(18, 10, 4)) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert beside(net()) == ["0", "3"]
    assert beside(net(), "3") == ["3"]
    with pytest.raises(ValueError, match="this model has none"):
        EcoTTA(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="this Flatten has none"):
        with_meta(net(), ["7"])


def test_works_on_a_network_of_stages() -> None:
    a, x = EcoTTA(ResNet(18, 10, 4).eval(), passes=1), torch.rand(4, 3, 32, 32)
    a.prepare([x])
    y = a(x)
    assert y.updated
    assert y.shape == (4, 10)


def test_says_what_it_expects() -> None:
    with pytest.raises(RuntimeError, match="or give it the network of train_meta"):
        EcoTTA(net())(stream([4])[0])
    tokens = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(2))
    with pytest.raises(ValueError, match="expected maps"):
        with_meta(nn.Sequential(tokens), ["0"])(torch.rand(2, 3, 4, 4))
