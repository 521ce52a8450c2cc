import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from testtime.scenes import CLASSES, STYLES, House, Renderer, generate_house
from testtime.scenes.furniture import SMALL, STRUCTURE
from testtime.scenes.house import door_zones, kelvin
from testtime.scenes.layout import mesh_of, overlap
from testtime.scenes.tracer import tracer


@cache
def houses() -> list[House]:
    return [generate_house(seed, style) for seed in range(4) for style in STYLES]


def standing(house: House):
    return [
        o
        for o in house.objects
        if o.model is not None
        and not o.movable
        and o.on is None
        and o.base < 0.01
        and o.name not in ("rug", "curtain")
    ]


def test_furniture_intersects_neither_furniture_nor_walls_nor_doors():
    checked = 0
    for house in houses():
        things = standing(house)
        for i, a in enumerate(things):
            room = house.rooms[a.room]
            corners = a.footprint.corners()
            assert (corners >= np.array(room.low) - 1e-6).all()
            assert (corners <= np.array(room.high) + 1e-6).all()
            for zone in door_zones(room):
                assert not overlap(a.footprint, zone), a
            for b in things[:i]:
                if a.room == b.room:
                    checked += 1
                    assert not overlap(a.footprint, b.footprint), (a, b)
    assert checked > 500


def test_rays_pass_from_room_to_room_through_the_gaps_of_open_doors():
    passed = shut = 0
    for house in houses():
        rays = tracer(house.mesh.triangles)
        for room, side, o in house.plan.doors():
            if o.leads_to < 0:
                continue
            along = np.linspace(o.start + 0.1, o.end - 0.1, 5)
            start = np.array([[*side.point(a, 0.15), z] for a in along for z in (0.3, 1.0, 1.9)])
            end = np.array([[*side.point(a, -0.35), z] for a in along for z in (0.3, 1.0, 1.9)])
            beside = np.array([[*side.point(o.start + x, y), 1.0] for x in (-0.15,) for y in (0.15, -0.35)])
            above = np.array([[*side.point((o.start + o.end) / 2, y), 2.15] for y in (0.15, -0.35)])
            blocked = rays.occluded(start, end)
            assert blocked.all() or blocked.sum() <= 3, (
                house,
                room,
            )  # shut, or the leaf takes one edge at most
            passed, shut = passed + (not blocked.all()), shut + blocked.all()
            assert rays.occluded(beside[:1], beside[1:]).all()
            assert rays.occluded(above[:1], above[1:]).all()
    assert passed > 2 * shut > 0


def test_no_ray_leaves_the_house():
    rng = np.random.default_rng(0)
    for house in houses()[:6]:
        rays = tracer(house.mesh.triangles)
        for room in house.rooms:
            start = np.broadcast_to([*room.centre, 1.9], (2000, 3))
            assert (rays.trace(start, rng.normal(size=(2000, 3))).triangle >= 0).all()


def test_objects_are_numbered_from_one_and_their_triangles_have_the_numbers():
    house = houses()[0]
    assert [o.instance for o in house.objects] == list(range(1, len(house.objects) + 1))
    assert set(np.unique(house.mesh.instance)) == set(range(1, len(house.objects) + 1))
    for o in house.objects:
        mine = house.mesh.chosen(house.mesh.instance == o.instance)
        assert set(mine.label) == {o.label}
        assert CLASSES[o.label] == o.name
        c, s = np.cos(o.yaw), np.sin(o.yaw)
        local = (mine.triangles.reshape(-1, 3) - o.centre) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        assert local.max(axis=0) == pytest.approx(o.size / 2, abs=1e-4)
        assert local.min(axis=0) == pytest.approx(-o.size / 2, abs=1e-4)


