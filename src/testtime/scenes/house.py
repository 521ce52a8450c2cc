"""Houses: a floor plan with furniture of one style, lights, and small objects that can be moved.

The generation is a simple form of that of ProcTHOR (Deitke et al., 2022): a plan, kinds of rooms, large furniture by the kind
of room, then small objects on the furniture; without assets, from one seed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from testtime.scenes.furnish import furnish, small_objects
from testtime.scenes.furniture import Model
from testtime.scenes.geometry import BELOW, Array, Mesh, box, joined, panel
from testtime.scenes.layout import Footprint, Layout, Placed, Receptacles, mesh_of
from testtime.scenes.plan import WALL, Opening, Plan, Room, draw_plan
from testtime.scenes.style import Style, generator

if TYPE_CHECKING:
    from testtime.scenes.cameras import Camera

__all__ = ["House", "Light", "generate_house"]


ATTEMPTS = 20
"""Attempts of :meth:`House.moved` to place all objects; the last attempt also uses the floor."""


@final
@dataclass(frozen=True)
class Light:
    """A light of one room, which has no effect on other rooms.

    Attributes:
        room: index of the room.
        position: position (x, y, z), in metres.
        colour: radiant intensity in linear red, green and blue, in arbitrary units.
        facing: main direction of the light of a window; None for an isotropic light.
    """

    room: int
    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    facing: tuple[float, float, float] | None = None


@final
@dataclass(frozen=True, eq=False)
class House:
    """A furnished house.

    Attributes:
        seed: random seed of the house.
        style: name of the prior of its style.
        plan: floor plan.
        objects: all objects, sorted by instance from 1 on: structure, furniture, and last the small objects.
        lights: lights of the rooms.
        fixed: triangles of all objects that cannot be moved.
    """

    seed: int
    style: str
    plan: Plan = field(repr=False)
    objects: tuple[Placed, ...] = field(repr=False)
    lights: tuple[Light, ...] = field(repr=False)
    fixed: Mesh = field(repr=False)

    @property
    def rooms(self) -> tuple[Room, ...]:
        """Rooms of the plan."""
        return self.plan.rooms

    @cached_property
    def drawn_style(self) -> Style:
        """The style that was drawn from the seed and the prior."""
        return Style(self.seed, self.style)

    @property
    def look(self) -> Style:
        """Former name of :attr:`drawn_style`."""
        warnings.warn(
            "House.look is now House.drawn_style; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.drawn_style

    @cached_property
    def mesh(self) -> Mesh:
        """Triangles of all objects."""
        return joined([self.fixed, *(mesh_of(o) for o in self.objects if o.movable)])

    @cached_property
    def labels(self) -> Array:
        """Class of every instance, (instances + 1,) uint8; 255 for instance 0, which is none."""
        return np.array([255, *(o.label for o in self.objects)], np.uint8)

    def cameras(self, count: int = 20, seed: int = 0) -> list[Camera]:
        """Place cameras in the rooms; see :func:`testtime.scenes.cameras.place_cameras`."""
        from testtime.scenes.cameras import place_cameras

        return place_cameras(self, count, seed)

    def moved(self, seed: int) -> House:
        """Return the house with new positions of the small objects in their rooms.

        The objects, their instances and models are unchanged. An object without a free place in its room is placed in another
        room.

        Raises:
            ValueError: the house has no free place for an object.
        """
        still = [o for o in self.objects if not o.movable]
        things = [(o.model, o.room) for o in self.objects if o.movable and o.model is not None]
        small: list[Placed] = []
        for attempt in range(ATTEMPTS):
            rng = generator(self.seed, self.style, "moved", seed, attempt)
            small = _scatter(self.plan, still, things, rng, True, attempt == ATTEMPTS - 1)
            if len(small) == len(things):
                return replace(self, objects=(*still, *small))
        left = Counter(model.name for model, _ in things) - Counter(o.name for o in small)
        raise ValueError(
            f"moved: expected a new place for every small object of house {self.seed} ({self.style}), found none for "
            f"{', '.join(left)}; take another number for moved, or another house"
        )


def generate_house(seed: int = 0, style: str = "default") -> House:
    """Generate a house; equal arguments give equal houses.

    Args:
        seed: random seed, not negative. The floor plan depends on it alone.
        style: name of the prior of the furniture, one of ``STYLES``.

    Raises:
        ValueError: the seed is negative, or there is no such prior.

    >>> house = generate_house(seed=3)
    >>> house.objects[0].name, house.objects[0].instance
    ('floor', 1)
    """
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")
    drawn = Style(seed, style)
    plan = draw_plan(generator(seed, "plan"), float(drawn.draw("ceiling").uniform(*drawn.prior.ceiling)))
    layout = Layout(plan, drawn.draw("places"))
    _shell(layout, drawn)
    for room in plan.rooms:
        furnish(layout, room, drawn)
    lights = tuple(_lights(plan, layout.objects, drawn))
    still = list(layout.objects)
    things = [(model, room.index) for room in plan.rooms for model in small_objects(room, drawn)]
    things.sort(key=lambda thing: -thing[0].size[0] * thing[0].size[1])  # large objects are placed first
    small = _scatter(plan, still, things, drawn.draw("small"))
    return House(seed, style, plan, (*still, *small), lights, joined(layout.meshes))


def _scatter(
    plan: Plan,
    still: Sequence[Placed],
    things: Sequence[tuple[Model, int]],
    rng: np.random.Generator,
    spill: bool = False,
    floor: bool = False,
) -> list[Placed]:
    """Place small objects, each in its room, on fixed objects, and boxes also on the floor.

    An object without a free place is left out; before that, with ``spill``, other rooms are tried, and with ``floor`` their
    floors.
    """
    receptacles, layout = Receptacles(still), Layout(plan, rng)
    for o in still:
        if o.model is not None and o.on is None and o.base < 0.3 and o.name != "rug":
            layout.blocked[o.room].append(o.footprint)
    for room in plan.rooms:
        layout.blocked[room.index] += door_zones(room)
    layout.objects = list(still)
    for model, home in things:
        if (
            model.name == "box"
            and rng.random() < 0.6
            and layout.free(plan.rooms[home], model, 0.02, movable=True)
        ):
            continue
        found = receptacles.place(rng, model, [home])
        if found is None and spill:
            found = receptacles.place(rng, model)
        if found is not None:
            support, x, y, base, yaw = found
            layout.put(model, support.room, x, y, yaw, base, True, support.instance, solid=False)
        elif spill and floor:
            any(layout.free(room, model, 0.0, 500, movable=True) for room in plan.rooms)
    return layout.objects[len(still) :]


def door_zones(room: Room, depth: float = 0.95) -> list[Footprint]:
    """Return the area before each door of a room, which has to be free."""
    return [
        Footprint(*side.point((o.start + o.end) / 2, depth / 2), (o.end - o.start) / 2, depth / 2, side.yaw)
        for side in room.sides
        for o in side.openings
        if o.leads_to is not None
    ]


def _shell(layout: Layout, style: Style) -> None:
    """Add floors, ceilings, walls, windows and doors."""
    m, plan = style.material, layout.plan
    for room in plan.rooms:
        (x0, y0), (x1, y1) = room.low, room.high
        w = WALL + 1e-4  # up to the middle of the walls, so that doorways have a floor
        floor = box((x0 - w, y0 - w, -0.1), (x1 + w, y1 + w, 0), m(f"floor_{room.kind}"))
        layout.structure("floor", _flat(floor, (0, 1, 2)), room.index)
        over = box((x0 - w, y0 - w, plan.height), (x1 + w, y1 + w, plan.height + 0.1), m("ceiling"))
        layout.structure("ceiling", over, room.index)
        for side in room.sides:
            wall = _wall(side.length, side.openings, plan.height, m(f"wall_{room.kind}"), m("trim"))
            layout.structure("wall", wall, room.index, side.yaw, (*side.origin, 0))
    for room in plan.rooms:
        layout.blocked[room.index] += door_zones(room)
        for side in room.sides:
            for o in side.openings:
                if o.leads_to is None:
                    at = (*side.point(o.start, 0), 0)
                    layout.structure("window", _window(o, m("sky"), m("trim")), room.index, side.yaw, at)
    for room_index, side, o in plan.doors():
        mesh = _door(o, side.length, layout.rng, m("door"), m("trim"), m("handle"))
        layout.structure("door", mesh, room_index, side.yaw, (*side.point(o.start, 0), 0))


def _flat(mesh: Mesh, axes: tuple[int, int, int]) -> Mesh:
    """Set object coordinates along axes of the structure, for patterns that continue across its parts."""
    return replace(mesh, local=(mesh.triangles - BELOW * mesh.normals)[..., list(axes)].astype(np.float32))


def _wall(length: float, openings: Sequence[Opening], height: float, material: int, trim: int) -> Mesh:
    parts, skirting, t, at = [], [], 2 * WALL * 0.5, -WALL
    for o in [*openings, None]:
        end = length + WALL if o is None else o.start
        parts.append(box((at, -t, 0), (end, 0, height), material))
        a, b = max(at, 0.0), min(end, length)
        if b > a:
            skirting.append((a, b))
        if o is None:
            break
        if o.low > 0:
            parts.append(box((o.start, -t, 0), (o.end, 0, o.low), material))
            skirting.append((o.start, o.end))
        parts.append(box((o.start, -t, o.high), (o.end, 0, height), material))
        at = o.end
    wall = _flat(joined(parts), (0, 2, 1))
    return joined([wall, *(box((a, 0, 0), (b, 0.012, 0.07), trim) for a, b in skirting)])


def _window(o: Opening, sky: int, trim: int) -> Mesh:
    w, low, high, t = o.end - o.start, o.low, o.high, 0.045
    y0, y1 = -WALL + 0.01, -WALL + 0.05
    panes = 2 if w > 0.8 else 1
    bars = [
        box((w * k / panes - t / 2, y0, low + t), (w * k / panes + t / 2, y1, high - t), trim)
        for k in range(1, panes)
    ]
    return joined(
        [
            panel((0, -WALL + 0.015, low), w, high - low, sky),
            box((0, y0, low), (w, y1, low + t), trim),
            box((0, y0, high - t), (w, y1, high), trim),
            box((0, y0, low + t), (t, y1, high - t), trim),
            box((w - t, y0, low + t), (w, y1, high - t), trim),
            *bars,
            box((-0.04, -WALL + 0.05, low - 0.03), (w + 0.04, 0.04, low), trim),
        ]
    )


def _door(o: Opening, length: float, rng: np.random.Generator, leaf: int, trim: int, handle: int) -> Mesh:
    """Create the frame of a door on both faces of the wall, and its leaf, closed or open into the room."""
    w, h, c = o.end - o.start, o.high, 0.07
    inner = o.leads_to is not None and o.leads_to >= 0
    faces = [(0.0, 0.016)] + ([(-2 * WALL - 0.016, -2 * WALL)] if inner else [])
    parts = [
        part
        for y0, y1 in faces
        for part in (
            box((-c, y0, 0), (0, y1, h + c), trim),
            box((w, y0, 0), (w + c, y1, h + c), trim),
            box((0, y0, h), (w, y1, h + c), trim),
        )
    ]
    if not inner:  # the outside is not visible through the gaps around the leaf
        parts.append(box((0, -WALL, 0), (w, -WALL + 0.003, h), leaf))
    kind = rng.random()
    angle = 0.0
    if inner:
        angle = float(np.radians(rng.uniform(80, 92))) if kind > 0.2 else 0.0
    lw, t = w - 0.01, 0.04
    leaf_parts = [
        box((0, 0, 0.01), (lw, t, h - 0.01), leaf),
        *(
            box((0.12, y, z), (lw - 0.12, y + 0.012, z + tall), leaf)
            for y in (-0.012, t)
            for z, tall in ((0.18, 0.72), (1.08, 0.76))
        ),
        *(box((lw - 0.16, y, 0.99), (lw - 0.04, y + 0.03, 1.02), handle) for y in (-0.04, t + 0.01)),
    ]
    swung = joined(leaf_parts).moved((0, -t, 0)).moved(yaw=angle)
    if o.start < length - o.end:  # the hinge on the side of the nearer corner
        swung = swung.moved((0.005, -0.005 if inner else -WALL + t + 0.005, 0))
    else:
        swung = _mirrored(swung).moved((w - 0.005, -0.005 if inner else -WALL + t + 0.005, 0))
    return joined([*parts, swung])


def _mirrored(mesh: Mesh) -> Mesh:
    flip = np.array([-1, 1, 1], np.float32)
    return replace(
        mesh, triangles=(mesh.triangles * flip)[:, [0, 2, 1]], normals=(mesh.normals * flip)[:, [0, 2, 1]]
    )


def _lights(plan: Plan, objects: Sequence[Placed], style: Style) -> list[Light]:
    """Return a ceiling lamp for every room, and daylight through its largest window."""
    prior, found = style.prior, []
    rng = style.draw("lights")
    for room in plan.rooms:
        lamps = [o for o in objects if o.room == room.index and o.name == "lamp" and o.base > 1.7]
        power = float(rng.uniform(*prior.power)) * (1.3 + 0.11 * room.area)
        warm = kelvin(float(rng.uniform(*prior.light)))
        x, y = lamps[0].centre[:2].tolist() if lamps else room.centre
        z = (lamps[0].base if lamps else plan.height) - 0.06
        found.append(Light(room.index, (x, y, z), _times(warm, power)))
        windows = [(side, o) for side in room.sides for o in side.openings if o.leads_to is None]
        if windows:
            side, o = max(windows, key=lambda w: (w[1].end - w[1].start) * (w[1].high - w[1].low))
            size = (o.end - o.start) * (o.high - o.low)
            px, py = side.point((o.start + o.end) / 2, -0.02)
            inward = (-float(np.sin(side.yaw)), float(np.cos(side.yaw)), -0.25)
            day = kelvin(float(rng.uniform(6000, 8500)))
            where = (px, py, o.low + 0.75 * (o.high - o.low))
            found.append(
                Light(room.index, where, _times(day, 1.6 * size * float(rng.uniform(0.7, 1.3))), inward)
            )
    return found


KELVIN = np.array([1500, 2000, 2700, 3500, 4500, 5500, 6500, 8000, 10000, 15000])
WHITE = np.array(  # linear sRGB of a black body, the largest channel 1; rounded from Planck's law and the CIE 1931 observer
    [
        *((1, 0.16, 0.0), (1, 0.25, 0.007), (1, 0.39, 0.09), (1, 0.54, 0.24), (1, 0.71, 0.47)),
        *((1, 0.86, 0.74), (1, 0.97, 0.99), (0.78, 0.84, 1), (0.61, 0.71, 1), (0.46, 0.58, 1)),
    ]
)


def kelvin(temperature: float) -> tuple[float, float, float]:
    """Return the linear colour of a colour temperature in kelvin with mean 1, with half of its tint (partial adaptation).

    >>> [round(c, 2) for c in kelvin(6500)]
    [1.01, 0.99, 1.0]
    """
    colour = np.array([np.interp(temperature, KELVIN, WHITE[:, c]) for c in range(3)])
    r, g, b = (np.sqrt(colour) / np.sqrt(colour).mean()).tolist()
    return r, g, b


def _times(colour: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
