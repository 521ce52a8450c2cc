"""Sizes of a test-space experiment: houses, pictures, tokens, model and schedules, from two cores to the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testtime.data.dense import DenseSet
from testtime.data.shared_classes import relabelled
from testtime.multitask import Recipe as TeacherRecipe
from testtime.multitask.presets import GROUPS
from testtime.scenes.disk import Recipe as Space
from testtime.scenes.disk import make, read_scenes
from testtime.space.model import SIZES, Size
from testtime.space.pretrain import Recipe
from testtime.space.transfer import RECIPES, TransferRecipe

__all__ = ["PRESETS", "Preset", "Views"]


@dataclass(frozen=True)
class Views:
    """Frames of houses.

    Attributes:
        houses: seeds.
        frames: in all, shared evenly among the houses.
        cameras: seed of the cameras; other cameras see the house from other places.
        shift: of the light, or None.
        moved: seed of the places that small objects were moved to since, or None.
    """

    houses: tuple[int, ...]
    frames: int
    cameras: int = 0
    shift: str | None = None
    moved: int | None = None

    def __post_init__(self) -> None:
        if not self.houses or self.frames < len(self.houses):
            raise ValueError(
                f"expected houses and a frame of each at least, got {len(self.houses)} and {self.frames}"
            )


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
        outside: the houses with labels, and how many frames they have.
        teacher: the houses that the pseudo-labeller knows, how many frames they have, and its training.
        boxes: tokens of a frame's boxes at most.
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

    def read(self, views: Views, folder: Path, jobs: int = 1) -> DenseSet:
        """The frames of some houses, rendered where they are not there yet; their classes are the grouped ones."""
        each = views.frames // len(views.houses)
        recipes = [
            Space(h, "default", views.shift, each, self.image, views.cameras, views.moved)
            for h in views.houses
        ]
        root = folder / f"scenes-{self.image[0]}x{self.image[1]}-{each}-{views.cameras}"
        make(root, recipes, jobs)
        scenes = read_scenes(root, [r.name for r in recipes])
        return relabelled(scenes, {c: g for g, members in GROUPS.items() for c in members}, tuple(GROUPS))

    def space(self, houses: Sequence[int]) -> Views:
        """What is pre-trained on: as many frames whatever the number of houses."""
        return Views(tuple(houses), self.frames // len(houses) * len(houses))

    def test(self, house: int) -> Views:
        """What is judged: the house from other cameras."""
        return Views((house,), self.tests, cameras=1)


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
    frames=400,
    tests=100,
    outside=Views(tuple(range(100, 110)), 200),
    teacher=Views(tuple(range(200, 240)), 800),
    teacher_recipe=TeacherRecipe(iterations=1500, batch=16, lr=2e-3, every=500),
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
    outside=Views(tuple(range(100, 108)), 160),
    teacher=Views(tuple(range(200, 216)), 320),
    teacher_recipe=TeacherRecipe(iterations=500, batch=16, lr=4e-3, every=250),
)
PAPER_S = Preset(
    "paper-S",
    (224, 224),
    16,
    SIZES["S"],
    (8, 8, 8, 5, 5),
    20_000,
    8,
    Recipe(steps=95_367, warmup=9_537),
    RECIPES["paper_small"],
    frames=20_000,
    tests=5_000,
    outside=Views(tuple(range(100, 900)), 20_000),
    teacher=Views(tuple(range(1000, 2000)), 50_000),
    teacher_recipe=TeacherRecipe(iterations=40_000, batch=32, lr=1e-3),
    boxes=256,
)
PRESETS = {preset.name: preset for preset in (TINY, DEMO, PAPER_S)}
