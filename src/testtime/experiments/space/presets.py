"""Sizes of an experiment of test-space training: places, images, tokens, model and schedules."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, TypeVar, final

from testtime.multitask import Recipe as TeacherRecipe
from testtime.scenes.disk import Recipe as Space
from testtime.space.model import SIZES, Size
from testtime.space.pretrain import PAPER, Recipe
from testtime.space.transfer import RECIPES, TransferRecipe

__all__ = ["PRESETS", "Place", "Preset", "Views", "houses", "of_json"]

CAMERAS_FOR_ONE = 24
"""Rendered frames of a house for each that is taken, where only the cameras in a part of the house are taken."""
T = TypeVar("T")


@final
@dataclass(frozen=True, order=True)
class Place:
    """A rendered house, or a part of it.

    Args:
        house: random seed of the house.
        style: name of the prior of its furniture.
        shift: name of the domain shift, or None.
        moved: random seed of new positions of the small objects, or None.
        room: number of the room of the cameras; None for all rooms.
        rings: number of a room's concentric rectangles in which the cameras stand, counted from the middle; None for all
            (:data:`testtime.scenes.cameras.RINGS`).
    """

    house: int = 0
    style: str = "default"
    shift: str | None = None
    moved: int | None = None
    room: int | None = None
    rings: int | None = None

    @property
    def whole(self) -> bool:
        """Whether cameras stand anywhere in the house."""
        return self.room is None and self.rings is None

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Return whether the camera of a frame stands in the part of the house."""
        inside = self.rings is None or int(record["ring"]) < self.rings
        return inside and self.room in (None, record["room"])


def houses(seeds: Iterable[int], style: str = "default") -> tuple[Place, ...]:
    """Return whole houses.

    >>> houses(range(2), "other")[1].style
    'other'
    """
    return tuple(Place(seed, style) for seed in seeds)


@final
@dataclass(frozen=True)
class Views:
    """Frames of places.

    Args:
        places: places.
        frames: number of frames of all places together, shared evenly among them.
        cameras: random seed of the cameras.

    Raises:
        ValueError: there are fewer frames than places, or whole houses and parts are mixed.
    """

    places: tuple[Place, ...]
    frames: int
    cameras: int = 0

    def __post_init__(self) -> None:
        if not self.places or self.frames < len(self.places):
            found = f"{len(self.places)} and {self.frames}"
            raise ValueError(f"expected places and a frame of each at least, got {found}")
        if len({place.whole for place in self.places}) > 1:
            raise ValueError("expected whole houses, or parts of houses, not both")

    @property
    def each(self) -> int:
        """Number of frames of a place."""
        return self.frames // len(self.places)

    def rendered(self, image: tuple[int, int]) -> list[Space]:
        """Return what is rendered for each place."""
        frames = self.each if self.places[0].whole else CAMERAS_FOR_ONE * self.each
        return [Space(p.house, p.style, p.shift, frames, image, self.cameras, p.moved) for p in self.places]


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
    found = {**every.get(facts.get("like", ""), {}), **facts}
    found.pop("like", None)
    for name in ("outside", "teacher"):
        seeds = range(found[name]["first"], found[name]["last"] + 1)
        found[name] = Views(houses(seeds), found[name]["frames"])
    found["size"] = SIZES[found["size"]]
    found["recipe"] = _recipe(Recipe, PAPER, found["recipe"])
    found["transfer"] = _recipe(TransferRecipe, RECIPES, found["transfer"])
    found["teacher_recipe"] = TeacherRecipe(**found["teacher_recipe"])
    return of_json(Preset, found)


_CONSTANTS = tomllib.loads((resources.files(__package__) / "presets.toml").read_text(encoding="utf-8"))
PRESETS = {name: _read(facts, _CONSTANTS) for name, facts in _CONSTANTS.items()}
