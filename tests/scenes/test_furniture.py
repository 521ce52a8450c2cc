import numpy as np
import pytest

from testtime.scenes.furniture import CLASSES, MODELS, SMALL, STRUCTURE, build, label_of, stretched
from testtime.scenes.style import STYLES, Style
from testtime.scenes.tracer import NumpyTracer

HEIGHTS = {  # of what a person would expect, in metres, for any style
    "bed": (0.6, 1.5),
    "sofa": (0.6, 1.1),
    "table": (0.25, 0.9),
    "chair": (0.6, 1.3),
    "desk": (0.6, 0.9),
    "wardrobe": (1.6, 2.4),
    "fridge": (1.5, 2.1),
    "toilet": (0.7, 0.9),
    "bathtub": (0.6, 0.9),
    "mug": (0.07, 0.13),
    "bottle": (0.2, 0.4),
    "rug": (0.005, 0.04),
}


def test_every_class_but_the_structure_has_a_model():
    assert {build(name, Style(0)).name for name in MODELS} == set(CLASSES) - set(STRUCTURE)
    assert set(SMALL) <= set(CLASSES)
    assert CLASSES[:5] == ("wall", "floor", "ceiling", "window", "door")
    assert len(CLASSES) == len(set(CLASSES)) == 31
    assert label_of("box") == 30


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", MODELS)
def test_models_stand_on_the_floor_and_are_centred(name, style):
    for seed in range(2):
        model = build(name, Style(seed, style))
        low, high = model.mesh.bounds
        assert low[2] == pytest.approx(0, abs=1e-6)
        assert low[:2] == pytest.approx(-high[:2], abs=1e-5)
        assert np.isfinite(model.mesh.normals).all()
        assert np.allclose(np.linalg.norm(model.mesh.normals, axis=-1), 1, atol=1e-3)
        if model.name in HEIGHTS:
            least, most = HEIGHTS[model.name]
            assert least <= model.size[2] <= most, model.size


def test_models_recur_within_a_house_and_differ_between_houses():
    one, again, other = build("chair", Style(5)), build("chair", Style(5)), build("chair", Style(6))
    assert np.array_equal(one.mesh.triangles, again.mesh.triangles)
    assert one.size != other.size
    assert build("mug", Style(5), 0).size != build("mug", Style(5), 1).size


@pytest.mark.parametrize("name", [n for n in MODELS if build(n, Style(0)).surfaces])
def test_surfaces_are_on_triangles_of_their_model(name):
    model = build(name, Style(1, "other"))
    tracer = NumpyTracer()
    tracer.build(model.mesh.triangles)
    for s in model.surfaces:
        assert s.low[0] < s.high[0]
        assert s.low[1] < s.high[1]
        x, y = np.meshgrid(np.linspace(s.low[0], s.high[0], 5), np.linspace(s.low[1], s.high[1], 5))
        start = np.stack([x.ravel(), y.ravel(), np.full(25, s.height + min(s.room, 0.2) * 0.9)], axis=1)
        hits = tracer.trace(start, np.broadcast_to([0.0, 0.0, -1.0], start.shape))
        heights = start[:, 2] - hits.t
        assert np.median(heights) == pytest.approx(s.height, abs=0.06)


def test_stretched_models_have_their_size():
    curtain = stretched(build("curtain", Style(0)), 0.4, 0.1, 2.1)
    assert curtain.size == pytest.approx((0.4, 0.1, 2.1), abs=1e-5)
    assert np.allclose(np.linalg.norm(curtain.mesh.normals, axis=-1), 1, atol=1e-5)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"model: expected one of bed, sofa.* got 'piano'"):
        build("piano", Style(0))
