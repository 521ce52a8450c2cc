"""TPT, DiffTPT, RLCF, ZERO and TDA against their equations, one image at a time, in numpy or in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import load, save, state_hash
from testtime.laws.worlds import WORLDS, ambient, zero_shot
from testtime.vision_language import (
    RLCF,
    TDA,
    TPT,
    ZERO,
    DiffTPT,
    ImageText,
    ZeroShot,
    resized_crops,
    zero_shot_of,
)
from testtime.vision_language.difftpt import weighted_entropy
from testtime.vision_language.prompted import each_prompt, embedded_views, views_with
from testtime.vision_language.rlcf import reward_loss
from testtime.vision_language.tpt import mean_entropy
from testtime.vision_language.views import confident
from testtime.vision_language.zero import votes

WORLD = WORLDS["image-text"]
RNG = np.random.default_rng(0)


def model() -> ZeroShot:
    return WORLD.network().double()  # type: ignore[return-value]


def images(n: int = 3) -> Tensor:
    return WORLD.stream(1, n)[0].double()


def reward() -> ImageText:
    with ambient(5):
        return zero_shot().pair.double().eval()


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def h(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def test_losses_of_prompts() -> None:
    z, w = RNG.normal(size=(2, 4, 5)), np.array([[1, 1, 0, 1], [1, 0, 0, 0]])
    t = torch.from_numpy(z)
    np.testing.assert_allclose(mean_entropy(t).numpy(), h(softmax(z).mean(1)))
    mixed = [softmax(z[i])[w[i] == 1].mean(0) for i in range(2)]
    np.testing.assert_allclose(weighted_entropy(t, torch.from_numpy(w)).numpy(), [h(p) for p in mixed])


def test_the_loss_of_rewards_is_that_of_the_best_classes_less_their_mean() -> None:
    z, r = RNG.normal(size=(2, 3, 6)), RNG.random((2, 3, 6))
    expected = np.zeros(2)
    for i in range(2):
        for b in range(3):
            best = np.argsort(-z[i, b])[:3]
            gain = r[i, b, best] - r[i, b, best].mean()
            expected[i] += (gain * -np.log(softmax(z[i, b])[best])).sum() / 9
    np.testing.assert_allclose(reward_loss(torch.from_numpy(z), torch.from_numpy(r), 3).numpy(), expected)


def test_votes_are_shares_and_ties_go_to_the_mean_prediction() -> None:
    z = RNG.normal(size=(4, 5, 3))
    share = np.stack([np.bincount(row.argmax(1), minlength=3) / 5 for row in z])
    mixed = (1 - 0.01 / 5) * share + 0.01 / 5 * softmax(z).mean(1)
    np.testing.assert_allclose(votes(torch.from_numpy(z)).exp().numpy(), mixed)
    tie = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    assert int(votes(tie).argmax()) == 0


def test_confident_views_are_those_of_lowest_entropy() -> None:
    e = RNG.random((3, 64))
    assert confident(torch.from_numpy(e), 0.1).tolist() == np.argsort(e, 1)[:, :6].tolist()
    assert confident(torch.ones(1, 5), 0.1).tolist() == [[0]]


def test_crops_have_the_area_asked_for_the_same_place_in_all_images_and_are_mirrored_by_chance() -> None:
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)  # the column of a pixel
    rng = torch.Generator().manual_seed(0)
    widths, down = [], 0
    for view in resized_crops(torch.cat([ramp, ramp + 100]), 60, rng, area=(0.25, 0.25)):
        torch.testing.assert_close(view[0], view[1] - 100)
        row = view[0, 0, 0]
        widths.append(float((row.max() - row.min()).abs()) + 1)
        down += bool(row[0] > row[-1])
    assert 26 <= min(widths) <= max(widths) <= 38  # 32 pixels of 64, times the root of 3/4 to 4/3
    assert 18 <= down <= 42
    whole = next(resized_crops(ramp, 1, rng, area=(2.0, 2.0), mirror=False))
    torch.testing.assert_close(whole, ramp.contiguous())


def first_step(context: np.ndarray, gradient: np.ndarray, lr: float) -> np.ndarray:
    """AdamW from zero: the moments are g and g squared once their bias is corrected; weight decay 0.01."""
    return context * (1 - lr * 0.01) - lr * gradient / (np.abs(gradient) + 1e-8)


def gradient_of(net: ZeroShot, features: Tensor, context: Tensor) -> Tensor:
    leaf = context.clone().requires_grad_()
    z = net.pair.scale * features @ net.texts(leaf).T
    p = z.softmax(1).mean(0)
    return torch.autograd.grad(-(p * p.log()).sum(), leaf)[0]


def test_tpt_is_one_step_of_adamw_on_each_image_alone() -> None:
    net, x = model(), images()
    y = TPT(net, views=8, share=0.5)(x)
    features = embedded_views(net, x, 8, 0)
    for i in range(len(x)):
        z = net.head(features[i]).detach().numpy()
        kept = np.argsort(h(softmax(z)))[:4]
        g = gradient_of(net, features[i, kept], net.context()).numpy()
        prompt = first_step(net.context().numpy(), g, 5e-3)
        with torch.no_grad():
            expected = net.pair.scale * features[i, 0] @ net.texts(torch.from_numpy(prompt)).T
        np.testing.assert_allclose(y[i].numpy(), expected.numpy(), rtol=1e-6)
    moved = (y - net(x).detach()).abs().max()
    assert 1e-4 < float(moved) < 1


def test_the_prompt_is_dropped_after_the_answer() -> None:
    net, x = model(), images()
    adapter = TPT(net, views=8, share=0.5)
    before = {k: v for k, v in adapter.state_dict().items() if k != "clock"}
    first = adapter(x)
    assert torch.equal(adapter(x), first)
    assert torch.equal(adapter.predict(x), net(x))
    assert all(torch.equal(v, before[k]) for k, v in adapter.state_dict().items() if k != "clock")


def test_an_image_without_a_finite_gradient_keeps_the_template_and_its_neighbours_learn() -> None:
    adapter = TPT(model(), views=2, share=1.0)
    factor = torch.tensor([1.0, torch.nan, 1.0])
    adapter(images())  # the initial state is known
    found = each_prompt(adapter, 3, 1, lambda contexts, rows: contexts.sum((1, 2)) * factor[rows])
    start = adapter.model.get_parameter("network.context")
    assert [bool((c != start).any()) for c in found] == [True, False, True]


def noisy(x: Tensor, number: int, rng: torch.Generator) -> Iterator[Tensor]:
    for k in range(number):
        yield (x + (0.02, 2.0)[k % 2] * torch.randn(x.shape[1:], generator=rng)).clamp(-1, 2)


def test_difftpt_learns_from_confident_crops_and_similar_generated_views() -> None:
    net, x = model(), images()
    y = DiffTPT(net, noisy, views=6, generated=4, share=0.5, similarity=0.9)(x)
    features = embedded_views(net, x, 6, 0)
    made = DiffTPT(net, noisy, generated=4)._made(x)
    taken = 0
    for i in range(len(x)):
        kept = np.argsort(h(softmax(net.head(features[i]).detach().numpy())))[:3]
        alike = (made[i].numpy() @ features[i, 0].numpy()) >= 0.9
        taken += int(alike.sum())
        seen = torch.cat([features[i, kept], made[i][torch.from_numpy(alike)]])
        prompt = first_step(net.context().numpy(), gradient_of(net, seen, net.context()).numpy(), 5e-3)
        with torch.no_grad():
            expected = net.pair.scale * features[i, 0] @ net.texts(torch.from_numpy(prompt)).T
        np.testing.assert_allclose(y[i].numpy(), expected.numpy(), rtol=1e-6)
    assert 0 < taken < 12  # the filter keeps some and refuses some


def test_without_generated_views_difftpt_is_tpt() -> None:
    x = images()
    one = DiffTPT(model(), noisy, views=6, generated=0, share=0.5)(x)
    torch.testing.assert_close(one, TPT(model(), views=6, share=0.5)(x))


def rewarded(net: ZeroShot, pair: ImageText, view: Tensor) -> np.ndarray:
    text = pair.encode_texts(net.prompts(net.templates[0])).numpy()
    with torch.no_grad():
        return 2.5 * np.maximum(pair(view).numpy() @ text.T, 0)


def test_rlcf_takes_three_steps_on_the_prompt_of_each_image() -> None:
    net, pair, x = model(), reward(), images(2)
    y = RLCF(net, pair, views=4, share=0.5)(x)
    features = embedded_views(net, x, 4, 0)
    views = torch.stack(list(views_with(net, x, 4, 0, None, (0.08, 1.0))), dim=1)
    for i in range(2):
        kept = np.argsort(h(softmax(net.head(features[i]).detach().numpy())))[:2]
        r = rewarded(net, pair, views[i, kept])
        prompt = nn.Parameter(net.context())
        optimizer = torch.optim.AdamW([prompt], lr=7e-3)
        for _ in range(3):
            z = net.pair.scale * features[i, kept] @ net.texts(prompt).T
            terms = []
            for b in range(2):
                best = np.argsort(-z[b].detach().numpy())[:3].tolist()
                gain = r[b, best] - r[b, best].mean()
                terms += [float(g) * -z[b].log_softmax(0)[c] for g, c in zip(gain, best, strict=True)]
            optimizer.zero_grad()
            (sum(terms) / 6).backward()  # type: ignore[union-attr]
            optimizer.step()
        expected = net.pair.scale * features[i, 0] @ net.texts(prompt).detach().T
        np.testing.assert_allclose(y[i].numpy(), expected.detach().numpy(), rtol=1e-6)


def test_rlcf_of_captions_adapts_the_encoder_and_returns() -> None:
    """Retrieval, image to text: the classes are captions, without views and without words before the name."""
    net, pair, x = model(), reward(), images(2)
    captions = ZeroShot(net.pair, ["a red thing", "a photo of blue", "grey", "green of black"], "{}")
    adapter = RLCF(captions, pair, "encoder", views=1, samples=2, steps=2)
    assert adapter.cost == (4, 2)
    y = adapter(x)
    for i in range(2):
        one = copy.deepcopy(captions)
        optimizer = torch.optim.AdamW(one.pair.images.parameters(), lr=1e-5)
        r = rewarded(captions, pair, x[i : i + 1])[0]
        for _ in range(2):
            z = one(x[i : i + 1])[0]
            best = np.argsort(-z.detach().numpy())[:2].tolist()
            gain = r[best] - r[best].mean()
            loss = sum(float(g) * -z.log_softmax(0)[c] for g, c in zip(gain, best, strict=True)) / 2
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
        np.testing.assert_allclose(y[i].numpy(), one(x[i : i + 1])[0].detach().numpy(), rtol=1e-6)
    assert torch.equal(adapter.predict(x), captions(x))


def test_zero_counts_the_votes_of_confident_views() -> None:
    net, x = model(), images()
    y = ZERO(net, views=10, share=0.4)(x)
    z = net.head(embedded_views(net, x, 10, 0)).detach().numpy()
    for i in range(len(x)):
        kept = z[i, np.argsort(h(softmax(z[i])))[:4]]
        counts = np.bincount(kept.argmax(1), minlength=5)
        best = np.flatnonzero(counts == counts.max())
        assert int(y[i].argmax()) == best[softmax(kept).mean(0)[best].argmax()]


def test_tda_adds_what_its_caches_say() -> None:
    net, x = model(), images(24)
    y = TDA(net, capacity=2, uncertain=(0.2, 0.9))(x)
    features, logits = net.pair(x).detach().numpy(), net(x).detach().numpy()
    positive: dict[int, list[Any]] = {c: [] for c in range(5)}
    negative: dict[int, list[Any]] = {c: [] for c in range(5)}
    for f, z, got in zip(features, logits, y.numpy(), strict=True):
        p = softmax(z)
        doubt, c = h(p) / np.log(5), int(z.argmax())
        for cache, wanted in ((positive, True), (negative, 0.2 < doubt < 0.9)):
            if wanted:
                cache[c] = sorted([*cache[c], (doubt, f, p > 0.03)], key=lambda item: item[0])[:2]
        expected = z.copy()
        for label, items in positive.items():
            expected[label] += sum(2.0 * np.exp(-5.0 * (1 - f @ g)) for _, g, _ in items)
        for items in negative.values():
            for _, g, mask in items:
                expected -= 0.117 * np.exp(-(1 - f @ g)) * mask
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert any(len(items) == 2 for items in positive.values())
    assert any(negative.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: TPT(nn.Linear(3, 2)), "expected a zero-shot classifier, got Linear"),
        (lambda m: TPT(ZeroShot(m.pair, ["red", "blue"], "{}")), "no token before the name"),
        (lambda m: TPT(ZeroShot(m.pair, ["red", "blue"], ["a {}", "{}"])), "starts from one template"),
        (lambda m: TPT(m, views=0), "views"),
        (lambda m: TPT(m, share=0.0), "share of the views that are confident, above 0"),
        (lambda m: ZERO(m, share=10), "share of the views that are confident, above 0"),
        (lambda m: DiffTPT(m, abs, share=10), "share of the views that are confident, above 0"),
        (lambda m: RLCF(m, m.pair, share=10), "share of the views that are confident, above 0"),
        (
            lambda m: TPT(m, views=4, augment=lambda x, n, rng: x)(images()),
            "augment yields 3 batches of views",
        ),
        (lambda m: TPT(m, views=4, augment=lambda x, n, rng: [x])(images()), "augment yields 3 .* got 1"),
        (
            lambda m: TPT(m, views=4, augment=lambda x, n, rng: [(255 * x).byte()] * n)(images()),
            r"H, W\), torch.float64, got one of .*, torch.uint8",
        ),
        (
            lambda m: TPT(m, views=4, augment=lambda x, n, rng: None)(images()),
            "augment yields .* got one of NoneType",
        ),
        (lambda m: TPT(m)(torch.rand(3, 8)), r"takes batches \(N, C, H, W\)"),
        (lambda m: DiffTPT(m, "diffusion"), "generate is a function of"),
        (
            lambda m: DiffTPT(m, lambda x, n, rng: [x], views=2)(images()),
            "yielded 1 batches of views, expected 64",
        ),
        (lambda m: DiffTPT(m, lambda x, n, rng: [x[:1]] * n, views=2)(images()), "expected one view"),
        (
            lambda m: DiffTPT(m, lambda x, n, rng: repeat(x), views=2, generated=3)(images()),
            "yielded more batches of views, expected 3",
        ),
        (
            lambda m: DiffTPT(m, lambda x, n, rng: [(255 * x).byte()] * n, views=2)(images()),
            r"yielded torch.uint8, .* convert them \(uint8: view / 255\)",
        ),
        (
            lambda m: DiffTPT(m, lambda x, n, rng: [[x]] * n, views=2)(images()),
            "yielded list, expected views as",
        ),
        (
            lambda m: DiffTPT(m, lambda x, n, rng: None, views=2)(images()),
            "returned NoneType, expected 64 batches",
        ),
        (lambda m: RLCF(m, nn.Identity()), "reward is a pair of encoders"),
        (lambda m: RLCF(m, m.pair, "head"), "tunes is one of 'prompt', 'encoder', got 'head'"),
        (lambda m: ZERO(nn.Identity()), "expected a zero-shot classifier"),
        (lambda m: TDA(nn.Identity()), "expected a zero-shot classifier"),
        (lambda m: TDA(m, negative=(0, 0.1, 1.0)), "a capacity from 1 .*, got 0"),
        (lambda m: TDA(m, uncertain=(0.5, 0.2)), r"the lower bound first, .*got \(0.5, 0.2\)"),
    ],
)
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(model())


@pytest.mark.parametrize("method", [TPT, ZERO, TDA])
def test_a_saved_adapter_goes_on(method: Any, tmp_path: Path) -> None:
    net, x = model(), images(4)
    few = {} if method is TDA else {"views": 2, "share": 0.5}
    adapter = method(net, **few)
    adapter(x)
    save(adapter, tmp_path)
    again = load(tmp_path, net)
    assert state_hash(again) == state_hash(adapter)
    assert torch.equal(again(x), adapter(x))


def test_the_model_of_the_caller_is_found_in_an_adapter() -> None:
    assert zero_shot_of(TPT(model())).names == ("red", "green", "blue", "grey", "black")
