"""The analyses of the paper of TST-MM as lists of points, each one command: ``testtime space bench NAME``.

Every point of an analysis has the same steps, batch, budgets and number of frames; what differs is what its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import final

from testtime.space.points import ALL, PSEUDO, SENSORS, Point
from testtime.space.presets import Place, Preset, houses

__all__ = ["ANALYSES", "CEILING", "FLOOR", "HOME", "Analysis", "Entry"]

HOME = (Place(),)
"""The test house."""
SPARE = 20
"""The first of the houses that stand for other spaces of the same kind."""
CHANGED = Place(shift="cold", moved=1)
"""The test house under other light, its small objects moved."""
RGB = SENSORS[:1]


@final
@dataclass(frozen=True)
class Entry:
    """A cell of an analysis' table: its row, its column, the point that it shows, and what of it."""

    row: str
    column: str
    point: Point
    measure: str = "mIoU"


@final
@dataclass(frozen=True)
class Analysis:
    """A table and a figure.

    Attributes:
        name: of the command.
        title: a question.
        published: where the paper has it; empty if it has not.
        entries: of a preset.
        seeds: of training; houses stay.
        unit: of the columns, where they are numbers.
        shows: what the cells are.
        ends: the rows of floor and ceiling, between which the others are placed; none if empty.
    """

    name: str
    title: str
    published: str
    entries: Callable[[Preset], Sequence[Entry]]
    seeds: tuple[int, ...] = (0, 1, 2)
    unit: str = ""
    shows: str = "mIoU in %"
    ends: tuple[str, str] | tuple[()] = ()


def one(name: str, modalities: Sequence[str] = ALL, **facts: object) -> Point:
    """A pre-training on the test house."""
    return Point(name, "mm", tuple(modalities), HOME, **facts)  # type: ignore[arg-type]


def spare(count: int) -> tuple[Place, ...]:
    """So many houses of the same kind as the test house."""
    return houses(range(SPARE, SPARE + count))


FLOOR = Point("Scratch, RGB", "scratch")
MAE = Point("TST-MAE", "mae", RGB, HOME)
SENSED = one("TST-MM (sensory)", SENSORS)
WHOLE = one("TST-MM (all)")
TEACHER = Point("The pseudo-labeller itself", "teacher")
CEILING = Point("Labels of the test space", "scratch", labels="space")


def _main(preset: Preset) -> list[Entry]:
    several = Point("Scratch, multimodal", "scratch", ("rgb", "depth", "normals"))
    return [Entry(p.name, "mIoU", p) for p in (FLOOR, several, MAE, SENSED, WHOLE, TEACHER)]


def _summary(preset: Preset) -> list[Entry]:
    outside = Point("MAE, other houses", "mae", RGB, spare(8))
    general = Point("4M, other houses", "mm", ALL, spare(8))
    return [Entry(p.name, "mIoU", p) for p in (FLOOR, outside, general, MAE, SENSED, WHOLE, CEILING)]


def _tasks(preset: Preset) -> list[Entry]:
    return [
        Entry(p.name, measure, p, measure)
        for p in (FLOOR, MAE, SENSED, WHOLE)
        for measure in ("mIoU", "AP50", "CIDEr-D", "scene graph F")
    ]


def _spaces(preset: Preset, count: int = 3) -> list[Entry]:
    return [
        Entry(f"trained in {h}", f"judged in {t}", Point(f"{h} in {t}", "mm", SENSORS, houses([h]), Place(t)))
        for h in range(count)
        for t in range(count)
    ]


def _features(preset: Preset) -> list[Entry]:
    return [replace(entry, point=replace(entry.point, frozen=True)) for entry in _spaces(preset)]


def _objectives(preset: Preset) -> list[Entry]:
    found = []
    for name, objective, modalities in (
        ("TST-MAE", "mae", RGB),
        ("TST-DINO", "dino", RGB),
        ("TST-MM", "mm", SENSORS),
    ):
        for where, places in (("the test house", HOME), ("another house", spare(1))):
            found.append(Entry(name, where, Point(f"{name}, {where}", objective, modalities, places)))  # type: ignore[arg-type]
    return found


def _worth(preset: Preset) -> list[Entry]:
    others = [
        Entry("other houses", f"{n}", Point(f"{n} other houses", "mm", SENSORS, spare(n)))
        for n in (1, 2, 4, 8, 16)
    ]
    return [Entry("the test house", "1", SENSED), *others]


