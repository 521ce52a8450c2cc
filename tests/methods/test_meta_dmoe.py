"""Meta-DMoE against plain loops: its step, its aggregator in numpy, its three stages of training."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import batch, net, stream
from testtime.adapter import state_hash
from testtime.laws import check_adapter
from testtime.methods.meta_dmoe import MetaDMoE, MetaDMoEOptions
from testtime.parts import generator, sgd
from testtime.source.meta_dmoe import Aggregator, Mixture, Recipe, train_meta_dmoe
from testtime.wrap import Episodic

HEAD = ("8.weight", "8.bias")


def domains() -> dict[str, list[tuple[Tensor, Tensor]]]:
    return {
        "near": [batch(20, 900 + i, 0.2) for i in range(3)],
        "far": [batch(20, 940 + i, 0.8) for i in range(2)],
        "between": [batch(20, 980 + i, 0.5) for i in range(3)],
    }


RECIPE = Recipe(
    passes=2,
    expert_passes=2,
    aggregator_passes=2,
    rate=1e-3,
    expert_rate=1e-2,
    pretrain_rate=1e-2,
    aggregator_rate=1e-3,
    inner_rate=0.3,
)


def trained(folder: Path | None = None, **changes: object) -> Mixture:
    recipe = replace(RECIPE, **changes)
    return train_meta_dmoe(net(), domains(), recipe, heads=4, seed=3, folder=folder, title=None)


def forward(w: dict[str, Tensor], x: Tensor, of: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits and features of the small network, by hand, with the source's statistics."""
    for conv, norm, stride in (("0", "1", 1), ("3", "4", 2)):
        x = F.conv2d(x, w[f"{conv}.weight"], w.get(f"{conv}.bias"), stride, 1)
        n = of.get_submodule(norm)
        x = F.batch_norm(x, n.running_mean, n.running_var, w[f"{norm}.weight"], w[f"{norm}.bias"]).relu()
    features = F.adaptive_avg_pool2d(x, 2).flatten(1)
    return features @ w["8.weight"].T + w["8.bias"], features


