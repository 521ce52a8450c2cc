"""The tables of the paper of TST-MM as lists of variants; listing, planning and pages know them by name.

All variants of a table have the same steps, batch, budgets and number of frames; what differs is what their names say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, final

from testtime.experiments.space.presets import Preset
from testtime.scenes.places import Place, houses

__all__ = [
    "ALL",
    "ANALYSES",
    "CEILING",
    "CHANCE",
    "FLOOR",
    "PSEUDO",
    "SENSORS",
    "Analysis",
    "Entry",
    "Variant",
]

SENSORS = ("rgb", "depth", "normals", "edge")
PSEUDO = ("classes", "object_edge", "features", "boxes")
ALL = (*SENSORS, *PSEUDO)
RGB = ("rgb",)
HOME = (Place(),)
"""The test house."""
SPARE = 20
"""Random seed of the first of the houses that stand for other spaces of the same kind."""
CHANGED = Place(shift="cold", moved=1)
"""The test house under other light, its small objects moved."""
CHANCE = "chance"
"""Row of what a random answer gives."""
Objective = Literal["mm", "mae", "dino", "scratch", "named", "teacher"]


@final
@dataclass(frozen=True)
class Variant:
    """A pre-training, its transfer, and the place where it is evaluated.

    Args:
        name: name for people.
        objective: "mm" (TST-MM), "mae" (TST-MAE), "dino" (TST-DINO), "scratch" (no pre-training), "named": the encoder of
            another library that the variant is named after (:func:`testtime.space.foreign.named_encoder`), or "teacher": the
            pseudo-labeller's own segmentation, without a transfer.
        modalities: modalities of TST-MM, the image's tokens being "rgb"; of "scratch", the inputs of the network.
        places: places that are pre-trained on.
        test: place that is evaluated.
        mixin: share of the transfer set's images, relative to the space's; 0 for none.
        effort: share of the preset's steps of pre-training; 0 for the initial model.
        later: places where pre-training continues, with the same tokens.
        more: share of the preset's steps of this continuation.
        labels: training data of the transfer: labelled frames "outside", "few" of the test place itself (from the cameras of
            pre-training), or all of these ("space").
        taught: whether the pseudo-labellers were trained.
        frozen: whether only the head learns in transfer.

    Raises:
        ValueError: a pre-training has no places.
    """

    name: str
    objective: Objective
    modalities: tuple[str, ...] = RGB
    places: tuple[Place, ...] = ()
    test: Place = Place()  # noqa: RUF009 - a frozen value
    mixin: float = 1.0
    effort: float = 1.0
    later: tuple[Place, ...] = ()
    more: float = 0.25
    labels: Literal["outside", "few", "space"] = "outside"
    taught: bool = True
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.objective in ("mm", "mae", "dino") and not self.places:
            raise ValueError(f"{self.name}: a pre-training needs places")


@final
@dataclass(frozen=True)
class Entry:
    """A cell of a table: its row, its column, the variant that it shows, and the measure."""

    row: str
    column: str
    variant: Variant
    measure: str = "mIoU"


@final
@dataclass(frozen=True)
class Analysis:
    """A table and its figure.

    Args:
        entries: function from a preset to the cells.
        seeds: random seeds of the training; the houses stay.
        unit: unit of the columns' names, where they are numbers.
        shows: quantity in the cells, with its unit.
        ends: rows of floor and ceiling, between which the others are placed.
        matrix: whether rows and columns are the same places, so that the diagonal is each model's own place.
        preset: name of the preset where none is given.
    """

    entries: Callable[[Preset], Sequence[Entry]]
    seeds: tuple[int, ...] = (0, 1, 2)
    unit: str = ""
    shows: str = "mIoU in %"
    ends: tuple[str, str] | tuple[()] = ()
    matrix: bool = False
    preset: str = "tiny"

    @property
    def comparable(self) -> bool:
        """Whether the columns have the same measure."""
        return self.shows.endswith("%")


def _home(name: str, modalities: Sequence[str] = ALL, taught: bool = True) -> Variant:
    return Variant(name, "mm", tuple(modalities), HOME, taught=taught)


def _spare(count: int) -> tuple[Place, ...]:
    return houses(range(SPARE, SPARE + count))


FLOOR = Variant("Scratch, RGB", "scratch")
MAE = Variant("TST-MAE", "mae", RGB, HOME)
SENSED = _home("TST-MM (sensory)", SENSORS)
WHOLE = _home("TST-MM (all)")
TEACHER = Variant("The pseudo-labeller itself", "teacher")
CEILING = Variant("Labels of the test space", "scratch", labels="space")
GENERAL = Variant("4M, other houses", "mm", ALL, _spare(8))
OUTSIDE = Variant("MAE, other houses", "mae", RGB, _spare(8))


def _named(*variants: Variant) -> list[Entry]:
    """A row of mIoU for each variant."""
    return [Entry(v.name, "mIoU", v) for v in variants]


def _main(preset: Preset) -> list[Entry]:
    several = Variant("Scratch, multimodal", "scratch", SENSORS[:3])
    return _named(FLOOR, several, MAE, SENSED, WHOLE, TEACHER)


def _summary(preset: Preset) -> list[Entry]:
    return _named(FLOOR, OUTSIDE, GENERAL, MAE, SENSED, WHOLE, CEILING)


def _demo(preset: Preset) -> list[Entry]:
    return _named(FLOOR, SENSED, WHOLE)


def _tasks(preset: Preset) -> list[Entry]:
    measures = ("mIoU", "AP50", "CIDEr-D", "scene graph F")
    return [Entry(v.name, m, v, m) for v in (FLOOR, MAE, SENSED, WHOLE) for m in measures]


def _spaces(preset: Preset, count: int = 3, frozen: bool = False) -> list[Entry]:
    return [
        Entry(
            f"trained in {h}",
            f"judged in {t}",
            Variant(f"{h} in {t}", "mm", SENSORS, houses([h]), Place(t), frozen=frozen),
        )
        for h in range(count)
        for t in range(count)
    ]


def _features(preset: Preset) -> list[Entry]:
    return _spaces(preset, frozen=True)


def _objectives(preset: Preset) -> list[Entry]:
    kinds: dict[str, tuple[Objective, tuple[str, ...]]] = {
        "TST-MAE": ("mae", RGB),
        "TST-DINO": ("dino", RGB),
        "TST-MM": ("mm", SENSORS),
    }
    return [
        Entry(name, where, Variant(f"{name}, {where}", objective, modalities, places))
        for name, (objective, modalities) in kinds.items()
        for where, places in (("the test house", HOME), ("another house", _spare(1)))
    ]


def _worth(preset: Preset) -> list[Entry]:
    others = [
        Entry("other houses", f"{n}", Variant(f"{n} other houses", "mm", SENSORS, _spare(n)))
        for n in (1, 2, 4, 8, 16)
    ]
    return [Entry("the test house", "1", SENSED), *others]


def _specialise(preset: Preset) -> list[Entry]:
    tests = [(HOME[0], "the test house"), *((t, "houses never seen") for t in houses(range(60, 64)))]
    found = []
    for count in (1, 2, 4, 8):
        places = (*HOME, *_spare(count - 1))
        for test, row in tests:
            variant = Variant(f"{count} houses in {test.house}", "mm", SENSORS, places, test)
            found.append(Entry(row, f"{count}", variant))
    return found


def _smallest(preset: Preset) -> list[Entry]:
    parts = {
        "a room": Place(room=0),
        "three quarters of its sides": Place(room=0, rings=3),
        "half of its sides": Place(room=0, rings=2),
    }
    found = []
    for where, test in parts.items():
        found.append(Entry("transfer images only", where, _transfer_set(preset, test)))
        found += [
            Entry(f"trained in {name}", where, Variant(f"{name} in {where}", "mm", SENSORS, (place,), test))
            for name, place in parts.items()
        ]
    return found


def _transfer_set(preset: Preset, test: Place) -> Variant:
    """A pre-training on the images of the transfer set alone."""
    return Variant("transfer images only", "mm", RGB, preset.outside.places, test, 0.0)


def _ablation(preset: Preset) -> list[Entry]:
    others = ALL[1:]
    pairs = [Entry("RGB and one more", name, _home(f"RGB + {name}", ("rgb", name))) for name in others]
    without = [
        Entry("all but one", name, _home(f"all but {name}", [m for m in ALL if m != name])) for name in others
    ]
    return [Entry("RGB alone", "–", MAE), *pairs, *without, Entry("all", "–", WHOLE)]


def _count(preset: Preset, sets: int = 4) -> list[Entry]:
    found = [Entry("RGB alone", "1", MAE)]
    for size in (1, 2, 4, 6, 7):
        every = list(combinations(ALL[1:], size))
        for chosen in every[:: max(1, len(every) // sets)][:sets]:
            variant = _home("RGB + " + ", ".join(chosen), ("rgb", *chosen))
            found.append(Entry("TST-MM", f"{size + 1}", variant))
    return found


def _trade(preset: Preset) -> list[Entry]:
    kinds: dict[str, tuple[Objective, tuple[str, ...]]] = {
        "RGB": ("mae", RGB),
        "sensory": ("mm", SENSORS),
        "all": ("mm", ALL),
    }
    return [
        Entry(name, f"{n}", Variant(f"{name}, {n} more houses", objective, sets, (*HOME, *_spare(n))))
        for name, (objective, sets) in kinds.items()
        for n in (0, 2, 8)
    ]


def _steps(preset: Preset) -> list[Entry]:
    found = [Entry("Scratch", "0", FLOOR)]
    for variant in (SENSED, WHOLE):
        for share in (0.0, 0.125, 0.25, 0.5, 1.0):
            steps = f"{round(preset.recipe.steps * share)}"
            shorter = replace(variant, name=f"{variant.name}, {steps}", effort=share)
            found.append(Entry(variant.name, steps, shorter))
    return found


def _frozen(preset: Preset) -> list[Entry]:
    initial = replace(SENSED, name="not pre-trained", effort=0.0)
    return _named(*(replace(v, frozen=True) for v in (initial, MAE, SENSED, WHOLE)))


def _ratio(preset: Preset) -> list[Entry]:
    shares = {"1/1": 1.0, "1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16}
    return [Entry(WHOLE.name, name, replace(WHOLE, name=name, mixin=share)) for name, share in shares.items()]


def _mixin(preset: Preset) -> list[Entry]:
    return [
        *_named(_transfer_set(preset, HOME[0])),
        Entry("test space only", "mIoU", replace(WHOLE, name="test only", mixin=0.0)),
        Entry("both", "mIoU", WHOLE),
    ]


def _untrained(preset: Preset) -> list[Entry]:
    named = ("rgb", *PSEUDO)
    return [
        Entry("RGB alone", "mIoU", MAE),
        Entry("and trained pseudo-labellers", "mIoU", _home("trained", named)),
        Entry("and untrained pseudo-labellers", "mIoU", _home("untrained", named, taught=False)),
    ]


def _distil(preset: Preset) -> list[Entry]:
    return [
        Entry(name, where, Variant(f"{name} in {where}", "mm", ("rgb", name), places))
        for name in PSEUDO
        for where, places in (("the test house", HOME), ("other houses", _spare(8)))
    ]


def _propagate(preset: Preset) -> list[Entry]:
    return _named(*(replace(v, labels="few") for v in (FLOOR, MAE, SENSED, WHOLE)), CEILING)


def _continual(preset: Preset) -> list[Entry]:
    found = []
    for where, test in (("before the change", HOME[0]), ("after the change", CHANGED)):
        found.append(Entry("Scratch", where, replace(FLOOR, test=test)))
        found.append(Entry("TST-MM", where, replace(SENSED, test=test)))
        for share in (0.125, 0.25, 0.5):
            continued = replace(SENSED, test=test, later=(CHANGED,), more=share)
            found.append(Entry(f"TST-MM, {share:.1%} more steps on the changed house", where, continued))
    return found


def _retrieval(preset: Preset) -> list[Entry]:
    initial = replace(WHOLE, name="not trained", effort=0.0)
    asked = [f"{kind} R@{k}" for kind in ("depth", "picture") for k in (1, 5, 10)]
    chance = [Entry(CHANCE, measure, WHOLE, f"{CHANCE} {measure.split()[1]}") for measure in asked]
    return [*chance, *(Entry(v.name, m, v, m) for v in (initial, GENERAL, WHOLE) for m in asked)]


def _ttt(preset: Preset) -> list[Entry]:
    return [
        Entry(variant.name, column, replace(variant, frozen=True), f"mIoU {column}")
        for variant in (OUTSIDE, MAE)
        for column in ("before", "after")
    ]


ENDS = (FLOOR.name, CEILING.name)
ANALYSES: dict[str, Analysis] = {
    "main": Analysis(_main),
    "summary": Analysis(_summary, ends=ENDS),
    "tasks": Analysis(_tasks, shows="each column its own measure"),
    "objectives": Analysis(_objectives),
    "spaces": Analysis(_spaces, matrix=True),
    "features": Analysis(_features, matrix=True),
    "worth": Analysis(_worth, unit="houses"),
    "specialise": Analysis(_specialise, unit="houses"),
    "smallest": Analysis(_smallest),
    "ablation": Analysis(_ablation),
    "count": Analysis(_count, unit="modalities"),
    "trade": Analysis(_trade, unit="more houses"),
    "steps": Analysis(_steps, unit="steps"),
    "frozen": Analysis(_frozen),
    "ratio": Analysis(_ratio),
    "mixin": Analysis(_mixin),
    "untrained": Analysis(_untrained),
    "distil": Analysis(_distil),
    "propagate": Analysis(_propagate, ends=ENDS),
    "continual": Analysis(_continual),
    "retrieval": Analysis(_retrieval, shows="recall in %"),
    "ttt": Analysis(_ttt),
    "demo": Analysis(_demo, seeds=(0,), preset="demo"),
}
"""Tables by the name of the experiment, without the family's prefix."""
