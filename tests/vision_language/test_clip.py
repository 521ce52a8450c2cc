"""CLIP models of transformers, with random weights, and of a module with the interface of open_clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from testtime.methods import Tent
from testtime.vision_language import TPT, ImageText, ZeroShot, open_clip_pair, transformers_pair
from testtime.vision_language.clip import MEAN, STD

NAMES = ["dog", "horse", "house"]


class Letters:
    """A tokenizer with the call of transformers': start, letters, end of text."""

    def __call__(
        self, prompts: list[str], padding: bool, truncation: bool, return_tensors: str
    ) -> dict[str, Tensor]:
        rows = [torch.tensor([40, *(ord(c) % 37 for c in text), 41]) for text in prompts]
        return {"input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=41)}


def clip_of_transformers() -> Any:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**common, "vocab_size": 42, "max_position_embeddings": 40, "eos_token_id": 41, "bos_token_id": 40}
    vision = {**common, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    return transformers.CLIPModel(config).eval()


def test_transformers_logits_are_those_of_the_library() -> None:
    clip = clip_of_transformers()
    pair, x = transformers_pair(clip, Letters()), torch.rand(2, 3, 16, 16)
    model = ZeroShot(pair, NAMES)
    normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    ids = Letters()([f"a photo of a {name}." for name in NAMES], True, True, "pt")["input_ids"]
    with torch.no_grad():
        expected = clip(input_ids=ids, pixel_values=normalised).logits_per_image
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model.texts(model.context()) * pair.scale, model.head.weight, rtol=1e-4, atol=1e-4
        )
        assert pair.patches(x).shape == (2, 4, 12)
    assert model.context_slice == slice(1, 13)  # the letters of "a photo of a"


def test_transformers_models_are_adapted_by_prompt_and_by_norm_layers() -> None:
    model = ZeroShot(transformers_pair(clip_of_transformers(), Letters()), NAMES)
    x = torch.rand(2, 3, 20, 20)  # resized to 16
    y = TPT(model, views=3, share=0.7)(x)
    assert y.updated
    assert (y - model(x)).abs().max() > 1e-4
    tent = Tent(model)
    tent(x)
    assert (tent.predict(x) - model(x)).abs().max() > 1e-6


class Visual(nn.Module):
    image_size, image_mean, image_std = (8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    output_tokens = False

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 10, 4, 4), nn.LayerNorm(10)
        self.proj = nn.Parameter(torch.randn(10, 6))

    def forward(self, x: Tensor) -> Any:
        tokens = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        pooled = tokens.mean(1) @ self.proj
        return (pooled, tokens) if self.output_tokens else pooled


class OpenCLIP(nn.Module):
    """The interface of ``open_clip.CLIP``: what its users call, with the end of text at the greatest id."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.token_embedding = Visual(), nn.Embedding(50, 7)
        self.out, self.logit_scale = nn.Linear(7, 6), nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return self.visual(image)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x = self.token_embedding(text).cumsum(1).tanh()
        return self.out(x[torch.arange(len(x)), text.argmax(1)])

    def forward(self, image: Tensor, text: Tensor) -> Any:
        f, g = (nn.functional.normalize(e, dim=1) for e in (self.encode_image(image), self.encode_text(text)))
        return self.logit_scale.exp() * f @ g.T


def tokenizer(texts: list[str]) -> Tensor:
    rows = [[48, *(ord(c) % 47 for c in text), 49] for text in texts]
    return torch.tensor([row + [0] * (30 - len(row)) for row in rows])


def test_open_clip_logits_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    clip, x = OpenCLIP(), torch.rand(2, 3, 8, 8)
    pair = open_clip_pair(clip, tokenizer)
    model = ZeroShot(pair, NAMES)
    ids = tokenizer([f"a photo of a {name}." for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(model(x), clip((x - 0.5) / 0.25, ids), rtol=1e-4, atol=1e-5)
        assert pair.patches(x).shape == (2, 4, 6)
        torch.testing.assert_close(
            model.texts(model.context()) * pair.scale, model.head.weight, rtol=1e-4, atol=1e-5
        )
    assert clip.visual.output_tokens is False
    assert len(pair.image_parameters()) == 5
    assert (TPT(model, views=3, share=0.7)(x) - model(x)).abs().max() > 1e-5


class WithoutWords(OpenCLIP):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.token_embedding = self.token_embedding, None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: open_clip_pair(nn.Identity(), tokenizer),
            "Identity has no encode_image, encode_text, logit_scale",
        ),
        (lambda: transformers_pair(nn.Identity(), tokenizer), "Identity has no get_image_features"),
        (lambda: open_clip_pair(WithoutWords(), tokenizer), "has no module token_embedding"),
        (lambda: without_patches().patches(torch.rand(1, 3, 8, 8)), "has no patch tokens"),
    ],
)
def test_models_of_another_kind_are_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def without_patches() -> ImageText:
    clip = OpenCLIP()
    clip.visual = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))  # type: ignore[assignment]
    return open_clip_pair(clip, tokenizer)
