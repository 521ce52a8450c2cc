import numpy as np
import pytest

from testtime.scenes.layout import Footprint, overlap


def inside(f, points):
    c, s = np.cos(f.yaw), np.sin(f.yaw)
    local = (points - [f.x, f.y]) @ np.array([[c, -s], [s, c]])
    return (np.abs(local) < [f.half_width, f.half_depth]).all(axis=1)


def test_overlap_agrees_with_sampling():
    rng = np.random.default_rng(0)
    axis = np.linspace(-3, 3, 121)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    wrong = agreed = 0
    for _ in range(300):
        a, b = (
            Footprint(*rng.uniform(-1, 1, 2), *rng.uniform(0.2, 0.9, 2), rng.uniform(-3, 3)) for _ in range(2)
        )
        common = int((inside(a, points) & inside(b, points)).sum())
        if 0 < common < 3:
            continue  # too close for sampling
        agreed += overlap(a, b) == (common > 0)
        wrong += overlap(a, b) != (common > 0) and common > 0
        assert overlap(a, b) == overlap(b, a)
    assert wrong == 0
    assert agreed > 270


def test_touching_rectangles_do_not_overlap():
    assert not overlap(Footprint(0, 0, 1, 1), Footprint(2, 0, 1, 1))
    assert overlap(Footprint(0, 0, 1, 1), Footprint(1.99, 0, 1, 1))


def test_corners_and_distances():
    f = Footprint(1, 2, 0.5, 0.25, np.pi / 2)
    assert sorted(map(tuple, f.corners().round(6).tolist())) == [
        (0.75, 1.5),
        (0.75, 2.5),
        (1.25, 1.5),
        (1.25, 2.5),
    ]
    points = np.array([[1.0, 2.0], [1.25, 2.6], [1.55, 2.9], [3.25, 2.0]])
    assert f.distance(points) == pytest.approx([0, 0.1, 0.5, 2.0])
    assert np.ptp(f.corners(0.5)[:, 0]) == pytest.approx(1.5)
