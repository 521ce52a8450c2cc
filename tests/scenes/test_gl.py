"""OpenGL against Embree, and errors without OpenGL. Tests of images are skipped where there is no context."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from testtime.cli import main
from testtime.scenes import Camera, Renderer, generate_house, gl
from testtime.scenes.disk import Recipe, make, render_space
from testtime.scenes.meshes import MeshTracer, ScanMesh
from testtime.scenes.tracer import NumpyTracer, tracer

SIZE = (48, 64)
AHEAD = Camera(np.eye(4), 90.0)  # at the origin, looking along -z
NEAR_AND_FAR = np.array(
    [
        [[-1, -1, -3], [0.5, -1, -3], [-1, 0.5, -3]],
        [[-9, -9, -6], [9, -9, -6], [0, 9, -6]],
        [[-9, -9, -1], [0, 0, -1], [9, 9, -1]],  # no area
        [[-9, -9, 4], [9, -9, 4], [0, 9, 4]],  # behind
    ],
    np.float32,
)


@pytest.fixture(scope="module")
def context():
    """Skips where there is no OpenGL, with the reason."""
    pytest.importorskip("moderngl", reason="pip install -e '.[render-gl]'")
    try:
        gl.driver()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def house():
    return generate_house(1)


@pytest.fixture
def bare(monkeypatch):
    """Isolate the OpenGL context from other tests."""
    monkeypatch.setattr(gl, "_context", gl._context.__wrapped__)


def test_triangles_before_a_camera(context):
    made = tracer(NEAR_AND_FAR, "gl")
    hits = made.view(AHEAD, (8, 8))
    expected = NumpyTracer()
    expected.build(NEAR_AND_FAR)
    exact = expected.view(AHEAD, (8, 8))
    assert hits.triangle.tolist() == exact.triangle.tolist()
    assert set(hits.triangle.tolist()) == {-1, 0, 1}
    assert hits.triangle.dtype == np.int32
    assert hits.triangle.reshape(8, 8)[4, 3] == 0  # below the axis, on its left: x right, y up
    assert hits.t == pytest.approx(exact.t, rel=1e-6)
    assert hits.u == pytest.approx(exact.u, abs=1e-6)
    assert hits.v == pytest.approx(exact.v, abs=1e-6)
    some = np.array([35, 0, 36])
    assert made.view(AHEAD, (8, 8), some).t.tolist() == hits.t[some].tolist()


def test_no_triangles(context):
    for triangles in (NEAR_AND_FAR[2:3], NEAR_AND_FAR[:0]):
        made = tracer(triangles, "gl")
        assert made.view(AHEAD, (2, 3)).triangle.tolist() == [-1] * 6
        assert made.occluded(np.ones((2, 3)), -np.ones((2, 3))).tolist() == [False, False]


def test_occlusion_ends_at_both_points(context):
    made = tracer(np.array([[[0, 0, 5], [2, 0, 5], [0, 2, 5]]], np.float32), "gl")
    start = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 5.1], [0.5, 0.5, 0], [5, 5, 0], [0.5, 0.5, 4.99]])
    end = np.array([[0.5, 0.5, 10], [0.5, 0.5, 10], [0.5, 0.5, 4.9], [5, 5, 10], [0.5, 0.5, 10]])
    # The last one lies within the two centimetres that are not seen.
    assert made.occluded(start, end).tolist() == [True, False, False, False, False]


def test_the_faces_of_a_map_are_rotations_that_cover_all_directions():
    assert np.allclose(np.linalg.det(gl.FACES), 1)
    assert np.allclose(gl.FACES @ gl.FACES.transpose(0, 2, 1), np.eye(3))
    assert len(np.unique(gl.FACES[:, :, 2], axis=0)) == 6


def test_labels_are_those_of_embree(context, house):
    pytest.importorskip("embreex")
    one, two = Renderer(house, "embree"), Renderer(house, "gl")
    pixels = differ = 0
    for camera in house.cameras(6):
        a, b = one.frame(camera, SIZE), two.frame(camera, SIZE)
        same = (a.instance == b.instance) & (np.abs(a.depth - b.depth) < 1e-4)
        pixels, differ = pixels + same.size, differ + (~same).sum()
        # A pixel whose centre is on a silhouette may go to either side.
        assert (~same).mean() < 0.003
        assert (a.semantic != b.semantic).mean() < 0.003
        assert (np.abs(a.normal - b.normal).max(axis=2) > 1e-3).mean() < 0.003
        assert (a.occlusion != b.occlusion).mean() < 0.006
        assert [x.instance for x in a.boxes] == [x.instance for x in b.boxes]
        for x, y in zip(a.boxes, b.boxes, strict=True):
            assert y.visibility == pytest.approx(x.visibility, abs=0.03)
            assert np.abs(np.subtract((x.x0, x.y0, x.x1, x.y1), (y.x0, y.y0, y.x1, y.y1))).max() <= 1
        # Shadows have coarser outlines.
        assert (np.abs(a.rgb.astype(int) - b.rgb).max(axis=2) > 16).mean() < 0.02
    assert differ < 0.001 * pixels


def test_shadows_are_those_of_embree(context, house):
    pytest.importorskip("embreex")
    one, two = (tracer(house.mesh.triangles, name) for name in ("embree", "gl"))
    lamp = np.array(house.lights[0].position, float)
    low, high = np.array(house.rooms[0].low), np.array(house.rooms[0].high)
    floor = np.random.default_rng(0).uniform(low, high, (3000, 2))
    points = np.column_stack([floor, np.full(3000, 2e-3)])
    lamps = np.broadcast_to(lamp, points.shape)
    dark = one.occluded(points, lamps)
    assert 0.1 < dark.mean() < 0.95
    assert (dark != two.occluded(points, lamps)).mean() < 0.02


def test_equal_recipes_give_equal_bytes_and_record_the_driver(context, tmp_path):
    recipe = Recipe(seed=2, frames=2, size=(16, 16), backend="gl")
    for name in ("a", "b"):
        make(tmp_path / name, [recipe])
    files = {
        n: {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in "ab"
    }
    assert files["a"] == files["b"]
    facts = json.loads((tmp_path / "a/spaces/default_00002/space.json").read_text())
    assert set(facts["made_by"]) == {"testtime", "moderngl", "driver"}
    assert facts["made_by"]["driver"] == gl.driver()
    there = render_space(2, 2, (16, 16), backend="gl")
    assert there.spaces[0].facts == facts


def test_arbitrary_rays_are_refused(context):
    scan = ScanMesh("one", np.eye(3), np.array([[0, 1, 2]]), np.array([0]), {0: "chair"})
    with pytest.raises(ValueError, match="expected embree or numpy, which follow bent rays, got 'gl'"):
        MeshTracer(scan, "gl")


def test_a_missing_package_is_named(bare, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(ImportError, match=r"moderngl is not installed.*testtime\[render-gl\]"):
        tracer(NEAR_AND_FAR, "gl")
    command = ["scenes", "make", "--out", str(tmp_path), "--spaces", "1", "--backend", "gl"]
    assert main(command) == 2
    assert "moderngl is not installed" in capsys.readouterr().err


def test_missing_opengl_is_reported_with_the_packages_to_install(bare, monkeypatch, tmp_path, capsys):
    def refuse(**_: object) -> None:
        raise Exception("libEGL.so not loaded")

    monkeypatch.setitem(sys.modules, "moderngl", SimpleNamespace(create_context=refuse))
    with pytest.raises(
        OSError, match=r"OpenGL 3\.3 .* found none \(libEGL.so not loaded\).*apt-get install libegl1"
    ):
        tracer(NEAR_AND_FAR, "gl")
    command = ["scenes", "make", "--out", str(tmp_path), "--spaces", "1", "--backend", "gl"]
    assert main(command) == 2
    assert "libgl1-mesa-dri" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_many_triangles_are_refused(context, monkeypatch):
    monkeypatch.setattr(gl, "MOST", 4)
    with pytest.raises(ValueError, match="expected less than 4 triangles, got 4; take embree"):
        tracer(NEAR_AND_FAR, "gl")