def test_small_objects_lie_on_something_and_apart():
    lying = 0
    for house in houses():
        by_number = {o.instance: o for o in house.objects}
        small = [o for o in house.objects if o.movable]
        assert {o.name for o in small} <= set(SMALL)
        for i, o in enumerate(small):
            if o.on is None:
                assert o.base == 0
                continue
            lying += 1
            support = by_number[o.on]
            assert o.room == support.room
            assert support.base < o.base <= support.base + support.size[2] + 1e-6
            assert support.footprint.distance(o.footprint.corners()).max() < 1e-6
            for other in small[:i]:
                heights = o.base < other.base + other.size[2] and other.base < o.base + o.size[2]
                assert not (other.on == o.on and heights and overlap(o.footprint, other.footprint))
    assert lying > 150


def test_moved_moves_small_objects_only():
    for house in houses()[:3]:
        moved = house.moved(7)
        assert [o.instance for o in moved.objects] == [o.instance for o in house.objects]
        for a, b in zip(house.objects, moved.objects, strict=True):
            assert (a.label, a.movable) == (b.label, b.movable)
            same = np.array_equal(a.centre, b.centre) and a.yaw == b.yaw
            assert same == (not a.movable)
            if a.movable:
                assert a.model is b.model
        assert np.array_equal(moved.mesh.triangles, house.moved(7).mesh.triangles)
        assert not np.array_equal(moved.mesh.triangles, house.moved(8).mesh.triangles)
        assert np.array_equal(moved.fixed.triangles, house.fixed.triangles)


def test_models_recur_within_a_house_and_differ_between_houses():
    chairs = [
        {
            mesh_of(o).moved(-o.centre).moved(yaw=-o.yaw).triangles.round(3).tobytes()
            for o in h.objects
            if o.name == "bed"
        }
        for h in (generate_house(s) for s in range(8))
    ]
    known = [c for c in chairs if c]
    assert len(set().union(*known)) == sum(map(len, known)) > 4


def test_the_style_changes_the_furniture_and_not_the_plan():
    one, two = generate_house(2), generate_house(2, "other")
    assert [r.low for r in one.rooms] == [r.low for r in two.rooms]
    assert [r.kind for r in one.rooms] == [r.kind for r in two.rooms]
    assert not np.array_equal(one.mesh.triangles, two.mesh.triangles)


def test_every_room_is_lit_by_a_lamp_and_by_at_most_one_window():
    for house in houses():
        for room in house.rooms:
            lights = [light for light in house.lights if light.room == room.index]
            assert [light.facing is None for light in lights] in ([True], [True, False])
            for light in lights:
                assert (np.array(light.position[:2]) > np.array(room.low) - 0.05).all()
                assert (np.array(light.position[:2]) < np.array(room.high) + 0.05).all()
    assert kelvin(2700)[0] > 1 > kelvin(2700)[2]
    assert kelvin(9000)[0] < 1 < kelvin(9000)[2]
    assert np.mean(kelvin(3000)) == pytest.approx(1)


def test_a_house_has_its_structure():
    for house in houses():
        names = [o.name for o in house.objects]
        rooms = len(house.rooms)
        assert (names.count("floor"), names.count("ceiling"), names.count("wall")) == (
            rooms,
            rooms,
            4 * rooms,
        )
        assert names.count("door") >= rooms
        assert all(o.model is None for o in house.objects if o.name in STRUCTURE)


def digest() -> str:
    house = generate_house(5, "other")
    renderer = Renderer(house)
    state = hashlib.sha256(house.mesh.triangles.tobytes())
    for camera in house.cameras(3):
        frame = renderer.frame(camera, (32, 32))
        for array in (frame.depth, frame.instance, frame.semantic, frame.normal, frame.pose, frame.rgb):
            state.update(np.ascontiguousarray(array).tobytes())
        state.update(repr(frame.boxes).encode())
    return state.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    here = digest()
    assert digest() == here
    code = "import test_house; print(test_house.digest())"
    folder = __file__.rsplit("/", 1)[0]
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="seed: expected 0 or more, got -1"):
        generate_house(-1)
    with pytest.raises(ValueError, match="style: expected one of default, other, minimal, got 'rococo'"):
        generate_house(0, "rococo")
