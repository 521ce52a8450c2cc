"""The pair, the zero-shot classifier and the adapters of image classifiers on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.laws import broken_laws
from testtime.laws.worlds import WORLDS, TinyTexts, zero_shot
from testtime.methods import MEMO, T3A, BNAdapt, Tent
from testtime.vision_language import ENSEMBLE, ConSE, ImageText, ZeroShot, zero_shot_of


class Flat(nn.Module):
    """The first 16 values of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :16]


def texts() -> TinyTexts:
    torch.manual_seed(0)
    return TinyTexts()


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def test_logits_are_scaled_cosines() -> None:
    pair, x = ImageText(Flat(), texts(), 7.0), torch.rand(3, 3, 4, 4)
    model = ZeroShot(pair, ["red", "green"], "a {}")
    ids = pair.tokenize(["a red", "a green"])
    with torch.no_grad():
        text = unit(pair.texts(pair.embed(ids), ids).numpy())
        expected = 7.0 * unit(x.flatten(1)[:, :16].numpy()) @ text.T
        np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(pair.logits(pair(x), torch.from_numpy(text)).numpy(), expected, rtol=1e-5)


def test_an_ensemble_is_the_mean_of_templates_scaled_to_norm_one() -> None:
    pair = ImageText(Flat(), texts(), 3.0)
    model = ZeroShot(pair, ["red", "green"], ["a {}", "photo of {}"])
    parts = [unit(pair.encode_texts([f"{t} red", f"{t} green"]).numpy()) for t in ("a", "photo of")]
    np.testing.assert_allclose(model.head.weight.detach().numpy() / 3, unit(np.mean(parts, 0)), rtol=1e-5)
    assert all(text.count("{}") == 1 for text in ENSEMBLE)


def test_a_soft_prompt_starts_as_the_words_before_the_name() -> None:
    model = zero_shot()
    assert model.context_slice == slice(1, 5)  # a photo of a
    context = model.context()
    same = model.texts(context)
    torch.testing.assert_close(model.pair.scale * same, model.head.weight, rtol=1e-5, atol=1e-6)
    several = model.texts(torch.stack([context, context + 1]))
    torch.testing.assert_close(several[0], same)
    assert (several[1] - same).abs().max() > 1e-2


def test_words_that_names_share_are_not_part_of_the_soft_prompt() -> None:
    model = ZeroShot(ImageText(Flat(), texts()), ["red thing", "red photo"], "a photo of {}")
    assert model.context_slice == slice(1, 4)


def test_texts_are_differentiable_from_the_soft_prompt() -> None:
    model = zero_shot().double()
    context = model.context().requires_grad_()
    f = torch.rand(16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model.texts(context) @ f).sum(), context)
    step = 1e-6 * torch.eye(context.shape[1], dtype=torch.float64)[3]
    shift = torch.zeros_like(context)
    shift[2] = step
    with torch.no_grad():
        slope = ((model.texts(context + shift) - model.texts(context - shift)) @ f).sum() / 2e-6
    assert float(gradient[2, 3]) == pytest.approx(float(slope), rel=1e-5)


def test_prompts_of_a_batch_are_encoded_as_each_alone() -> None:
    model, several = zero_shot(), torch.randn(3, 4, 12)
    found = model.texts(several)
    assert found.shape == (3, 5, 16)
    for one, context in zip(found, several, strict=True):
        torch.testing.assert_close(one, model.texts(context))


def test_conse_is_the_mean_of_names_weighted_by_probability() -> None:
    names, logits = torch.randn(6, 4), torch.randn(5, 6)
    encoder = ConSE(nn.Identity(), names, top=3)
    z = logits.numpy().astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = []
    for row in p:
        best = np.argsort(-row)[:3]
        expected.append((row[best, None] * names.numpy()[best]).sum(0) / row[best].sum())
    np.testing.assert_allclose(encoder.embedded(logits).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [Tent, BNAdapt, lambda m: MEMO(m, views=2), lambda m: T3A(m, supports=4)])
def test_methods_for_classifiers_take_a_zero_shot_classifier(method) -> None:
    world = WORLDS["image-text"]
    adapter, before = method(world.network()), world.network()
    for x in world.stream(3):
        y = adapter(x)
    assert y.shape == (16, 5)
    assert y.valid.all()
    assert (adapter.predict(x) - before(x)).abs().max() > 1e-4


