"""Replica and ScanNet++ in their published formats, rays of fisheye lenses, and traced labels recomputed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testtime.data.cameras import Camera
from testtime.data.dense import IGNORE
from testtime.errors import DataError
from testtime.scenes.meshes import (
    NOTHING,
    MeshTracer,
    ScanFrame,
    ScanMesh,
    rays,
    read_replica,
    read_scannetpp,
)

pytest.importorskip("trimesh")

# A box of 4 x 3 x 2.5 m, seen from inside: floor, ceiling and four walls, as quads.
CORNERS = np.array([[x, y, z] for x in (0, 4) for y in (0, 3) for z in (0, 2.5)], np.float32)
QUADS = np.array(
    [[0, 4, 6, 2], [1, 3, 7, 5], [0, 1, 5, 4], [2, 6, 7, 3], [0, 2, 3, 1], [4, 5, 7, 6]], np.int32
)
OBJECTS = np.array([5, 0, 12, 12, 3, 7], np.int32)
PINHOLE = Camera(40, 30, 20.0, 20.0, 20.0, 15.0, np.eye(4))
FISHEYE = Camera(40, 30, 17.0, 17.0, 20.0, 15.0, np.eye(4), "OPENCV_FISHEYE", (0.05, -0.02, 0.004, -0.0005))
OPENCV = Camera(40, 30, 20.0, 22.0, 19.0, 15.5, np.eye(4), "OPENCV", (0.05, -0.02, 0.001, -0.002))


def write_ply(
    path: Path, vertices: np.ndarray, faces: np.ndarray, extra: np.ndarray | None, normals: bool
) -> None:
    """Write a ply file in the format of the scans: binary, with the number of corners before each face."""
    point = [(axis, "<f4") for axis in "xyz"] + ([(f"n{axis}", "<f4") for axis in "xyz"] if normals else [])
    table = np.zeros(len(vertices), [*point, ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for i, axis in enumerate("xyz"):
        table[axis] = vertices[:, i]
    table["red"], table["blue"] = np.arange(len(vertices)) * 10, 200
    record = [("count", "u1"), ("corners", "<i4", faces.shape[1])]
    rows = np.zeros(len(faces), record if extra is None else [*record, ("object_id", "<i4")])
    rows["count"], rows["corners"] = faces.shape[1], faces
    if extra is not None:
        rows["object_id"] = extra
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [
        f"property {kinds[kind]} {name}"
        for name, kind in (*point, ("red", "u1"), ("green", "u1"), ("blue", "u1"))
    ]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    header += [] if extra is None else ["property int object_id"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*header, "end_header\n"]).encode() + table.tobytes() + rows.tobytes())


def replica(root: Path) -> Path:
    scene = root / "room_0"
    write_ply(scene / "habitat/mesh_semantic.ply", CORNERS, QUADS, OBJECTS, normals=True)
    classes = [{"id": 1, "name": "floor"}, {"id": 2, "name": "ceiling"}, {"id": 9, "name": "wall"}]
    of = {5: 1, 0: 2, 12: 9, 3: 9, 7: -1}
    objects = [{"id": i, "class_id": c, "class_name": "undefined"} for i, c in of.items()]
    info = {"classes": classes, "objects": objects, "id_to_label": [2, -1, -1, 9], "id_to_node": []}
    (scene / "habitat/info_semantic.json").write_text(json.dumps(info))
    return scene


def scannetpp(root: Path) -> Path:
    scene = root / "data/0a7cc12c0e"
    triangles = QUADS[:, [0, 1, 2, 2, 3, 0]].reshape(-1, 3)
    # Every quad has its own four vertices, so that a vertex lies in one object.
    write_ply(
        scene / "scans/mesh_aligned_0.05_semantic.ply",
        CORNERS[QUADS.reshape(-1)],
        np.arange(24).reshape(6, 4)[:, [0, 1, 2, 2, 3, 0]].reshape(-1, 3),
        None,
        normals=False,
    )
    assert len(triangles) == 12
    (scene / "scans/segments.json").write_text(
        json.dumps({"segIndices": list(range(24)), "sceneId": "0a7cc12c0e"})
    )
    groups = [
        {"id": 1, "objectId": 1, "label": "floor", "segments": [0, 1, 2, 3]},
        {"id": 2, "objectId": 2, "label": "ceiling", "segments": [4, 5, 6, 7]},
        {"id": 3, "objectId": 3, "label": "wall", "segments": list(range(8, 24))},
        {"id": 4, "objectId": 4, "label": "door", "segments": [20, 21, 22, 23]},
    ]
    (scene / "scans/segments_anno.json").write_text(
        json.dumps({"sceneId": "0a7cc12c0e", "segGroups": groups})
    )
    return scene


def test_replica(tmp_path):
    mesh = read_replica(replica(tmp_path))
    assert mesh.name == "room_0"
    np.testing.assert_array_equal(mesh.vertices, CORNERS)
    np.testing.assert_array_equal(mesh.triangles[:2], [[0, 4, 6], [6, 2, 0]])
    np.testing.assert_array_equal(mesh.instances, np.repeat(OBJECTS, 2))
    assert mesh.labels == {5: "floor", 0: "ceiling", 12: "wall", 3: "wall"}
    assert mesh.classes == ("ceiling", "floor", "wall")
    np.testing.assert_array_equal(mesh.colours[3], [30, 0, 200])
    # Two triangles of a quad cover it: the areas add up to the box's surface.
    a, b, c = (mesh.vertices[mesh.triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    assert area == pytest.approx(2 * (4 * 3 + 4 * 2.5 + 3 * 2.5))


def test_scannetpp(tmp_path):
    scene = scannetpp(tmp_path)
    mesh = read_scannetpp(scene)
    assert mesh.name == "0a7cc12c0e"
    np.testing.assert_array_equal(
        mesh.instances, np.repeat([1, 2, 3, 3, 3, 4], 2)
    )  # the door lies in the wall
    assert mesh.labels[4] == "door"
    np.testing.assert_array_equal(read_scannetpp(scene / "scans").instances, mesh.instances)


def test_a_triangle_belongs_to_the_object_of_most_of_its_corners(tmp_path):
    scene = scannetpp(tmp_path)
    path = scene / "scans/segments_anno.json"
    groups = [{"objectId": 6, "label": "a", "segments": [0]}, {"objectId": 4, "label": "b", "segments": [1]}]
    groups += [{"objectId": 9, "label": "c", "segments": [4, 5]}]
    path.write_text(json.dumps({"segGroups": groups}))
    # Corners of the first four triangles: (6, 4, none), (none, none, 6), (9, 9, none), (none, none, 9).
    assert read_scannetpp(scene).instances[:4].tolist() == [4, NOTHING, 9, NOTHING]


def test_damaged_scans_are_refused(tmp_path):
    scene = replica(tmp_path)
    ply = scene / "habitat/mesh_semantic.ply"
    whole = ply.read_bytes()
    ply.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"mesh_semantic\.ply: expected a ply file"):
        read_replica(scene)
    write_ply(ply, CORNERS, QUADS, None, normals=True)
    with pytest.raises(DataError, match=r"give habitat/mesh_semantic\.ply, not mesh\.ply"):
        read_replica(scene)
    write_ply(ply, CORNERS[:4], QUADS, OBJECTS, normals=True)
    with pytest.raises(DataError, match="expected triangles of the 4 vertices"):
        read_replica(scene)
    (scene / "habitat/info_semantic.json").write_text("{}")
    with pytest.raises(DataError, match="expected classes and objects"):
        read_replica(scene)
    ply.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_replica(scene)
    scan = scannetpp(tmp_path)
    (scan / "scans/segments.json").write_text(json.dumps({"segIndices": [0, 1]}))
    with pytest.raises(DataError, match="a segment for each of the 24 vertices, found 2"):
        read_scannetpp(scan)


@pytest.mark.parametrize("camera", [PINHOLE, FISHEYE, OPENCV], ids=lambda c: c.model)
def test_rays_project_back_to_their_pixels(camera):
    directions = rays(camera)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-12)
    x, y = directions[..., 0] / -directions[..., 2], -directions[..., 1] / -directions[..., 2]
    r = np.hypot(x, y)
    if camera.model == "OPENCV_FISHEYE":
        k, theta = camera.distortion, np.arctan(r)
        bent = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8)
        x, y = x * bent / r, y * bent / r
    elif camera.model == "OPENCV":
        k1, k2, p1, p2 = camera.distortion
        radial = 1 + k1 * r**2 + k2 * r**4
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
            y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
        )
    rows, columns = np.mgrid[:30, :40] + 0.5
    np.testing.assert_allclose(camera.fx * x + camera.cx, columns, atol=1e-6)
    np.testing.assert_allclose(camera.fy * y + camera.cy, rows, atol=1e-6)


def test_rays_agree_with_opencv():
    cv2 = pytest.importorskip("cv2")
    points = (np.mgrid[:30, :40][::-1] + 0.5).reshape(2, -1).T[None]
    for camera, undistort in ((FISHEYE, cv2.fisheye.undistortPoints), (OPENCV, cv2.undistortPoints)):
        expected = undistort(points.reshape(-1, 1, 2), camera.k, np.array(camera.distortion)).reshape(
            30, 40, 2
        )
        directions = rays(camera)
        np.testing.assert_allclose(directions[..., :2] / -directions[..., 2:], expected * [1, -1], atol=1e-3)


def test_a_fisheye_has_no_rays_beyond_its_edge():
    bent = Camera(41, 41, 5.0, 5.0, 20.5, 20.5, np.eye(4), "OPENCV_FISHEYE", (-0.1, 0.0, 0.0, 0.0))
    directions = rays(bent)
    end = np.sqrt(1 / 0.3)  # where theta - 0.1 theta^3 stops to rise
    rows, columns = np.mgrid[:41, :41] - 20
    beyond = np.hypot(rows, columns) / 5 > end - 0.1 * end**3
    np.testing.assert_array_equal(np.isnan(directions).any(axis=-1), beyond)


def test_sizes():
    np.testing.assert_allclose(rays(PINHOLE, (60, 80))[1::2, 1::2][5, 5], rays(PINHOLE, (60, 80))[11, 11])
    assert rays(PINHOLE, (60, 80)).shape == (60, 80, 3)


def test_mesh_needs_triangles():
    with pytest.raises(DataError, match="found none"):
        ScanMesh("x", np.zeros((3, 3)), np.zeros((0, 3), np.int64), np.zeros(0, np.int64), {})


def inside(model: Camera) -> Camera:
    """A camera in the middle of the box at 1 m, in the direction of x with z up, slightly rotated."""
    c, s = np.cos(0.3), np.sin(0.3)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = (s, -c, 0), (0, 0, 1), (-c, -s, 0)
    pose[:3, 3] = (2.0, 1.5, 1.0)
    return replace(model, pose=pose)


@pytest.mark.parametrize("backend", ["embree", "numpy"])
@pytest.mark.parametrize("model", [PINHOLE, FISHEYE, OPENCV], ids=lambda c: c.model)
def test_traced_labels_are_those_of_the_geometry(tmp_path, model, backend):
    if backend == "embree":
        pytest.importorskip("embreex")
    mesh, camera = read_replica(replica(tmp_path)), inside(model)
    frame = MeshTracer(mesh, backend).frame(camera)
    looks = rays(camera)
    world = looks @ camera.pose[:3, :3].T
    place = camera.pose[:3, 3]
    # The first of the six planes that a ray from inside meets: floor, ceiling, y low, y high, x low, x high.
    axes, offsets = [2, 2, 1, 1, 0, 0], [0, 2.5, 0, 3, 0, 4]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.stack([(o - place[a]) / world[..., a] for a, o in zip(axes, offsets, strict=True)], axis=-1)
    t[~(t > 0)] = np.inf
    plane, far = t.argmin(axis=-1), t.min(axis=-1)
    np.testing.assert_allclose(frame.depth, far * -looks[..., 2], atol=1e-4)
    # A ray within a float of a corner may meet either plane.
    clear = np.sort(t, axis=-1)[..., 1] - far > 1e-4
    np.testing.assert_array_equal(frame.instance[clear], OBJECTS[plane][clear])
    inward = np.array([[0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]])
    np.testing.assert_allclose(frame.normal[clear], (inward @ camera.pose[:3, :3])[plane][clear], atol=1e-5)
    assert ((frame.normal * looks).sum(axis=-1) < 0).all()
    hit = place + far[..., None] * world
    # Blue is 200 at every vertex; red is 10 times the vertex's number, which on the floor is linear in x and y.
    assert (frame.rgb[..., 2] == 200).all()
    floor = clear & (plane == 0)
    np.testing.assert_allclose(
        frame.rgb[floor][:, 0], 10 * hit[floor][:, 0] + 20 * hit[floor][:, 1] / 3, atol=0.51
    )


def test_the_sample_of_a_scan(tmp_path):
    mesh = read_replica(replica(tmp_path))
    frame = MeshTracer(mesh, "numpy").frame(inside(PINHOLE), (15, 20))
    photo = np.full((15, 20, 3), 51, np.uint8)
    sample = frame.sample(("wall", "floor"), photo, "room_0/1")
    assert sample.image.unique().tolist() == pytest.approx([0.2])
    expected = {5: 1, 0: IGNORE, 12: 0, 3: 0, 7: IGNORE}
    np.testing.assert_array_equal(sample.labels["semseg"], np.vectorize(expected.get)(frame.instance))
    np.testing.assert_array_equal(sample.labels["depth"][0], frame.depth)
    np.testing.assert_array_equal(sample.labels["normals"], frame.normal.transpose(2, 0, 1))
    np.testing.assert_allclose(frame.sample(()).image, frame.rgb.transpose(2, 0, 1) / 255, atol=1e-7)
    with pytest.raises(ValueError, match="at most 255 classes, got 256"):
        frame.semantic([str(i) for i in range(256)])


def test_pixels_without_a_hit_have_no_label(tmp_path):
    scene = replica(tmp_path)
    write_ply(
        scene / "habitat/mesh_semantic.ply", CORNERS, QUADS[:1], OBJECTS[:1], normals=True
    )  # a floor alone
    frame = MeshTracer(read_replica(scene), "numpy").frame(inside(PINHOLE))
    sample = frame.sample(("floor",))
    up = frame.depth == 0
    assert up[:15].all()
    assert not up[-1, 10:30].any()
    assert (frame.instance[up] == NOTHING).all()
    assert (sample.labels["semseg"].numpy()[up] == IGNORE).all()
    assert np.isnan(sample.labels["depth"].numpy()[0][up]).all()
    assert np.isnan(sample.labels["normals"].numpy()[:, up]).all()
    bent = Camera(41, 41, 5.0, 5.0, 20.5, 20.5, np.eye(4), "OPENCV_FISHEYE", (-0.1, 0.0, 0.0, 0.0))
    corner = MeshTracer(read_replica(scene), "numpy").frame(inside(bent))
    assert corner.depth[0, 0] == 0
    assert corner.instance[-1, -1] == NOTHING


@pytest.mark.parametrize(
    "line",
    [b"element vertex 1000000000000", b"element face 99999999", b"element vertex -1", b"element face x"],
)
def test_headers_that_declare_more_than_the_file_has_are_refused(tmp_path, line):
    scene = replica(tmp_path)
    ply = scene / "habitat/mesh_semantic.ply"
    whole = ply.read_bytes()
    old = next(row for row in whole.split(b"\n") if row.startswith(line.rsplit(b" ", 1)[0]))
    ply.write_bytes(whole.replace(old, line, 1))
    with pytest.raises(DataError, match=r"mesh_semantic\.ply: expected a ply file"):
        read_replica(scene)
    ply.write_bytes(b"ply\nformat ascii 1.0\n" + b"comment x\n" * 200_000)
    with pytest.raises(DataError, match="its header has no end"):
        read_replica(scene)


def test_large_numbers_of_objects_and_segments_cost_nothing(tmp_path):
    scene = scannetpp(tmp_path)
    segments = {"segIndices": [10**15 + i for i in range(24)]}
    (scene / "scans/segments.json").write_text(json.dumps(segments))
    groups = [{"objectId": 10**12, "label": "floor", "segments": [10**15 + i for i in range(4)]}]
    (scene / "scans/segments_anno.json").write_text(json.dumps({"segGroups": groups}))
    mesh = read_scannetpp(scene)
    assert mesh.instances[:3].tolist() == [10**12, 10**12, NOTHING]
    plane = np.zeros((1, 3))
    instance = np.array([[10**12, NOTHING, 7]])
    frame = ScanFrame(plane, np.zeros((1, 3, 3)), instance, np.zeros((1, 3, 3), np.uint8), mesh.labels)
    assert frame.semantic(["wall", "floor"]).tolist() == [[1, 255, 255]]


def test_deep_json_is_refused(tmp_path):
    scene = replica(tmp_path)
    (scene / "habitat/info_semantic.json").write_text("[" * 100_000)
    with pytest.raises(
        DataError, match=r"info_semantic\.json: expected the objects of a Replica scene as JSON"
    ):
        read_replica(scene)
