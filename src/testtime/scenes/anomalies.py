"""Anomalies in rooms, with exact masks from the renderer: objects that the space does not have, and objects of another room.

>>> from testtime.scenes import generate_house
>>> house = generate_house(3)
>>> found = add_anomaly(house, house.cameras(1)[0], "foreign", seed=0)
>>> found.name in FOREIGN, len(found.house.objects) - len(house.objects)
(True, 1)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from testtime.errors import check_name
from testtime.scenes.cameras import Camera
from testtime.scenes.furniture import Model, build, label_of
from testtime.scenes.furniture.model import assembled
from testtime.scenes.geometry import Array, box, cylinder, joined, lathe, sphere
from testtime.scenes.house import House
from testtime.scenes.layout import Footprint, Placed, overlap
from testtime.scenes.plan import Room
from testtime.scenes.style import ACCENTS, Style
from testtime.scenes.tracer import tracer

__all__ = ["ANOMALIES", "DISPLACED", "FOREIGN", "Anomaly", "add_anomaly"]

Shape = Callable[[Style, np.random.Generator], Model]
DISPLACED: Mapping[str, tuple[str, ...]] = {
    "toilet": ("living", "bed", "study", "kitchen"),
    "bathtub": ("living", "bed", "study", "kitchen"),
    "fridge": ("bed", "bath", "living", "study"),
    "stove": ("bed", "bath", "living", "study"),
}
"""Objects of the house's own classes, and kinds of rooms in which they have no place."""
ANOMALIES = ("foreign", "displaced")
"""Kinds of anomalies: an object of no class of the house, and one of a class that belongs to another room."""
NO_CLASS = 255
"""Label of the pixels of a foreign object."""
TRIES = 60
NEAR, FAR = 1.2, 3.5
"""Least and largest distance of an anomaly from the camera, in metres."""
LEAST = 0.01
"""Least share of the view that an anomaly covers."""


def _accent(style: Style, rng: np.random.Generator) -> int:
    return style.material(f"accent{rng.integers(ACCENTS)}")


def _cone(style: Style, rng: np.random.Generator) -> Model:
    """A traffic cone."""
    h, m = rng.uniform(0.45, 0.75), _accent(style, rng)
    foot = box((-0.2, -0.2, 0), (0.2, 0.2, 0.03), style.material("dark"))
    body = lathe([(0.16, 0.03), (0.03, h), (0, h)], m, segments=16)
    ring = lathe([(0.125, h * 0.35), (0.085, h * 0.6)], style.material("white"), segments=16)
    return assembled("cone", [foot, body, ring])


def _ball(style: Style, rng: np.random.Generator) -> Model:
    """A large ball."""
    r = rng.uniform(0.25, 0.4)
    return assembled("ball", [sphere((0, 0, r), r, _accent(style, rng), segments=20)])


def _barrel(style: Style, rng: np.random.Generator) -> Model:
    """A barrel with two hoops."""
    h, r = rng.uniform(0.7, 0.95), rng.uniform(0.25, 0.33)
    profile = [(0, 0), (r * 0.85, 0), (r, h / 2), (r * 0.85, h), (0, h)]
    hoops = [
        cylinder((0, 0, z), r * 0.97, 0.04, style.material("dark"), segments=16) for z in (h / 5, h * 0.75)
    ]
    return assembled("barrel", [lathe(profile, _accent(style, rng), segments=16), *hoops])


def _ladder(style: Style, rng: np.random.Generator) -> Model:
    """A step ladder."""
    h, m = rng.uniform(1.0, 1.5), style.material("steel")
    sides = [box((x, -0.03, 0), (x + 0.04, 0.03, h), m) for x in (-0.22, 0.18)]
    back = [box((x, 0.3, 0), (x + 0.04, 0.34, h), m) for x in (-0.22, 0.18)]
    steps = [
        box((-0.22, -0.05, z), (0.22, 0.12, z + 0.03), _accent(style, rng)) for z in np.arange(0.2, h, 0.25)
    ]
    top = box((-0.24, -0.05, h - 0.03), (0.24, 0.36, h), m)
    return assembled("ladder", [joined([*sides, *back, top]), *steps])


FOREIGN: Mapping[str, Shape] = {"cone": _cone, "ball": _ball, "barrel": _barrel, "ladder": _ladder}
"""Builders of foreign objects by name."""


@final
@dataclass(frozen=True, eq=False)
class Anomaly:
    """A house with one object too many.

    Attributes:
        house: the house with the object.
        instance: instance of the object: a pixel is abnormal where ``frame.instance == instance``.
        kind: "foreign" or "displaced".
        name: name of the object.
    """

    house: House
    instance: int
    kind: str
    name: str


def add_anomaly(house: House, camera: Camera, kind: str, seed: int) -> Anomaly | None:
    """Place an anomaly on the floor in the view of a camera; None if there is no free place of at least 1 % of the view.

    Args:
        house: house of the camera; it is not changed.
        camera: camera that sees the anomaly.
        kind: "foreign" or "displaced".
        seed: random seed of object and place.

    Raises:
        ValueError: there is no such kind.
    """
    check_name("anomaly", kind, ANOMALIES)
    view = zlib.crc32(np.ascontiguousarray(camera.pose).tobytes())
    rng = np.random.default_rng([seed, view, zlib.crc32(kind.encode())])
    room = house.rooms[camera.room]
    names = (
        list(FOREIGN) if kind == "foreign" else [n for n, rooms in DISPLACED.items() if room.kind in rooms]
    )
    name = names[int(rng.integers(len(names)))]
    model = FOREIGN[name](house.drawn_style, rng) if kind == "foreign" else build(name, house.drawn_style)
    label = NO_CLASS if kind == "foreign" else label_of(model.name)
    number = max(o.instance for o in house.objects) + 1
    for _ in range(TRIES):
        placed = _place(house, camera, room, model, number, label, rng)
        if placed is None:
            continue
        changed = replace(house, objects=(*house.objects, placed))
        if _share(changed, camera, number) >= LEAST:
            return Anomaly(changed, number, kind, name)
    return None


def _place(
    house: House, camera: Camera, room: Room, model: Model, number: int, label: int, rng: np.random.Generator
) -> Placed | None:
    """Try one place in front of the camera; None where it is outside of the room or meets an object."""
    forward = -camera.pose[:3, 2]
    half = np.radians(camera.fov_degrees) / 2
    angle = float(np.arctan2(forward[1], forward[0]) + rng.uniform(-0.8, 0.8) * half)
    away = rng.uniform(NEAR, FAR)
    x, y = camera.position[:2] + away * np.array([np.cos(angle), np.sin(angle)])
    yaw = float(rng.uniform(-np.pi, np.pi))
    w, d, h = model.size
    footprint = Footprint(float(x), float(y), w / 2, d / 2, yaw)
    corners = footprint.corners()
    if (corners < np.array(room.low)).any() or (corners > np.array(room.high)).any():
        return None
    others = (o for o in house.objects if o.room == room.index and o.model is not None and o.name != "rug")
    if any(o.base < h and overlap(footprint, o.footprint) for o in others):
        return None
    centre: Array = np.array([x, y, model.lift + h / 2])
    return Placed(number, label, model.name, centre, np.array(model.size), yaw, room.index, True, None, model)


def _share(house: House, camera: Camera, instance: int) -> float:
    """Share of a coarse view that shows an instance."""
    seen = tracer(house.mesh.triangles).view(camera, (32, 32)).triangle
    return float((house.mesh.instance[seen[seen >= 0]] == instance).sum() / len(seen))
