"""Windows and crops: drawn as 4M draws them, and every modality seen through the same one."""

import math

import numpy as np
import pytest
import torch

from testtime.space.crops import cropped, windows
from testtime.space.modalities import DEPTH, EDGES, NORMALS, RGB, boxes, classes, features
from testtime.space.sequences import Box

SIZE = (48, 64)
CLASSES, BOXES, MAP = classes("classes", 9), boxes("boxes", 100), features("map", 1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count=40, seed=0, size=SIZE):
    return windows(count, 0.3, rng(seed), size).tolist()


def test_the_first_window_is_the_largest_square_in_the_middle():
    assert windows(1, 0.4, rng(), (48, 64)).tolist() == [[0, 0.125, 1, 0.75, 0]]
    assert windows(1, 0.4, rng(), (64, 48)).tolist() == [[0.125, 0, 0.75, 1, 0]]
    assert windows(3, 0.4, rng(), (32, 32))[0].tolist() == [0, 0, 1, 1, 0]


def test_windows_recomputed_from_the_same_random_numbers():
    found = windows(60, 0.3, rng(3), SIZE)[1:].double().numpy() * [48, 64, 48, 64, 1]
    fell_back = 0
    for (area, ratio, top, left, mirror), window in zip(
        torch.rand(59, 5, generator=rng(3)).double().numpy(), found, strict=True
    ):
        pixels, aspect = (0.3 + 0.7 * area) * 48 * 64, (3 / 4) ** (1 - ratio) * (4 / 3) ** ratio
        height, width = np.round(np.sqrt(pixels / aspect)), np.round(np.sqrt(pixels * aspect))
        if height > 48 or width > 64:
            fell_back += 1
            assert window[:4] == pytest.approx([0, 8, 48, 48], abs=1e-4)
        else:
            at = [math.floor(top * (49 - height)), math.floor(left * (65 - width))]
            assert window[:4] == pytest.approx([*at, height, width], abs=1e-4)
        assert window[4] == (mirror < 0.5)
    assert 0 < fell_back < 40


def test_windows_lie_in_the_frame_and_are_spread_as_they_should():
    found = windows(6000, 0.25, rng(1), (400, 400))[1:].double().numpy()
    top, left, height, width, mirrored = found.T
    assert (found[:, :4] >= 0).all()
    assert (top + height <= 1 + 1e-6).all()
    assert (left + width <= 1 + 1e-6).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.02)
    aspect, area = width / height, height * width
    assert 0.74 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.35
    assert np.log(aspect[height < 1]).mean() == pytest.approx(0, abs=0.01)
    # Up to 3/4 of the frame every window fits: areas are uniform there, and so are places.
    fits = area < 0.74
    assert area.min() == pytest.approx(0.25, abs=0.005)
    assert np.quantile(area[fits], [0.25, 0.5, 0.75]) == pytest.approx([0.3725, 0.495, 0.6175], abs=0.015)
    for at, extent in ((top, height), (left, width)):
        shares = at[fits & (extent < 1)] / (1 - extent[fits & (extent < 1)])
        assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)


def test_edges_of_windows_are_edges_of_pixels():
    pixels = windows(200, 0.2, rng(5), SIZE)[:, :4].double() * torch.tensor([48.0, 64, 48, 64])
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)


