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
    assert views_of(load_model("digits-cnn")) == Views(mirror=False, shift=1 / 16)
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
    assert views_of(Episodic(Tent(load_model("digits-cnn")))) == Views(mirror=False, shift=1 / 16)


def test_what_is_forbidden_is_named_and_only_bools_are_taken() -> None:
    assert Views().forbidden == ()
    assert Views(mirror=False, colour=False).forbidden == ("mirror", "colour")
    for value in (0, None, "no"):
        with pytest.raises(TypeError, match="turn is True where the change keeps the class"):
            Views(turn=value)  # type: ignore[arg-type]


def test_the_shift_is_a_share_of_the_side() -> None:
    assert Views().shift == 1 / 8
    assert [Views(shift=share).shift for share in (0, 1 / 2)] == [0, 1 / 2]
    assert Views(shift=0).forbidden == ()
    for value in (True, False, "1/16", None):
        with pytest.raises(TypeError, match="shift is a share of the image's side, such as 1/16"):
            Views(shift=value)  # type: ignore[arg-type]
    for value in (-0.1, 0.51, 2, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="between 0 .no shift. and 1/2"):
            Views(shift=value)


def test_only_views_and_none_are_taken_for_a_declaration() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert Tent(network, preserves=None).preserves is None
    assert Tent(network, preserves=Views(turn=False)).preserves == Views(turn=False)
    for value in ("mirror", ("mirror",), {"mirror": False}, False, Views):
        with pytest.raises(TypeError, match="preserves is None or a value of testtime.models.Views, such as"):
            Tent(network, preserves=value)
        with pytest.raises(TypeError, match="views is None or a value of testtime.models.Views, such as"):
            normalised(network, (0.5,), (0.5,), value)  # type: ignore[arg-type]
