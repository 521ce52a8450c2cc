from functools import cache

import numpy as np
import pytest

from testtime.scenes import SHIFTS, Renderer, Shift, generate_house
from testtime.scenes.render import srgb, tone
from testtime.scenes.shifts import Blur, Fog, Lens, Lighting, Noise, Repainted, Untextured, resolve_shift
from testtime.scenes.style import Style

SIZE = (32, 32)
LABELS = ("depth", "normal", "occlusion", "semantic", "instance", "pose", "intrinsics")


@cache
def the_house():
    return generate_house(4)


@cache
def the_renderer():
    return Renderer(the_house(), backend=None, smooth=False)


@cache
def the_camera():
    return the_house().cameras(3)[1]


@cache
def plain():
    return the_renderer().frame(the_camera(), SIZE)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_the_picture_and_leaves_the_labels_exact(name):
    frame = the_renderer().frame(the_camera(), SIZE, name)
    assert frame.shift == name
    assert np.abs(frame.rgb.astype(int) - plain().rgb).mean() > 2
    assert np.array_equal(the_renderer().frame(the_camera(), SIZE, name).rgb, frame.rgb)  # also of noise
    if isinstance(SHIFTS[name], Lens):
        moved = SHIFTS[name].camera(the_camera(), the_house())
        expected = the_renderer().frame(moved, SIZE)
    else:
        expected = plain()
    for label in LABELS:
        assert np.array_equal(getattr(frame, label), getattr(expected, label)), label
    assert frame.boxes == expected.boxes


def test_light_is_multiplied_and_tinted():
    change = Lighting(0.5, (2.0, 1.0, 0.5), daylight=0.0)
    for before, after in zip(the_house().lights, change.lights(the_house().lights), strict=True):
        factor = 0.5 if before.facing is None else 0.0
        assert after.colour == pytest.approx(np.array(before.colour) * [2, 1, 0.5] * factor)
    means = {
        name: the_renderer().frame(the_camera(), SIZE, name).rgb.mean(axis=(0, 1))
        for name in ("dim", "bright", "warm", "cold")
    }
    usual = plain().rgb.mean(axis=(0, 1))
    assert (means["dim"] < usual - 20).all()
    assert (means["bright"] > usual + 5).all()
    assert means["warm"][0] / means["warm"][2] > 1.15 * usual[0] / usual[2]
    assert means["cold"][0] / means["cold"][2] < 0.9 * usual[0] / usual[2]


def test_fog_follows_beers_law():
    light = np.full((1, 3, 3), 0.5)
    depth = np.array([[1.0, 4.0, 0.0]])
    air = Fog(0.3, (0.6, 0.7, 0.8)).air(light, depth)
    for k, passed in enumerate((np.exp(-0.3), np.exp(-1.2), 0.0)):
        assert air[0, k] == pytest.approx(0.5 * passed + np.array([0.6, 0.7, 0.8]) * (1 - passed))
    frame = the_renderer().frame(the_camera(), SIZE, Fog(50.0, (0.6, 0.7, 0.8)))
    assert np.abs(frame.rgb - 255 * srgb(tone(np.array([0.6, 0.7, 0.8])))).max() <= 0.51


def test_noise_has_its_deviation_and_depends_on_the_camera_only():
    grey = np.full((200, 200, 3), 0.25)
    noisy = Noise(0.1, 0.02).sensor(grey, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(np.sqrt(0.1**2 * 0.25 + 0.02**2), rel=0.01)
    assert noisy.mean() == pytest.approx(0.25, abs=1e-3)
    other = the_house().cameras(3)[2]
    one, two = (
        the_renderer().frame(c, SIZE, "noise").rgb.astype(int) - the_renderer().frame(c, SIZE).rgb
        for c in (the_camera(), other)
    )
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1


def test_blur_is_a_gaussian():
    picture = np.zeros((65, 65, 3))
    picture[32, 32] = 1
    blurred = Blur(2 / 65).sensor(picture, np.random.default_rng(0))
    axis = np.arange(-32, 33)
    expected = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / 8) / (8 * np.pi)
    assert np.allclose(blurred[..., 0], expected, atol=3e-4)
    assert Blur(0.1).sensor(np.full((8, 8, 3), 0.3), np.random.default_rng(0)) == pytest.approx(0.3)


def test_the_lens_moves_within_the_room():
    up, wide = (
        Lens(higher=0.5).camera(the_camera(), the_house()),
        Lens(wider=1.2).camera(the_camera(), the_house()),
    )
    assert up.position[2] == pytest.approx(
        min(the_camera().position[2] + 0.5, the_house().plan.height - 0.35)
    )
    assert up.position[:2].tolist() == the_camera().position[:2].tolist()
    assert wide.fov_degrees == pytest.approx(1.2 * the_camera().fov_degrees)
    assert Lens(higher=9).camera(the_camera(), the_house()).position[2] == pytest.approx(
        the_house().plan.height - 0.35
    )


def test_paint():
    assert (
        Repainted("other").paint(the_renderer().paint, the_house()).materials == Style(4, "other").materials
    )
    assert not Untextured().paint(the_renderer().paint, the_house()).textured
    both = (Repainted("other") + Untextured()).paint(the_renderer().paint, the_house())
    assert (both.materials, both.textured) == (Style(4, "other").materials, False)


def test_shifts_compose_and_are_values():
    both = Lighting(0.5) + Fog(0.2)
    assert both == Lighting(0.5) + Fog(0.2)
    frame = the_renderer().frame(the_camera(), SIZE, both)
    assert frame.shift == repr(both)
    assert not np.array_equal(frame.rgb, the_renderer().frame(the_camera(), SIZE, Lighting(0.5)).rgb)
    assert resolve_shift("night") == ("night", SHIFTS["night"])
    assert resolve_shift(Fog()) == ("fog", Fog())
    assert resolve_shift(None) == ("", Shift())
    assert np.array_equal(the_renderer().frame(the_camera(), SIZE, Shift()).rgb, plain().rgb)