def test_a_marker_is_found_at_one_place_in_all_modalities():
    """A bright pixel is followed through windows and mirrors; crops are so large that no pixel is passed over."""
    row, column, size = 21, 37, (96, 96)
    picture, depth, names = torch.zeros(3, *SIZE), torch.ones(1, *SIZE), torch.zeros(SIZE, dtype=torch.int64)
    normals = torch.tensor([0.0, 0, 1]).view(3, 1, 1).repeat(1, *SIZE)
    picture[:, row, column], depth[:, row, column], names[row, column] = 1, 7, 5
    normals[:, row, column] = torch.tensor([0.6, 0.0, 0.8])
    box = Box(column / 64, row / 48, (column + 1) / 64, (row + 1) / 48, "marker")
    found = 0
    for window in drawn(60):
        top, left, height, width, mirror = window
        inside = round(top * 48) <= row < round((top + height) * 48) and round(left * 64) <= column < round(
            (left + width) * 64
        )
        ys = ((torch.arange(96) + 0.5) / 96 * height + top) * 48
        xs = ((torch.arange(96) + 0.5) / 96 * width + left) * 64
        expected = (ys.floor() == row)[:, None] & (xs.floor() == column)[None]
        expected = expected.flip(1) if mirror else expected
        assert bool(expected.any()) == inside
        seen_depth, seen_class = (cropped(v, m, window, size) for v, m in ((depth, DEPTH), (names, CLASSES)))
        seen_normals = cropped(normals, NORMALS, window, size)
        assert torch.equal(seen_depth[0] == 7, expected)
        assert torch.equal(seen_class == 5, expected)
        assert seen_class.dtype == torch.int64
        assert torch.equal(seen_normals[1:], torch.stack([0.0 * expected, 1 - 0.2 * expected]))
        assert torch.equal(seen_normals[0], (-0.6 if mirror else 0.6) * expected)
        seen_box = cropped([box], BOXES, window, size)
        assert len(seen_box) == inside
        if not inside:
            continue
        found += 1
        seen = cropped(picture, RGB, window, size)
        assert seen.shape == (3, 96, 96)
        mass = seen[0] / seen[0].sum()
        y, x = ((mass.sum(d) * (torch.arange(96) + 0.5)).sum().item() for d in (1, 0))
        where = expected.nonzero().double() + 0.5
        assert (y, x) == pytest.approx(tuple(where.mean(0).tolist()), abs=1.0)
        b = seen_box[0]
        assert (96 * (b.y0 + b.y1) / 2, 96 * (b.x0 + b.x1) / 2) == pytest.approx((y, x), abs=1.0)
    assert 20 < found < 60


def test_boxes_lie_on_masks_and_half_hidden_ones_are_left_out():
    mask = torch.zeros(SIZE, dtype=torch.int64)
    mask[10:34, 20:50] = 1
    box = Box(20 / 64, 10 / 48, 50 / 64, 34 / 48, "table", 0.9)
    kept = 0
    for window in drawn(80, seed=2):
        _, _, height, width, _ = window
        size = (round(height * 48), round(width * 64))  # pixel for pixel
        seen = cropped(mask, CLASSES, window, size)
        boxes_seen = cropped([box], BOXES, window, size)
        share = (seen == 1).sum().item() / (24 * 30)
        if abs(share - 0.5) > 1e-6:
            assert len(boxes_seen) == (share > 0.5)
        for b in boxes_seen:
            kept += 1
            rows, columns = (seen == 1).nonzero().numpy().T
            assert [b.x0 * size[1], b.y0 * size[0], b.x1 * size[1], b.y1 * size[0]] == pytest.approx(
                [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1e-3
            )
            assert (b.name, b.score) == ("table", 0.9)
    assert 20 < kept < 80
    assert cropped([Box(0.1, 0.1, 0.1, 0.5, "line")], BOXES, (0, 0, 1, 1, 0), SIZE) == []


def test_a_coarse_map_lies_on_a_fine_one():
    """A map of a quarter of the resolution is not cut at its own pixels."""
    fine = (torch.arange(64).repeat(64, 1) // 8 + 8 * (torch.arange(64)[:, None] // 8))[None].float()
    coarse = fine[:, ::8, ::8]
    differ = 0.0
    for window in drawn(40, seed=4, size=(64, 64)):
        a, b = (cropped(v, MAP, window, (8, 8)) for v in (fine, coarse))
        differ = max(differ, (a != b).float().mean().item())
    assert differ == 0


def test_pictures_are_averaged_and_depths_are_not():
    whole = (0.0, 0.0, 1.0, 1.0, 0.0)
    checks = (torch.arange(8)[:, None] + torch.arange(8))[None] % 2
    grey = cropped(checks.expand(3, 8, 8).float(), RGB, whole, (2, 2))
    assert grey.flatten().tolist() == pytest.approx([0.5] * 12, abs=0.02)
    assert set(cropped(1.0 + checks, DEPTH, whole, (3, 3)).flatten().tolist()) <= {1.0, 2.0}
    assert cropped(checks.float(), EDGES, whole, (8, 8)).equal(checks.float())
    holes = torch.full((1, 4, 4), torch.nan)
    assert cropped(holes, DEPTH, (0, 0, 0.5, 0.5, 1), (4, 4)).isnan().all()
