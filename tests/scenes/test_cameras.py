from functools import cache

import numpy as np
import pytest

from testtime.scenes import CLASSES, Renderer, generate_house
from testtime.scenes.cameras import CLEARANCE, FLAT, RINGS, camera_pose, intrinsics, rays, ring_of
from testtime.scenes.plan import Room


@cache
def the_house():
    return generate_house(3)


@cache
def the_cameras():
    return the_house().cameras(24, seed=1)


def test_cameras_keep_the_rules():
    for camera in the_cameras():
        room = the_house().rooms[camera.room]
        x, y, z = camera.position
        assert 0.9 <= z <= 1.7
        assert 60 <= camera.fov_degrees <= 90
        assert room.low[0] + CLEARANCE <= x <= room.high[0] - CLEARANCE
        assert room.low[1] + CLEARANCE <= y <= room.high[1] - CLEARANCE
        things = [
            o
            for o in the_house().objects
            if o.room == camera.room and o.model is not None and o.name != "rug" and o.base < 1.8
        ]
        assert min(o.footprint.distance(np.array([[x, y]]))[0] for o in things) >= CLEARANCE
        turn = camera.pose[:3, :3]
        assert np.allclose(turn.T @ turn, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        assert turn[2, 0] == 0  # no roll: right is level


def test_views_show_furniture_at_a_distance():
    renderer = Renderer(the_house(), smooth=False)
    shown, flat = [], [CLASSES.index(name) for name in FLAT]
    for camera in the_cameras():
        frame = renderer.frame(camera, (16, 16), boxes=False)
        assert np.median(frame.depth) >= 0.6
        assert len(np.unique(frame.instance)) >= 3
        assert len(np.unique(frame.semantic)) >= 3
        shown.append((~np.isin(frame.semantic, flat)).mean())
    assert min(shown) >= 0.2


def test_cameras_are_in_the_rooms_in_turn_and_apart():
    assert [c.room for c in the_cameras()] == [k % len(the_house().rooms) for k in range(24)]
    for room in the_house().rooms:
        places = np.array([c.position[:2] for c in the_cameras() if c.room == room.index])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(len(places), 1)]
        assert gaps.min() > 0.1


def test_a_longer_list_starts_with_the_shorter_one_and_seeds_differ():
    short = the_house().cameras(5, seed=1)
    assert all(np.array_equal(a.pose, b.pose) for a, b in zip(short, the_cameras(), strict=False))
    assert not np.array_equal(the_house().cameras(1, seed=2)[0].pose, short[0].pose)


def test_rings_are_concentric_rectangles():
    room = Room(0, "bed", (0.0, 0.0), (8.0, 4.0))
    assert [ring_of(room, 4 + 4 * f, 2) for f in (0, 0.24, 0.26, 0.6, 0.8, 1.0)] == [0, 0, 1, 2, 3, 3]
    assert [ring_of(room, 4, 2 - 2 * f) for f in (0.1, 0.49, 0.51, 0.99)] == [0, 1, 2, 3]
    assert {c.ring for c in the_cameras()} <= set(range(RINGS))


def test_rays_are_those_of_a_pinhole():
    pose = camera_pose(np.array([1.0, 2.0, 3.0]), 0.0, 0.0)  # along +x: right is -y, up is z
    camera = type(the_cameras()[0])(pose, 90.0)
    directions = rays(camera, (2, 4)).reshape(2, 4, 3)
    assert directions[0, 0].tolist() == pytest.approx([1, 0.75, 0.25])
    assert directions[1, 3].tolist() == pytest.approx([1, -0.75, -0.25])
    k = intrinsics(60, (48, 64))
    assert k[0, 0] == pytest.approx(32 / np.tan(np.pi / 6))
    assert k[1, 2] == 24


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="a count of 1 or more and a seed of 0 or more, got 0 and 0"):
        the_house().cameras(0)
