"""Batches for pre-training: a function of the seed and the step, so that a run resumes with the order of its data.

Sources of frames (the test space, pictures of the transfer set) each give a fixed share of every batch. A frame that is read is
used ``repeat`` times in a row, each time with another crop and mask, and mixed with its neighbours (repeated sampling of 4M).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from testtime.parts.randomness import generator
from testtime.space.masking import Masking, Stream
from testtime.space.model import Batch
from testtime.space.sequences import span_masked
from testtime.space.shards import Shards

__all__ = ["Batches", "Part", "loader"]

BUFFER = 4096
"""Uses of frames among which the repeated ones are mixed."""


@final
@dataclass(frozen=True)
class Part:
    """A source of frames and its share of every batch.

    Attributes:
        shards: the frames.
        share: relative to the other parts: 1 and 1/8 is the paper's "1/8".
        only: names of the streams that are used; None uses all. The paper mixes in pictures alone: ("rgb", "tok_rgb").
    """

    shards: Shards
    share: float = 1.0
    only: tuple[str, ...] | None = None


@final
class Batches(Dataset[Batch]):
    """All batches of a pre-training, by step.

    Args:
        parts: where frames come from.
        masking: of the tokens; its streams are those of the model.
        batch: samples.
        seed: of order, crops and masks.
        repeat: uses of a frame in a row.

    Raises:
        ValueError: a part has other tokens than the model is made for, or shares are not above 0.
    """

    def __init__(
        self, parts: Sequence[Part], masking: Masking, batch: int, seed: int = 0, repeat: int = 4
    ) -> None:
        if not parts or min(p.share for p in parts) <= 0:
            raise ValueError("expected parts, each with a share above 0")
        wanted = {s.name: s for s in masking.streams}
        for part in parts:
            _fitting(part, wanted)
        if len({p.shards.size for p in parts}) > 1:
            raise ValueError("the pictures of all parts have one size")
        self.parts, self.masking, self.batch, self.seed, self.repeat = (
            tuple(parts),
            masking,
            batch,
            seed,
            repeat,
        )
        shares = np.array([p.share for p in parts])
        self._until = np.cumsum(shares / shares.sum())
        self._vocabulary: Any = next(
            (p.shards.vocabulary for p in parts if p.shards.vocabulary is not None), None
        )

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        # Where the counts of all samples so far lie: shares are exact over time, and a function of the step.
        edges = [
            np.floor((step + i) * self.batch * np.array([0.0, *self._until]) + 1e-9).astype(np.int64)
            for i in (0, 1)
        ]
        taken = np.diff(edges[1]) - np.diff(edges[0])
        taken[-1] += self.batch - taken.sum()
        found: dict[str, list[Tensor]] = {s.name: [] for s in self.masking.streams}
        lengths = []
        for number, (part, count) in enumerate(zip(self.parts, taken.tolist(), strict=True)):
            begin = int(edges[0][number + 1] - edges[0][number])
            indices = [self._frame(number, begin + i) for i in range(count)]
            tokens = (
                part.shards.read(indices, rng.integers(part.shards.crops, size=count).tolist())
                if count
                else {}
            )
            for stream in self.masking.streams:
                there = stream.name in tokens and (part.only is None or stream.name in part.only)
                empty = (count, 3, *part.shards.size) if stream.kind == "pixels" else (count, stream.length)
                found[stream.name].append(
                    tokens[stream.name] if there else torch.full(empty, 0 if len(empty) == 4 else -1)
                )
            lengths.append(self._lengths(part, tokens, count))
        return self._masked({k: torch.cat(v) for k, v in found.items()}, np.concatenate(lengths), rng, step)

    def _frame(self, number: int, use: int) -> int:
        """The frame of the use-th sample of a part: epochs of shuffled frames, each repeated, mixed within a buffer."""
        buffer, at = divmod(use, BUFFER)
        place = buffer * BUFFER + int(_mixed(self.seed, number, buffer)[at])
        frames = len(self.parts[number].shards)
        epoch, nth = divmod(place // self.repeat, frames)
        return int(_shuffled(self.seed, number, epoch, frames)[nth])

    def _lengths(self, part: Part, tokens: dict[str, Tensor], count: int) -> NDArray[np.int64]:
        rows = np.zeros((count, len(self.masking.streams)), np.int64)
        for i, stream in enumerate(self.masking.streams):
            if count and stream.name in tokens and (part.only is None or stream.name in part.only):
                whole = stream.kind != "sequence"
                rows[:, i] = stream.length if whole else (tokens[stream.name] >= 0).sum(1).numpy()
        return rows

    def _masked(
        self, tokens: dict[str, Tensor], lengths: NDArray[np.int64], rng: np.random.Generator, step: int
    ) -> Batch:
        streams, offsets = self.masking.streams, self.masking.offsets
        mask = self.masking.draw(lengths, rng)
        shown, asked = torch.from_numpy(mask.shown), torch.from_numpy(mask.asked)
        n = len(shown)
        blank = [
            torch.zeros(n, s.length, dtype=torch.int64)
            if s.kind == "pixels"
            else tokens[s.name].long().clamp(min=0)
            for s in streams
        ]
        given, wanted, before = (
            torch.cat(blank, 1),
            torch.cat(blank, 1),
            torch.zeros(n, int(offsets[-1]), dtype=torch.int64),
        )
        for number, stream in enumerate(streams):
            if stream.kind != "sequence":
                continue
            begin = int(offsets[number])
            for i in range(n):
                budgets = int(mask.shown_of[i, number]), int(mask.asked_of[i, number])
                if budgets == (0, 0):
                    continue
                words = tokens[stream.name][i][: lengths[i, number]]
                rng_of = generator(self.seed, step * self.batch + i, f"spans/{stream.name}")
                inside, outside = span_masked(words, *budgets, self._vocabulary, rng_of)
                outside = outside[: budgets[1]]
                given[i, begin : begin + len(inside)] = inside
                wanted[i, begin : begin + len(outside)] = outside
                start = outside.new_tensor([self._vocabulary.start])
                before[i, begin : begin + len(outside)] = torch.cat([start, outside])[:-1]
                _fill(shown[i], torch.arange(begin, begin + len(inside)))
                _fill(asked[i], torch.arange(begin, begin + len(outside)))
        pixels = next(
            (tokens[s.name] for s in streams if s.kind == "pixels"),
            torch.zeros(n, 3, *self.parts[0].shards.size),
        )
        at, aim = shown.clamp(min=0), asked.clamp(min=0)
        return Batch(
            pixels.float() / 255,
            shown,
            given.gather(1, at),
            asked,
            wanted.gather(1, aim),
            before.gather(1, aim),
        )


def loader(batches: Batches, start: int, steps: int, workers: int = 0) -> Iterator[Batch]:
    """The batches from step ``start`` to ``steps``, made ahead by other processes if there are workers."""
    if workers == 0:
        return (batches[step] for step in range(start, steps))
    found: Iterator[Batch] = iter(
        DataLoader(
            batches, batch_size=None, sampler=range(start, steps), num_workers=workers, prefetch_factor=4
        )
    )
    return found


def _fill(slots: Tensor, places: Tensor) -> None:
    """Put places into the slots that are empty."""
    free = (slots < 0).nonzero().flatten()[: len(places)]
    slots[free] = places[: len(free)]


@lru_cache(maxsize=16)
def _shuffled(seed: int, number: int, epoch: int, frames: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = torch.randperm(
        frames, generator=generator(seed, epoch, f"frames/{number}")
    ).numpy()
    return order


@lru_cache(maxsize=16)
def _mixed(seed: int, number: int, buffer: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = torch.randperm(
        BUFFER, generator=generator(seed, buffer, f"uses/{number}")
    ).numpy()
    return order


def _fitting(part: Part, wanted: dict[str, Stream]) -> None:
    there = {s.name: s for s in part.shards.streams}
    for name, stream in there.items():
        if (part.only is None or name in part.only) and name in wanted and wanted[name] != stream:
            raise ValueError(f"{part.shards.folder} has {stream}, the model is made for {wanted[name]}")
    if not there.keys() & wanted.keys():
        raise ValueError(f"{part.shards.folder} has none of {', '.join(wanted)}")
