import numpy as np
import pytest

from testtime.scenes.geometry import box
from testtime.scenes.texture import PATTERNS, Material, Paint, linear, noise

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def colours(material, points, footprint=0.0):
    points = np.asarray(points, dtype=np.float32)
    return Paint([material]).albedo(
        np.zeros(len(points), int), points, np.full(len(points), footprint, np.float32)
    )


def test_linear_light():
    s = np.linspace(0, 1, 11)
    expected = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in s]
    assert np.allclose(linear(s), expected, atol=1e-6)


def test_checker_alternates_between_its_colours_every_period():
    paint = Paint([Material(RED, BLUE, "checker", 0.5)])
    paint.offset[:] = 0
    points = np.array(
        [[0.1, 0.1, 0.1], [0.6, 0.1, 0.1], [0.6, 0.6, 0.1], [0.6, 0.6, 0.6], [-0.1, 0.1, 0.1]], np.float32
    )
    found = paint.albedo(np.zeros(5, int), points, np.zeros(5, np.float32))
    assert found.tolist() == [list(RED), list(BLUE), list(RED), list(BLUE), list(BLUE)]


def test_a_pattern_does_not_flicker_on_a_face_that_lies_in_one_of_its_planes():
    mesh = box((-1, -1, -1), (1, 1, 1))
    top = np.isclose(mesh.triangles[..., 2], 1).all(axis=1)
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], 500)
    rows = np.random.default_rng(1).integers(top.sum(), size=500)
    local = np.einsum("nc,nci->ni", weights, mesh.local[top][rows]).astype(np.float32)
    paint = Paint([Material(RED, BLUE, "checker", 1.0)])
    paint.offset[:] = 0
    found = paint.albedo(np.zeros(500, int), local, np.zeros(500, np.float32))
    across = [k for k in range(3) if np.ptp(local[:, k]) > 0.1]
    odd = (
        np.floor(local[:, across]).sum(axis=1) % 2 == 0
    )  # the third coordinate lies just below the plane at 1
    assert (found[:, 0] == odd).all()


def test_patterns_finer_than_a_pixel_fade_to_their_mean():
    points = np.random.default_rng(0).uniform(-2, 2, (200, 3))
    sharp = colours(Material(RED, BLUE, "checker", 0.1), points)
    faded = colours(Material(RED, BLUE, "checker", 0.1), points, footprint=0.2)
    assert set(map(tuple, sharp.tolist())) == {RED, BLUE}
    assert np.allclose(faded, [0.5, 0, 0.5])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_lies_between_its_colours(pattern):
    points = np.random.default_rng(0).uniform(-2, 2, (400, 3)).astype(np.float32)
    amount, factor = PATTERNS[pattern](points, np.full(400, 0.1, np.float32))
    assert amount.shape == factor.shape == (400,)
    assert amount.min() >= 0
    assert amount.max() <= 1
    assert (factor > 0.3).all()
    assert (factor < 1.6).all()
    again, _ = PATTERNS[pattern](points[::-1], np.full(400, 0.1, np.float32))
    assert np.array_equal(again[::-1], amount)  # a point's colour depends on nothing but the point


def test_noise_is_smooth_repeats_and_fills_its_range():
    points = np.random.default_rng(0).uniform(0, 8, (2000, 3)).astype(np.float32)
    values = noise(points)
    assert 0 <= values.min() < 0.2
    assert 0.8 < values.max() <= 1
    assert np.allclose(noise(points + np.array([8, 16, -8], np.float32)), values, atol=2e-3)
    assert np.abs(noise(points + 0.01) - values).max() < 0.1


def test_without_textures_a_material_is_one_colour():
    paint = Paint([Material(RED, BLUE, "checker"), Material(RED, BLUE)]).plain()
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    found = paint.albedo(np.arange(50) % 2, points, np.zeros(50, np.float32))
    assert np.allclose(found[::2], [0.6, 0, 0.4])
    assert np.allclose(found[1::2], RED)


def test_an_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match=r"pattern: expected one of plain, checker.* got 'tartan'"):
        Material(RED, pattern="tartan")
