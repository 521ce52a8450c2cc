"""The small segmenter: its form, its parts, and that mirrored images give mirrored logits only where it learned so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from testtime.models.small_segmenter import SmallSegmenter
from testtime.norm import has_batch_norm


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (8, 96)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    net = SmallSegmenter(4, (4, 6, 8)).eval()
    assert net(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_all_its_convolutions_but_the_head_are_normalised_and_all_levels_count() -> None:
    net = SmallSegmenter(3, (4, 6, 8))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert has_batch_norm(net)
    assert len(convolutions) == len(norms) + 1 == 1 + 2 * 2 + 2 + 2 + 1
    net(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
