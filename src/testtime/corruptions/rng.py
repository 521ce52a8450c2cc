"""Counter-based random numbers: draw i of image n is a hash of (seed n, purpose, i).

The hash is the finaliser of SplitMix64 in wrapping 64-bit integers, so that CPU and GPU compute the same numbers, and the
numbers of an image do not depend on its batch. Reference: Steele, Lea & Flood, *Fast splittable pseudorandom number
generators*, OOPSLA 2014.
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
    """Apply the finaliser of SplitMix64 to 64-bit integers in place (its shifts are logical, hence the masks)."""
    z ^= (z >> 30).bitwise_and_(2**34 - 1)
    z *= MIX1
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= MIX2
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


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
        self.key = mix(mix(seeds.to(torch.int64) + GOLDEN) + zlib.crc32(purpose.encode()))
        self.drawn = 0

    def bits(self, *shape: int) -> Tensor:
        """Draw (N, *shape) int64, all 64 bits random."""
        count = math.prod(shape)
        counter = torch.arange(self.drawn + 1, self.drawn + count + 1, device=self.key.device)
        self.drawn += count
        return mix(self.key[:, None] + counter.mul_(GOLDEN)).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Draw (N, *shape) float32, uniform in [0, 1), with 24 bits."""
        return (self.bits(*shape) >> 40).bitwise_and_(2**24 - 1).float().mul_(2.0**-24)

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
