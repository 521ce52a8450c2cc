"""Counter-based random numbers: draw i of image n is a hash of (seed n, purpose, i).

The hash is the finaliser of SplitMix64 in wrapping 64-bit integers, so that CPU and GPU compute the same numbers, and the
numbers of an image do not depend on its batch. Reference: Steele, Lea & Flood, *Fast splittable pseudorandom number
generators*, OOPSLA 2014.
"""

from __future__ import annotations

import math
import zlib
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Rng"]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the three constants of SplitMix64, as signed 64-bit integers
MIX1 = 0xBF58476D1CE4E5B9 - 2**64
MIX2 = 0x94D049BB133111EB - 2**64
TABLE = (
    2**18
)  # counters in the table of their products, 2 MiB: more than the numbers of an image of 224 x 224 pixels


def mix(z: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64 to 64-bit integers in place (its shifts are logical, hence the masks)."""
    z ^= (z >> 30).bitwise_and_(2**34 - 1)
    z *= MIX1
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= MIX2
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


def mix_on_cpu(z: NDArray[np.uint64], whole: bool = True) -> None:
    """Apply the finaliser in place to unsigned integers (their shifts are logical: a third fewer operations).

    Args:
        z: the integers.
        whole: whether all bits are used; otherwise the last step is left out, which changes the 33 lowest bits alone.
    """
    shifted = np.empty_like(z)
    for shift, factor in ((30, MIX1), (27, MIX2)):
        z ^= np.right_shift(z, np.uint64(shift), out=shifted)
        z *= np.uint64(factor + 2**64)
    if whole:
        z ^= np.right_shift(z, np.uint64(31), out=shifted)


@lru_cache(maxsize=1)
def products() -> NDArray[np.uint64]:
    """Return the products of the counters 1..`TABLE` and the golden ratio, which all images share."""
    return np.arange(1, TABLE + 1, dtype=np.uint64) * np.uint64(GOLDEN + 2**64)


class Rng:
    """The random numbers of a batch of images, one independent sequence for each image.

    Args:
        seeds: random seeds of the images, (N,) int64, on the device of the numbers.
        purpose: name of the use, such as "fog"; each name has an independent sequence.

    >>> first = Rng(torch.tensor([3, 5]), "fog").uniform(2)
    >>> torch.equal(first[1:], Rng(torch.tensor([5]), "fog").uniform(2))
    True
    """

    def __init__(self, seeds: Tensor, purpose: str) -> None:
        self.seeds, self.purpose = seeds, purpose
        self.drawn = 0

    @cached_property
    def key(self) -> Tensor:
        """Hash of the seed of each image and of the purpose, (N,) int64."""
        return mix(mix(self.seeds.to(torch.int64) + GOLDEN) + zlib.crc32(self.purpose.encode()))

    def bits(self, *shape: int) -> Tensor:
        """Draw (N, *shape) int64, all 64 bits random."""
        first, count = self._next(shape)
        if self.key.is_cuda or first + count > TABLE:
            counter = torch.arange(first + 1, first + count + 1, device=self.key.device)
            return mix(self.key[:, None] + counter.mul_(GOLDEN)).view(-1, *shape)
        z = self._sums(first, count)
        mix_on_cpu(z)
        return torch.from_numpy(z.view(np.int64)).view(-1, *shape)

    def counts(self, *shape: int) -> Tensor:
        """Draw (N, *shape) int32, uniform in 0..2^24 - 1: the highest bits of `bits`."""
        if self.key.is_cuda or self.drawn + math.prod(shape) > TABLE:
            return (self.bits(*shape) >> 40).bitwise_and_(2**24 - 1).int()
        z = self._sums(*self._next(shape))
        mix_on_cpu(z, whole=False)
        z >>= np.uint64(40)
        return torch.from_numpy(z.astype(np.int32)).view(-1, *shape)

    def _next(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the index of the next number, and how many numbers of that shape are now drawn."""
        first, count = self.drawn, math.prod(shape)
        self.drawn += count
        return first, count

    def _sums(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return the integers (N, count) whose hashes are the numbers from `first` on."""
        sums: NDArray[np.uint64] = (
            self.key.numpy().view(np.uint64)[:, None] + products()[first : first + count]
        )
        return sums

    def uniform(self, *shape: int) -> Tensor:
        """Draw (N, *shape) float32, uniform in [0, 1), with 24 bits."""
        return self.counts(*shape).float().mul_(2.0**-24)

    def normal(self, *shape: int) -> Tensor:
        """Draw (N, *shape) float32 from the standard normal by the Box-Muller transform, two numbers for each hash."""
        count = math.prod(shape)
        bits = self.bits((count + 1) // 2)
        radius = (bits >> 40).bitwise_and_(2**24 - 1).float().mul_(-(2.0**-24)).log1p_().mul_(-2).sqrt_()
        angle = bits.bitwise_and_(2**24 - 1).float().mul_(2 * math.pi * 2.0**-24)
        pair = torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], 1)
        return pair[:, :count].reshape(-1, *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw (N, *shape) int64, uniform in low..high - 1."""
        return (self.uniform(*shape) * (high - low)).long().add_(low)