@pytest.mark.parametrize("method", [Tent, BNAdapt])
def test_methods_for_classifiers_obey_the_laws_on_it(method) -> None:
    laws = (
        "source_untouched",
        "alive",
        "null_step",
        "output_timing",
        "save_is_enough",
        "declared",
        "any_precision",
    )
    assert broken_laws(method, ["image-text"], laws) == {}


def test_copies_share_no_state() -> None:
    model = zero_shot()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.zero_()
    assert model.head.weight.abs().max() > 0
    assert zero_shot_of(Tent(model)) is not model


def test_an_exported_pair_takes_any_number_of_images() -> None:
    model, (x,) = zero_shot().eval(), WORLDS["image-text"].stream(1, 5)
    shapes = ({0: torch.export.Dim("n", min=2)},)
    exported = torch.export.export(model, (x[:3],), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(x), model(x))


class NoTexts(nn.Module):
    start = 1

    def embed(self, ids: Tensor) -> Tensor:
        return ids


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: ImageText(Flat(), NoTexts()), "has no tokenize; a text encoder has tokenize"),
        (lambda p: ImageText(abs, texts()), "images is a torch.nn.Module, got builtin"),
        (lambda p: ImageText(Flat(), texts(), -1.0), "scale is the positive factor of the cosine"),
        (
            lambda p: ImageText(nn.Identity(), texts())(torch.rand(2, 3, 4, 4)),
            r"returned shape \(2, 3, 4, 4\) for 2",
        ),
        (lambda p: p.patches(torch.rand(1, 3, 4, 4)), "Flat has no local tokens"),
        (lambda p: ZeroShot(nn.Identity(), ["a", "b"]), "expected a pair of encoders"),
        (lambda p: p.encode_texts("dog"), r"a list of texts, got 'dog'"),
        (lambda p: ZeroShot(p, "dog"), r"names is a list of texts, such as \[\"dog\""),
        (lambda p: ZeroShot(p, ["dog"]), "two class names or more"),
        (lambda p: ZeroShot(p, ["dog", " "]), "none of them empty"),
        (lambda p: ZeroShot(p, ["a", "b"], "a photo"), "{} in place of the name once"),
        (lambda p: ZeroShot(p, ["a", "b"], []), "template is a text"),
        (lambda p: ZeroShot(p, ["red", "blue"], "{}").context(), "no token before the name"),
        (lambda p: ZeroShot(p, ["red", "blue"], ["a {}", "{}"]).context(), "starts from one template"),
        (lambda p: ZeroShot(p, ["red", "blue", "red"]), "different class names, got 'red' twice"),
        (lambda p: ZeroShot(p, {"red", "blue"}), "names is a list of texts"),
        (lambda p: ZeroShot(p, (name for name in ["red", "blue"])), "names is a list of texts"),
        (lambda p: ZeroShot(p, None), "names is a list of texts, .* got None"),
        (lambda p: ZeroShot(p, ["red", "blue"], None), "template is a text"),
        (lambda p: ZeroShot(p, ["red", "red  "], "a {}"), "same tokens of the classes 'red' and 'red  '"),
        (lambda p: zero_shot_of(None), "expected a zero-shot classifier, got NoneType"),
        (lambda p: ImageText(Flat(), texts(), None), "scale is one number"),
        (lambda p: ImageText(Flat(), texts(), torch.ones(2)), r"scale is one number, .* shape \(2,\)"),
        (lambda p: zero_shot_of(nn.Identity()), "expected a zero-shot classifier, got Identity"),
        (lambda p: ConSE(nn.Identity(), torch.rand(4, 2), top=5), "top from 1 to C"),
    ],
)
def test_bad_input_is_refused(make, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(ImageText(Flat(), texts()))


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ({"input_ids": torch.zeros(2, 4, dtype=torch.int64)}, "returned dict, expected"),
        ([[1, 2], [3, 4]], "returned list, expected"),
        (torch.zeros(2, 4), r"shape \(2, 4\), torch.float32"),
        (torch.zeros(1, 4, dtype=torch.int64), r"expected token ids \(2, T\)"),
    ],
)
def test_what_tokenize_returns_is_checked(returned: object, got: str) -> None:
    class Other(TinyTexts):
        def tokenize(self, prompts: object) -> object:  # type: ignore[override]
            return returned

    with pytest.raises(TypeError, match=got):
        ImageText(Flat(), Other(), 7.0).tokenize(["a red", "a green"])