def aggregated(a: Aggregator, tokens: np.ndarray, heads: int) -> np.ndarray:
    """A block of a transformer and the mean of its tokens, in numpy."""
    w = {name: p.detach().numpy() for name, p in a.blocks[0].named_parameters()}

    def standard(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    n, k, d = tokens.shape
    qkv = standard(tokens, "norm1") @ w["self_attn.in_proj_weight"].T + w["self_attn.in_proj_bias"]
    q, key, v = (part.reshape(n, k, heads, d // heads).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, -1))
    weights = np.exp(q @ key.transpose(0, 1, 3, 2) / math.sqrt(d // heads))
    seen = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(n, k, d)
    x = tokens + seen @ w["self_attn.out_proj.weight"].T + w["self_attn.out_proj.bias"]
    hidden = standard(x, "norm2") @ w["linear1.weight"].T + w["linear1.bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return (x + hidden @ w["linear2.weight"].T + w["linear2.bias"]).mean(1)


def plain(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network, as the small one names them."""
    return dict(zip(dict(net().named_parameters()), network.parameters(), strict=True))


def test_the_aggregator_is_a_transformer() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a = Aggregator(12, 5, heads=8).double()  # 8 and 12 have 4 in common
    tokens = np.random.default_rng(0).normal(size=(3, 5, 12))
    ours = a(torch.from_numpy(tokens))
    np.testing.assert_allclose(ours.detach().numpy(), aggregated(a, tokens, 4), atol=1e-12)
    logits = a.classify(torch.from_numpy(tokens))
    torch.testing.assert_close(logits, a.head(F.layer_norm(ours, [12], a.norm.weight, a.norm.bias)))


@pytest.mark.parametrize("when", ["first", "every"])
def test_equals_the_loop(when: str) -> None:
    mixture = trained()
    theta = {name: p.detach().clone() for name, p in plain(mixture.student).items()}
    ours = MetaDMoE(mixture, sgd(0.01, momentum=0.0), when=when)
    assert ours.source == "none"
    assert ours.cost == (5, 1)
    for i, x in enumerate(stream([16, 5, 1, 16, 8, 4, 12, 2, 16, 8])):
        if when == "every" or i == 0:
            tokens = [forward(plain(expert), x, net())[1].detach().numpy() for expert in mixture.experts]
            target = aggregated(mixture.aggregator, np.stack(tokens, 1), 4)
            leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
            features = forward(leaves, x, net())[1]
            (((features - torch.from_numpy(target)) ** 2).sum() / features.numel()).backward()
            theta = {n: p.detach() - 0.01 * p.grad if n not in HEAD else p for n, p in leaves.items()}
        y = ours(x)
        np.testing.assert_allclose(
            y.numpy(), forward(theta, x, net())[0].detach().numpy(), rtol=0, atol=1e-10
        )
        assert torch.equal(ours.predict(x), y)
        assert y.updated == (when == "every" or i == 0)


def test_a_reset_begins_the_next_domain() -> None:
    ours, data = MetaDMoE(trained(), sgd(0.3, momentum=0.0)), stream([16] * 3)
    first = ours(data[0]).logits
    assert not ours(data[1]).updated
    ours.reset()
    again = ours(data[0])
    assert again.updated
    assert torch.equal(again.logits, first)
    each = Episodic(MetaDMoE(trained(), sgd(0.3, momentum=0.0)))
    assert torch.equal([each(x) for x in (*data, data[0])][-1].logits, first)


@pytest.mark.parametrize("mask", ["zero", "drop"])
def test_training_equals_the_loop(mask: str) -> None:
    """Experts, aggregator and, through the gradient of a gradient, both together."""
    ours, source, data = trained(mask=mask), net(), domains()

    def fit(weights: list[Tensor], rates: list[float], examples: list, loss: object, passes: int = 2) -> None:
        groups = [{"params": [w], "lr": rate} for w, rate in zip(weights, rates, strict=True)]
        optimizer = torch.optim.Adam(groups)
        for done in range(passes):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.96**done
            for example in examples:
                optimizer.zero_grad()
                loss(*example).backward()
                optimizer.step()

    def leaves() -> dict[str, Tensor]:
        return {name: p.detach().clone().requires_grad_() for name, p in source.named_parameters()}

    experts = []
    for examples in data.values():
        w = leaves()
        fit(
            list(w.values()),
            [1e-2] * len(w),
            examples,
            lambda x, y, w=w: F.cross_entropy(forward(w, x, source)[0], y),
        )
        experts.append({name: p.detach() for name, p in w.items()})
    for w, expert in zip(experts, ours.experts, strict=True):
        for name, p in plain(expert).items():
            torch.testing.assert_close(w[name], p.detach(), rtol=0, atol=1e-9)

    order = torch.tensor([0] * 3 + [1] * 2 + [2] * 3)[torch.randperm(8, generator=generator(3, 0, "order"))]
    shown = [iter(examples) for examples in data.values()]
    together = [(*next(shown[k]), k) for k in order.tolist()]
    aggregator = ours.fresh()
    aggregator.requires_grad_(True)

    def tokens(x: Tensor) -> Tensor:
        return torch.stack([forward(w, x, source)[1] for w in experts], 1).detach()

    own = list(aggregator.parameters())
    fit(
        own,
        [1e-2] * len(own),
        together,
        lambda x, y, _: F.cross_entropy(aggregator.classify(tokens(x)), y),
    )

    student = leaves()

    def judged(x: Tensor, y: Tensor, k: int) -> Tensor:
        seen = tokens(x[:13])
        if mask == "drop":
            seen = seen[:, [i for i in range(3) if i != k]]
        else:
            seen[:, k] = 0
        distance = ((forward(student, x[:13], source)[1] - aggregator(seen)) ** 2).mean()
        names = [name for name in student if name not in HEAD]
        slopes = torch.autograd.grad(distance, [student[n] for n in names], create_graph=True)
        moved = student | {n: student[n] - 0.3 * g for n, g in zip(names, slopes, strict=True)}
        return F.cross_entropy(forward(moved, x[13:], source)[0], y[13:])

    blocks = list(aggregator.blocks.parameters())
    fit(
        [*student.values(), *blocks],
        [1e-3] * len(student) + [1e-3] * len(blocks),
        together,
        judged,
    )
    for name, p in plain(ours.student).items():
        torch.testing.assert_close(student[name].detach(), p.detach(), rtol=0, atol=1e-8)
    for p, q in zip(aggregator.parameters(), ours.aggregator.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-8)
    for name, p in net().named_parameters():
        assert torch.equal(p, source.get_parameter(name)), name


def test_training_goes_on_where_it_was_left(tmp_path: Path) -> None:
    class Power(Exception):
        pass

    class Cut(list):
        def __iter__(self) -> object:
            self.shown = getattr(self, "shown", 0) + 1
            if (
                self.shown == 6
            ):  # after two passes for its expert and two for the aggregator, in the second of the last stage
                raise Power
            return super().__iter__()

    recipe = Recipe(passes=2, rate=1e-3, expert_rate=1e-2, expert_passes=2, aggregator_passes=2)
    whole = train_meta_dmoe(net(), domains(), recipe, title=None)
    cut = domains()
    cut["far"] = Cut(cut["far"])
    with pytest.raises(Power):
        train_meta_dmoe(net(), cut, recipe, folder=tmp_path, title=None)
    names = {"expert near", "expert far", "expert between", "aggregator", "meta"}
    assert {p.stem for p in tmp_path.iterdir()} == names
    again = train_meta_dmoe(net(), domains(), recipe, folder=tmp_path, title=None)
    for (name, p), q in zip(again.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert not p.requires_grad


def test_meta_training_makes_the_step_help() -> None:
    """On a domain between those it knows, the student answers better after its step than before."""
    mixture = trained(passes=15, inner_rate=0.03)
    x, y = batch(400, 7, 0.6)
    ours = MetaDMoE(mixture, sgd(0.03, momentum=0.0))
    before = F.cross_entropy(ours.predict(x).logits, y).item()
    ours(x)
    after = F.cross_entropy(ours.predict(x).logits, y).item()
    assert after < 0.9 * before


def test_prepare_takes_corruptions_for_domains() -> None:
    make = partial(
        MetaDMoE, optimizer=sgd(1e-2, momentum=0.0), options=MetaDMoEOptions(tasks=("contrast", "fog"))
    )
    ours, images = make(net()), [x for x, _ in domains()["near"]]
    assert ours.source == "data"
    with pytest.raises(RuntimeError, match="or give it the network of train_meta_dmoe"):
        ours(images[0])
    ours.prepare(images)
    before, once = state_hash(ours), ours.state_dict()
    late = make(net())  # not prepared: the state brings what was taught, and the birth
    late.load_state_dict(once)
    late(images[0])
    late.reset()
    assert state_hash(late) == before
    assert any(name.startswith("model.network.experts.1.") for name in once)
    ours(images[0])
    ours.prepare(images)  # again: from the network as it came
    assert state_hash(ours) == before
    brought = MetaDMoE(trained())
    brought.prepare(images)  # has nothing to learn
    assert len(brought.state_dict()) == 2 + len(brought.mixture.student.encoder())
    excuses = {"null_step": "its student is meta-trained on the source before the first batch"}
    laws = ["ambient_untouched", "frozen_is_frozen", "null_step", "save_is_enough"]
    check_adapter(make, excuses, ["batchnorm"], laws)


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="at least two domains"):
        train_meta_dmoe(net(), {"near": []})
    with pytest.raises(ValueError, match="mask is 'zero' or 'drop', got 'none'"):
        trained(mask="none")
    with pytest.raises(ValueError, match="a batch of 20 images cannot be parted"):
        trained(support=1.0)
    with pytest.raises(ValueError, match="when is one of 'first', 'every'"):
        MetaDMoE(net(), when="never")
    with pytest.raises(ValueError, match="at least two tasks"):
        MetaDMoE(net(), options=MetaDMoEOptions(tasks=("fog",)))
    with pytest.raises(ValueError, match="no linear head"):
        MetaDMoE(copy.deepcopy(net())[:8])