def _specialise(preset: Preset) -> list[Entry]:
    found = []
    for count in (1, 2, 4, 8):
        places = (*HOME, *spare(count - 1))
        for test, row in (
            (HOME[0], "the test house"),
            *((t, "houses never seen") for t in houses(range(60, 64))),
        ):
            point = Point(f"{count} houses in {test.house}", "mm", SENSORS, places, test)
            found.append(Entry(row, f"{count}", point))
    return found


def _smallest(preset: Preset) -> list[Entry]:
    units = {
        "a room": Place(room=0),
        "three quarters of its sides": Place(room=0, rings=3),
        "half of its sides": Place(room=0, rings=2),
    }
    found = []
    for where, test in units.items():
        found.append(Entry("transfer pictures only", where, _only(preset, test)))
        found += [
            Entry(f"trained in {name}", where, Point(f"{name} in {where}", "mm", SENSORS, (place,), test))
            for name, place in units.items()
        ]
    return found


def _only(preset: Preset, test: Place) -> Point:
    """A pre-training on the pictures of the transfer set alone."""
    return Point("transfer pictures only", "mm", RGB, preset.outside.places, test, 0.0)


def _ablation(preset: Preset) -> list[Entry]:
    others = [name for name in ALL if name != "rgb"]
    pairs = [Entry("RGB and one more", name, one(f"RGB + {name}", ("rgb", name))) for name in others]
    without = [
        Entry("all but one", name, one(f"all but {name}", [m for m in ALL if m != name])) for name in others
    ]
    return [Entry("RGB alone", "–", MAE), *pairs, *without, Entry("all", "–", WHOLE)]


