"""Walks through rooms: labels are those of the cameras, visits are apart, and equal seeds give equal walks."""

from functools import cache

import numpy as np
import pytest

from testtime.scenes import generate_house
from testtime.scenes.walks import room_walk


@cache
def the_house():
    return generate_house(0)


@cache
def the_walk():
    return room_walk(the_house(), room=1, frames=40, seed=3, visits=2)


def test_labels_are_the_rooms_of_the_cameras():
    assert the_walk().kind == the_house().rooms[1].kind
    np.testing.assert_array_equal(
        the_walk().inside, [the_house().rooms[c.room].kind == the_walk().kind for c in the_walk().cameras]
    )
    again = np.zeros(40, bool)
    for a, b in the_walk().segments:
        again[a:b] = True
    np.testing.assert_array_equal(again, the_walk().inside)


def test_the_main_room_is_visited_as_often_as_asked_and_walks_differ_in_their_ends():
    walks = [room_walk(the_house(), 2, 36, visits, visits) for visits in (1, 2, 3)]
    assert [len(walk.segments) for walk in walks] == [1, 2, 3]
    assert all(len(walk.cameras) == 36 and 0.3 <= walk.inside.mean() <= 0.7 for walk in walks)
    assert len({(bool(walk.inside[0]), bool(walk.inside[-1])) for walk in walks}) > 1


def test_a_camera_stands_and_turns_within_a_visit():
    a, b = the_walk().segments[0]
    positions = np.array([c.position for c in the_walk().cameras[a:b]])
    assert np.ptp(positions, axis=0).max() == 0
    directions = np.array([-c.pose[:3, 2] for c in the_walk().cameras[a:b]])
    steps = np.arccos(
        np.clip((directions[1:, :2] * directions[:-1, :2]).sum(1) / (1 - directions[0, 2] ** 2), -1, 1)
    )
    np.testing.assert_allclose(steps, 0.12, atol=1e-6)


def test_equal_seeds_give_equal_walks():
    other = room_walk(the_house(), room=1, frames=40, seed=3, visits=2)
    assert all(np.array_equal(a.pose, b.pose) for a, b in zip(the_walk().cameras, other.cameras, strict=True))


def test_what_cannot_be_walked_is_refused():
    with pytest.raises(ValueError, match="ten frames"):
        room_walk(the_house(), 1, 10, 0, visits=2)
    with pytest.raises(ValueError, match="rooms of other kinds"):
        room_walk(generate_house(3), 0, 40, 0)
