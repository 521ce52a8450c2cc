"""Metrics of edges recomputed in numpy, and on edges drawn by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from testtime.metrics import BCE, AveragePrecision, EdgeF
from testtime.metrics.edge_matching import grow_matching, thinned

NAN = float("nan")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fed(meter, output: Tensor, label: Tensor, batch: int = 0):
    """The meter after the images, in batches."""
    for y, t in zip(output.split(batch or len(output)), label.split(batch or len(label)), strict=True):
        meter.update(y, t)
    return meter


def holes(label: Tensor, share: float = 0.2, seed: int = 9) -> Tensor:
    """The label, unknown in some pixels (all channels) and in the whole last image."""
    gone = torch.rand(len(label), 1, *label.shape[2:], generator=rng(seed)) < share
    gone[-1] = True
    return label.masked_fill(gone, NAN)


# Edges, pixel by pixel


def test_bce_is_written_out():
    output = 4 * torch.randn(4, 1, 6, 7, generator=rng()).double()
    label = holes(torch.rand(4, 1, 6, 7, generator=rng(1)).double())
    p, t = 1 / (1 + np.exp(-output.numpy())), label.numpy()
    expected = -np.nanmean(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert fed(BCE(), output, label, 3).value() == pytest.approx(expected)
    assert fed(BCE(), torch.full((1, 1, 1, 1), -800.0), torch.ones(1, 1, 1, 1)).value() == 800


def test_average_precision_is_the_area_in_steps():
    output = (2 * torch.randn(4, 1, 9, 9, generator=rng())).round(decimals=1)
    label = holes((torch.rand(4, 1, 9, 9, generator=rng(1)) < 0.2).float())
    known = label.isfinite().numpy()
    y, t = output.numpy()[known], label.numpy()[known] >= 0.5
    area = last = 0.0
    for threshold in np.unique(y)[::-1]:
        found = y >= threshold
        recall = (found & t).sum() / t.sum()
        area += (recall - last) * (found & t).sum() / found.sum()
        last = recall
    assert fed(AveragePrecision(), output, label, 3).value() == pytest.approx(100 * area)


def test_average_precision_of_right_wrong_and_constant_answers():
    label = torch.tensor([1.0, 1, 0, 0, 0]).view(1, 1, 1, 5)
    assert fed(AveragePrecision(), 40 * label - 20, label).value() == 100
    assert fed(AveragePrecision(), 0 * label, label).value() == pytest.approx(40)
    assert fed(AveragePrecision(), -label, label).value() == pytest.approx(40)
    assert np.isnan(fed(AveragePrecision(), label, 0 * label).value())


# Edges as lines


def lines(size: int, columns: list[int]) -> Tensor:
    """(1, 1, size, size) with vertical lines."""
    label = torch.zeros(1, 1, size, size)
    label[..., columns] = 1
    return label


def logits(p: Tensor) -> Tensor:
    return p.double().clamp(1e-9, 1 - 1e-9).logit()


def test_precision_and_recall_of_lines():
    # Two lines of four are found, one of them a pixel aside, and a third where there is none.
    label, found = lines(32, [3, 10, 17, 24]), lines(32, [3, 11, 29])
    meter = fed(EdgeF(), logits(found), label)
    threshold, precision, recall = meter.curve()
    np.testing.assert_allclose(precision, 2 / 3)
    np.testing.assert_allclose(recall, 1 / 2)
    assert meter.value() == meter.ods == meter.ois == pytest.approx(100 * 4 / 7)
    assert meter.ap == pytest.approx(100 * (1 / 2) * (2 / 3))
    np.testing.assert_allclose(threshold, np.arange(1, 34) / 34)


def test_two_pixels_aside_is_a_miss_until_the_image_is_large():
    assert fed(EdgeF(), logits(lines(32, [12])), lines(32, [10])).value() == 0
    assert fed(EdgeF(tolerance=0.05), logits(lines(32, [12])), lines(32, [10])).value() == 100
    # 0.0075 of the diagonal of 192 x 192 is 2.04 pixels.
    assert fed(EdgeF(), logits(lines(192, [12])), lines(192, [10])).value() == 100


def test_the_best_threshold_is_one_for_all_or_one_for_each():
    # Image 0: its edge at 0.9 and a false one at 0.6. Image 1: its edge at 0.4, a false one at 0.2.
    label = torch.cat([lines(32, [5]), lines(32, [5])])
    p = torch.cat(
        [0.9 * lines(32, [5]) + 0.6 * lines(32, [20]), 0.4 * lines(32, [5]) + 0.2 * lines(32, [20])]
    )
    meter = fed(EdgeF([0.1, 0.3, 0.5, 0.7]), logits(p), label)
    _, precision, recall = meter.curve()
    np.testing.assert_allclose(precision, [1 / 2, 2 / 3, 1 / 2, 1])
    np.testing.assert_allclose(recall, [1, 1, 1 / 2, 1 / 2])
    assert meter.ods == pytest.approx(80)
    assert meter.ois == 100
    assert meter.ap == pytest.approx(100 * (1 / 2 * 1 + 1 / 2 * 2 / 3))
    separate = EdgeF([0.1, 0.3, 0.5, 0.7])
    for i in range(2):
        separate.update(logits(p[i : i + 1]), label[i : i + 1])
    assert (separate.ods, separate.ois, separate.ap) == (meter.ods, meter.ois, meter.ap)


def test_a_wide_answer_is_thinned_to_its_ridge():
    label = lines(32, [10])
    columns = torch.arange(32.0)
    for width in (1.0, 2.5):
        p = torch.exp(-((columns - 10) ** 2) / (2 * width**2)).expand(1, 1, 32, 32)
        meter = fed(EdgeF([0.05, 0.5, 0.95]), logits(p), label)
        assert meter.found.tolist() == [32, 32, 32]
        assert meter.value() == 100
    # A saturated band of three: the middle stays.
    assert fed(EdgeF(), 60 * lines(32, [9, 10, 11]) - 30, label).value() == 100


def test_a_diagonal_and_a_circle_are_found_in_full():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for distance in (rows - columns, (rows - 32).hypot(columns - 31) - 20, 0.3 * rows - columns + 20):
        label = (distance.abs() <= 0.6).float()[None, None]
        p = torch.exp(-(distance**2) / 4)[None, None]
        assert fed(EdgeF(), logits(p), label).value() > 97
        assert fed(EdgeF(), logits(label), label).value() > 99


def test_labels_on_both_sides_of_an_edge_are_one_line():
    wide, answer = lines(32, [10, 11]), logits(lines(32, [10]))
    assert fed(EdgeF(), answer, wide).value() == 100
    assert fed(EdgeF(thin_labels=False), answer, wide).value() == pytest.approx(100 * 2 / 3)


def test_edges_found_in_unknown_pixels_do_not_count():
    label, p = lines(32, [5]), lines(32, [5, 20])
    assert fed(EdgeF(), logits(p), label).value() == pytest.approx(100 * 2 / 3)
    label[..., 16:] = NAN
    assert fed(EdgeF(), logits(p), label).value() == 100
    unknown = torch.full_like(label, NAN)
    assert fed(EdgeF(), logits(torch.cat([p, p])), torch.cat([label, unknown])).value() == 100


def test_an_image_without_edges_can_only_give_false_positives():
    label = torch.cat([lines(32, [5]), lines(32, [])])
    meter = fed(EdgeF([0.5]), logits(torch.cat([lines(32, [5]), lines(32, [5])])), label)
    assert meter.value() == pytest.approx(100 * 2 / 3)
    assert np.isnan(fed(EdgeF(), logits(lines(32, [5])), lines(32, [])).value())
    assert fed(EdgeF(), logits(lines(32, [])), lines(32, [5])).value() == 0


def test_thresholds_must_ascend():
    for wrong in ([], [0.5, 0.5], 0):
        with pytest.raises(ValueError, match="rising"):
            EdgeF(wrong)


def largest(near: np.ndarray) -> int:
    """Pairs of the largest matching, by augmenting paths from scratch."""
    holder: dict[int, int] = {}

    def place(u: int, tried: set[int]) -> bool:
        for v in np.flatnonzero(near[u]).tolist():
            if v not in tried:
                tried.add(v)
                if v not in holder or place(holder[v], tried):
                    holder[v] = u
                    return True
        return False

    return sum(place(u, set()) for u in range(len(near)))


@pytest.mark.parametrize("reach", [1.0, 1.5, 2.3, 3.0])
def test_matching_is_the_largest_at_every_threshold(reach):
    generator = np.random.default_rng(int(10 * reach))
    for _ in range(15):
        height, width = generator.integers(1, 9, 2)
        edges = generator.random((height, width)) < generator.random()
        found = generator.permutation(height * width)[: generator.integers(1, height * width + 1)]
        here, there = np.stack(np.divmod(found, width), 1), np.argwhere(edges)
        near = ((here[:, None] - there[None]) ** 2).sum(-1) <= reach**2 + 1e-9
        pairs = grow_matching(found, edges, reach).cumsum()
        for n in range(1, len(found) + 1, 5):
            assert pairs[n - 1] == largest(near[:n])


def test_matching_agrees_with_scipy():
    csgraph, sparse = pytest.importorskip("scipy.sparse.csgraph"), pytest.importorskip("scipy.sparse")
    generator = np.random.default_rng(0)
    edges = generator.random((40, 40)) < 0.15
    found = generator.permutation(1600)[:400]
    here, there = np.stack(np.divmod(found, 40), 1), np.argwhere(edges)
    near = ((here[:, None] - there[None]) ** 2).sum(-1) <= 4
    matched = csgraph.maximum_bipartite_matching(sparse.csr_matrix(near)) >= 0
    assert grow_matching(found, edges, 2.0).sum() == matched.sum()


def test_thinning_keeps_what_is_connected_and_ends_of_lines():
    ndimage = pytest.importorskip("scipy.ndimage")
    eight = np.ones((3, 3))
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = ndimage.binary_opening(generator.random((24, 24)) < 0.75, eight)
        height = ndimage.gaussian_filter(mask.astype(float), 2) + 1e-9 * generator.random((24, 24))
        thin = thinned(mask, height)
        assert not (thin & ~mask).any()
        # As many parts, each over one of the mask's; as many holes; nothing left that is thick.
        assert ndimage.label(thin, eight)[1] == ndimage.label(mask, eight)[1]
        assert ndimage.label(~np.pad(thin, 1))[1] == ndimage.label(~np.pad(mask, 1))[1]
        assert (thinned(thin, height) == thin).all()
    line = np.zeros((5, 9), dtype=bool)
    line[2, 1:8] = True
    assert (thinned(line, generator.random((5, 9))) == line).all()
