"""The tables of the paper of TST-MM as lists of variants; listing, planning and pages know them by name.

All variants of a table have the same steps, batch, budgets and number of frames; what differs is what their names say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, final

from testtime.experiments.space.presets import Preset
from testtime.scenes.places import Place, houses
from testtime.space.variants import RGB, Variant

__all__ = ["ANALYSES", "CEILING", "CHANCE", "CONSTANT", "FLOOR", "HOME", "PSEUDO", "SENSORS", "Entry"]
__all__ += ["Variant", "entries"]

SENSORS = ("rgb", "depth", "normals", "edge")
PSEUDO = ("classes", "object_edge", "features", "boxes")
ALL = (*SENSORS, *PSEUDO)
HOME = (Place(),)
"""The test house."""
SPARE = 20
"""Random seed of the first of the other houses."""
VALIDATION = Place(80)
"""The house on which recipes are chosen."""
CHANGED = Place(shift="cold", moved=1)
"""The test house under other light, its small objects moved."""
CHANCE = "chance"
"""Row of what a random answer gives."""
CONSTANT = "a constant depth"
"""Row of what the same depth everywhere gives."""


@final
@dataclass(frozen=True)
class Entry:
    """A cell of a table: its row, its column, the variant that it shows, and the measure."""

    row: str
    column: str
    variant: Variant
    measure: str = "mIoU"


def _home(name: str, modalities: Sequence[str] = ALL, taught: bool = True) -> Variant:
    return Variant(name, "mm", tuple(modalities), HOME, taught=taught)


def _spare(count: int) -> tuple[Place, ...]:
    """Houses that stand for other spaces of the same kind."""
    return houses(range(SPARE, SPARE + count))


FLOOR = Variant("Scratch, RGB", "scratch")
MAE = Variant("TST-MAE", "mae", RGB, HOME)
SENSED = _home("TST-MM (sensory)", SENSORS)
WHOLE = _home("TST-MM (all)")
TEACHER = Variant("The pseudo-labeller itself", "teacher")
CEILING = Variant("Labels of the test space", "scratch", labels="space")
GENERAL = Variant("4M, other houses", "mm", ALL, _spare(8))
OUTSIDE = Variant("MAE, other houses", "mae", RGB, _spare(8))
ADAPTED = replace(GENERAL, name="4M, other houses, adapted", later=HOME, more=1.0)
STRONG = replace(TEACHER, name="The stronger pseudo-labeller itself", labellers="two")
TWO = replace(WHOLE, name="TST-MM (all, two teachers)", labellers="two")
NONE = replace(WHOLE, name="TST-MM (all, untrained teacher)", taught=False)


def _rows(*variants: Variant, measures: Sequence[str] = ("mIoU",)) -> list[Entry]:
    """A row for each variant, and a column for each measure."""
    return [Entry(v.name, measure, v, measure) for v in variants for measure in measures]


def _settings(variants: Sequence[Variant], columns: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """A row for each variant, and a column for each change of its fields."""
    changes = [(where, change, v) for where, change in columns.items() for v in variants]
    return [Entry(v.name, where, replace(v, name=f"{v.name}, {where}", **c)) for where, c, v in changes]


def _spaces(frozen: bool, modalities: tuple[str, ...] = SENSORS, count: int = 3) -> list[Entry]:
    pairs = [(home, test) for home in range(count) for test in range(count)]
    variants = [
        Variant(f"{h} in {t}", "mm", modalities, houses([h]), Place(t), frozen=frozen) for h, t in pairs
    ]
    return [Entry(f"trained in {h}", f"judged in {t}", v) for (h, t), v in zip(pairs, variants, strict=True)]


def _transfer_set(preset: Preset, test: Place) -> Variant:
    """A pre-training on the images of the transfer set alone."""
    return Variant("transfer images only", "mm", RGB, preset.outside.places, test, 0.0)


def _smallest(preset: Preset) -> list[Entry]:
    parts = {
        "a room": Place(room=0),
        "three quarters of its sides": Place(room=0, rings=3),
        "half of its sides": Place(room=0, rings=2),
    }
    found = []
    for where, test in parts.items():
        found.append(Entry("transfer images only", where, _transfer_set(preset, test)))
        for name, place in parts.items():
            variant = Variant(f"{name} in {where}", "mm", SENSORS, (place,), test)
            found.append(Entry(f"trained in {name}", where, variant))
    return found


def _count(size: int, sets: int = 4) -> list[Entry]:
    """Some of the sets of a number of modalities beside RGB."""
    every = list(combinations(ALL[1:], size))
    some = every[:: max(1, len(every) // sets)][:sets]
    return [Entry("TST-MM", f"{size + 1}", _home(f"RGB + {', '.join(s)}", ("rgb", *s))) for s in some]


def _steps(preset: Preset) -> list[Entry]:
    found = [Entry("Scratch", "0", FLOOR)]
    for variant in (SENSED, WHOLE):
        for share in (0.0, 0.125, 0.25, 0.5, 1.0):
            steps = f"{round(preset.recipe.steps * share)}"
            shorter = replace(variant, name=f"{variant.name}, {steps}", effort=share)
            found.append(Entry(variant.name, steps, shorter))
    return found


def _continual(where: str, test: Place) -> list[Entry]:
    found = [Entry("Scratch", where, replace(FLOOR, test=test))]
    for name, one in {"TST-MM": SENSED, "TST-MM (all)": WHOLE}.items():
        model = replace(one, test=test)
        found.append(Entry(name, where, model))
        for share in (0.125, 0.25, 0.5):
            row = f"{name}, {share:.1%} more steps on the changed house"
            found.append(Entry(row, where, replace(model, later=(CHANGED,), more=share)))
    return found


def _mixed(learned: str, *variants: Variant) -> list[Entry]:
    """Cells of variants by the modalities that images of the transfer set bring, fine-tuned and frozen."""
    tuned = [Entry(v.name, f"{learned}, fine-tuned", v) for v in variants]
    frozen = [Entry(v.name, f"{learned}, frozen", replace(v, frozen=True)) for v in variants if v.places]
    return [*tuned, *frozen]


def _every(variant: Variant) -> Variant:
    return replace(variant, mixin_modalities="all_pseudo")


def _validated(variant: Variant) -> Variant:
    """The variant in the house on which recipes are chosen."""
    return replace(variant, test=VALIDATION, places=(VALIDATION,) if variant.places else ())


RECALLS = [f"{kind} R@{k}" for kind in ("depth", "picture") for k in (1, 5, 10)]
ANALYSES: dict[str, Sequence[Entry] | Callable[[Preset], Sequence[Entry]]] = {
    "main": [
        *_rows(FLOOR, Variant("Scratch, multimodal", "scratch", SENSORS[:3]), MAE, SENSED, WHOLE, TEACHER),
        Entry("TST-MM (all), decoded", "mIoU", WHOLE, "decoded mIoU"),
    ],
    "summary": _rows(FLOOR, OUTSIDE, GENERAL, MAE, SENSED, WHOLE, CEILING),
    "demo": _rows(FLOOR, SENSED, WHOLE),
    "tasks": _rows(FLOOR, MAE, SENSED, WHOLE, measures=("mIoU", "AP50", "CIDEr-D", "scene graph F")),
    "objectives": [
        Entry(v.name, where, replace(v, name=f"{v.name}, {where}", places=places))
        for v in (MAE, Variant("TST-DINO", "dino", RGB, HOME), _home("TST-MM", SENSORS))
        for where, places in (("the test house", HOME), ("another house", _spare(1)))
    ],
    "spaces": _spaces(frozen=False),
    "features": _spaces(frozen=True),
    "spaces-all": _spaces(False, ALL),
    "features-all": _spaces(True, ALL),
    "worth": [
        entry
        for more, model in (("", SENSED), (", all", WHOLE))
        for entry in (
            Entry(f"the test house{more}", "1", model),
            *(
                Entry(
                    f"other houses{more}",
                    f"{n}",
                    replace(model, name=f"{n} other houses{more}", places=_spare(n)),
                )
                for n in (1, 2, 4, 8, 16)
            ),
        )
    ],
    "specialise": [
        Entry(
            f"{row}{more}",
            f"{n}",
            Variant(f"{n} houses in {t.house}{more}", "mm", names, (*HOME, *_spare(n - 1)), t),
        )
        for more, names in (("", SENSORS), (", all", ALL))
        for n in (1, 2, 4, 8)
        for row, tests in (("the test house", HOME), ("houses never seen", houses(range(60, 64))))
        for t in tests
    ],
    "smallest": _smallest,
    "ablation": [
        Entry("RGB alone", "–", MAE),
        *(Entry("RGB and one more", m, _home(f"RGB + {m}", ("rgb", m))) for m in ALL[1:]),
        *(Entry("all but one", m, _home(f"all but {m}", [o for o in ALL if o != m])) for m in ALL[1:]),
        Entry("all", "–", WHOLE),
    ],
    "count": [Entry("RGB alone", "1", MAE), *(entry for size in (1, 2, 4, 6, 7) for entry in _count(size))],
    "trade": [
        Entry(name, f"{n}", replace(v, name=f"{name}, {n} more houses", places=(*HOME, *_spare(n))))
        for name, v in {"RGB": MAE, "sensory": SENSED, "all": WHOLE}.items()
        for n in (0, 2, 8)
    ],
    "steps": _steps,
    "frozen": _rows(
        *(
            replace(v, frozen=True)
            for v in (replace(SENSED, name="not pre-trained", effort=0.0), MAE, SENSED, WHOLE)
        )
    ),
    "decoded": [
        *(
            Entry(v.name, measure.removeprefix("decoded "), v, measure)
            for v in (replace(WHOLE, name="not pre-trained", effort=0.0), WHOLE)
            for measure in ("decoded mIoU", "agreement", "depth error")
        ),
        Entry("the tokenizers alone", "mIoU", WHOLE, "token mIoU"),
        Entry("the tokenizers alone", "depth error", WHOLE, "token depth error"),
        Entry(TEACHER.name, "mIoU", TEACHER),
    ],
    "mixed": [*_mixed("RGB", FLOOR, MAE, SENSED, WHOLE), *_mixed("all", _every(SENSED), _every(WHOLE))],
    "decay": [
        Entry(v.name, f"{decay:g}", replace(v, name=f"{v.name}, {decay:g}", decay=decay))
        for v in map(_validated, (FLOOR, MAE, SENSED, WHOLE))
        for decay in (0.9, 0.5, 0.3, 0.1)
    ],
    "ratio": [Entry(WHOLE.name, f"1/{n}", replace(WHOLE, name=f"1/{n}", mixin=1 / n)) for n in (1, 4, 8, 16)],
    "mixin": lambda preset: [
        *_rows(_transfer_set(preset, HOME[0])),
        Entry("test space only", "mIoU", replace(WHOLE, name="test only", mixin=0.0)),
        Entry("both", "mIoU", WHOLE),
    ],
    "untrained": [
        Entry("RGB alone", "mIoU", MAE),
        Entry("and trained pseudo-labellers", "mIoU", _home("trained", ("rgb", *PSEUDO))),
        Entry("and untrained pseudo-labellers", "mIoU", _home("untrained", ("rgb", *PSEUDO), taught=False)),
    ],
    "distil": [
        Entry(name, where, Variant(f"{name} in {where}", "mm", ("rgb", name), places))
        for name in PSEUDO
        for where, places in (("the test house", HOME), ("other houses", _spare(8)))
    ],
    "propagate": _rows(*(replace(v, labels="few") for v in (FLOOR, MAE, SENSED, WHOLE)), CEILING),
    "continual": [*_continual("before the change", HOME[0]), *_continual("after the change", CHANGED)],
    "retrieval": [
        *(Entry(CHANCE, measure, WHOLE, f"{CHANCE} {measure.split()[1]}") for measure in RECALLS),
        *_rows(replace(WHOLE, name="not trained", effort=0.0), GENERAL, WHOLE, measures=RECALLS),
    ],
    "own": [
        Entry(CONSTANT, "relative depth error", FLOOR, "relative depth error of a constant"),
        *_rows(FLOOR, MAE, SENSED, WHOLE, measures=("mIoU", "relative depth error")),
    ],
    "teachers": [
        *_settings((MAE, SENSED, WHOLE, TWO, NONE), {"fine-tuned": {}, "frozen": {"frozen": True}}),
        *(Entry(v.name, "fine-tuned", v) for v in (TEACHER, STRONG)),
    ],
    "adapted": _rows(FLOOR, GENERAL, WHOLE, ADAPTED, TEACHER, STRONG),
    "sizes": _settings((FLOOR, OUTSIDE, GENERAL, WHOLE), {"small": {}, "large": {"larger": True}}),
    "synthetic": _settings((MAE, SENSED, WHOLE), {"rendered": {}, "synthesised": {"synthetic": True}}),
    "elsewhere": _settings(
        (FLOOR, GENERAL, MAE, WHOLE), {"the same style": {}, "another style": {"outside": "other"}}
    ),
    "ttt": [
        Entry(v.name, moment, replace(v, frozen=True), f"mIoU {moment}")
        for v in (OUTSIDE, MAE)
        for moment in ("before", "after")
    ],
}
"""Cells of each table, or a function from the preset to them, by the name of the experiment without the family's prefix."""


def entries(name: str, preset: Preset) -> Sequence[Entry]:
    """Return the cells of a table.

    Args:
        name: name of the experiment without the family's prefix.
        preset: size of the experiment.
    """
    found = ANALYSES[name]
    return found(preset) if callable(found) else found
