"""Random numbers that are counted, not carried: draw i of image n is a hash of (seed n, purpose, i).

The hash is the finaliser of SplitMix64 in wrapping 64-bit integers, so that CPU and GPU see the same
numbers and an image never sees its batch. Reference: Steele, Lea & Flood, *Fast splittable pseudorandom
number generators*, OOPSLA 2014.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

__all__ = ["Rng"]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the three constants of SplitMix64, as signed 64-bit integers
MIX1 = 0xBF58476D1CE4E5B9 - 2**64
MIX2 = 0x94D049BB133111EB - 2**64


def mix(z: Tensor) -> Tensor:
    """Scramble 64-bit integers in place, as SplitMix64 does (the shift is logical, hence the masks)."""
    z ^= (z >> 30).bitwise_and_(2**34 - 1)
    z *= MIX1
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= MIX2
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


class Rng:
    """The random numbers of a batch of images, one independent sequence for each image.

    Args:
        seeds: (N,) int64, one for each image, on the device where the numbers are wanted.
        purpose: what the numbers are for; another purpose gives other numbers.

    >>> first = Rng(torch.tensor([3, 5]), "fog").uniform(2)
    >>> torch.equal(first[1:], Rng(torch.tensor([5]), "fog").uniform(2))
    True
    """

    def __init__(self, seeds: Tensor, purpose: str) -> None:
        self.key = mix(mix(seeds.to(torch.int64) + GOLDEN) + zlib.crc32(purpose.encode()))
        self.drawn = 0

    def bits(self, *shape: int) -> Tensor:
        """(N, *shape) int64, all 64 bits random."""
        count = math.prod(shape)
        counter = torch.arange(self.drawn + 1, self.drawn + count + 1, device=self.key.device)
        self.drawn += count
        return mix(self.key[:, None] + counter.mul_(GOLDEN)).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """(N, *shape) float32, uniform in [0, 1), 24 bits."""
        return (self.bits(*shape) >> 40).bitwise_and_(2**24 - 1).float().mul_(2.0**-24)

    def normal(self, *shape: int) -> Tensor:
        """(N, *shape) float32, standard normal, by the Box-Muller transform: two for each hash."""
        count = math.prod(shape)
        bits = self.bits((count + 1) // 2)
        radius = (bits >> 40).bitwise_and_(2**24 - 1).float().mul_(-(2.0**-24)).log1p_().mul_(-2).sqrt_()
        angle = bits.bitwise_and_(2**24 - 1).float().mul_(2 * math.pi * 2.0**-24)
        pair = torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], 1)
        return pair[:, :count].reshape(-1, *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """(N, *shape) int64, uniform in low..high - 1."""
        return (self.uniform(*shape) * (high - low)).long().add_(low)
