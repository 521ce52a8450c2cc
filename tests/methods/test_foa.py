"""FOA: its fitness and its shift against numpy, what it does to a transformer, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from testtime.laws.worlds import WORLDS
from testtime.methods import FOA
from testtime.methods.foa import SourceTokens, widened


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix, self.mlp = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.mean(dim=1, keepdim=True))  # tokens meet in their mean
        return x + self.mlp(self.norm(x))


class Classed(nn.Module):
    """A transformer with a class token, in float64."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        n = x.shape[1]
        for block in self.blocks:
            x = block(x)
        assert x.shape[1] == n
        return self.head(self.norm(x)[:, 0])


def classed() -> Classed:
    torch.manual_seed(1)
    return Classed().double().eval()


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(model: Classed, x: Tensor, prompt: Tensor) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Logits, features and class tokens of a forward with prompts behind the class token."""
    with torch.no_grad():
        t = model.tokens(x)
        t = torch.cat([t[:, :1], prompt.view(1, -1, 6).expand(len(x), -1, -1), t[:, 1:]], 1)
        seen = []
        for block in model.blocks:
            t = block(t)
            seen.append(t[:, 0].numpy())
        z = model.norm(t)[:, 0]
        return model.head(z).numpy(), z.numpy(), seen


def test_steps_equal_the_equations() -> None:
    model, source = classed(), images(20, 0)
    ours = FOA(model, prompts=2, population=5, weight=0.7, shift=0.8, momentum=0.25, seed=3)
    ours.prepare([source[:12], source[12:]])
    # The statistics of the source: of all its images, without prompts.
    _, z, seen = by_hand(model, source, torch.empty(0))
    known = [(t.mean(0), t.std(0)) for t in seen]
    running = None
    for i in range(4):
        x, draws = images(9, 10 + i), ours.search()
        fitness, answers, features = [], [], []
        for p in draws:
            logits, zp, tokens = by_hand(model, x, p)
            q = np.exp(logits - logits.max(1, keepdims=True))
            q /= q.sum(1, keepdims=True)
            away = sum(
                np.linalg.norm(t.mean(0) - m) + np.linalg.norm(t.std(0) - s)
                for t, (m, s) in zip(tokens, known, strict=True)
            )
            fitness.append(-(q * np.log(q)).sum() + 0.7 * 9 / 64 * away)
            answers.append(logits)
            features.append(zp)
        best = int(np.argmin(fitness))
        now = features[best].mean(0)
        running = now if running is None else 0.75 * running + 0.25 * now
        shifted = features[best] + 0.8 * (z.mean(0) - running)
        expected = shifted @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
        y = ours(x)
        np.testing.assert_allclose(y.logits.numpy(), expected, atol=1e-9)
        np.testing.assert_allclose(ours.running.numpy(), running, atol=1e-9)
        # The mean went to the better two of the five draws, by the weights of the strategy.
        w = np.log(3) - np.log([1, 2])
        order = np.argsort(fitness)[:2]
        np.testing.assert_allclose(ours.search.mean.numpy(), w / w.sum() @ draws.numpy()[order], atol=1e-9)
    assert not np.allclose(answers[0], answers[1])


def test_predicts_with_the_mean_of_the_prompts_and_the_shift_so_far() -> None:
    model, x = classed(), images(9, 5)
    ours = FOA(model, population=4)
    ours.prepare([images(20, 0)])
    logits, _, _ = by_hand(model, x, ours.search.mean)
    np.testing.assert_allclose(ours.predict(x).logits.numpy(), logits, atol=1e-9)
    ours(x)
    _, z, _ = by_hand(model, x, ours.search.mean)
    z = torch.from_numpy(z) + ours.tokens.mean[-1] - ours.running
    torch.testing.assert_close(ours.predict(x).logits, model.head(z).detach(), rtol=0, atol=1e-9)


def test_nothing_is_saved_for_a_backward_and_no_weight_moves() -> None:
    world, kept = WORLDS["vit"], []
    network = world.network()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    foa = FOA(network, population=6)
    foa.prepare(world.source())
    x = world.stream(1)[0]
    network.meter.forwards = 0

    def count(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with saved_tensors_hooks(count, lambda t: t):
        foa(x)
    assert not kept
    assert network.meter.forwards == 6 * len(x)
    assert foa.cost == (6, 0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_fitness_falls_on_a_stream_that_stays() -> None:
    world = WORLDS["vit"]
    foa = FOA(world.network(), population=8, sigma=0.3)
    foa.prepare(world.source())
    x, found = world.stream(6, 32)[-1], []
    for _ in range(15):
        with torch.no_grad():
            logits, _, seen = foa._answered(x, foa.search.mean)
        found.append(float(foa.fitness(logits, seen)))
        foa(x)
    assert min(found[-5:]) < min(found[:5])


def test_statistics_of_the_source_do_not_depend_on_its_batches() -> None:
    one, many, z = SourceTokens(), SourceTokens(), [images(10, i).mean(dim=(2, 3)) for i in range(3)]
    one.update(z)
    for rows in (slice(0, 1), slice(1, 7), slice(7, 10)):
        many.update([t[rows] for t in z])
    torch.testing.assert_close(one.mean, many.mean)
    torch.testing.assert_close(one.var, many.var)
    torch.testing.assert_close(one.var, torch.stack([t.var(dim=0, unbiased=False) for t in z]))
    assert float(one(z)) == pytest.approx(0, abs=1e-12)


def test_finds_the_blocks_of_a_vit_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=16,
        patch_size=8, num_labels=4,
    )  # fmt: skip
    foa = FOA(transformers.ViTForImageClassification(config).eval(), population=4)
    foa.prepare([torch.rand(6, 3, 16, 16)])
    y = foa(torch.rand(5, 3, 16, 16))
    assert y.shape == (5, 4)
    assert foa.tokens.mean.shape == (4, 16)
    assert all(block.classed for block in foa._blocks)


def test_a_mask_has_room_for_prompts() -> None:
    rng = np.random.default_rng(0)
    mask = np.where(rng.random((2, 3, 4, 4)) < 0.5, 0, -np.inf)
    order = [0, None, None, 1, 2, 3]  # two prompts, behind the class token
    expected = np.zeros((2, 3, 6, 6))
    for i, row in enumerate(order):
        for j, column in enumerate(order):
            if column is not None:
                expected[:, :, i, j] = mask[:, :, row or 0, column]
    found = widened(torch.from_numpy(mask), 1, 2)
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(widened(torch.from_numpy(mask == 0), 1, 2).numpy(), expected == 0)
    assert np.array_equal(widened(torch.from_numpy(mask[:, :, :1]), 1, 2).numpy(), expected[:, :, :1])


class Masked(nn.Module):
    """A block of attention that is given a mask, by place or by keyword."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm(x))[:, None].chunk(3, dim=-1)
        return x + nn.functional.scaled_dot_product_attention(query, key, value, mask)[:, 0]


