"""Search of images by text: logits of a gallery, and RLCF of a query against its equation in plain torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.laws.worlds import WORLDS, ambient, zero_shot
from testtime.vision_language import RLCF, ImageGallery, ImageText
from testtime.vision_language.gallery import gallery_of

QUERIES = ["a red thing", "a photo of a blue thing", "green"]


def pair(seed: int = 0) -> ImageText:
    with ambient(seed):
        return zero_shot().pair.double().eval().requires_grad_(True)


def images(n: int = 6) -> Tensor:
    return WORLDS["image-text"].stream(1, n)[0].double()


def shaded() -> Tensor:
    return images() * torch.linspace(0.2, 1, 6).double().view(-1, 1, 1, 1)


def test_a_gallery_of_the_same_images_in_another_size_is_alike() -> None:
    larger = nn.functional.interpolate(shaded(), (16, 16), mode="bilinear")
    ImageGallery(pair(), shaded()).check_alike(ImageGallery(pair(5), larger))


def rlcf(gallery: Any = None, reward: Any = None, **about: Any) -> RLCF:
    gallery = ImageGallery(pair(), images()) if gallery is None else gallery
    reward = ImageGallery(pair(5), images()) if reward is None else reward
    return RLCF(gallery, reward, **{"tunes": "encoder", "views": 1, "samples": 2, "steps": 2, **about})


def test_logits_are_scaled_cosines_of_the_text_and_the_images() -> None:
    both = pair()
    gallery = ImageGallery(both, images())
    with torch.no_grad():
        f, g = both(images()).numpy(), both.encode_texts(QUERIES).numpy()
        found = gallery(gallery.tokenize(QUERIES)).numpy()
    np.testing.assert_allclose(found, float(both.scale) * g @ f.T, rtol=1e-10)


def test_rlcf_adapts_the_text_encoder_to_each_query_and_leaves_the_gallery() -> None:
    gallery, reward = ImageGallery(pair(), images()), ImageGallery(pair(5), images())
    ids, adapter = gallery.tokenize(QUERIES), rlcf(gallery, reward)
    assert adapter.cost == (3, 2)
    before = {k: v.clone() for k, v in gallery.state_dict().items()}
    y = adapter(ids)
    with torch.no_grad():
        t = reward.pair.encode_texts(QUERIES).numpy()
        r = 2.5 * np.maximum(t @ reward.pair(images()).numpy().T, 0)
    for i in range(len(ids)):
        one = copy.deepcopy(gallery)
        optimizer = torch.optim.AdamW(one.pair.texts.parameters(), lr=1e-5)
        for _ in range(2):
            z = one(ids[i : i + 1])[0]
            best = np.argsort(-z.detach().numpy())[:2].tolist()
            gain = r[i, best] - r[i, best].mean()
            loss: Any = sum(float(g) * -z.log_softmax(0)[j] for g, j in zip(gain, best, strict=True)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            np.testing.assert_allclose(y[i].numpy(), one(ids[i : i + 1])[0].numpy(), rtol=1e-6)
    plain = adapter.predict(ids)
    assert torch.equal(plain, gallery(ids))
    assert not torch.equal(y, plain)
    assert all(torch.equal(v, before[k]) for k, v in gallery.state_dict().items())
    assert torch.equal(adapter(ids), y)


class Shouting(nn.Module):
    """A text encoder whose tokenizer makes other ids."""

    start = 1

    def __init__(self, texts: Any) -> None:
        super().__init__()
        self.texts = texts

    def tokenize(self, prompts: list[str]) -> Tensor:
        return self.texts.tokenize(prompts) + 1

    def embed(self, ids: Tensor) -> Tensor:
        return self.texts.embed(ids - 1)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        return self.texts(tokens, ids - 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ImageGallery(nn.Identity(), images()), "expected a pair of encoders"),
        (lambda: ImageGallery(pair(), images()[:1]), "two or more"),
        (lambda: ImageGallery(pair(), (255 * images()).byte()), "uint8: x / 255"),
        (lambda: ImageGallery(pair(), images().index_fill(0, torch.tensor(2), np.nan)), "first number 2"),
        (
            lambda: rlcf(
                reward=ImageGallery(pair(5), shaded().flip(0)), gallery=ImageGallery(pair(), shaded())
            ),
            "same order",
        ),
        (lambda: ImageGallery(pair(), images()).tokenize("red"), "one text is a list too"),
        (lambda: ImageGallery(pair(), images()).tokenize(["red", None]), "expected a list of texts"),
        (lambda: ImageGallery(pair(), images()).tokenize([]), "one text or more"),
        (lambda: rlcf(reward=pair(5)), "reward is a gallery of the same images"),
        (lambda: RLCF(zero_shot(), ImageGallery(pair(5), images())), "reward is a pair of encoders"),
        (lambda: rlcf(views=4), 'tunes="encoder", views=1'),
        (lambda: rlcf(tunes="prompt"), 'tunes="encoder", views=1'),
        (lambda: rlcf(reward=ImageGallery(pair(5), images(4))), "galleries of the same images, got 6 and 4"),
        (
            lambda: rlcf(
                reward=ImageGallery(ImageText(pair(5).images, Shouting(pair(5).texts), 8.0), images())
            ),
            "pairs with one tokenizer",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(make: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        make()


def test_a_zero_shot_classifier_has_no_gallery() -> None:
    assert gallery_of(zero_shot()) is None
