"""Anomalies in rooms: the mask is exact, the house is not changed, and equal seeds give equal anomalies."""

from functools import cache

import numpy as np
import pytest

from testtime.scenes import CLASSES, Renderer, generate_house
from testtime.scenes.anomalies import ANOMALIES, DISPLACED, FOREIGN, add_anomaly


@cache
def the_house():
    return generate_house(3)


@cache
def the_cameras():
    return the_house().cameras(3)


@pytest.mark.parametrize("kind", ANOMALIES)
def test_an_anomaly_is_seen_and_what_is_before_it_stays(kind):
    found = add_anomaly(the_house(), the_cameras()[0], kind, seed=0)
    assert found is not None
    with_it = Renderer(found.house).frame(the_cameras()[0], (48, 64), boxes=False)
    without = Renderer(the_house()).frame(the_cameras()[0], (48, 64), boxes=False)
    mask = with_it.instance == found.instance
    assert mask.mean() > 0.005
    np.testing.assert_array_equal(with_it.instance[~mask], without.instance[~mask])
    np.testing.assert_array_equal(with_it.depth[~mask], without.depth[~mask])
    assert (with_it.depth[mask] < without.depth[mask]).all()  # it stands in front of what was seen there
    labels = set(np.unique(with_it.semantic[mask]).tolist())
    assert labels == ({255} if kind == "foreign" else {CLASSES.index(found.name)})


@pytest.mark.parametrize("kind", ANOMALIES)
def test_equal_seeds_give_equal_anomalies_and_others_others(kind):
    places = [add_anomaly(the_house(), the_cameras()[1], kind, seed) for seed in (1, 1, 2)]
    centres = [p.house.objects[-1].centre.tolist() for p in places if p is not None]
    assert centres[0] == centres[1] != centres[2]


def test_an_anomaly_stands_free_in_the_room_of_its_camera():
    for camera in the_cameras():
        for seed in range(3):
            found = add_anomaly(the_house(), camera, "displaced", seed)
            if found is None:
                continue
            placed = found.house.objects[-1]
            room = the_house().rooms[camera.room]
            assert room.kind in DISPLACED[found.name]
            corners = placed.footprint.corners()
            assert (corners >= np.array(room.low)).all()
            assert (corners <= np.array(room.high)).all()


def test_names_are_checked_and_foreign_objects_are_of_no_class():
    assert not set(FOREIGN) & set(CLASSES)
    with pytest.raises(ValueError, match="foreign, displaced"):
        add_anomaly(the_house(), the_cameras()[0], "strange", 0)
