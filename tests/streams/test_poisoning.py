"""Poisoned images: ascent on what the attack aims at, within the bounds of pixels."""

import pytest
import torch
from torch import Tensor

from testtime.streams import poisoned

RNG = torch.Generator().manual_seed(0)
BENIGN, MALICIOUS = (torch.rand(n, 1, 4, 4, generator=RNG) for n in (12, 4))
HEAD = torch.randn(16, 3, generator=RNG)


def by_batch(x: Tensor) -> Tensor:
    """A linear classifier behind the statistics of the batch."""
    return 3 * ((x.flatten(1) - x.flatten(1).mean(0)) / x.flatten(1).std(0)) @ HEAD


def alone(x: Tensor) -> Tensor:
    return x.flatten(1) @ HEAD


def entropy(z: Tensor) -> float:
    return float(-(z.softmax(1) * z.log_softmax(1)).sum(1).mean())


def test_benign_images_flip_through_the_statistics_and_not_without() -> None:
    def flipped(model: object) -> int:
        found = poisoned(model, BENIGN, MALICIOUS, "flip", steps=30)  # type: ignore[arg-type]
        before, after = (model(torch.cat([BENIGN, m]))[:12].argmax(1) for m in (MALICIOUS, found))  # type: ignore[operator]
        return int((before != after).sum())

    assert flipped(by_batch) >= 3
    assert flipped(alone) == 0


def test_entropy_of_the_malicious_images_rises() -> None:
    found = poisoned(alone, BENIGN, MALICIOUS, "entropy", steps=30, rate=0.02)
    assert entropy(alone(found)) > entropy(alone(MALICIOUS)) + 0.2


def test_pixels_stay_in_range_and_within_the_radius() -> None:
    found = poisoned(by_batch, BENIGN, MALICIOUS, "flip", steps=9, rate=0.05, radius=0.1)
    assert 0 <= found.min() <= found.max() <= 1
    assert (found - MALICIOUS).abs().max().item() == pytest.approx(0.1, abs=1e-6)
    assert torch.equal(poisoned(by_batch, BENIGN, MALICIOUS, steps=0), MALICIOUS)


def test_an_unknown_aim_is_refused() -> None:
    with pytest.raises(ValueError, match="'flip' or 'entropy', got 'worse'"):
        poisoned(alone, BENIGN, MALICIOUS, "worse")  # type: ignore[arg-type]
