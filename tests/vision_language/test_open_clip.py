"""CLIP models of open_clip itself, with random weights; skipped where the library or its torchvision does not import."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from testtime.vision_language import RLCF, TPT, ZeroShot, open_clip_pair
from testtime.vision_language.clip import MEAN, STD

NAMES = ["dog", "elephant", "giraffe"]
TRANSFORMER = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
RESNET = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 32, "patch_size": None}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


@pytest.mark.parametrize("vision", [TRANSFORMER, RESNET], ids=["transformer", "resnet"])
@pytest.mark.parametrize("name", ["CLIP", "CustomTextCLIP"])
def test_logits_are_those_of_the_library(name: str, vision: dict[str, Any]) -> None:
    reason = "pip install open_clip_torch, and a torchvision that fits the torch in use"
    open_clip = pytest.importorskip("open_clip", reason=reason, exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    clip = getattr(open_clip, name)(32, dict(vision), dict(TEXT)).eval()
    tokenizer, x = open_clip.SimpleTokenizer(), torch.rand(2, 3, 32, 32)
    pair = open_clip_pair(clip, tokenizer)
    model = ZeroShot(pair, NAMES, "a photo of a {}.")
    normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        texts = clip.encode_text(tokenizer([f"a photo of a {n}." for n in NAMES]), normalize=True)
        expected = clip.logit_scale.exp() * clip.encode_image(normalised, normalize=True) @ texts.T
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        if vision is TRANSFORMER:
            assert pair.patches(x).shape == (2, 16, 32)
        else:
            with pytest.raises(TypeError, match="has no patch tokens"):
                pair.patches(x)
    for adapter in (
        TPT(model, views=4, share=0.5),
        RLCF(model, pair, tunes="encoder", views=4, share=0.5),
    ):
        y = adapter(x)
        assert y.updated
        assert torch.isfinite(y).all()
