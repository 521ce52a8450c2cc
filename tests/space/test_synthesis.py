"""Synthesised views: the projection recomputed point by point, on planes and on rendered houses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_house import Changed, small_house

from testtime.data import Camera
from testtime.space.synthesis import SynthesisedFrames, nearest_poses, splatted

pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")


def camera(x=0.0, y=0.0, z=0.0, turn=0.0):
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    pose[:3, 3] = x, y, z
    return Camera(8, 6, 8.0, 8.0, 4.0, 3.0, pose)


def test_a_plane_moves_by_its_parallax():
    picture = torch.arange(48.0).view(1, 6, 8)
    depth = torch.full((1, 6, 8), 2.0)
    found, shown = splatted(
        [(camera(), depth, picture)], camera(x=0.25)
    )  # 0.25 m * 8 px / 2 m: a pixel to the left
    assert torch.equal(shown[0, :, :7], picture[0, :, 1:])
    assert shown[0, :, 7].isnan().all()
    assert found[0, :, :7].eq(2).all()
    _, up = splatted([(camera(), depth, picture)], camera(y=0.25))  # the camera rises, the picture sinks
    assert torch.equal(up[0, 1:], picture[0, :5])
    found, _ = splatted([(camera(), depth, picture)], camera(z=1.0))  # a step back: z points to the viewer
    assert found[found.isfinite()].unique().tolist() == [3.0]


def test_every_point_is_projected_and_the_nearest_is_seen():
    rng = np.random.default_rng(0)
    sources = []
    for pose in (camera(0.1, 0.2, 0.3, 0.4), camera(-0.2, 0.1, 0.0, -0.3)):
        depth = rng.uniform(1, 3, (6, 8))
        depth[0, :3] = np.nan
        sources.append((pose, depth, rng.uniform(size=(2, 6, 8))))
    target = camera(0.05, -0.1, 0.2, 0.1)
    best, colour = np.full((6, 8), np.inf), np.full((2, 6, 8), np.nan)
    back = np.linalg.inv(target.pose)
    for one, depth, values in sources:
        for v in range(6):
            for u in range(8):
                if not np.isfinite(depth[v, u]):
                    continue
                ray = np.linalg.inv(one.k) @ [u + 0.5, v + 0.5, 1] * depth[v, u]
                x, y, z, _ = back @ one.pose @ [ray[0], -ray[1], -ray[2], 1]
                if z >= 0:
                    continue
                column, row, _ = target.k @ [x / -z, -y / -z, 1]
                column, row = int(np.floor(column)), int(np.floor(row))
                if 0 <= column < 8 and 0 <= row < 6 and -z < best[row, column]:
                    best[row, column], colour[:, row, column] = -z, values[:, v, u]
    found, shown = splatted([(c, torch.tensor(d)[None], torch.tensor(v)) for c, d, v in sources], target)
    np.testing.assert_allclose(found[0], np.where(np.isfinite(best), best, np.nan), rtol=1e-6)
    np.testing.assert_allclose(shown, colour, rtol=1e-6)
    assert np.isfinite(best).sum() > 10


def test_the_cameras_that_see_most_alike_are_chosen():
    poses = np.stack(
        [c.pose for c in (camera(), camera(0.5), camera(0.1, turn=3.0), camera(0.2, turn=0.1), camera(9))]
    )
    assert nearest_poses(poses, 0, 3) == [3, 1, 2]


def test_synthesised_frames_of_a_house_resemble_it_without_its_own_pixels():
    house = small_house()
    made = SynthesisedFrames(house, 5)
    assert (len(made), made.tasks) == (10, ("depth", "normals"))
    errors, blind = [], []
    for i in range(len(made)):
        real, found = house[i], made[i]
        assert found.image.isfinite().all()
        assert found.image.shape == real.image.shape
        known = found.labels["depth"].isfinite() & real.labels["depth"].isfinite()
        if known.sum() < 500:
            continue
        errors.append((found.labels["depth"] - real.labels["depth"]).abs()[known].median().item())
        blind.append(
            (real.labels["depth"] - real.labels["depth"][known].median()).abs()[known].median().item()
        )
        normals = (found.labels["normals"] * real.labels["normals"]).sum(0)
        assert normals[normals.isfinite()].median() > 0.9
    assert len(errors) > 2
    assert np.mean(errors) < 0.25 * np.mean(blind)

    class Without(Changed):
        def __getitem__(self, index):
            assert index != 0, "a frame's own pixels are used"
            return super().__getitem__(index)

    assert not torch.equal(SynthesisedFrames(Without(house), 5)[0].image, house[0].image)


def test_data_without_depth_or_with_too_few_frames_are_refused():
    house = small_house()
    with pytest.raises(
        ValueError, match="expected more than 5 frames with depth and cameras, got 10 with normals"
    ):
        SynthesisedFrames(Changed(house, only="normals"), 5)
    with pytest.raises(ValueError, match="expected more than 10 frames"):
        SynthesisedFrames(house, 10)