class MaskedViT(Classed):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Masked(6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        mask = x.new_ones(len(x), 1, 1, x.shape[1], dtype=torch.bool)
        mask[..., -1] = False  # the last patch is hidden
        x = self.blocks[1](self.blocks[0](x, mask), mask=mask)
        return self.head(self.norm(self.blocks[2](x, mask))[:, 0])


def test_blocks_with_a_mask_take_prompts() -> None:
    torch.manual_seed(0)
    foa = FOA(MaskedViT().double().eval(), prompts=2, population=4)
    foa.prepare([images(6, 1)])
    foa(images(6, 2))
    x = images(5, 3)
    y = foa.predict(x).logits
    assert foa.freeze()(x).equal(y)
    hidden, shown = x.clone(), x.clone()
    hidden[..., 4:, 4:] = 0.5  # the last of four patches
    shown[..., :4, :4] = 0.5
    assert foa.predict(hidden).logits.equal(y)
    assert not foa.predict(shown).logits.equal(y)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no run of equal blocks .* expected a ViT"):
        FOA(WORLDS["batchnorm"].network())

    class Wide(Classed):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.blocks[1](self.blocks[0](self.tokens(x))))
            return self.head(torch.cat([x[:, 0], x[:, 1:].mean(dim=1)], dim=1))

    with pytest.raises(ValueError, match=r"tokens of the width 6, and the head of this model reads 12 .*T3A"):
        FOA(Wide())

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.Sequential(Block(3), Block(3)), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(x.permute(0, 2, 3, 1)).mean(dim=(1, 2)))

    with pytest.raises(
        ValueError, match=r"tokens \(N, T, 3\) of a vision transformer, .* given \(4, 8, 8, 3\)"
    ):
        FOA(Windows()).prepare([torch.rand(4, 3, 8, 8)])


def test_asks_for_its_source_first() -> None:
    with pytest.raises(RuntimeError, match="call adapter.prepare"):
        FOA(classed())(images(4, 0))
