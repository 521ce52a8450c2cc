import sys
from functools import cache

import numpy as np
import pytest

from testtime.scenes import CLASSES, Box, Renderer, generate_house
from testtime.scenes.cameras import rays
from testtime.scenes.render import CANNY, LEAST_BOX, occlusion_edges, srgb, tone, tone_back
from testtime.scenes.tracer import NumpyTracer

SIZE = (48, 64)


@cache
def the_house():
    return generate_house(1)


@cache
def the_cameras():
    return the_house().cameras(8)


@cache
def the_renderer():
    return Renderer(the_house(), backend=None)


@cache
def the_frames():
    return [the_renderer().frame(c, SIZE) for c in the_cameras()]


def test_shapes_and_dtypes_of_a_frame():
    frame = the_frames()[0]
    kinds = {
        "rgb": ((*SIZE, 3), np.uint8),
        "depth": (SIZE, np.float32),
        "normal": ((*SIZE, 3), np.float32),
        "canny": (SIZE, np.bool_),
        "occlusion": (SIZE, np.bool_),
        "semantic": (SIZE, np.uint8),
        "instance": (SIZE, np.uint16),
        "pose": ((4, 4), np.float64),
        "intrinsics": ((3, 3), np.float64),
    }
    pytest.importorskip("cv2")
    assert {n: (getattr(frame, n).shape, getattr(frame, n).dtype.type) for n in kinds} == kinds
    assert all(getattr(frame, name).flags.c_contiguous for name in kinds)
    assert (frame.room, frame.ring, frame.shift) == (the_cameras()[0].room, the_cameras()[0].ring, "")


def test_depth_and_normals_of_floors_and_ceilings_are_those_of_planes():
    seen = 0
    for camera, frame in zip(the_cameras(), the_frames(), strict=True):
        directions = rays(camera, SIZE).reshape(*SIZE, 3)
        for name, height, up in (("floor", 0.0, 1.0), ("ceiling", the_house().plan.height, -1.0)):
            mask = frame.semantic == CLASSES.index(name)
            seen += mask.sum()
            expected = (height - camera.position[2]) / directions[mask][:, 2]
            assert frame.depth[mask] == pytest.approx(expected, rel=1e-5)
            normal = camera.pose[:3, :3].T @ [0, 0, up]
            assert np.allclose(frame.normal[mask], normal, atol=1e-5)
    assert seen > 2000


def test_points_of_a_frame_lie_on_their_objects():
    for frame in the_frames():
        k = frame.intrinsics
        rows, columns = np.indices(SIZE)
        local = np.stack(
            [(columns + 0.5 - k[0, 2]) / k[0, 0], -(rows + 0.5 - k[1, 2]) / k[1, 1], -np.ones(SIZE)], axis=-1
        )
        points = (local * frame.depth[..., None]) @ frame.pose[:3, :3].T + frame.pose[:3, 3]
        for number in np.unique(frame.instance):
            o = the_house().objects[number - 1]
            c, s = np.cos(o.yaw), np.sin(o.yaw)
            inside = np.abs(
                (points[frame.instance == number] - o.centre) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
            )
            assert (inside <= o.size / 2 + 1e-3).all()
            assert (frame.semantic[frame.instance == number] == o.label).all()


def test_normals_are_unit_and_face_the_viewer():
    for camera, frame in zip(the_cameras(), the_frames(), strict=True):
        views = (rays(camera, SIZE) @ camera.pose[:3, :3]).reshape(*SIZE, 3)
        assert np.allclose(np.linalg.norm(frame.normal, axis=2), 1, atol=1e-4)
        assert ((frame.normal * views).sum(axis=2) <= 1e-4).all()


def test_curved_surfaces_have_smooth_normals():
    turns = []
    for frame in the_frames():
        for name in ("curtain", "lamp", "sofa", "toilet", "plant"):
            mask = frame.semantic == CLASSES.index(name)
            turns += (
                [len(np.unique(frame.normal[mask].round(3), axis=0)) / max(mask.sum(), 1)]
                if mask.sum() > 60
                else []
            )
    assert max(turns) > 0.5  # nearly every pixel has a normal of its own


def test_edges_are_between_distant_neighbours():
    depth = np.full((4, 6), 2.0, np.float32)
    depth[:, 3:] = 3.0
    normal = np.zeros((4, 6, 3), np.float32)
    normal[..., 2] = 1
    one = np.ones((4, 6), np.uint16)
    edges = occlusion_edges(one, depth, normal, 60)
    assert edges.nonzero()[1].tolist() == [2] * 4  # on the nearer side, one pixel wide
    assert not occlusion_edges(one, np.full((4, 6), 2.0, np.float32), normal, 60).any()
    parts = one.copy()
    parts[2:] = 7
    assert set(occlusion_edges(parts, np.full((4, 6), 2.0, np.float32), normal, 60).nonzero()[0]) == {1}


