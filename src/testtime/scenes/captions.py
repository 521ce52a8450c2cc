"""English captions of frames: objects with their numbers, their room, and spatial relations between them."""

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
"""Classes that every room has and that captions do not mention."""

FLAT = frozenset({"picture", "mirror", "window", "door", "curtain", "rug"})
"""Classes of flat objects on walls and floors, for which captions do not use "behind"."""

LEAST = 0.15  # least visible share of a mentioned object
BEHIND = 0.5  # least difference of the depths of two centres for "behind", in metres
RELATIONS = 3  # largest number of sentences about left, right and behind
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
    """An object of a frame, for its caption.

    Attributes:
        instance: number of the instance in the house.
        label: name of the class.
        x0, x1: left and right edge of its box, in pixels.
        area: area of its box, in pixels.
        distance: depth of its centre along the optical axis, in metres.
        room: name of its room.
        on: instance that supports it, or None.
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
    """Describe a frame by the objects of its house, deterministically.

    Objects are mentioned if they have a box and a visibility of at least 15 %. "On" is the support in the house; "left" and
    "right" are those of the image, for boxes that do not overlap; "behind" is a difference of at least 0.5 m between the depths
    of the centres, for boxes that overlap, and not for flat objects on walls or floors.
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
    """Describe objects in sentences.

    Args:
        things: visible objects.
        room: name of the room of the camera.

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
    """List the classes of objects with their numbers, the largest first."""
    things = list(things)
    counts = Counter(t.label for t in things)
    sizes = {label: max(t.area for t in things if t.label == label) for label in counts}
    words = [_counted(label, counts[label]) for label in sorted(counts, key=lambda c: (-sizes[c], c))]
    return _and(words)


def _lying(things: Sequence[Thing]) -> list[str]:
    """Return sentences about objects on other objects."""
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
    """Return sentences about left, right and behind for objects that are the only ones of their class, the largest first."""
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
    """Return a class with its number.

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
