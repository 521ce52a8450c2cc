import numpy as np
import pytest

from testtime.scenes.plan import DOOR, LEAST, WALL, draw_plan
from testtime.scenes.style import generator

PLANS = [draw_plan(generator(seed, "plan"), 2.6) for seed in range(60)]


def test_rooms_are_large_enough_and_do_not_overlap():
    for plan in PLANS:
        assert 1 <= len(plan.rooms) <= 6
        low = np.array([r.low for r in plan.rooms])
        high = np.array([r.high for r in plan.rooms])
        assert ((high - low) >= LEAST - 1e-9).all()
        width, depth = (high.max(axis=0) - low.min(axis=0)) + 2 * WALL
        assert 6 - 1e-9 <= width <= 14 + 1e-9
        assert 5 - 1e-9 <= depth <= 10 + 1e-9
        cells = (high - low + 2 * WALL).prod(axis=1).sum()
        assert cells == pytest.approx(width * depth)  # walls included, they fill the house
        for i in range(len(low)):
            for j in range(i):
                assert (np.maximum(low[i], low[j]) >= np.minimum(high[i], high[j]) + 2 * WALL - 1e-9).any()


def test_doors_are_gaps_of_90_by_200_at_the_same_place_in_both_rooms():
    for plan in PLANS:
        gaps = {}
        for room in plan.rooms:
            for side in room.sides:
                for o in side.openings:
                    if o.leads_to is None:
                        continue
                    assert (o.end - o.start, o.high, o.low) == pytest.approx((*DOOR, 0.0))
                    assert 0 <= o.start < o.end <= side.length + 1e-9
                    gaps[room.index, o.leads_to] = np.array(side.point((o.start + o.end) / 2, -WALL))
        assert sum(to == -1 for _, to in gaps) == 1  # one door to the outside
        for (a, b), point in gaps.items():
            if b >= 0:
                assert gaps[b, a] == pytest.approx(point, abs=1e-9)


def test_every_room_can_be_reached():
    for plan in PLANS:
        reached, rim = {0}, [0]
        while rim:
            room = plan.rooms[rim.pop()]
            new = {
                o.leads_to
                for s in room.sides
                for o in s.openings
                if (o.leads_to or 0) > -1 and o.leads_to is not None
            }
            rim += new - reached
            reached |= new
        assert reached == set(range(len(plan.rooms)))


def test_openings_of_a_side_keep_apart_and_windows_look_outside():
    windows = 0
    for plan in PLANS:
        low = np.array([r.low for r in plan.rooms]).min(axis=0)
        high = np.array([r.high for r in plan.rooms]).max(axis=0)
        for room in plan.rooms:
            for side in room.sides:
                for a, b in zip(side.openings[:-1], side.openings[1:], strict=True):
                    assert a.end < b.start
                for o in side.openings:
                    if o.leads_to is None:
                        windows += 1
                        point = np.array(side.point((o.start + o.end) / 2, 0))
                        assert np.isclose(point, low).any() or np.isclose(point, high).any()
                        assert 0.3 < o.low < o.high < plan.height
    assert windows > 100


def test_the_kinds_of_rooms_follow_their_number_and_size():
    for plan in PLANS:
        kinds = [r.kind for r in plan.rooms]
        areas = [r.area for r in plan.rooms]
        assert kinds[0] == "living"
        assert ("bath" in kinds) == (len(kinds) > 2)
        assert kinds.count("bed") == {1: 0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 2}[len(kinds)]
        if "bath" in kinds:
            assert areas[kinds.index("bath")] < 1.3 * min(areas)