def test_edges_recomputed_pixel_by_pixel():
    frame, camera = the_frames()[2], the_cameras()[2]
    points = rays(camera, SIZE).reshape(*SIZE, 3) @ camera.pose[:3, :3] * frame.depth[..., None]
    expected = np.zeros(SIZE, bool)
    for i in range(SIZE[0]):
        for j in range(SIZE[1]):
            for k, m in ((i, j + 1), (i + 1, j)):
                if k >= SIZE[0] or m >= SIZE[1]:
                    continue
                step = points[k, m] - points[i, j]
                off = min(abs(step @ frame.normal[i, j]), abs(step @ frame.normal[k, m]))
                if frame.instance[i, j] != frame.instance[k, m] or off > 0.06:
                    nearer = (i, j) if frame.depth[i, j] <= frame.depth[k, m] else (k, m)
                    expected[nearer] = True
    assert (frame.occlusion != expected).mean() < 0.002  # float32 against float64
    assert 0.03 < frame.occlusion.mean() < 0.35


def test_boxes_are_tight_and_their_visibility_is_that_of_the_object_alone():
    checked, covered = 0, 0
    for camera, frame in list(zip(the_cameras(), the_frames(), strict=True))[:4]:
        directions = rays(camera, SIZE)
        numbers, counts = np.unique(frame.instance, return_counts=True)
        large = [
            n
            for n, c in zip(numbers, counts, strict=True)
            if c >= LEAST_BOX and the_house().objects[n - 1].label > 2
        ]
        assert [b.instance for b in frame.boxes] == large
        for box in frame.boxes:
            mine = frame.instance == box.instance
            rows, columns = mine.nonzero()
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert (box.x0, box.y0, box.x1, box.y1) == tight
            assert box.label == the_house().objects[box.instance - 1].label
            alone = NumpyTracer()
            alone.build(the_house().mesh.triangles[the_house().mesh.instance == box.instance])
            whole = alone.trace(np.broadcast_to(camera.position, directions.shape), directions).triangle >= 0
            assert box.visibility == pytest.approx(mine.sum() / (whole | mine.ravel()).sum(), abs=0.02)
            checked, covered = checked + 1, covered + (box.visibility < 0.9)
    assert checked > 15
    assert covered > 4
    assert the_renderer().frame(the_cameras()[0], SIZE, boxes=False).boxes == ()
    assert isinstance(the_frames()[0].boxes[0], Box)


def test_numpy_agrees_with_embree():
    pytest.importorskip("embreex")
    renderer = Renderer(the_house(), backend="numpy", smooth=False)
    for camera in the_cameras()[:2]:
        one, two = (
            r.frame(camera, (32, 32), boxes=False)
            for r in (Renderer(the_house(), "embree", smooth=False), renderer)
        )
        same = one.instance == two.instance
        assert same.mean() > 0.997
        assert np.abs(one.depth - two.depth)[same].max() < 1e-4
        assert np.abs(one.normal - two.normal)[same].max() < 1e-3
        assert np.abs(one.rgb.astype(int) - two.rgb).max(axis=2).mean() < 0.5


GOLDEN = {
    backend: (
        2.13469,
        [19, 20, 21, 22, 36, 94, 95, 96, 103, 104, 107, 109, 118, 119],
        {
            **{"wall": 390, "floor": 165, "ceiling": 6, "window": 132, "bed": 159, "cabinet": 28, "lamp": 8},
            **{"curtain": 46, "picture": 57, "pillow": 33},
        },
    )
    for backend in ("embree", "numpy")
}


@pytest.mark.parametrize("backend", ["embree", "numpy"])
def test_golden_depth_and_instances(backend):
    if backend == "embree":
        pytest.importorskip("embreex")
    frame = Renderer(the_house(), backend, smooth=False).frame(the_cameras()[3], (32, 32), boxes=False)
    depth, objects, labels = GOLDEN[backend]
    assert frame.depth.astype(np.float64).mean() == pytest.approx(depth, abs=2e-3)
    assert np.bincount(frame.instance.ravel()).nonzero()[0].tolist() == objects
    names, counts = np.unique(frame.semantic, return_counts=True)
    found = {CLASSES[n]: int(c) for n, c in zip(names, counts, strict=True)}
    assert {n: pytest.approx(c, abs=3) for n, c in labels.items()} == found


