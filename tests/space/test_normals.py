"""Normals from depth: exact for planes, close for spheres, and unknown at discontinuities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testtime.space.normals import normals_of

K = np.array([[50.0, 0, 32], [0, 55.0, 24], [0, 0, 1]])


def angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    known = (a.isfinite() & b.isfinite()).all(0)
    return torch.rad2deg((a * b).sum(0)[known].double().clamp(-1, 1).acos())


def seen_plane(normal: list[float], distance: float, size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    """Depth (1, H, W) of the plane n . p = -distance, for n in x right, y up, z to the viewer."""
    x = (np.arange(size[1]) + 0.5 - K[0, 2]) / K[0, 0]
    y = (np.arange(size[0]) + 0.5 - K[1, 2]) / K[1, 1]
    n = np.array(normal) / np.linalg.norm(normal)
    # p = Z (x, -y, -1)
    return torch.from_numpy(-distance / (n[0] * x - n[1] * y[:, None] - n[2]))[None].float()


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("normal", [[0, 0, 1], [0.6, 0, 0.8], [0, 0.9, 0.5], [-0.5, -0.4, 0.7]])
def test_normals_of_planes_are_exact(normal, radius):
    found = normals_of(seen_plane(normal, 3.0), K, radius)
    exact = torch.tensor(normal) / torch.tensor(normal).float().norm()
    assert float((found - exact.view(3, 1, 1)).abs().max()) < 1e-3
    assert not found.isnan().any()


def test_normals_of_a_sphere():
    x = (np.arange(64) + 0.5 - K[0, 2]) / K[0, 0]
    y = (np.arange(48) + 0.5 - K[1, 2])[:, None] / K[1, 1]
    centre, radius = 3.0, 1.4  # Z^2 (x^2 + y^2) + (Z - centre)^2 = radius^2
    a, b, c = x * x + y * y + 1, -2 * centre, centre**2 - radius**2
    root = b * b - 4 * a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / (2 * a), np.nan)
    exact = torch.from_numpy(np.stack([x * depth, -y * depth, centre - depth]) / radius)
    found = normals_of(torch.from_numpy(depth)[None], K)
    assert bool(found[0][torch.from_numpy(root < 0)].isnan().all())
    error = angles(found, exact)
    assert float(error.median()) < 0.5
    assert float(error.quantile(0.9)) < 5
    assert len(error) > 0.95 * (root > 0).sum()


def test_normals_keep_to_their_side_of_a_border():
    near, far = seen_plane([0, 0, 1], 1.0), seen_plane([0.6, 0, 0.8], 4.0)
    depth = torch.where(torch.arange(64) < 30, near, far)
    found = normals_of(depth, K)
    exact = torch.where(
        torch.arange(64) < 30, torch.tensor([0, 0, 1.0])[:, None], torch.tensor([0.6, 0, 0.8])[:, None]
    )
    assert float((found - exact[:, None]).abs().max()) < 1e-3  # at the border itself, too


def test_normals_are_unknown_where_depth_is_and_where_nothing_is_flat():
    depth = seen_plane([0, 0, 1], 2.0)
    depth[0, 10, 10], depth[0, 11, 10] = torch.nan, 0
    depth[0, :, 40] = 1.0  # a pole of one pixel
    found = normals_of(depth, K)
    unknown = torch.zeros(48, 64, dtype=torch.bool)
    unknown[10:12, 10], unknown[:, 40] = True, True
    assert torch.equal(found.isnan().all(0), unknown)
    assert torch.equal(found.isnan().any(0), unknown)


def test_larger_windows_withstand_noise():
    plane = seen_plane([0.3, 0.2, 0.9], 2.0)
    noisy = plane * (1 + 0.01 * torch.randn(plane.shape, generator=torch.Generator().manual_seed(0)))
    exact = normals_of(plane, K)
    small, large = (float(angles(normals_of(noisy, K, radius), exact).median()) for radius in (1, 4))
    assert large < 2.5 < 3 * large < small


def test_normals_of_depth_are_those_of_the_renderer():
    from testtime.scenes import render_space

    scenes = render_space(seed=3, frames=3, size=(64, 64))
    for i in range(3):
        labels = scenes[i].labels
        found = normals_of(labels["depth"], scenes.camera(i).k)
        error = angles(found, labels["normals"])
        assert float(error.median()) < 0.5
        assert float((error < 10).float().mean()) > 0.75
        assert float(found[0].isnan().float().mean()) < 0.05


def test_normals_need_depth_and_intrinsics():
    with pytest.raises(ValueError, match=r"expected depth \(1, H, W\), intrinsics \(3, 3\)"):
        normals_of(torch.ones(4, 4), K)
    with pytest.raises(ValueError, match="radius of at least 1"):
        normals_of(torch.ones(1, 4, 4), K, 0)
