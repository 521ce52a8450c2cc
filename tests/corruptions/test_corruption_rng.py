"""Rng against SplitMix64 in Python integers, and against the moments of its distributions."""

import zlib

import pytest
import torch

from testtime.corruptions.rng import TABLE, Rng

MASK = 2**64 - 1


def finalise(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def splitmix(state: int, count: int) -> list[int]:
    return [finalise((state + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(count)]


def test_the_reference_is_splitmix64() -> None:
    # the first outputs for seed 0 that every implementation of SplitMix64 gives
    assert splitmix(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_bits_are_splitmix64_from_a_hashed_key() -> None:
    rng = Rng(torch.tensor([0, 9, -1]), "snow")
    first, second = rng.bits(3), rng.bits(2, 2)
    for row, seed in enumerate((0, 9, -1)):
        key = finalise((finalise((seed + 0x9E3779B97F4A7C15) & MASK) + zlib.crc32(b"snow")) & MASK)
        expected = splitmix(key, 7)
        got = [int(v) & MASK for v in torch.cat([first[row], second[row].flatten()])]
        assert got == expected


def test_bits_beyond_the_table_of_counters_continue_the_sequence() -> None:
    seed = torch.tensor([4])
    whole = Rng(seed, "snow").bits(TABLE + 3)[0]
    rng = Rng(seed, "snow")
    parts = [rng.bits(count)[0] for count in (TABLE - 2, 2, 2, 1)]
    assert torch.equal(whole, torch.cat(parts))
    key = finalise((finalise((4 + 0x9E3779B97F4A7C15) & MASK) + zlib.crc32(b"snow")) & MASK)
    for i in (0, TABLE - 1, TABLE, TABLE + 2):
        assert int(whole[i]) & MASK == finalise((key + (i + 1) * 0x9E3779B97F4A7C15) & MASK)


def test_counts_are_the_highest_bits() -> None:
    seeds = torch.tensor([4, 7])
    bits, counts = Rng(seeds, "snow"), Rng(seeds, "snow")
    for shape in ((3, 5), (TABLE - 20,), (30,)):  # the last ones are beyond the table of counters
        expected = (bits.bits(*shape) >> 40) & (2**24 - 1)
        assert torch.equal(counts.counts(*shape), expected.int())


def test_uniform_has_the_moments_of_the_uniform() -> None:
    u = Rng(torch.arange(20), "uniform").uniform(10_000)
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert u.mean().item() == pytest.approx(1 / 2, abs=0.003)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.001)
    counts = torch.histc(u, 10, 0, 1)
    assert ((counts - 20_000) ** 2 / 20_000).sum() < 30  # chi square, 9 degrees: p = 0.0004


def test_normal_has_the_moments_of_the_normal_and_no_correlation() -> None:
    n = Rng(torch.arange(20), "normal").normal(10_001)
    assert n.shape == (20, 10_001)
    assert n.mean().item() == pytest.approx(0, abs=0.01)
    assert n.var().item() == pytest.approx(1, abs=0.015)
    assert (n**4).mean().item() == pytest.approx(3, abs=0.1)
    assert (n.abs() > 1.959964).float().mean().item() == pytest.approx(0.05, abs=0.002)
    between_seeds = (n[:-1] * n[1:]).mean(1).abs().max()
    halves = (n[:, :5000] * n[:, 5001:10_001]).mean().abs()  # cosine and sine of one pair
    assert between_seeds < 0.05
    assert halves < 0.015


def test_integers_cover_their_range_evenly() -> None:
    k = Rng(torch.arange(10), "integers").integers(-3, 3, 6000)
    assert sorted(k.unique().tolist()) == [-3, -2, -1, 0, 1, 2]
    assert (torch.bincount((k + 3).flatten()) - 10_000).abs().max() < 400


def test_purpose_and_seed_both_matter() -> None:
    seeds = torch.arange(3)
    a, b = Rng(seeds, "fog").uniform(64), Rng(seeds, "snow").uniform(64)
    assert (a == b).float().mean() < 0.01
    assert (a[0] == a[1]).float().mean() < 0.02
    assert torch.equal(a[1:2], Rng(torch.tensor([1]), "fog").uniform(64))
