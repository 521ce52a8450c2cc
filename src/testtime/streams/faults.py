"""Faults of a camera and of its pipeline, on top of any stream: frames that stand still, copies, noise, other batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from testtime.data import ImageSet, from_arrays
from testtime.streams.stream import Stream

__all__ = ["noise_images", "rebatched", "stuck"]


def noise_images(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> ImageSet:
    """Return images without content: independent uniform noise in every pixel and channel.

    Args:
        count: number of images.
        side: height and width in pixels.
        channels: number of channels, 1 or 3.
        seed: random seed of the pixels.

    >>> len(noise_images(4, side=8)), noise_images(4, side=8).batch([0]).shape
    (4, torch.Size([1, 3, 8, 8]))
    """
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return from_arrays("noise", pixels, channels=channels)


def rebatched(stream: Stream, sizes: Sequence[int]) -> Stream:
    """Cut a stream into parts of equally many images, each with batches of its own size; order and visits stay.

    Args:
        stream: stream.
        sizes: number of images in a batch of each part.

    Raises:
        ValueError: there is no size, or one is below 1.

    >>> from testtime.streams import continual
    >>> grey = from_arrays("grey", np.full((8, 8, 8), 99, np.uint8), [0, 1] * 4, ("a", "b"))
    >>> [len(batch) for batch in rebatched(continual(grey, ["fog"], batch_size=8), (4, 2, 1))]
    [3, 2, 1, 1, 1]
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"expected sizes of batches, each at least 1, got {tuple(sizes)}")
    rows = np.concatenate([plan.rows for plan in stream.plans])
    owner = np.repeat(np.arange(len(stream)), [len(plan.rows) for plan in stream.plans])
    visits = np.array([plan.visit for plan in stream.plans])[owner]
    ends = np.linspace(0, len(rows), len(sizes) + 1).round().astype(int)
    plans = []
    for size, start, end in zip(sizes, ends, ends[1:], strict=False):
        at = start
        while at < end:
            last = at + int(np.searchsorted(visits[at:end], visits[at], side="right"))
            stop = min(at + size, last)
            plans.append(replace(stream.plans[owner[at]], rows=rows[at:stop]))
            at = stop
    return replace(stream, plans=tuple(plans), batch_size=max(sizes))


def stuck(stream: Stream, period: int = 40, length: int = 8) -> Stream:
    """Let the camera stand still: of every ``period`` batches, the last ``length`` show one frame and nothing else.

    In as many batches before these, every second image is a copy of the one before it. Copies keep the label of their image.

    Args:
        stream: stream.
        period: number of batches from one standstill to the next.
        length: number of batches of a standstill, and of those with copies before it.

    Raises:
        ValueError: length is below 1, or the period holds nothing else.

    >>> from testtime.streams import continual
    >>> grey = from_arrays("grey", np.full((8, 8, 8), 99, np.uint8), [0, 1] * 4, ("a", "b"))
    >>> stream = stuck(continual(grey, ["fog"], batch_size=2), period=4, length=1)
    >>> [len(set(batch.ids.tolist())) for batch in stream]
    [2, 2, 1, 1]
    """
    if not 1 <= length < period / 2:
        raise ValueError(f"expected a length from 1 and below half of the period, got {length} of {period}")
    plans, frame = [], stream.plans[0].rows[:1]
    for index, plan in enumerate(stream.plans):
        left = period - index % period
        if left <= length:
            frame = plan.rows[:1] if left == length else frame
            plans.append(replace(plan, rows=frame.repeat(len(plan.rows), axis=0)))
        elif left <= 2 * length:
            plans.append(replace(plan, rows=plan.rows[np.arange(len(plan.rows)) // 2 * 2]))
        else:
            plans.append(plan)
    return replace(stream, plans=tuple(plans))