def _count(preset: Preset, sets: int = 4) -> list[Entry]:
    others = [name for name in ALL if name != "rgb"]
    found = [Entry("RGB alone", "1", MAE)]
    for size in (1, 2, 4, 6, 7):
        every = list(combinations(others, size))
        step = max(1, len(every) // sets)
        for chosen in every[::step][:sets]:
            found.append(Entry("TST-MM", f"{size + 1}", one("RGB + " + ", ".join(chosen), ("rgb", *chosen))))
    return found


def _trade(preset: Preset) -> list[Entry]:
    found = []
    for name, sets in {"RGB": RGB, "sensory": SENSORS, "all": ALL}.items():
        objective = "mae" if sets == RGB else "mm"
        for extra in (0, 2, 8):
            point = Point(f"{name}, {extra} more houses", objective, sets, (*HOME, *spare(extra)))  # type: ignore[arg-type]
            found.append(Entry(name, f"{extra}", point))
    return found


def _steps(preset: Preset) -> list[Entry]:
    found = [Entry("Scratch", "0", FLOOR)]
    for point in (SENSED, WHOLE):
        for share in (0.0, 0.125, 0.25, 0.5, 1.0):
            steps = round(preset.recipe.steps * share)
            found.append(
                Entry(point.name, f"{steps}", replace(point, name=f"{point.name}, {steps}", effort=share))
            )
    return found


def _frozen(preset: Preset) -> list[Entry]:
    born = replace(SENSED, name="not pre-trained", effort=0.0)
    return [Entry(p.name, "mIoU", replace(p, frozen=True)) for p in (born, MAE, SENSED, WHOLE)]


def _ratio(preset: Preset) -> list[Entry]:
    shares = {"1/1": 1.0, "1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16}
    return [
        Entry("TST-MM (all)", name, replace(WHOLE, name=name, mixin=share)) for name, share in shares.items()
    ]


def _mixin(preset: Preset) -> list[Entry]:
    return [
        Entry("transfer pictures only", "mIoU", _only(preset, HOME[0])),
        Entry("test space only", "mIoU", replace(WHOLE, name="test only", mixin=0.0)),
        Entry("both", "mIoU", WHOLE),
    ]


def _untaught(preset: Preset) -> list[Entry]:
    named = ("rgb", *PSEUDO)
    return [
        Entry("RGB alone", "mIoU", MAE),
        Entry("and trained pseudo-labellers", "mIoU", one("trained", named)),
        Entry("and untrained pseudo-labellers", "mIoU", one("untrained", named, taught=False)),
    ]


def _distil(preset: Preset) -> list[Entry]:
    return [
        Entry(name, where, Point(f"{name} in {where}", "mm", ("rgb", name), places))
        for name in PSEUDO
        for where, places in (("the test house", HOME), ("other houses", spare(8)))
    ]


def _propagate(preset: Preset) -> list[Entry]:
    few = [Entry(p.name, "mIoU", replace(p, labels="few")) for p in (FLOOR, MAE, SENSED, WHOLE)]
    return [*few, Entry(CEILING.name, "mIoU", CEILING)]


def _continual(preset: Preset) -> list[Entry]:
    found = []
    for where, test in (("before the change", HOME[0]), ("after the change", CHANGED)):
        found.append(Entry("Scratch", where, replace(FLOOR, test=test)))
        found.append(Entry("TST-MM", where, replace(SENSED, test=test)))
        for share in (0.125, 0.25, 0.5):
            gone_on = replace(SENSED, test=test, later=(CHANGED,), more=share)
            found.append(Entry(f"TST-MM, {share:.1%} more steps on the changed house", where, gone_on))
    return found


def _retrieval(preset: Preset) -> list[Entry]:
    general = Point("4M, other houses", "mm", ALL, spare(8))
    found = []
    for point in (replace(WHOLE, name="not trained", effort=0.0), general, WHOLE):
        for asked in ("depth", "picture"):
            found += [Entry(point.name, f"{asked} R@{k}", point, f"{asked} R@{k}") for k in (1, 5, 10)]
    chance = [
        Entry("chance", f"{asked} R@{k}", WHOLE, f"chance R@{k}")
        for asked in ("depth", "picture")
        for k in (1, 5, 10)
    ]
    return [*chance, *found]


def _ttt(preset: Preset) -> list[Entry]:
    other = Point("MAE, other houses", "mae", RGB, spare(8), frozen=True)
    return [
        Entry(point.name, column, point, f"mIoU {column}")
        for point in (other, replace(MAE, frozen=True))
        for column in ("before", "after")
    ]


ANALYSES: dict[str, Analysis] = {
    a.name: a
    for a in (
        Analysis("main", "What is a model worth that knows the place?", "table 1, figure 3", _main),
        Analysis(
            "summary",
            "How much of the way from scratch to full labels?",
            "figure 11",
            _summary,
            ends=(FLOOR.name, CEILING.name),
        ),
        Analysis("tasks", "Is it so for every task?", "table 1", _tasks, shows="each column its own measure"),
        Analysis("objectives", "Which objective specialises?", "appendix P", _objectives),
        Analysis("spaces", "Does it know its own house best?", "figure 7", _spaces),
        Analysis("features", "Do frozen features know their own house best?", "", _features),
        Analysis("worth", "How many other houses is one's own worth?", "figure 8", _worth, unit="houses"),
        Analysis(
            "specialise", "What does specialising cost elsewhere?", "figure 9", _specialise, unit="houses"
        ),
        Analysis("smallest", "What is the smallest space to specialise on?", "figure 18", _smallest),
        Analysis("ablation", "Which modality matters?", "figure 5", _ablation),
        Analysis("count", "How many modalities?", "figure 6", _count, unit="modalities"),
        Analysis("trade", "More modalities, or more houses?", "figure 4", _trade, unit="more houses"),
        Analysis("steps", "How long must it be pre-trained?", "", _steps, unit="steps"),
        Analysis("frozen", "Is it in the features, with only a head to learn?", "", _frozen),
        Analysis("ratio", "How many pictures of the transfer set?", "table 8", _ratio),
        Analysis("mixin", "What do the transfer set's pictures add?", "table 4", _mixin),
        Analysis("untrained", "Must a pseudo-labeller know anything?", "figure 19", _untaught),
        Analysis("distil", "Is it better to distil in the test space?", "figure 23", _distil),
        Analysis(
            "propagate",
            "What are a few labels of the place worth?",
            "figure 13",
            _propagate,
            ends=(FLOOR.name, CEILING.name),
        ),
        Analysis("continual", "What when the place has changed?", "figure 25", _continual),
        Analysis(
            "retrieval", "Which depth map belongs to the picture?", "table 2", _retrieval, shows="recall in %"
        ),
        Analysis("ttt", "Does learning on at test time add to it?", "table 7", _ttt),
    )
}
