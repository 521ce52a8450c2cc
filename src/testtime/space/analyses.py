"""The analyses of the paper of TST-MM as lists of points, each one command: ``testtime space bench NAME``.

Every point of an analysis has the same steps, batch, budgets and number of frames; what differs is what its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import final

from testtime.space.points import ALL, SENSORS, Point
from testtime.space.presets import Preset

__all__ = ["ANALYSES", "Analysis", "Entry"]

HOUSE = 0
"""The test house."""
SPARE = 20
"""The first of the houses that stand for other spaces of the same kind."""
RGB = SENSORS[:1]


@final
@dataclass(frozen=True)
class Entry:
    """A cell of an analysis' table: its row, its column, and the point that it shows."""

    row: str
    column: str
    point: Point


@final
@dataclass(frozen=True)
class Analysis:
    """A table and a figure.

    Attributes:
        name: of the command.
        title: a question.
        published: where the paper has it.
        entries: of a preset.
        seeds: of training; houses stay.
        unit: of the columns, where they are numbers.
    """

    name: str
    title: str
    published: str
    entries: Callable[[Preset], Sequence[Entry]]
    seeds: tuple[int, ...] = (0, 1, 2)
    unit: str = ""


def one(name: str, modalities: Sequence[str] = ALL, **facts: object) -> Point:
    """A pre-training on the test house."""
    return Point(name, "mm", tuple(modalities), (HOUSE,), **facts)  # type: ignore[arg-type]


FLOOR = Point("Scratch, RGB", "scratch")
MAE = Point("TST-MAE", "mae", RGB, (HOUSE,))
SENSED = one("TST-MM (sensory)", SENSORS)
WHOLE = one("TST-MM (all)")


def _main(preset: Preset) -> list[Entry]:
    several = Point("Scratch, multimodal", "scratch", ("rgb", "depth", "normals"))
    return [Entry(p.name, "mIoU", p) for p in (FLOOR, several, MAE, SENSED, WHOLE)]


def _spaces(preset: Preset, count: int = 3) -> list[Entry]:
    return [
        Entry(f"trained in {h}", f"judged in {t}", Point(f"house {h} in {t}", "mm", SENSORS, (h,), t))
        for h in range(count)
        for t in range(count)
    ]


def _worth(preset: Preset) -> list[Entry]:
    found = [Entry("the test house", "1", SENSED)]
    for count in (1, 2, 4, 8, 16):
        houses = tuple(range(SPARE, SPARE + count))
        found.append(
            Entry("other houses", f"{count}", Point(f"{count} other houses", "mm", SENSORS, houses, HOUSE))
        )
    return found


def _specialise(preset: Preset) -> list[Entry]:
    found = []
    for count in (1, 2, 4, 8):
        houses = (HOUSE, *range(SPARE, SPARE + count - 1))
        for test, row in ((HOUSE, "the test house"), *((t, "houses never seen") for t in range(60, 64))):
            found.append(
                Entry(row, f"{count}", Point(f"{count} houses in {test}", "mm", SENSORS, houses, test))
            )
    return found


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


def _ratio(preset: Preset) -> list[Entry]:
    shares = {"1/1": 1.0, "1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16}
    return [
        Entry("TST-MM (all)", name, replace(WHOLE, name=name, mixin=share)) for name, share in shares.items()
    ]


def _mixin(preset: Preset) -> list[Entry]:
    outside = preset.outside.houses
    return [
        Entry("transfer pictures only", "mIoU", Point("transfer only", "mm", ALL, outside, HOUSE, 0.0)),
        Entry("test space only", "mIoU", replace(WHOLE, name="test only", mixin=0.0)),
        Entry("both", "mIoU", WHOLE),
    ]


def _trade(preset: Preset) -> list[Entry]:
    found = []
    for count, sets in {"RGB": RGB, "sensory": SENSORS, "all": ALL}.items():
        for extra in (0, 2, 8):
            houses = (HOUSE, *range(SPARE, SPARE + extra))
            if sets == RGB:
                point = Point(f"{count}, {extra} more houses", "mae", RGB, houses, HOUSE)
            else:
                point = Point(f"{count}, {extra} more houses", "mm", sets, houses, HOUSE)
            found.append(Entry(count, f"{extra}", point))
    return found


ANALYSES: dict[str, Analysis] = {
    a.name: a
    for a in (
        Analysis("main", "What is a model worth that knows the place?", "table 1, figure 3", _main),
        Analysis("spaces", "Does it know its own house best?", "figure 7", _spaces),
        Analysis("worth", "How many other houses is one's own worth?", "figure 8", _worth, unit="houses"),
        Analysis(
            "specialise", "What does specialising cost elsewhere?", "figure 9", _specialise, unit="houses"
        ),
        Analysis("ablation", "Which modality matters?", "figure 5", _ablation),
        Analysis("count", "How many modalities?", "figure 6", _count, unit="modalities"),
        Analysis("trade", "More modalities, or more houses?", "figure 4", _trade, unit="more houses"),
        Analysis("ratio", "How many pictures of the transfer set?", "table 8", _ratio),
        Analysis("mixin", "What do the transfer set's pictures add?", "table 4", _mixin),
    )
}
