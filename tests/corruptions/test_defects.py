"""Defects change the pixels of their mask alone, and depend on seed and kind, not on the batch."""

import numpy as np
import pytest
import torch

from testtime.corruptions.defects import DEFECTS, add_defects

X = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", DEFECTS)
def test_only_the_masked_pixels_change_and_nearly_all_of_them_do(kind):
    y, mask = add_defects(X, kind, [1, 2, 3])
    changed = (y != X).any(1)
    assert not (changed & ~mask).any()
    assert changed.sum() > 0.95 * mask.sum()
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    share = mask.float().mean((1, 2))
    assert bool(((share > 0.003) & (share < 0.25)).all())


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_does_not_depend_on_its_batch_and_other_seeds_give_others(kind):
    y, mask = add_defects(X, kind, [1, 2, 3])
    alone, of_one = add_defects(X[1:2], kind, [2])
    assert torch.equal(alone, y[1:2])
    assert torch.equal(of_one, mask[1:2])
    assert not torch.equal(add_defects(X[1:2], kind, [5])[1], of_one)


def test_a_swap_exchanges_two_squares_exactly():
    image = torch.arange(32 * 32.0).view(1, 1, 32, 32) / 1024
    y, mask = add_defects(image, "swap", [4])
    inside = mask[0].numpy()
    before, after = image[0, 0].numpy(), y[0, 0].numpy()
    assert sorted(before[inside].tolist()) == sorted(after[inside].tolist())
    left, right = inside[:, :16], inside[:, 16:]
    assert left.sum() == right.sum() == int(np.sqrt(left.sum())) ** 2
    np.testing.assert_array_equal(after[:, :16][left], before[:, 16:][right])
    np.testing.assert_array_equal(after[:, 16:][right], before[:, :16][left])


@pytest.mark.parametrize(
    ("x", "kind", "seeds", "words"),
    [
        (X, "rust", [1, 2, 3], "scratch, blob, swap"),
        (X, "blob", [1], "a seed for each of the 3 images"),
        (X, "blob", 1, "a seed for each of the 3 images"),
        ((255 * X).byte(), "blob", [1, 2, 3], "uint8: x / 255"),
        (X[0], "blob", [1], "images \\(N, C, H, W\\)"),
        (X[:, :, :8], "blob", [1, 2, 3], "at least 16"),
    ],
)
def test_what_cannot_be_meant_is_refused(x, kind, seeds, words):
    with pytest.raises(ValueError, match=words):
        add_defects(x, kind, seeds)
