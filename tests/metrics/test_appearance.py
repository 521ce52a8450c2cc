"""Features of appearance computed by hand, and clusters that separate corruptions of different images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from testtime.corruptions import corrupt
from testtime.metrics import appearance_clusters, appearance_features


def test_the_power_of_a_wave_is_in_its_band_and_direction() -> None:
    wave = torch.cos(2 * math.pi * 0.25 * torch.arange(16.0))  # 4 periods across, and none down
    across = appearance_features((0.5 + 0.25 * wave).expand(1, 3, 16, 16))[0]
    down = appearance_features((0.5 + 0.25 * wave)[:, None].expand(1, 3, 16, 16))[0]
    # A cosine of amplitude a has a^2 N^2 / 4 at each of two frequencies, over N pixels; the band is 0.2 to 0.3.
    frequency = np.fft.fftfreq(16)
    radius = np.hypot(frequency[:, None], frequency)
    edges = [0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1]
    held = [int(((radius > a) & (radius <= b)).sum()) for a, b in pairwise(edges)]
    filled = [n for n in held if n]
    at = filled.index(held[4])
    assert held[0] == 0  # no frequency that low in 16 pixels
    bands = len(filled)
    assert across[at].item() == pytest.approx(math.log(2 * 0.25**2 / 4 * 256 / held[4]), abs=1e-3)
    assert down[at].item() == pytest.approx(across[at].item(), abs=1e-3)
    directions = across[bands : bands + 4]
    assert directions.sum().item() == pytest.approx(0, abs=1e-4)
    assert directions.argmax() != down[bands : bands + 4].argmax()


def test_the_statistics_by_hand() -> None:
    x = torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found, a = appearance_features(x).numpy()[:, -11:], x.double().numpy()
    colour = a - a.mean(1, keepdims=True)
    steps = np.diff(a, axis=3)
    tails = ((steps - steps.mean((1, 2, 3), keepdims=True)) ** 4).mean((1, 2, 3)) / steps.reshape(5, -1).var(
        1, ddof=1
    ) ** 2
    expected = [
        a.mean((2, 3)),
        a.std((2, 3), ddof=1),
        colour.std((2, 3), ddof=1),
        a.min((1, 2, 3))[:, None],
        a.max((1, 2, 3))[:, None],
    ]
    assert found == pytest.approx(np.concatenate(expected, axis=1), abs=1e-5)
    assert appearance_features(x).numpy()[:, -12] == pytest.approx(np.log(tails), abs=1e-3)
    noise = np.log((np.diff(colour, axis=3) ** 2).mean((1, 2, 3)))
    assert appearance_features(x).numpy()[:, -13] == pytest.approx(noise, abs=1e-3)


def test_clusters_separate_corruptions_of_different_images() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((60, 3, 4, 4), dtype=np.float32))
    images = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear")
    kinds = ("gaussian_noise", "defocus_blur", "contrast")
    seeds = torch.arange(60)
    x = torch.cat([corrupt(images, kind, 5, seeds=seeds) for kind in kinds])
    group = appearance_clusters(appearance_features(x).numpy(), 3)
    counts = np.stack([np.bincount(group[start : start + 60], minlength=3) for start in (0, 60, 120)])
    assert sorted(counts.argmax(axis=1)) == [0, 1, 2]
    assert (counts.max(axis=1) >= 50).all()


def test_clusters_are_deterministic_and_at_most_as_many_as_images() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert np.array_equal(appearance_clusters(x, 6, seed=1), appearance_clusters(x, 6, seed=1))
    assert len(np.unique(appearance_clusters(np.ones((5, 2)), 3))) == 1
    assert len(np.unique(appearance_clusters(x[:2], 9))) == 2


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="4 x 4 pixels or more"):
        appearance_features(torch.rand(1, 3, 3, 8))
    with pytest.raises(ValueError, match="count of 1"):
        appearance_clusters(np.ones((3, 2)), 0)
    with pytest.raises(ValueError, match="features"):
        appearance_clusters(np.ones(3), 1)
