"""Sizes of an experiment of test-space training: images, tokens, model and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from testtime.experiments.registry import read_constants
from testtime.multitask import Recipe as TeacherRecipe
from testtime.scenes.places import Place, Views, houses
from testtime.space.model import SIZES, Size
from testtime.space.pretrain import PAPER, Recipe
from testtime.space.transfer import RECIPES, TransferRecipe

__all__ = ["PRESETS", "Preset", "of_json"]

T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    """The size of an experiment.

    Args:
        image: height and width of the images, in pixels.
        patch: side of a patch, in pixels.
        size: size of the model.
        levels: levels of the tokenizers' lattice; their product is the vocabulary.
        tokenizer_steps: training steps of each tokenizer.
        crops: number of crops of each frame.
        recipe: recipe of the pre-training.
        transfer: recipe of the fine-tuning.
        frames: number of frames of the space that is pre-trained on.
        tests: number of frames of the test space that are evaluated, from other cameras.
        outside: labelled houses of the transfer set, none of them a test space.
        teacher: houses on which the pseudo-labeller is trained.
        teacher_recipe: recipe of its training.
        boxes: largest number of tokens of a frame's boxes.
        components: name of the function of :mod:`testtime.space.masking` that gives the components of the masking.
        projection: outputs, hidden width and bottleneck of the head of TST-DINO.
        head: width, positions along a token's side, and blocks of the heads that transfer adds.
        labelled: number of labelled frames for label propagation.
        larger: name in :data:`~testtime.space.model.SIZES` of the larger network of the experiment with two sizes.
        strong: houses on which the stronger pseudo-labeller is trained.
        strong_recipe: recipe of its training.
        strong_width: width of its ResNet-18.
    """

    image: tuple[int, int]
    patch: int
    size: Size
    levels: tuple[int, ...]
    tokenizer_steps: int
    crops: int
    recipe: Recipe
    transfer: TransferRecipe
    frames: int
    tests: int
    outside: Views
    teacher: Views
    teacher_recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    boxes: int = 32
    components: str = "mixture"
    projection: tuple[int, int, int] = (1024, 256, 64)
    head: tuple[int, int, int] = (24, 4, 2)
    labelled: int = 20
    larger: str = "mini"
    strong: Views = field(default_factory=lambda: Views(houses(range(300, 500)), 2000))
    strong_recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    strong_width: int = 32

    def space(self, places: Sequence[Place]) -> Views:
        """Return what is pre-trained on: the same number of frames for any number of places, a fifth of it for parts."""
        frames = self.frames if places[0].whole else max(len(places), self.frames // 5)
        return Views(tuple(places), frames // len(places) * len(places))

    def test(self, place: Place) -> Views:
        """Return what is evaluated: the place from other cameras."""
        return Views((place,), self.tests, cameras=1)


def of_json(cls: type[T], facts: Mapping[str, Any]) -> T:
    """Return a dataclass from values of JSON, whose lists are tuples."""
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()})


def _recipe(cls: type[T], named: Mapping[str, T], facts: Mapping[str, Any]) -> T:
    changes = {name: value for name, value in facts.items() if name != "like"}
    return replace(named[facts["like"]], **changes) if "like" in facts else cls(**changes)  # type: ignore[type-var]


def _read(facts: Mapping[str, Any], every: Mapping[str, Mapping[str, Any]]) -> Preset:
    found = dict(facts)
    while "like" in found:
        found = {**every[found.pop("like")], **found}
    for name in {"outside", "teacher", "strong"} & {*found}:
        seeds = range(found[name]["first"], found[name]["last"] + 1)
        found[name] = Views(houses(seeds), found[name]["frames"])
    found["size"] = SIZES[found["size"]]
    found["recipe"] = _recipe(Recipe, PAPER, found["recipe"])
    found["transfer"] = _recipe(TransferRecipe, RECIPES, found["transfer"])
    for name in {"teacher_recipe", "strong_recipe"} & {*found}:
        found[name] = TeacherRecipe(**found[name])
    return of_json(Preset, found)


_CONSTANTS = read_constants(__package__, "presets")
PRESETS = {name: _read(facts, _CONSTANTS) for name, facts in _CONSTANTS.items()}
