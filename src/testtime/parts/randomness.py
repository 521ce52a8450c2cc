"""Randomness that is counted, not carried: a generator is a function of (seed, step, purpose)."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["epochs", "generator"]


def generator(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose in one step; the global one is never touched.

    >>> a, b = generator(0, 3, "crop"), generator(0, 3, "crop")
    >>> torch.rand(1, generator=a).equal(torch.rand(1, generator=b))
    True
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def epochs(samples: int, batch: int, seed: int, step: int) -> list[int]:
    """The indices of a step's batch: epoch after epoch all samples, each epoch shuffled anew.

    >>> sorted(epochs(6, 4, 0, 0) + epochs(6, 4, 0, 1) + epochs(6, 4, 0, 2)) == sorted([*range(6), *range(6)])
    True
    """
    epoch, at = divmod(step * batch, samples)
    indices: list[int] = []
    while len(indices) < batch:
        shuffled = torch.randperm(samples, generator=generator(seed, epoch, "order"))
        indices += shuffled[at : at + batch - len(indices)].tolist()
        epoch, at = epoch + 1, 0
    return indices
