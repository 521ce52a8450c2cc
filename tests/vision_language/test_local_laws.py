"""AnoVL, T3AL and GenSAM obey the laws in the image-text world, as far as a law speaks of what they return."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from testtime.laws import Case, broken_laws, parametrize_with_laws
from testtime.vision_language import T3AL, AnoVL, GenSAM

HERE = ["image-text"]
ONE, OTHER = ["a photo of a red thing", "a green thing"], ["a photo of a blue thing"]
QUICK = [
    "source_untouched",
    "tensors_owned",
    "deterministic",
    "survives_nonfinite",
    "reset_is_birth",
    "predict_is_pure",
    "each_alone",
]
FORM = {
    "same_form": "returns maps, segments or masks, not logits (design)",
    "null_step": "its answer is not the output of the model (design)",
    "one_tick": "its model has no statistics that move (design)",
}


class Local(nn.Module):
    """The pair in a zero-shot classifier, with the embeddings of the places before pooling as local tokens."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.pair(x)

    def encode_texts(self, words: list[str]) -> Tensor:
        return self.network.pair.encode_texts(words)

    def patches(self, x: Tensor) -> Tensor:
        images = self.network.pair.images
        inner = getattr(images, "network", images)
        if inner is not images:
            images.meter.forwards += len(x)  # the world counts the passes of the image encoder
        return inner.head(inner.features(x).flatten(2).transpose(1, 2))


def anovl(model: nn.Module) -> AnoVL:
    pair = model.pair
    return AnoVL(Local(model), pair.encode_texts(ONE), pair.encode_texts(OTHER), scale=8.0, steps=2)


def t3al(model: nn.Module) -> T3AL:
    return T3AL(model.pair, model.pair.encode_texts(ONE + OTHER), steps=2, captioner=colours)


def colours(frames: Tensor) -> list[str]:
    return ["red" if mean > 0.5 else "blue" for mean in frames.mean((1, 2, 3)).tolist()]


def brighter(images: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    return images.mean(1) - 0.5 + 0 * points.sum()


def gensam(model: nn.Module) -> GenSAM:
    return GenSAM(Local(model), brighter, lambda x: [(["red"], ["blue"])] * len(x), points=2)


NEW = {
    "output_timing": "its adapters are new for every image, and no parameter of the adapter moves (design)"
}
CASES = [
    Case("AnoVL", anovl, {**FORM, **NEW}, HERE),
    Case(
        "T3AL",
        t3al,
        {**FORM, "order_equivariant": "a batch is a video, whose frames are in order (design)"},
        HERE,
    ),
    Case("GenSAM", gensam, FORM, HERE),
]


@pytest.mark.slow
@parametrize_with_laws(CASES)
def test_obeys(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_obeys_the_laws_of_state(case: Case) -> None:
    assert broken_laws(case.make, HERE, QUICK) == {}


def test_half_precision_is_answered_in_half_precision() -> None:
    assert broken_laws(anovl, HERE, ["any_precision"]) == {}


def test_the_model_of_a_pair_is_not_changed_by_a_video() -> None:
    from testtime.laws import WORLDS

    model, x = WORLDS["image-text"].network(), WORLDS["image-text"].stream(1, 8)[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    t3al(model)(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
