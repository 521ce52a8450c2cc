"""The shared operators against loops, and against values of OpenCV."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_corruptions import photographs

from testtime.corruptions import filters


def test_to_8_bits_truncates_and_keeps_8_bit_values() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(filters.to_8_bits(levels), levels)
    x = torch.tensor([-1.0, 0.0, 0.99 / 255, 1.5 / 255, 254.99 / 255, 1.0, 2.0])
    assert (filters.to_8_bits(x) * 255).round().tolist() == [0, 0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("mode", ["nearest", "reflect"])
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.7, 3.0, 40.0])
def test_gaussian_blur_is_scipys_for_any_radius(sigma: float, mode: str) -> None:
    x = photographs(32, 2)[:, :, :20]
    got = filters.gaussian_blur(x, sigma, mode, truncate=3.0)
    expected = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode=mode, truncate=3.0)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


def test_canny_gives_the_edges_of_opencv() -> None:
    row, column = np.mgrid[:14, :14]
    picture = 200.0 * ((row - 6) ** 2 + (column - 5) ** 2 <= 14) + 90.0 * (
        (abs(row - 11) <= 1) & (column > 7)
    )
    edges = filters.canny(torch.from_numpy(picture)[None, None].float(), 50, 150)[0, 0]
    drawn = ["".join("#" if v else "." for v in line) for line in edges.tolist()]
    assert drawn == [  # cv2.Canny(picture, 50, 150)
        "..............",
        "..............",
        "....###.......",
        "..##...##.....",
        "..#.....#.....",
        ".#......#.....",
        ".#......#.....",
        ".#......#.....",
        "..#.....#.....",
        "..############",
        "..............",
        ".......#......",
        "........######",
        "..............",
    ]


def test_canny_keeps_weak_edges_only_beside_strong_ones() -> None:
    weak = torch.zeros(1, 1, 12, 12)
    weak[..., 6:] = 25  # a step of 25 has |gx| = 100: between the thresholds
    assert not filters.canny(weak, 50, 150).any()
    weak[..., :3, 6:] = 60  # the same step, strong at the top
    assert filters.canny(weak, 50, 150)[0, 0, 5:, 5].all()


def test_distance_to_is_the_shortest_path_up_to_its_limit() -> None:
    mask = torch.rand(3, 1, 40, 50, generator=torch.Generator().manual_seed(0)) > 0.995
    mask[2] = False
    got = filters.distance_to(mask, 20).numpy()
    for i in range(2):
        # in closed form: knight's moves as far as both directions allow, the rest straight or diagonal
        ends = np.argwhere(mask[i, 0].numpy())
        apart = np.abs(np.argwhere(np.ones((40, 50)))[:, None] - ends)
        long, short = apart.max(2), apart.min(2)
        flat = long - 2 * short + 2.1969 * short
        steep = 1.4 * (2 * short - long) + 2.1969 * (long - short)
        path = np.where(long >= 2 * short, flat, steep).min(1).clip(max=20)
        np.testing.assert_allclose(got[i, 0].flatten(), path, rtol=1e-5)
        euclid = np.minimum(ndimage.distance_transform_edt(~mask[i, 0].numpy()), 20)
        np.testing.assert_allclose(got[i, 0], euclid, rtol=0.025)
    assert (got[2] == 20).all()


def test_equalise_spreads_the_histogram() -> None:
    x = torch.tensor([[3.0, 3, 7], [7, 7, 9], [9, 9, 9]])[None, None]
    # 2, 3 and 4 of 9 values: the darkest goes to 0, then 255 * 3 / 7 and 255 * 7 / 7
    assert filters.equalise(x).unique().tolist() == [0, 109, 255]
    flat = torch.full((1, 1, 3, 3), 5.0)
    assert torch.equal(filters.equalise(flat), flat)


def test_clipped_zoom_keeps_the_corners_of_the_crop() -> None:
    ramp = torch.arange(33.0).expand(1, 1, 33, 33)
    y = filters.clipped_zoom(ramp, 33 / 17)
    assert y.shape == ramp.shape
    torch.testing.assert_close(y[0, 0, 0], torch.linspace(8, 24, 33))
    assert torch.equal(filters.clipped_zoom(ramp, 1.0), ramp)


@pytest.mark.parametrize(("mirror_pixel", "mode"), [(True, "mirror"), (False, "reflect")])
def test_sampling_mirrors_as_its_library(mirror_pixel: bool, mode: str) -> None:
    x = photographs(32, 1)[:, :1, :20]
    place = torch.rand(2, 1, 20, 32, generator=torch.Generator().manual_seed(1)) * 90 - 30
    got = filters.affine_grid_sample(x, place[0], place[1], mirror_pixel)[0, 0]
    expected = ndimage.map_coordinates(
        x[0, 0].double().numpy(), place[:, 0].flip(0).double().numpy(), order=1, mode=mode
    )
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
