import numpy as np
import pytest

from testtime.scenes.geometry import BELOW, box, cushion, cylinder, joined, lathe, leaf, panel, sphere, wave


def volume(mesh):
    """The volume of a closed mesh with outward normals, by the divergence theorem."""
    a, b, c = mesh.triangles.astype(np.float64).transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def flat_normals(mesh):
    a, b, c = mesh.triangles.astype(np.float64).transpose(1, 0, 2)
    n = np.cross(b - a, c - a)
    return n / np.linalg.norm(n, axis=1, keepdims=True)


def test_box_has_its_volume_and_its_normals_point_outward():
    mesh = box((1, 2, 3), (2, 4, 6), material=5)
    assert volume(mesh) == pytest.approx(6.0, abs=1e-5)
    assert np.allclose(flat_normals(mesh)[:, None], mesh.normals)
    assert set(mesh.material) == {5}
    assert mesh.bounds.tolist() == [[1, 2, 3], [2, 4, 6]]


def test_object_coordinates_of_a_box_lie_below_its_faces_with_the_grain_along_the_longest_edge():
    mesh = box((0, 0, 0), (1, 3, 2))
    low, high = mesh.local.reshape(-1, 3).min(axis=0), mesh.local.reshape(-1, 3).max(axis=0)
    assert np.allclose(high - low, [3, 2, 1], atol=1e-6)
    faces = np.abs(mesh.local).reshape(-1, 9)
    inset = np.array([1.5, 1.0, 0.5]) - BELOW
    on_a_plane = [
        any(np.allclose(f.reshape(3, 3)[:, k], inset[k], atol=1e-6) for k in range(3)) for f in faces
    ]
    assert all(on_a_plane)


def test_cylinder_and_cone_have_nearly_their_volumes():
    assert volume(cylinder((5, 1, 2), 1, 2, segments=64)) == pytest.approx(2 * np.pi, rel=0.01)
    assert volume(cylinder((0, 0, 0), 1, 3, top=0.5, segments=64)) == pytest.approx(
        np.pi * (1 + 0.5 + 0.25), rel=0.01
    )


def test_lathe_is_smooth_along_a_curve_and_sharp_at_a_rim():
    mesh = lathe([(0, 0), (1, 0), (1, 1), (0.9, 1.5)], segments=32)
    side = np.abs(mesh.triangles[:, :, 2] - 1).max(axis=1) < 1e-6
    assert not side.any()  # no triangle lies in a plane inside the wall
    at_seam = np.isclose(mesh.triangles[..., 2], 1) & np.isclose(
        np.hypot(*mesh.triangles[..., :2].transpose(2, 0, 1)), 1
    )
    slopes = mesh.normals[at_seam][:, 2]
    expected = np.sin(
        np.arctan2(0.1, 0.5) / 2
    )  # halfway between an upright wall and one that leans by 0.1 on 0.5
    assert np.allclose(slopes, expected, atol=1e-3)
    floor = np.isclose(mesh.triangles[..., 2], 0).all(axis=1)
    assert np.allclose(mesh.normals[floor], [0, 0, -1], atol=1e-6)


def test_sphere_has_the_normals_of_an_ellipsoid():
    radii = np.array([1.0, 2.0, 0.5])
    mesh = sphere((3, 2, 1), radii, segments=24)
    away = (mesh.triangles - [3, 2, 1]) / radii**2
    assert np.allclose(mesh.normals, away / np.linalg.norm(away, axis=-1, keepdims=True), atol=1e-4)
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi, rel=0.06)


def test_cushion_fills_its_box_but_for_the_edges():
    mesh = cushion((0, 0, 0), (2, 1, 0.5), 0.1)
    assert mesh.bounds.tolist() == pytest.approx(np.array([[0, 0, 0], [2, 1, 0.5]]), abs=1e-5)
    assert 0.9 < volume(mesh) < 1.0
    assert np.allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-5)
    assert (np.einsum("fi,fci->fc", flat_normals(mesh), mesh.normals) > 0.5).all()


def test_thin_shapes_have_normals_across_them():
    for mesh in (wave((0, 0, 0), 1, 2, 0.1, 3), leaf((0, 0, 0), 0.3, 0.4, 0.5, 0.1)):
        across = np.abs(np.einsum("fi,fci->fc", flat_normals(mesh), mesh.normals))
        assert across.mean() > 0.85
    assert np.allclose(panel((0, 1, 0), 2, 3).normals, [0, 1, 0])
    assert np.allclose(flat_normals(panel((0, 1, 0), 2, 3)), [0, 1, 0])


def test_moving_turns_normals_and_leaves_object_coordinates():
    mesh = box((0, 0, 0), (1, 2, 3))
    moved = mesh.moved((5, 6, 7), np.pi / 2)
    assert moved.bounds == pytest.approx(np.array([[3, 6, 7], [5, 7, 10]]), abs=1e-5)
    assert np.allclose(moved.normals[..., 0], -mesh.normals[..., 1], atol=1e-6)
    assert (moved.local == mesh.local).all()
    assert mesh.tilted(np.pi / 2).bounds == pytest.approx(np.array([[0, -3, 0], [1, 0, 2]]), abs=1e-5)


def test_joined_meshes_keep_their_numbers():
    both = joined([box((0, 0, 0), (1, 1, 1)).tagged(3, 7), box((2, 0, 0), (3, 1, 1)).tagged(4, 8)])
    assert both.instance.tolist() == [3] * 12 + [4] * 12
    assert both.label.tolist() == [7] * 12 + [8] * 12
    assert len(both.chosen(both.instance == 4)) == 12
    assert len(joined([])) == 0
