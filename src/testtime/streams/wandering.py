r"""A world that never stands still: two corruptions blended, one going as the next comes, at a chosen difficulty.

From one corruption to the next leads a path over their severities :math:`(s, t)`: it begins with the first alone and ends
with the second alone, s only falls and t only rises, and of all such paths it is the one that minimises

.. math:: \sum_{(s, t)} \lvert A(s, t) - A^\star \rvert

with A the accuracy of a reference model on images that went through both, and :math:`A^\star` the chosen one.

Departures from CCC: a severity between two whole ones mixes their pictures, which share their random numbers (CCC has
tables of 20 steps); A is measured at whole severities and read between them linearly; of the two corruptions, the one whose
name comes first is done first; the walk is computed from its seed, not stored, and has no end.

Reference: Press, Schneider, Kümmerer and Bethge, RDumb: A simple approach that questions our progress in continual test-time
adaptation, NeurIPS 2023, section 3 (CCC).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from testtime.corruptions import CORRUPTIONS
from testtime.data import ImageSet
from testtime.files import read_json, write_json
from testtime.progress import progress
from testtime.streams.domain import SEVERITIES, Blend, Domain, number
from testtime.streams.stream import Batch, Plan, Stream

__all__ = ["Difficulty", "Wandering", "path"]


@final
class Difficulty:
    """The accuracy of a reference model on blends at whole severities: measured when asked for, then remembered.

    Args:
        known: accuracies in [0, 1] by the name of a blend, that need not be measured.
        model: (N, C, H, W) in [0, 1] to logits (N, K), in evaluation mode; None where all is known.
        images: labelled; ``count`` of them are shown, the same for every blend.
        count: of images.
        seed: of the choice of images.
        file: JSON, that is read if it is there and written after each measurement; None to keep it in memory.

    Raises:
        ValueError: the images have no labels, or there is no model and the accuracy of a blend is not known (when it is
            asked for).

    >>> Difficulty({"clean": 0.9, "fog-5": 0.4})("fog", "snow")[5, 0]
    Traceback (most recent call last):
    ValueError: the accuracy on snow-1 is not known and there is no model to measure it with; give model= and images=
    """

    def __init__(
        self,
        known: dict[str, float] | None = None,
        model: nn.Module | None = None,
        images: ImageSet | None = None,
        count: int = 200,
        seed: int = 0,
        file: str | Path | None = None,
    ) -> None:
        if model is not None and (images is None or images.labels is None):
            raise ValueError("a difficulty is measured on images with labels; give images=")
        self.model, self.images = model, images
        self.file = None if file is None else Path(file)
        stored = (
            read_json(self.file, "delete it: it is measured again")
            if self.file and self.file.is_file()
            else {}
        )
        self.known: dict[str, float] = {**stored, **(known or {})}
        size = 0 if images is None else len(images)
        self._chosen = np.random.default_rng(number(seed, "difficulty")).permutation(size)[:count]

    def __call__(self, first: str, second: str) -> NDArray[np.float64]:
        """(6, 6): the accuracy at each severity of the first (rows) and of the second (columns)."""
        every = range(SEVERITIES)
        blends = [_ordered(first, second, (s, t)) for s in every for t in every]
        new = sum(blend.name not in self.known for blend in blends)
        asked = progress(blends, len(blends), f"accuracy on {first} > {second}") if new else blends
        return np.array([self._of(blend) for blend in asked]).reshape(SEVERITIES, SEVERITIES)

    def _of(self, blend: Blend) -> float:
        if blend.name not in self.known:
            if self.model is None or self.images is None:
                raise ValueError(
                    f"the accuracy on {blend.name} is not known and there is no model to measure it with; give model= and "
                    "images="
                )
            domain = Domain(self.images, blend)
            with torch.no_grad():
                answer = self.model(domain.render(self._chosen).float().div_(255)).argmax(dim=1).numpy()
            labels = domain.labels(self._chosen)
            self.known[blend.name] = round(float((answer == labels)[labels >= 0].mean()), 4)
            self._store()
        return self.known[blend.name]

    def _store(self) -> None:
        if self.file is not None:
            write_json(self.file, self.known, indent=0, sort_keys=True)


def path(accuracies: NDArray[np.float64], target: float, steps: int = 4) -> tuple[tuple[float, float], ...]:
    """The severities from the first corruption alone to the second alone along which the accuracy stays near a target.

    Args:
        accuracies: (6, 6) at whole severities of the first (rows) and the second.
        target: accuracy in [0, 1].
        steps: from one severity to the next.

    Returns:
        at least one pair of severities; one of the two changes by 1 / steps from each to the next.

    >>> easy = 1 - np.add.outer(np.arange(6), np.arange(6)) / 10
    >>> path(easy, 0.71, 1)  # three degrees of either, or of both together
    ((3.0, 0.0), (2.0, 0.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (0.0, 2.0), (0.0, 3.0))
    """
    fine = np.linspace(0, SEVERITIES - 1, (SEVERITIES - 1) * steps + 1)
    whole = np.arange(SEVERITIES)
    rows = np.stack([np.interp(fine, whole, row) for row in accuracies])
    away = np.abs(np.stack([np.interp(fine, whole, column) for column in rows.T], axis=1) - target)
    start, end = int(away[1:, 0].argmin()) + 1, int(away[0, 1:].argmin()) + 1
    total = np.full((start + 1, end + 1), np.inf)
    falls = np.zeros_like(total, dtype=bool)  # whether the first falls on the way to here
    total[start, 0] = away[start, 0]
    for s, t in itertools.product(range(start, -1, -1), range(end + 1)):
        ways = [(total[s + 1, t], True)] if s < start else []
        ways += [(total[s, t - 1], False)] if t else []
        if ways:
            before, falls[s, t] = min(ways)
            total[s, t] = before + away[s, t]
    found, here = [], (0, end)
    while True:
        found.append((float(fine[here[0]]), float(fine[here[1]])))
        if here == (start, 0):
            return tuple(reversed(found))
        here = (here[0] + 1, here[1]) if falls[here] else (here[0], here[1] - 1)


@final
@dataclass(frozen=True)
class Wandering:
    """An endless stream: iterate it, or take a `Stream` of its first batches.

    Each batch's ``visit`` counts the ways from one corruption to the next.

    Args:
        images: the closed set; when all were shown they come again in another order.
        difficulty: of blends.
        target: the accuracy of the reference model that the walk keeps to, in [0, 1].
        pace: images at each pair of severities.
        batch_size: N; the last batch of a way may be smaller.
        corruptions: names; each way leads to another of them, drawn at random.
        steps: from one severity to the next.
        seed: of the walk, the order and the corruptions.
        constants, frost: of the corruptions, see `Blend`.

    Raises:
        ValueError: fewer than two corruptions, a target out of range, or a number that is not positive.

    >>> from testtime.data import from_arrays
    >>> grey = from_arrays("grey", np.full((5, 8, 8), 99, np.uint8), [0, 1, 0, 1, 0], ("a", "b"))
    >>> names = ["clean", *(f"{n}-{s}" for n in ("contrast", "fog") for s in range(1, 6))]
    >>> names += [f"contrast-{s}+fog-{t}" for s in range(1, 6) for t in range(1, 6)]
    >>> walk = Wandering(grey, Difficulty(dict.fromkeys(names, 0.5)), 0.5, 3, 2, ("fog", "contrast"), steps=1)
    >>> [(b.domain, b.visit, len(b)) for b in itertools.islice(walk, 5)]
    [('fog > contrast', 0, 2), ('fog > contrast', 0, 2), ('fog > contrast', 0, 2), ('fog > contrast', 0, 2), \
('fog > contrast', 0, 1)]
    """

    images: ImageSet
    difficulty: Difficulty = field(repr=False)
    target: float = 0.5
    pace: int = 1000
    batch_size: int = 200
    corruptions: Sequence[str] = CORRUPTIONS
    steps: int = 4
    seed: int = 0
    constants: str = "auto"
    frost: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.corruptions)) < 2:
            raise ValueError(
                f"a walk leads from one corruption to another; expected two names at least, got {self.corruptions}"
            )
        if not 0 <= self.target <= 1:
            raise ValueError(f"target is an accuracy in [0, 1], got {self.target}")
        if min(self.pace, self.batch_size, self.steps, len(self.images)) < 1:
            raise ValueError(
                f"pace, batch_size and steps are at least 1 and there are images, got {self.pace}, {self.batch_size}, "
                f"{self.steps} and {len(self.images)} images"
            )

    def __iter__(self) -> Iterator[Batch]:
        index = domains = 0
        for stream in self._ways():
            for batch in stream:
                yield replace(batch, index=index, sources=batch.sources + domains)
                index += 1
            domains += len(stream.domains)

    def first(self, batches: int) -> Stream:
        """As many of its batches, from the beginning."""
        domains: list[Domain] = []
        plans: list[Plan] = []
        for stream in self._ways():
            plans += [
                replace(plan, rows=plan.rows + np.array([len(domains), 0], np.int64)) for plan in stream.plans
            ]
            domains += stream.domains
            if len(plans) >= batches:
                break
        kept = tuple(plans[:batches])
        used = 1 + max(int(plan.rows[:, 0].max()) for plan in kept)
        return Stream(tuple(domains[:used]), kept, self.batch_size, self.seed)

    def _ways(self) -> Iterator[Stream]:
        """Each way from one corruption to the next as a stream of its own."""
        names = list(dict.fromkeys(self.corruptions))
        shown = 0
        here = names[number(self.seed, "walk") % len(names)]
        for way in itertools.count():
            others = [name for name in names if name != here]
            there = others[number(self.seed, "walk", way) % len(others)]
            leads = path(self.difficulty(here, there), self.target, self.steps)
            leads = leads if way == 0 else leads[1:]  # the last way ended where this begins
            blends = [
                replace(
                    _ordered(here, there, pair), constants=self.constants, frost=self.frost, seed=self.seed
                )
                for pair in leads
            ]
            count = len(blends) * self.pace
            at = np.arange(count) // self.pace
            rows = np.stack([at, self._shown(shown, count)], axis=1)
            cuts = [rows[i : i + self.batch_size] for i in range(0, count, self.batch_size)]
            plans = tuple(Plan(f"{here} > {there}", way, cut) for cut in cuts)
            if plans:
                domains = tuple(Domain(self.images, blend) for blend in blends)
                yield Stream(domains, plans, self.batch_size, self.seed)
            shown, here = shown + count, there

    def _shown(self, start: int, count: int) -> NDArray[np.int64]:
        """The images from number ``start`` on: a permutation, then another."""
        size = len(self.images)
        turns = range(start // size, (start + count) // size + 1)
        order = [np.random.default_rng(number(self.seed, "images", turn)).permutation(size) for turn in turns]
        begin = start - turns[0] * size
        return np.concatenate(order)[begin : begin + count].astype(np.int64)


def _ordered(first: str, second: str, severities: tuple[float, float]) -> Blend:
    """The blend with its corruptions in the order of their names."""
    pairs = sorted(zip((first, second), severities, strict=True))
    return Blend(pairs[0][0], pairs[1][0], (float(pairs[0][1]), float(pairs[1][1])))
