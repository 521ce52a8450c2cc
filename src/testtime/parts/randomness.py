"""Randomness that is counted, not carried: a generator is a function of (seed, step, purpose)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["epochs", "generator", "seeded"]


def generator(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator for one purpose in one step; the global one is not touched.

    Args:
        seed: random seed.
        step: number of the step.
        purpose: name of what is drawn.
        device: device of the generator.

    >>> a, b = generator(0, 3, "crop"), generator(0, 3, "crop")
    >>> torch.rand(1, generator=a).equal(torch.rand(1, generator=b))
    True
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def seeded(seed: int, step: int, purpose: str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Make the global generators a function of (seed, step, purpose), for code that draws from them; restore them afterwards.

    Args:
        seed: random seed.
        step: number of the step.
        purpose: name of what is drawn.
        device: device whose generator is set beside that of the CPU.

    >>> with seeded(0, 3, "dropout"):
    ...     a = torch.rand(1)
    >>> with seeded(0, 3, "dropout"):
    ...     print(torch.rand(1).equal(a))
    True
    """
    device = torch.device(device)
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type="cuda" if device.type == "cpu" else device.type):
        # Not torch.manual_seed, which would seed every other device as well.
        torch.set_rng_state(generator(seed, step, purpose).get_state())
        for other in others:
            state = generator(seed, step, purpose, other).get_state()
            torch.get_device_module(other).set_rng_state(state, other)
        yield


def epochs(samples: int, batch: int, seed: int, step: int) -> list[int]:
    """Return the indices of a step's batch: all samples in every epoch, each epoch in a new order.

    Args:
        samples: number of samples.
        batch: size of a batch.
        seed: random seed of the order.
        step: number of the step.

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
