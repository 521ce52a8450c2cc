"""Samples of a stream that repeat the one before."""

from __future__ import annotations

import torch

from testtime.wrap.repeats import repeated


def test_a_change_between_the_compared_pixels_is_no_copy() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 8, 8, generator=rng).expand(8, -1, -1, -1).clone()
    x.flatten(1)[:, 1] += torch.arange(8) / 100
    share, last = repeated(x, None)
    assert share == 0
    assert float(last) == float(x[-1].double().sum())
    assert repeated(x[[2, 2, 3, 3]], None)[0] == 0.5
    assert repeated(x[[7, 2, 3, 3]], last)[0] == 0.5  # the first repeats the last of the batch before


def test_words_are_compared_by_all_of_them() -> None:
    ids = torch.tensor([[1, 2, 3], [3, 2, 1], [3, 2, 1]])
    share, last = repeated(ids, None)
    assert share == 1 / 3
    assert repeated(ids[:1], last)[0] == 0
    assert repeated(ids[1:2], last)[0] == 1