def test_labels_do_not_depend_on_smoothing_and_pictures_hardly():
    rough = Renderer(the_house(), None, smooth=False).frame(the_cameras()[0], SIZE)
    smooth = the_frames()[0]
    assert np.array_equal(rough.depth, smooth.depth)
    assert np.array_equal(rough.occlusion, smooth.occlusion)
    changed = (rough.rgb != smooth.rgb).any(axis=2)
    assert 0.02 < changed.mean() < 0.6
    assert not (rough.rgb[~smooth.occlusion] != smooth.rgb[~smooth.occlusion]).any(axis=1).all()


def test_pictures_are_well_exposed():
    for frame in the_frames():
        assert 60 < frame.rgb.mean() < 220
        assert frame.rgb.std() > 15


def test_shadows_are_darker():
    """Under the light of a lamp alone, a floor is lit by Lambert's law or in shadow."""
    from testtime.scenes.shading import Lamps

    lamps = Lamps(the_house(), [light for light in the_house().lights if light.facing is None])
    room = the_house().rooms[0]
    lamp = next(light for light in the_house().lights if light.room == 0)
    points = np.array([[lamp.position[0], lamp.position[1], 0.0], [*room.low, 0.0]], np.float32)
    up = np.array([[0, 0, 1], [0, 0, 1]], np.float32).T
    way, strength = lamps.incident(0, 0, points.T, up)
    incident = lamps.irradiance(0, 0, strength).T
    for k in range(2):
        d = np.array(lamp.position) - points[k]
        cosine = d[2] / np.linalg.norm(d)
        expected = 2.1 * np.array(lamp.colour) * cosine / (0.6 + d @ d)
        assert incident[k] == pytest.approx(expected, rel=1e-4)
        assert way[:, k] == pytest.approx(d, rel=1e-4, abs=1e-4)


def test_blocks_of_rays_do_not_change_a_frame(monkeypatch):
    monkeypatch.setattr("testtime.scenes.render.BLOCK", 1000)
    frame = the_renderer().frame(the_cameras()[1], SIZE)
    assert np.array_equal(frame.rgb, the_frames()[1].rgb)


def test_glossy_surfaces_reflect_a_lamp_by_the_half_vector():
    from testtime.scenes.shading import Lamps, shaded

    lamps = Lamps(the_house(), the_house().lights)
    lamp = next(light for light in the_house().lights if light.room == 0 and light.facing is None)
    points = np.array([[lamp.position[0], lamp.position[1], lamp.position[2] - 0.1]] * 2, np.float32).T
    normals = np.array([[0, 0, 1], [0, 0, 1]], np.float32).T
    views = np.array([[0, 0, -1], [0.6, 0, -0.8]], np.float32).T
    gloss = np.array([0.5, 0.5], np.float32)
    light, shine = shaded(lamps, the_renderer().tracer, 0, points, normals, gloss, views)
    assert (light[:, 0] == light[:, 1]).all()
    irradiance = light[:, 0] - lamps.ambient(0, points, normals)[:, 0]
    assert (irradiance > 0).all()
    assert (shaded(lamps, the_renderer().tracer, 0, points, normals, 0 * gloss, views)[1] == 0).all()
    assert (shine[:, 0] <= 0.5 * irradiance * 1.0001).all()
    assert (shine[:, 1] < shine[:, 0]).all()  # seen from the side, the half vector is away from the normal


def test_tone_and_srgb():
    light = np.linspace(0, 3, 50)
    assert np.allclose(tone_back(tone(light)), light, atol=1e-9)
    assert tone(np.array([3.0, 50.0])).tolist() == pytest.approx([1, 1])
    assert srgb(np.array([0.0, 0.214041, 1.0])) == pytest.approx([0, 0.5, 1], abs=1e-4)


def test_canny_is_opencvs(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    frame = the_frames()[1]
    assert np.array_equal(frame.canny, cv2.Canny(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY), *CANNY) > 0)
    assert 0.01 < frame.canny.mean() < 0.4
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"opencv-python-headless is not installed.*testtime\[scenes\]"):
        _ = the_renderer().frame(the_cameras()[0], (16, 16)).canny


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="size: expected at least 1 x 1 pixels, got 0 x 5"):
        the_renderer().frame(the_cameras()[0], (0, 5))
    with pytest.raises(ValueError, match="shift: expected one of dim, .* got 'earthquake'"):
        the_renderer().frame(the_cameras()[0], (8, 8), "earthquake")
    with pytest.raises(ValueError, match="backend: expected one of embree, numpy, gl"):
        Renderer(the_house(), "optix")
