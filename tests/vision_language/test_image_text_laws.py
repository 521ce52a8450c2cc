"""The methods of image and text obey the laws; only ``each_alone`` catches a prompt that is not reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.laws import LAWS, WORLDS, Case, broken_laws, check_adapter, parametrize_with_laws
from testtime.laws.worlds import ambient, zero_shot
from testtime.vision_language import RLCF, TDA, TPT, ZERO, DiffTPT, ImageText, Prompted
from testtime.vision_language.prompted import embedded_views, logits_of
from testtime.vision_language.tpt import mean_entropy
from testtime.vision_language.zero_shot import zero_shot_of

HERE = ["image-text"]
SGD = partial(torch.optim.SGD, lr=0.1)
RESET = {
    "alive": "returns to the template after each image (the prompt is reset), so that predict is the zero-shot classifier"
}
VOTES = {"null_step": "answers with the votes of views"}
CACHES = {
    "null_step": "adds what its caches say to the logits",
    "order_equivariant": "fills its caches with one image after the other",
}


@cache
def reward() -> ImageText:
    with ambient(5):
        return zero_shot().pair


def noisy(x: Tensor, number: int, rng: torch.Generator) -> Iterator[Tensor]:
    for _ in range(number):
        yield x + 0.02 * torch.randn(x.shape[1:], generator=rng).to(x.dtype)  # the same for all images


FEW: dict[str, Any] = {"views": 4, "share": 0.5}
CASES = [
    Case("TPT", partial(TPT, **FEW), RESET, HERE),
    Case("DiffTPT", partial(DiffTPT, generate=noisy, generated=2, **FEW), RESET, HERE),
    Case("RLCF", lambda m: RLCF(m, reward(), **FEW), RESET, HERE),
    Case("TDA", TDA, CACHES, HERE),
    Case("ZERO", partial(ZERO, **FEW), VOTES, HERE),
]


ESSENTIAL = (
    "alive",
    "declared",
    "any_precision",
    "save_is_enough",
    "order_equivariant",
    "each_alone",
    "one_tick",
)
FEWER = ("alive", "each_alone")  # of methods that share the steps of TPT
ENCODER = Case(
    "RLCF-encoder", lambda m: RLCF(m, reward(), "encoder", SGD, views=2, share=0.5, steps=1), RESET, HERE
)


@pytest.mark.parametrize("case", [*CASES, ENCODER], ids=lambda case: case.name)
def test_obeys_the_laws_that_a_reset_could_break(case: Case) -> None:
    laws = ESSENTIAL if case.name in ("TPT", "TDA", "ZERO") else FEWER
    check_adapter(
        case.make, {name: why for name, why in case.excuses.items() if name in laws}, case.worlds, laws
    )


@pytest.mark.slow
@parametrize_with_laws(CASES)
def test_obeys(check: Callable[[], None]) -> None:
    check()


class ForgetsToResetThePrompt(Adapter):
    """TPT with one prompt for the batch, which goes on from image to image."""

    output = "after"
    episodic = True
    cost = (4, 0)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(Prompted(model))
        self.adapt([self.model.get_parameter("network.context")], partial(torch.optim.AdamW, lr=5e-3))

    def step(self, x: Tensor) -> Tensor:
        model, context = zero_shot_of(self.model), self.model.get_parameter("network.context")
        features = embedded_views(self.model, x, 4, 0)
        self.update(mean_entropy(logits_of(model, features, context.expand(len(x), -1, -1))).mean())
        with torch.no_grad():
            return model.pair.logits(features[:, 0], model.texts(context))


def test_each_alone_catches_a_prompt_that_is_not_reset() -> None:
    assert set(broken_laws(ForgetsToResetThePrompt, HERE, ESSENTIAL)) == {"each_alone"}


@pytest.mark.slow
def test_no_other_law_catches_it() -> None:
    assert set(broken_laws(ForgetsToResetThePrompt, worlds=HERE)) == {"each_alone"}


def test_the_image_text_world_is_alive() -> None:
    """Its classifier knows the classes, and the texts under a soft prompt are those that it was trained towards."""
    world = WORLDS["image-text"]
    x, label = world.task(400, torch.Generator().manual_seed(3))
    model = world.network()
    with torch.no_grad():
        assert (model(x).argmax(1) == label).float().mean() > 0.6
        texts = zero_shot_of(model).texts(zero_shot_of(model).context())
        torch.testing.assert_close(texts * 8, zero_shot_of(model).head.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_adapted_encoder_obeys() -> None:
    laws = [
        name for name in LAWS if name != "null_step"
    ]  # it answers images one by one, which rounds otherwise
    check_adapter(ENCODER.make, ENCODER.excuses, HERE, laws)


@pytest.mark.parametrize("case", [*CASES, ENCODER], ids=lambda case: case.name)
def test_an_image_is_answered_alone_as_in_a_batch(case: Case) -> None:
    if case.name == "TDA":
        pytest.skip("its caches are the memory of a stream")
    world = WORLDS["image-text"]
    one, other = (case.make(world.network().double()) for _ in range(2))
    x = world.stream(1, 5)[0].double()
    together = one(x)
    assert torch.allclose(together, torch.cat([other(i) for i in x.flip(0).split(1)]).flip(0), atol=1e-6)
