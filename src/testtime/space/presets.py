"""Sizes of a test-space experiment: places, pictures, tokens, model and schedules, from two cores to the paper's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from testtime.data.dense import DenseSet
from testtime.data.shared_classes import relabelled
from testtime.multitask import Recipe as TeacherRecipe
from testtime.scenes.disk import Recipe as Space
from testtime.scenes.disk import make, read_scenes
from testtime.scenes.groups import GROUPS
from testtime.scenes.sceneset import SceneSet
from testtime.space.masking import Component, Stream, mixture, rgb_to_all
from testtime.space.model import SIZES, Size
from testtime.space.pretrain import PAPER, Recipe
from testtime.space.transfer import RECIPES, TransferRecipe

__all__ = ["MAPPING", "PRESETS", "Place", "Preset", "Views", "houses"]

MAPPING = {name: group for group, members in GROUPS.items() for name in members}
"""The class of a scene as the segmentation of a small network has it."""
CAMERAS_FOR_ONE = 24
"""How many frames of a house are rendered for each that is taken, where only a part of the house is looked from."""


@final
@dataclass(frozen=True, order=True)
class Place:
    """A rendered house, or a part of it.

    Attributes:
        house: its seed.
        style: the prior that it is drawn from.
        shift: of the light, or None.
        moved: seed of the places that small objects were moved to since, or None.
        room: the number of the room that cameras stand in, or None for all.
        rings: how many of a room's concentric rectangles they stand in, counted from the middle, or None for all
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


def houses(seeds: Iterable[int], style: str = "default") -> tuple[Place, ...]:
    """Whole houses.

    >>> houses(range(2), "other")[1].style
    'other'
    """
    return tuple(Place(seed, style) for seed in seeds)


@final
@dataclass(frozen=True)
class Views:
    """Frames of places.

    Attributes:
        places: whose.
        frames: in all, shared evenly among the places.
        cameras: seed of the cameras; other cameras see a place from elsewhere.

    Raises:
        ValueError: there are fewer frames than places, or a house would be asked for as a whole and in part.
    """

    places: tuple[Place, ...]
    frames: int
    cameras: int = 0

    def __post_init__(self) -> None:
        if not self.places or self.frames < len(self.places):
            raise ValueError(
                f"expected places and a frame of each at least, got {len(self.places)} and {self.frames}"
            )
        if len({place.whole for place in self.places}) > 1:
            raise ValueError("expected whole houses, or parts of houses, not both")


