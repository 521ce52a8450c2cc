"""What a model declares about its classes, and where it is found."""

import pytest
import torch
from torch import nn

from testtime.methods import Tent
from testtime.models import (
    MODELS,
    Preprocessed,
    Views,
    build_model,
    load_model,
    normalised,
    views_of,
)
from testtime.wrap import Episodic


def test_every_packaged_model_declares_what_its_card_says() -> None:
    assert views_of(load_model("digits-cnn")) == Views(mirror=False)
    assert views_of(build_model("cifar10-resnet20")) == Views()
    with torch.device("meta"):
        declared = {name: views_of(build_model(name)) for name in MODELS}
    assert declared == {name: card.views for name, card in MODELS.items()}


def test_the_outermost_declaration_counts_and_other_attributes_do_not() -> None:
    inner = normalised(nn.Linear(3, 2), (0.5,), (0.5,), Views(colour=False))
    assert views_of(nn.Sequential(nn.ReLU(), inner)) == Views(colour=False)
    outer = Preprocessed(inner, (0.0,), (1.0,), Views(turn=False))
    assert views_of(outer) == Views(turn=False)
    assert views_of(Preprocessed(inner, (0.0,), (1.0,))) == Views(colour=False)
    inner.views = "mirror"  # type: ignore[assignment]
    assert views_of(inner) is None


def test_an_adapter_declares_what_its_model_does() -> None:
    assert views_of(Episodic(Tent(load_model("digits-cnn")))) == Views(mirror=False)


def test_what_is_forbidden_is_named_and_only_bools_are_taken() -> None:
    assert Views().forbidden == ()
    assert Views(mirror=False, colour=False).forbidden == ("mirror", "colour")
    for value in (0, None, "no"):
        with pytest.raises(TypeError, match="turn is True where the change keeps the class"):
            Views(turn=value)  # type: ignore[arg-type]
