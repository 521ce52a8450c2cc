"""Batches for pre-training: a function of the seed and the step, so that a run resumes with the order of its data.

Each source of frames (the test space, pictures of the transfer set) gives a fixed fraction of every batch. A frame is used
``repeat`` times in a row, each time with another crop and mask, and shuffled with its neighbours (repeated sampling of 4M).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from testtime.parts.randomness import generator
from testtime.space.masking import Ints, Masking, Stream
from testtime.space.model import Batch
from testtime.space.sequences import span_masked
from testtime.space.shards import Shards
from testtime.workers import interrupts_held, start_worker

__all__ = ["Batches", "Part", "loader"]

BUFFER = 4096
"""Number of uses of frames in the buffer in which repeated frames are shuffled."""


@final
@dataclass(frozen=True)
class Part:
    """Source of frames and its fraction of every batch.

    Attributes:
        shards: shards of the frames.
        share: weight relative to the other parts: 1 and 1/8 is the paper's "1/8".
        only: names of the streams that are used; None uses all. The paper adds pictures only: ("rgb", "tok_rgb").
    """

    shards: Shards
    share: float = 1.0
    only: tuple[str, ...] | None = None


@final
class Batches(Dataset[Batch]):
    """All batches of a pre-training, indexed by step.

    Args:
        parts: sources of the frames.
        masking: masking of the tokens; its streams are those of the model.
        batch: number of samples of a batch.
        seed: random seed of order, crops and masks.
        repeat: number of successive uses of a frame.

    Raises:
        ValueError: a part has other tokens than the model or lacks a stream of ``only``, no part has a stream of the model, or
            a share is not above 0.
    """

    def __init__(
        self, parts: Sequence[Part], masking: Masking, batch: int, seed: int = 0, repeat: int = 4
    ) -> None:
        if not parts or not all(0 < p.share < math.inf for p in parts):
            raise ValueError("expected parts, each with a share above 0")
        if batch < 1 or repeat < 1:
            raise ValueError(f"batch and repeat are at least 1, got {batch} and {repeat}")
        wanted = {s.name: s for s in masking.streams}
        self._given = [_fitting(part, wanted) for part in parts]
        nowhere = sorted(wanted.keys() - set().union(*self._given))
        if nowhere:
            raise ValueError(f"no part has {', '.join(nowhere)}; leave it out of the streams")
        if len({p.shards.size for p in parts}) > 1:
            raise ValueError("expected pictures of the same size in all parts")
        worded = [p.shards for p in parts if p.shards.vocabulary is not None]
        if any(s.about["boxes"] != worded[0].about["boxes"] for s in worded):
            raise ValueError("expected one vocabulary of boxes for all parts")
        self.parts, self.masking, self.batch = tuple(parts), masking, batch
        self.seed, self.repeat = seed, repeat
        self._vocabulary = worded[0].vocabulary if worded else None

    def __getitem__(self, step: int) -> Batch:
        return self.compact(step).to("cpu")

    def compact(self, step: int) -> Batch:
        """Return the batch of a step with uint8 pictures, a quarter of the size; :meth:`Batch.to` converts them to [0, 1].

        Args:
            step: number of the step.
        """
        rng = np.random.default_rng([self.seed, step])
        found: dict[str, list[Tensor]] = {s.name: [] for s in self.masking.streams}
        lengths = []
        # Shares are exact over time, and a function of the step: numbers of samples of each part before and after the batch.
        before, until = self._counts(step * self.batch), self._counts((step + 1) * self.batch)
        for number, part in enumerate(self.parts):
            count = until[number] - before[number]
            crops = rng.integers(part.shards.crops, size=count).tolist()
            if not count:
                continue
            tokens = part.shards.read(self._frames(number, before[number], count).tolist(), crops)
            rows = np.zeros((count, len(self.masking.streams)), np.int64)
            for i, stream in enumerate(self.masking.streams):
                there = stream.name in self._given[number]
                value = tokens[stream.name] if there else _nothing(stream, count, part.shards.size)
                found[stream.name].append(value)
                if there:
                    rows[:, i] = stream.length if stream.kind != "sequence" else _words(value, stream.length)
            lengths.append(rows)
        return self._masked({k: torch.cat(v) for k, v in found.items()}, np.concatenate(lengths), rng, step)

    def _counts(self, total: int) -> list[int]:
        """Return the number of each part's samples among the first ``total``, which add up to ``total``."""
        shares = [Fraction(p.share) for p in self.parts]
        found: list[int] = []
        for number, share in enumerate(shares):
            found.append(int((total - sum(found)) * share / sum(shares[number:])))
        return found

    def _frames(self, number: int, begin: int, count: int) -> Ints:
        """Return the frames of a part: epochs of shuffled frames, each repeated, shuffled within a buffer."""
        frames = len(self.parts[number].shards)
        buffers, at = np.divmod(np.arange(begin, begin + count), BUFFER)
        places = buffers * BUFFER + _picked(lambda b: _mixed(self.seed, number, b), buffers, at)
        epochs, nth = np.divmod(places // self.repeat, frames)
        return _picked(lambda e: _shuffled(self.seed, number, e, frames), epochs, nth)

    def _masked(self, tokens: dict[str, Tensor], lengths: Ints, rng: np.random.Generator, step: int) -> Batch:
        streams = self.masking.streams
        mask = self.masking.draw(lengths, rng)
        n = len(lengths)
        ids = np.concatenate(
            [
                np.zeros((n, s.length), np.int64) if s.kind == "pixels" else tokens[s.name].numpy()
                for s in streams
            ],
            1,
            dtype=np.int64,
        )
        shown, asked = mask.shown, mask.asked
        shown_id, asked_id = (np.take_along_axis(ids, p.clip(0), 1).clip(0) for p in (shown, asked))
        before_id = np.zeros_like(asked_id)
        for number, stream in enumerate(streams):
            if stream.kind != "sequence" or self._vocabulary is None:
                continue
            begin = int(self.masking.offsets[number])
            words = tokens[stream.name].tolist()
            for i in np.flatnonzero(mask.shown_of[:, number] + mask.asked_of[:, number]).tolist():
                sequence = [w for w in words[i] if w >= 0]
                budgets = int(mask.shown_of[i, number]), int(mask.asked_of[i, number])
                spans = generator(self.seed, step * self.batch + i, f"spans/{stream.name}")
                inside, outside = (
                    v.numpy() for v in span_masked(sequence, *budgets, self._vocabulary, spans)
                )
                free = _fill(shown[i], begin, len(inside))
                shown_id[i, free] = inside
                free = _fill(asked[i], begin, len(outside))
                asked_id[i, free] = outside
                before_id[i, free] = [self._vocabulary.start, *outside[:-1]][: len(outside)]
        pixels = [tokens[s.name] for s in streams if s.kind == "pixels"]
        picture = pixels[0] if pixels else torch.zeros(n, 3, *self.parts[0].shards.size, dtype=torch.uint8)
        return Batch(picture, *map(torch.from_numpy, (shown, shown_id, asked, asked_id, before_id)))


def loader(batches: Batches, start: int, steps: int, workers: int = 0) -> Iterator[Batch]:
    """Iterate over the compact batches of a range of steps, prefetched by other processes if there are workers.

    Args:
        batches: batches by step.
        start: first step.
        steps: end of the range, exclusive.
        workers: number of processes; 0 prepares batches in this one.
    """
    if workers == 0:
        return (batches.compact(step) for step in range(start, steps))
    made = DataLoader(
        _Compact(batches),
        batch_size=None,
        sampler=range(start, steps),
        num_workers=workers,
        prefetch_factor=4,
        worker_init_fn=_begin,
        generator=torch.Generator(),
    )
    with interrupts_held():
        found: Iterator[Batch] = iter(made)
    return found


class _Compact(Dataset[Batch]):
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch:
        return self.batches.compact(step)


def _begin(worker: int) -> None:
    start_worker()


def _fill(slots: Ints, begin: int, count: int) -> Ints:
    """Give the first empty slots of a sample to the first places of a sequence; which slots these were."""
    free = np.flatnonzero(slots < 0)[:count]
    slots[free] = begin + np.arange(count)
    return free


def _words(value: Tensor, most: int) -> Ints:
    """How many tokens of sequences may be shown or asked for: sentinels at both ends come to the words."""
    words: Ints = (value >= 0).sum(1).numpy()
    return np.where(words > 0, np.minimum(words + 2, most), 0)


def _nothing(stream: Stream, count: int, size: tuple[int, int]) -> Tensor:
    """What stands for a stream that a part lacks."""
    if stream.kind == "pixels":
        return torch.zeros(count, 3, *size, dtype=torch.uint8)
    return torch.full((count, stream.length), -1, dtype=torch.int32)


def _picked(table: Callable[[int], Ints], numbers: Ints, at: Ints) -> Ints:
    """Return entry ``at[i]`` of table ``numbers[i]``."""
    found = np.empty(len(at), np.int64)
    for number in np.unique(numbers).tolist():
        here = numbers == number
        found[here] = table(number)[at[here]]
    return found


@lru_cache(maxsize=16)
def _shuffled(seed: int, number: int, epoch: int, frames: int) -> Ints:
    order: Ints = torch.randperm(frames, generator=generator(seed, epoch, f"frames/{number}")).numpy()
    return order


@lru_cache(maxsize=16)
def _mixed(seed: int, number: int, buffer: int) -> Ints:
    order: Ints = torch.randperm(BUFFER, generator=generator(seed, buffer, f"uses/{number}")).numpy()
    return order


def _fitting(part: Part, wanted: dict[str, Stream]) -> set[str]:
    """Return the names of the streams that a part gives."""
    there = {s.name: s for s in part.shards.streams}
    lacking = sorted({*(part.only or ())} - there.keys())
    if lacking:
        raise ValueError(f"{part.shards.folder} has no {', '.join(lacking)}; there are {', '.join(there)}")
    given = {name for name in there if name in wanted and (part.only is None or name in part.only)}
    for name in sorted(given):
        if wanted[name] != there[name]:
            raise ValueError(f"{part.shards.folder} has {there[name]}, the model has {wanted[name]}")
    if not given:
        raise ValueError(f"{part.shards.folder} has none of {', '.join(wanted)}")
    return given
