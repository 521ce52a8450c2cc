"""Furnishing of rooms by their kind: furniture and its arrangement, such as chairs around tables."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from testtime.moved import renamed
from testtime.scenes.furniture import Model, build
from testtime.scenes.layout import Footprint, Layout, Placed
from testtime.scenes.plan import Room
from testtime.scenes.style import Style

__all__ = ["furnish", "small_objects"]

__getattr__ = renamed(__name__, {"small_things": "small_objects"})


def furnish(layout: Layout, room: Room, style: Style) -> None:
    """Furnish a room by its kind, large objects first, objects on walls last.

    Args:
        layout: layout of the house, to which the furniture is added.
        room: room to furnish.
        style: style of the house.
    """
    made = partial(build, style=style)
    {"living": _living, "kitchen": _kitchen, "bed": _bedroom, "bath": _bathroom, "study": _study}[room.kind](
        layout, room, style, made
    )
    lamp = made("ceiling_lamp", variant=0)
    x, y = room.centre
    layout.put(lamp, room.index, x, y, 0.0, layout.plan.height - lamp.size[2], solid=False)
    _curtains(layout, room, style, made)
    _pictures(layout, room, made)


def small_objects(room: Room, style: Style) -> list[Model]:
    """Draw the small objects of a room; a house has few models of each class.

    Args:
        room: room of the objects.
        style: style of the house.
    """
    rng = style.draw("things", room.index)
    likely = {
        "living": {"pillow": 4, "book": 4, "mug": 2, "vase": 2, "bottle": 1, "box": 1},
        "kitchen": {"mug": 4, "bottle": 4, "box": 1, "vase": 1, "book": 1},
        "bed": {"pillow": 4, "book": 2, "mug": 1, "box": 2, "vase": 1},
        "bath": {"bottle": 2, "box": 1},
        "study": {"book": 5, "mug": 2, "box": 2, "vase": 1, "bottle": 1},
    }[room.kind]
    scale = style.prior.clutter * float(np.clip(room.area / 14, 0.6, 1.5))
    return [
        build(name, style, int(rng.integers(3)))
        for name, mean in likely.items()
        for _ in range(int(rng.poisson(mean * scale * 0.8)) + (name in ("pillow", "book") and mean > 3))
    ]


def _living(layout: Layout, room: Room, style: Style, made: Any) -> None:
    rng = layout.rng
    if not any(r.kind == "kitchen" for r in layout.plan.rooms) and room.area > 11:
        _kitchen_row(layout, room, made)
    sofa = layout.against(room, made("sofa"), tries=60)
    if sofa is not None:
        table = made("coffee_table")
        front = sofa.size[1] / 2
        layout.near(room, sofa, table, 0, front + 0.4 + table.size[1] / 2)
        rug = made("rug")
        layout.near(room, sofa, rug, 0, front - 0.15 + rug.size[1] / 2, solid=False)
        facing = [s for s, side in enumerate(room.sides) if np.cos(side.yaw - sofa.yaw) < -0.9]
        stand = layout.against(room, made("sideboard"), facing) or layout.against(room, made("sideboard"))
        if stand is not None:
            layout.atop(made("tv"), stand)
        for way in (-1, 1):
            if rng.random() < 0.6:
                lamp = made("floor_lamp")
                layout.near(room, sofa, lamp, way * (sofa.size[0] / 2 + lamp.size[0] / 2 + 0.05), -0.2)
                break
        if rng.random() < 0.6:
            chair = made("armchair")
            side = float(rng.choice([-1, 1]))
            layout.near(room, sofa, chair, side * (sofa.size[0] / 2 + 0.15), front + 0.75, side * np.pi / 2)
    if room.area > 15:
        _dining(layout, room, made, margin=0.25)
    layout.against(room, made("shelf"))
    if room.area > 18 or rng.random() < 0.4:
        layout.against(room, made("shelf"))
    layout.against(room, made("plant"), corner=True)
    if rng.random() < 0.6:
        layout.against(room, made("plant"), corner=True)
    if room.area > 16:
        layout.against(room, made("dresser"))


def _kitchen(layout: Layout, room: Room, style: Style, made: Any) -> None:
    _kitchen_row(layout, room, made)
    if room.area > 7:
        _dining(layout, room, made, margin=0.12)
    layout.against(room, made("shelf")) if layout.rng.random() < 0.5 else layout.against(
        room, made("dresser")
    )
    if layout.rng.random() < 0.6:
        layout.against(room, made("plant"), corner=True)


def _kitchen_row(layout: Layout, room: Room, made: Any) -> None:
    """Add a fridge, worktops, a stove and a sink side by side, with cabinets above."""
    counter, stove, sink, fridge = made("counter"), made("stove"), made("kitchen_sink"), made("fridge")
    choices = [
        [fridge, counter, sink, counter, stove, counter],
        [counter, sink, counter, stove, counter],
        [fridge, counter, stove, sink],
        [counter, stove, sink],
        [stove, sink],
    ]
    if layout.rng.random() < 0.5:
        choices = [c[::-1] for c in choices]
    for models in choices:
        found = layout.row(room, models)
        if found is None:
            continue
        s, start, placed = found
        above, at = made("wall_cabinet"), start
        for model in models:
            w = model.size[0]
            if model.name == "cabinet":
                span = (at, at + above.size[0], above.lift, above.lift + above.size[2])
                if layout.clear(room.index, s, *span):
                    layout.wall[room.index, s].append(span)
                    x, y = room.sides[s].point(at + w / 2, above.size[1] / 2 + 0.002)
                    layout.put(above, room.index, x, y, room.sides[s].yaw, solid=False)
            at += w
        if not any(p.name == "fridge" for p in placed):
            layout.against(room, fridge)
        return


def _dining(layout: Layout, room: Room, made: Any, margin: float) -> None:
    """Add a table in the middle or against a wall, with chairs on its free sides."""
    table, chair = made("table"), made("chair")
    w, d, _ = table.size
    placed = layout.free(room, table, margin + chair.size[1] + 0.05) or layout.free(room, table, 0.35, 40)
    if placed is None:
        placed = layout.against(room, table)
    if placed is None:
        return
    deep = d / 2 + chair.size[1] / 2 + 0.02
    wide = w / 2 + chair.size[1] / 2 + 0.02
    across = (-w / 4, w / 4) if w > 1.15 else (0.0,)
    for x in across:
        layout.near(room, placed, chair, x, deep, np.pi)
        layout.near(room, placed, chair, x, -deep, 0.0)
    if layout.rng.random() < 0.6:
        layout.near(room, placed, chair, wide, 0, np.pi / 2)
        layout.near(room, placed, chair, -wide, 0, -np.pi / 2)


def _bedroom(layout: Layout, room: Room, style: Style, made: Any) -> None:
    bed = _first(layout, room, [made("bed", variant=v) for v in range(3)])
    if bed is not None:
        stand, lamp = made("nightstand"), made("table_lamp")
        for side in (-1, 1):
            x = side * (bed.size[0] / 2 + stand.size[0] / 2 + 0.03)
            y = -bed.size[1] / 2 + stand.size[1] / 2
            beside = layout.near(room, bed, stand, x, y)
            if beside is not None:
                layout.atop(lamp, beside, 0, -0.02)
        if layout.rng.random() < 0.7:
            layout.near(room, bed, made("rug"), 0, bed.size[1] * 0.35, solid=False)
    layout.against(room, made("wardrobe"), tries=60)
    if layout.rng.random() < 0.65:
        dresser = layout.against(room, made("dresser"))
        if dresser is not None and layout.rng.random() < 0.5:
            layout.atop(made("tv"), dresser)
    if layout.rng.random() < 0.5:
        layout.against(room, made("plant"), corner=True)
    if room.area > 13:
        layout.against(room, made("armchair"), corner=True)
    if room.area > 11 and layout.rng.random() < 0.5:
        _desk(layout, room, made)
    elif layout.rng.random() < 0.5:
        layout.against(room, made("shelf"))


def _bathroom(layout: Layout, room: Room, style: Style, made: Any) -> None:
    layout.against(room, made("bathtub"), tries=60, corner=True) or layout.against(room, made("bathtub"))
    layout.against(room, made("toilet"), tries=60)
    basin = layout.against(room, made("bath_sink"), tries=60)
    if basin is not None:
        mirror = made("mirror")
        side = next(s for s, v in enumerate(room.sides) if abs(np.sin((v.yaw - basin.yaw) / 2)) < 1e-6)
        along = float((basin.centre[:2] - room.sides[side].origin) @ [np.cos(basin.yaw), np.sin(basin.yaw)])
        w, _, h = mirror.size
        if layout.clear(room.index, side, along - w / 2, along + w / 2, mirror.lift, mirror.lift + h):
            layout.stretch(room, side, mirror, along - w / 2, along + w / 2, mirror.lift, mirror.lift + h)
        layout.near(room, basin, made("bath_rug"), 0, basin.size[1] / 2 + 0.32, solid=False)
    if layout.rng.random() < 0.6:
        layout.against(room, made("dresser"))
    if layout.rng.random() < 0.5:
        layout.against(room, made("plant"), corner=True)


def _study(layout: Layout, room: Room, style: Style, made: Any) -> None:
    _desk(layout, room, made)
    layout.against(room, made("shelf"))
    layout.against(room, made("shelf"))
    if layout.rng.random() < 0.5:
        layout.against(room, made("dresser"))
    if room.area > 9 and layout.rng.random() < 0.6:
        layout.against(room, made("sofa"))
    else:
        layout.against(room, made("armchair"), corner=True)
    layout.against(room, made("plant"), corner=True)
    layout.against(room, made("floor_lamp"), corner=True)
    layout.free(room, made("rug"), solid=False)


def _desk(layout: Layout, room: Room, made: Any) -> None:
    desk = layout.against(room, made("desk"), tries=60)
    if desk is not None:
        w, d, _ = desk.size
        screen = made("monitor")
        layout.atop(screen, desk, -0.22 * w, -d / 2 + 0.15)
        chair = made("office_chair")
        layout.near(room, desk, chair, -0.22 * w, d / 2 + chair.size[1] / 2 + 0.03, np.pi)


def _first(layout: Layout, room: Room, models: list[Model]) -> Placed | None:
    """Place one of several models, tried in a random order; None if none has a place."""
    for k in layout.rng.permutation(len(models)):
        if placed := layout.against(room, models[k], tries=30):
            return placed
    return None


def _curtains(layout: Layout, room: Room, style: Style, made: Any) -> None:
    """Hang curtains on both sides of each window, down to the floor where there is no furniture below."""
    if room.kind == "bath" or style.draw("curtains", room.index).random() < 0.2:
        return
    curtain = made("curtain")
    for s, side in enumerate(room.sides):
        for o in side.openings:
            if o.leads_to is not None:
                continue
            top = min(o.high + 0.12, layout.plan.height - 0.02)
            wide = 0.22 + 0.12 * (o.end - o.start)
            for start, end in ((o.start - wide + 0.1, o.start + 0.1), (o.end - 0.1, o.end + wide - 0.1)):
                start, end = max(start, 0.02), min(end, side.length - 0.02)
                beside = (start, o.start) if start < o.start else (o.end, end)
                if beside[1] - beside[0] < 0.05:
                    continue
                for low in (0.03, o.low - 0.12):
                    x, y = side.point((start + end) / 2, 0.08)
                    hangs_free = low > 0.3 or layout.fits(
                        room, Footprint(x, y, (end - start) / 2, 0.05, side.yaw)
                    )
                    if hangs_free and layout.clear(room.index, s, *beside, low, top):
                        layout.stretch(room, s, curtain, start, end, low, top)
                        break


def _pictures(layout: Layout, room: Room, made: Any) -> None:
    if room.kind == "bath":
        return
    for k in range(5):
        layout.against(room, made("picture", variant=k), tries=10)
