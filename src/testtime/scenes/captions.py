"""What a frame shows, in English: how many of what, in which room, and how they lie to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    from testtime.scenes import Frame, House

__all__ = ["NUMBERS", "Thing", "caption", "describe"]

STRUCTURE = frozenset({"wall", "floor", "ceiling"})
"""Classes that every room has and no caption counts."""

FLAT = frozenset({"picture", "mirror", "window", "door", "curtain", "rug"})
"""Classes that nothing stands behind or in front of: they lie on walls and floors."""

LEAST = 0.15  # the visible part of a thing that is mentioned
BEHIND = 0.5  # metres further away, from centre to centre
RELATIONS = 3  # sentences at most about left, right and behind
NUMBERS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
PLURALS = {"shelf": "shelves", "bookshelf": "bookshelves", "tv": "TVs", "television": "televisions"}
ROOMS = {"living": "living room", "bed": "bedroom", "bath": "bathroom", "dining": "dining room"}


@final
@dataclass(frozen=True)
class Thing:
    """An object of a frame, as a caption sees it.

    Attributes:
        instance: its number in the house.
        label: its class.
        x0, x1: its left and right edge in the picture, in pixels.
        area: of its box, in pixels.
        distance: from the camera to its centre along the optical axis, in metres.
        room: what the room it stands in is called.
        on: the instance it lies on, or None.
    """

    instance: int
    label: str
    x0: float
    x1: float
    area: float
    distance: float
    room: str
    on: int | None = None


def caption(frame: Frame, house: House) -> str:
    """Describe a frame by the objects of its house; the same frame always gets the same words.

    Mentioned is what has a box and is visible to 15 % or more. "On" is what the house says; "left" and "right" are
    those of the picture, for boxes that do not overlap; "behind" is 0.5 m or more further away, from centre to centre,
    for boxes that do, and not for what lies flat on a wall or a floor.
    """
    from testtime.scenes import CLASSES

    placed = {int(p.instance): p for p in house.objects}
    inverse = np.linalg.inv(np.asarray(frame.pose, dtype=np.float64))
    rooms = [_room(str(room.kind)) for room in house.rooms]
    things = []
    for box in frame.boxes:
        found = placed.get(int(box.instance))
        if found is None or CLASSES[box.label] in STRUCTURE or box.visibility < LEAST:
            continue
        centre = inverse[:3] @ [*np.asarray(found.centre, dtype=np.float64), 1.0]
        area = float((box.x1 - box.x0) * (box.y1 - box.y0))
        things.append(
            Thing(
                int(box.instance),
                CLASSES[box.label],
                float(box.x0),
                float(box.x1),
                area,
                float(-centre[2]),
                rooms[found.room],
                None if found.on is None else int(found.on),
            )
        )
    return describe(things, rooms[frame.room])


def describe(things: Sequence[Thing], room: str) -> str:
    """Put things into sentences.

    >>> table = Thing(1, "table", 20, 50, 900, 2.5, "kitchen")
    >>> mugs = [Thing(i, "mug", 30, 34, 20, 2.4, "kitchen", on=1) for i in (2, 3)]
    >>> describe([table, *mugs, Thing(4, "oven", 0, 12, 400, 3.1, "kitchen")], "kitchen")
    'A kitchen with a table, an oven and two mugs. Two mugs are on the table. The oven is to the left of the table.'
    """
    here = [t for t in things if t.room == room]
    beyond = [t for t in things if t.room != room]
    sentences = [_with(room, here)]
    for other in sorted({t.room for t in beyond}):
        phrase = _with(other, [t for t in beyond if t.room == other])
        sentences.append(f"Beyond it, {phrase[0].lower()}{phrase[1:]}")
    return " ".join([*sentences, *_lying(things), *_lateral(here)])


def _with(room: str, things: Sequence[Thing]) -> str:
    listed = _listed(things)
    return f"{_a(room).capitalize()} with {listed}." if listed else f"{_a(room).capitalize()}."


def _listed(things: Iterable[Thing]) -> str:
    """How many of what, the largest first."""
    things = list(things)
    counts = Counter(t.label for t in things)
    sizes = {label: max(t.area for t in things if t.label == label) for label in counts}
    words = [_counted(label, counts[label]) for label in sorted(counts, key=lambda c: (-sizes[c], c))]
    return _and(words)


def _lying(things: Sequence[Thing]) -> list[str]:
    """Sentences about what lies on what."""
    numbers = {t.instance: t for t in things}
    labels = Counter(t.label for t in things)
    sentences = []
    for support in sorted({t.on for t in things if t.on is not None and t.on in numbers}):
        lying = [t for t in things if t.on == support]
        under = numbers[support].label
        place = f"the {_name(under)}" if labels[under] == 1 else _a(under)
        listed = _listed(lying)
        verb = "is" if len(lying) == 1 else "are"
        sentences.append(f"{listed[0].upper()}{listed[1:]} {verb} on {place}.")
    return sentences


def _lateral(things: Sequence[Thing]) -> list[str]:
    """Sentences about left, right and behind, for things of which there is one, the largest first."""
    labels = Counter(t.label for t in things)
    single = [t for t in things if labels[t.label] == 1 and t.on is None]
    single.sort(key=lambda t: (-t.area, t.label))
    sentences = []
    for i, second in enumerate(single[1:], 1):
        first = single[i - 1]
        if second.x1 <= first.x0:
            how = "to the left of"
        elif first.x1 <= second.x0:
            how = "to the right of"
        elif FLAT & {first.label, second.label}:
            continue
        elif second.distance >= first.distance + BEHIND:
            how = "behind"
        elif first.distance >= second.distance + BEHIND:
            how = "in front of"
        else:
            continue
        sentences.append(f"The {_name(second.label)} is {how} the {_name(first.label)}.")
    return sentences[:RELATIONS]


def _room(kind: str) -> str:
    return ROOMS.get(kind, kind.replace("_", " "))


def _name(label: str) -> str:
    return "TV" if label == "tv" else label.replace("_", " ").replace("-", " ")


def _a(label: str) -> str:
    name = _name(label)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _counted(label: str, count: int) -> str:
    """A class with its number.

    >>> [_counted(c, n) for c, n in (("box", 2), ("oven", 1), ("shelf", 3), ("tv", 13))]
    ['two boxes', 'an oven', 'three shelves', '13 TVs']
    """
    if count == 1:
        return _a(label)
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {_plural(label)}"


def _plural(label: str) -> str:
    name = _name(label)
    if label in PLURALS:
        return PLURALS[label]
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