@dataclass(frozen=True)
class Preset:
    """The size of an experiment.

    Attributes:
        name: of the preset.
        image, patch: (H, W) of the pictures and side of a patch, in pixels.
        size: of the model.
        levels: of the tokenizers' lattice; their product is the vocabulary.
        tokenizer_steps: of each tokenizer's training.
        crops: of each frame.
        recipe: of the pre-training.
        transfer: of the fine-tuning.
        frames: of the space that is pre-trained on.
        tests: frames of the test space that are judged, seen by other cameras.
        outside: the houses with labels, none of them a test space, and how many frames they have.
        teacher: the houses that the pseudo-labeller knows, how many frames they have, and its training.
        boxes: tokens of a frame's boxes at most.
        components: of the masking, from the streams of tokens.
        projection: of TST-DINO: outputs, hidden width and bottleneck of its head.
        head: width, positions along a token's side, and blocks of the heads that transfer adds.
        labelled: frames that label propagation is given.
    """

    name: str
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
    components: Callable[[Sequence[Stream]], Sequence[Component]] = mixture
    projection: tuple[int, int, int] = (1024, 256, 64)
    head: tuple[int, int, int] = (24, 4, 2)
    labelled: int = 20

    def scenes(self, views: Views, folder: Path, jobs: int = 1) -> SceneSet:
        """The frames of some places, rendered where they are not there yet.

        Raises:
            ValueError: too few of a house's cameras stand in the part that is asked for.
        """
        each = views.frames // len(views.places)
        rendered = each if views.places[0].whole else CAMERAS_FOR_ONE * each
        recipes = [
            Space(p.house, p.style, p.shift, rendered, self.image, views.cameras, p.moved)
            for p in views.places
        ]
        root = folder / f"scenes-{self.image[0]}x{self.image[1]}-{rendered}-{views.cameras}"
        make(root, list(dict.fromkeys(recipes)), jobs)
        found = read_scenes(root, [r.name for r in recipes])
        if views.places[0].whole:
            return found
        chosen: list[int] = []
        for number, place in enumerate(views.places):
            seen = [
                at
                for at, (space, row) in enumerate(found.places)
                if space == number and _inside(place, found.spaces[space].records[row])
            ][:each]
            if len(seen) < each:
                raise ValueError(
                    f"{place}: {len(seen)} of {rendered} cameras stand there, {each} are needed; take another room or more "
                    "rings"
                )
            chosen += seen
        return found.subset(chosen)

    def read(self, views: Views, folder: Path, jobs: int = 1) -> DenseSet:
        """The same, its classes being the grouped ones."""
        return relabelled(self.scenes(views, folder, jobs), MAPPING, tuple(GROUPS))

    def space(self, places: Sequence[Place]) -> Views:
        """What is pre-trained on: as many frames whatever the number of places, a fifth of them where they are parts."""
        frames = self.frames if places[0].whole else max(len(places), self.frames // 5)
        return Views(tuple(places), frames // len(places) * len(places))

    def test(self, place: Place) -> Views:
        """What is judged: the place from other cameras."""
        return Views((place,), self.tests, cameras=1)


TINY = Preset(
    "tiny",
    (64, 64),
    8,
    SIZES["tiny"],
    (8, 6, 5),
    200,
    4,
    Recipe(
        steps=4000,
        batch=64,
        base_lr=4e-3,
        warmup=400,
        inputs=24,
        targets=24,
        precision="float32",
        every=500,
    ),
    RECIPES["tiny"],
    frames=1000,
    tests=100,
    outside=Views(houses(range(100, 110)), 200),
    teacher=Views(houses(range(200, 240)), 800),
    teacher_recipe=TeacherRecipe(iterations=1500, batch=16, lr=2e-3, every=500),
    components=rgb_to_all,
)
DEMO = Preset(
    "demo",
    (64, 64),
    8,
    SIZES["tiny"],
    (8, 6, 5),
    100,
    2,
    Recipe(
        steps=1500,
        batch=48,
        base_lr=5e-3,
        warmup=150,
        inputs=24,
        targets=24,
        precision="float32",
        every=250,
    ),
    RECIPES["tiny"],
    frames=200,
    tests=60,
    outside=Views(houses(range(100, 108)), 160),
    teacher=Views(houses(range(200, 216)), 320),
    teacher_recipe=TeacherRecipe(iterations=500, batch=16, lr=4e-3, every=250),
    components=rgb_to_all,
)
PAPER_S = Preset(
    "paper-S",
    (224, 224),
    16,
    SIZES["S"],
    (8, 8, 8, 5, 5),
    20_000,
    8,
    PAPER["S"],
    RECIPES["paper_small"],
    frames=20_000,
    tests=5_000,
    outside=Views(houses(range(100, 900)), 20_000),
    teacher=Views(houses(range(1000, 2000)), 50_000),
    teacher_recipe=TeacherRecipe(iterations=40_000, batch=32, lr=1e-3),
    boxes=256,
    projection=(65_536, 2048, 256),
    head=(384, 4, 4),
)
PAPER_B = replace(PAPER_S, name="paper-B", size=SIZES["B"], recipe=PAPER["B"], transfer=RECIPES["paper_base"])
GPU = replace(
    PAPER_S,
    name="gpu",
    image=(128, 128),
    recipe=Recipe(steps=10_000, batch=1024, base_lr=2e-4, warmup=500, inputs=32, targets=32),
    transfer=replace(RECIPES["paper_small"], epochs=40),
    tokenizer_steps=5_000,
    levels=(8, 5, 5, 5),
    crops=4,
    tests=1_000,
    outside=Views(houses(range(100, 200)), 4_000),
    teacher=Views(houses(range(200, 400)), 10_000),
    teacher_recipe=TeacherRecipe(iterations=10_000, batch=32, lr=1e-3),
    boxes=64,
    components=rgb_to_all,
)
"""Between tiny and the paper's, for one accelerator; it has not been run."""
PRESETS = {preset.name: preset for preset in (TINY, DEMO, GPU, PAPER_S, PAPER_B)}


def _inside(place: Place, record: dict[str, object]) -> bool:
    """Whether the camera of a frame stands in the part of the house."""
    room, ring = record["room"], record["ring"]
    return place.room in (None, room) and (place.rings is None or int(str(ring)) < place.rings)
