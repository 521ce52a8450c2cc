import numpy as np
import pytest

from testtime.scenes.style import MATERIALS, STYLES, Style, generator


def test_a_style_is_drawn_once_per_house():
    assert Style(3).materials == Style(3).materials
    assert Style(3).proportions == Style(3).proportions
    assert Style(3).materials != Style(4).materials
    assert Style(3).materials != Style(3, "other").materials
    assert len(Style(3).materials) == len(MATERIALS) == len(set(MATERIALS))
    assert MATERIALS[Style.material("sofa")] == "sofa"


def test_generators_of_different_purposes_differ_and_the_global_one_is_untouched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert generator(0, "a").integers(1 << 30) != generator(0, "b").integers(1 << 30)
    assert generator(0, "a", 1).integers(1 << 30) == generator(0, "a", 1).integers(1 << 30)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_priors_are_shifted_against_each_other():
    def walls(name):
        return np.array([Style(s, name).materials[0].colour for s in range(30)])

    default, other, minimal = walls("default"), walls("other"), walls("minimal")
    assert default.mean() > 0.75
    assert other.mean() < 0.65
    assert minimal.mean() > 0.88
    assert np.ptp(other, axis=1).mean() > 2 * np.ptp(default, axis=1).mean()  # saturated

    def patterned(name):
        return np.mean([m.pattern != "plain" for s in range(10) for m in Style(s, name).materials[:10]])

    assert patterned("other") > patterned("default") > patterned("minimal") > 0
    widths = np.array([[Style(s, n).proportions[0] for s in range(30)] for n in ("default", "other")])
    assert widths[1].std() > 2 * widths[0].std()


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style: expected one of default, other, minimal, got 'baroque'"):
        Style(0, "baroque")
    assert list(STYLES) == ["default", "other", "minimal"]
