import sys

import numpy as np
import pytest

from testtime.cli import main
from testtime.scenes import Camera, Renderer, generate_house
from testtime.scenes.cameras import rays as rays_of
from testtime.scenes.tracer import NumpyTracer, default_backend, tracer

TRIANGLE = np.array([[[0, 0, 5], [2, 0, 5], [0, 2, 5]]], np.float32)


@pytest.fixture(params=["embree", "numpy"])
def backend(request):
    if request.param == "embree":
        pytest.importorskip("embreex")
    return request.param


def test_one_triangle(backend):
    rays = tracer(TRIANGLE, backend)
    directions = np.array([[0.2, 0.1, 1], [0, 0, -1], [0.4, 0.2, 2], [3, 3, 1]])
    hits = rays.trace(np.zeros((4, 3)), directions)
    assert hits.triangle.tolist() == [0, -1, 0, -1]
    assert hits.t.tolist() == pytest.approx([5, np.inf, 2.5, np.inf])
    assert hits.u[[0, 2]] == pytest.approx([0.5, 0.5])
    assert hits.v[[0, 2]] == pytest.approx([0.25, 0.25])


def test_occlusion_ends_at_the_target(backend):
    rays = tracer(TRIANGLE, backend)
    start = np.tile([0.5, 0.5, 0.0], (4, 1))
    end = np.array([[0.5, 0.5, 10], [0.5, 0.5, 4.9], [0.5, 0.5, -10], [5, 5, 10]])
    assert rays.occluded(start, end).tolist() == [True, False, False, False]


def test_triangles_without_area_and_no_triangles(backend):
    flat = np.zeros((1, 3, 3), np.float32)
    for triangles in (flat, flat[:0]):
        rays = tracer(triangles, backend)
        assert rays.trace(np.ones((2, 3)), -np.ones((2, 3))).triangle.tolist() == [-1, -1]
        assert rays.occluded(np.ones((2, 3)), -np.ones((2, 3))).tolist() == [False, False]
    assert len(tracer(TRIANGLE, backend).trace(np.zeros((0, 3)), np.zeros((0, 3))).t) == 0


def test_a_view_is_a_ray_for_each_pixel(backend):
    made, camera = tracer(TRIANGLE - [0, 0, 10], backend), Camera(np.eye(4), 60.0)
    directions = rays_of(camera, (6, 8))
    assert np.array_equal(rays_of(camera, (6, 8), np.array([9, 47])), directions[[9, 47]])
    exact, hits = made.trace(np.zeros((48, 3)), directions), made.view(camera, (6, 8))
    assert hits.t.tolist() == exact.t.tolist()
    assert 0 < (hits.triangle == 0).sum() < 24
    assert hits.t[hits.triangle == 0] == pytest.approx(5)
    assert made.view(camera, (6, 8), np.array([20, 0])).t.tolist() == exact.t[[20, 0]].tolist()


def test_embree_agrees_with_numpy_in_a_house():
    pytest.importorskip("embreex")
    house, rng = generate_house(1), np.random.default_rng(0)
    one, two = (tracer(house.mesh.triangles, name) for name in ("embree", "numpy"))
    start = np.broadcast_to([*house.rooms[0].centre, 1.4], (3000, 3))
    directions = rng.normal(size=(3000, 3)) * rng.uniform(0.1, 3, (3000, 1))
    a, b = one.trace(start, directions), two.trace(start, directions)
    same = a.triangle == b.triangle
    assert same.mean() > 0.998  # rays through an edge may take either side
    assert np.allclose(a.t, b.t, rtol=1e-4, atol=1e-4)
    assert np.allclose(a.u[same], b.u[same], atol=2e-3)
    assert np.allclose(a.v[same], b.v[same], atol=2e-3)
    ends = start + directions
    assert (one.occluded(start, ends) == two.occluded(start, ends)).mean() > 0.998


def test_an_unknown_backend_and_a_missing_package(monkeypatch):
    with pytest.raises(ValueError, match=r"backend: expected one of embree, numpy, gl, got 'optix'"):
        tracer(TRIANGLE, "optix")
    monkeypatch.setattr("testtime.scenes.tracer.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"embreex is not installed.*testtime\[scenes\]"):
        tracer(TRIANGLE, "embree")
    assert type(tracer(TRIANGLE)).__name__ == "NumpyTracer"


def test_numpy_is_used_without_embree(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2")
    pytest.importorskip("PIL")
    monkeypatch.setitem(sys.modules, "embreex", None)
    assert default_backend() == "numpy"
    assert type(Renderer(generate_house(1)).tracer) is NumpyTracer
    out = tmp_path / "spaces"
    make = [
        "scenes",
        "make",
        "--out",
        str(out),
        "--spaces",
        "1",
        "--frames",
        "1",
        "--size",
        "8",
        "--jobs",
        "1",
    ]
    assert main(make) == 0
    assert "Embree is not installed: the numpy tracer renders" in capsys.readouterr().err
    assert len(list(out.glob("rgb/*/*.png"))) == 1
    assert main([*make, "--backend", "embree"]) == 2
    assert "embreex is not installed; it comes with testtime[scenes]" in capsys.readouterr().err
