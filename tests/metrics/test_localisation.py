"""Metrics of anomaly localisation against what their definitions give, threshold by threshold."""

import numpy as np
import pytest
from scipy import ndimage

from testtime.metrics.localisation import f1_max, mask_iou, pixel_auroc, pro, regions

RNG = np.random.default_rng(0)
MASKS = ndimage.gaussian_filter(RNG.normal(size=(4, 20, 24)), (0, 2, 2)) > 0.12
MAPS = np.round(MASKS * 0.4 + RNG.random(MASKS.shape), 1)  # many ties


def test_pixel_auroc_is_the_probability_over_all_pairs():
    normal, abnormal = MAPS[~MASKS], MAPS[MASKS]
    difference = abnormal[:, None] - normal[None]
    assert pixel_auroc(MAPS, MASKS) == pytest.approx(100 * ((difference > 0) + (difference == 0) / 2).mean())


def test_f1_is_the_largest_over_all_thresholds():
    best = max(2 * ((t <= MAPS) & MASKS).sum() / ((t <= MAPS).sum() + MASKS.sum()) for t in np.unique(MAPS))
    assert f1_max(MAPS, MASKS) == pytest.approx(100 * best)


def test_regions_are_those_of_scipy_with_eight_neighbours():
    found = regions(MASKS)
    total = 0
    for number, mask in zip(found, MASKS, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        total += count
        assert len(np.unique(number[mask])) == count
        for k in range(1, count + 1):
            assert len(np.unique(number[labels == k])) == 1
    assert found.max() == total


@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_pro_is_the_area_under_the_mean_overlap_of_regions(limit):
    pieces = [
        (i, labels == k)
        for i, mask in enumerate(MASKS)
        for labels, count in [ndimage.label(mask, np.ones((3, 3)))]
        for k in range(1, count + 1)
    ]
    rates, overlaps = [0.0], [0.0]
    for t in np.unique(MAPS)[::-1]:
        above = t <= MAPS
        rates.append((above & ~MASKS).sum() / (~MASKS).sum())
        overlaps.append(np.mean([above[i][piece].mean() for i, piece in pieces]))
    grid = np.linspace(0, limit, 200_001)
    expected = 100 * np.trapezoid(np.interp(grid, rates, overlaps), grid) / limit
    assert pro(MAPS, MASKS, limit) == pytest.approx(expected, abs=1e-3)


def test_pro_counts_a_small_region_as_a_large_one():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :4, :4] = mask[0, 7, 7] = True
    large, small = np.zeros((1, 8, 8)), np.zeros((1, 8, 8))
    large[0, :4, :4], small[0, 7, 7] = 1, 1
    assert pro(large, mask, 0.01) == pytest.approx(pro(small, mask, 0.01))


def test_iou_of_masks():
    answers = MAPS > 0.7
    expected = [100 * (a & m).sum() / (a | m).sum() for a, m in zip(answers, MASKS, strict=True)]
    np.testing.assert_allclose(mask_iou(answers, MASKS), expected)
    assert mask_iou(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)).tolist() == [100.0]


def test_nothing_can_be_measured_without_both_kinds_of_pixels():
    for mask in (np.zeros_like(MASKS), np.ones_like(MASKS)):
        assert np.isnan(pro(MAPS, mask))
        assert np.isnan(pixel_auroc(MAPS, mask))
    assert np.isnan(f1_max(MAPS, np.zeros_like(MASKS)))
    assert np.isnan(f1_max(np.full(MAPS.shape, np.nan), MASKS))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pixel_auroc(MAPS[:, :5], MASKS), "resize the maps"),
        (lambda: f1_max(MAPS, MASKS.astype(float)), "masks as bool"),
        (lambda: pro(MAPS, MASKS, 0.0), "limit"),
        (lambda: mask_iou(MAPS, MASKS), "as bool"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
