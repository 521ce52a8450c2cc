r"""Continuously changing corruptions (CCC): blends of two corruptions at a chosen accuracy of a reference model.

The transition from one corruption to the next is a path over their severities :math:`(s, t)`. It begins with the first
corruption alone and ends with the second alone, s never increases and t never decreases, and of all such paths it minimises

.. math:: \sum_{(s, t)} \lvert A(s, t) - A^\star \rvert

with A the accuracy of the reference model on images under both corruptions, and :math:`A^\star` the chosen accuracy.

Departures from CCC: a severity between two integers interpolates their images, which share their random numbers (CCC has
tables of 20 steps); A is measured at integer severities and interpolated linearly; of the two corruptions, the one whose name
comes first in the alphabet is applied first; the stream is computed from its seed, not stored, and has no end.

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
from testtime.moved import renamed
from testtime.progress import progress
from testtime.streams.domain import SEVERITIES, Blend, Domain, derive_seed
from testtime.streams.stream import Batch, Plan, Stream

__all__ = ["CCCStream", "Difficulty", "severity_path"]

__getattr__ = renamed(__name__, {"Wandering": "CCCStream", "path": "severity_path"})


@final
class Difficulty:
    """Accuracy of a reference model on blends at integer severities, measured on demand and stored.

    Args:
        known: known accuracies in [0, 1], by the name of a blend.
        model: reference model, from images (N, C, H, W) in [0, 1] to logits (N, K), in evaluation mode; None if all accuracies
            are known.
        images: images with labels; ``count`` of them are used, the same for every blend.
        count: number of images.
        seed: random seed of the selection of images.
        file: JSON file of the accuracies, which is read if it exists and written after each measurement; None keeps them in
            memory.

    Raises:
        ValueError: the images have no labels; on a call, the accuracy of a blend is not known and there is no model.

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
        self._chosen = np.random.default_rng(derive_seed(seed, "difficulty")).permutation(size)[:count]

    def __call__(self, first: str, second: str) -> NDArray[np.float64]:
        """Return the accuracies (6, 6) at each severity of the first corruption (rows) and of the second (columns)."""
        every = range(SEVERITIES)
        blends = [_ordered(first, second, (s, t)) for s in every for t in every]
        new = sum(blend.name not in self.known for blend in blends)
        shown = progress(blends, len(blends), f"accuracy on {first} > {second}") if new else blends
        return np.array([self._accuracy(blend) for blend in shown]).reshape(SEVERITIES, SEVERITIES)

    def _accuracy(self, blend: Blend) -> float:
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


def severity_path(
    accuracies: NDArray[np.float64], target: float, steps: int = 4
) -> tuple[tuple[float, float], ...]:
    """Return the path of severities from the first corruption alone to the second whose accuracies are nearest to a target.

    Args:
        accuracies: accuracies at integer severities of the first corruption (rows) and the second, (6, 6).
        target: target accuracy, in [0, 1].
        steps: number of steps from one severity to the next.

    Returns:
        At least one pair of severities; one of the two changes by 1 / steps from each pair to the next.

    >>> easy = 1 - np.add.outer(np.arange(6), np.arange(6)) / 10
    >>> severity_path(easy, 0.71, 1)  # severities with a sum of 3, if possible
    ((3.0, 0.0), (2.0, 0.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (0.0, 2.0), (0.0, 3.0))
    """
    fine = np.linspace(0, SEVERITIES - 1, (SEVERITIES - 1) * steps + 1)
    whole = np.arange(SEVERITIES)
    rows = np.stack([np.interp(fine, whole, row) for row in accuracies])
    away = np.abs(np.stack([np.interp(fine, whole, column) for column in rows.T], axis=1) - target)
    start, end = int(away[1:, 0].argmin()) + 1, int(away[0, 1:].argmin()) + 1
    total = np.full((start + 1, end + 1), np.inf)
    falls = np.zeros_like(
        total, dtype=bool
    )  # whether the first severity decreases in the last step of the best path
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
class CCCStream:
    """An infinite stream of continuously changing corruptions; `first` returns a `Stream` of its first batches.

    A batch's ``visit`` is the index of the transition from one corruption to the next.

    Args:
        images: images of known classes, repeated in a new order when all were used.
        difficulty: accuracies of the reference model on blends.
        target: target accuracy of the reference model, in [0, 1].
        pace: number of images at each pair of severities.
        batch_size: number of images in a batch; the last batch of a transition may be smaller.
        corruptions: names of the corruptions; each transition leads to another, drawn at random.
        steps: number of steps from one severity to the next.
        seed: random seed of the transitions, the order and the corruptions.
        constants, frost: arguments of `Blend`.

    Raises:
        ValueError: there are fewer than two corruptions, the target is out of range, or a number is not positive.

    >>> from testtime.data import from_arrays
    >>> grey = from_arrays("grey", np.full((5, 8, 8), 99, np.uint8), [0, 1, 0, 1, 0], ("a", "b"))
    >>> names = ["clean", *(f"{n}-{s}" for n in ("contrast", "fog") for s in range(1, 6))]
    >>> names += [f"contrast-{s}+fog-{t}" for s in range(1, 6) for t in range(1, 6)]
    >>> stream = CCCStream(grey, Difficulty(dict.fromkeys(names, 0.5)), 0.5, 3, 2, ("fog", "contrast"), steps=1)
    >>> [(b.domain, b.visit, len(b)) for b in itertools.islice(stream, 5)]
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
                f"the stream changes from one corruption to another; expected at least two names, got {self.corruptions}"
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
        for stream in self._transitions():
            for batch in stream:
                yield replace(batch, index=index, sources=batch.sources + domains)
                index += 1
            domains += len(stream.domains)

    def first(self, batches: int) -> Stream:
        """Return a stream of the first batches.

        Args:
            batches: number of batches.
        """
        domains: list[Domain] = []
        plans: list[Plan] = []
        for stream in self._transitions():
            plans += [
                replace(plan, rows=plan.rows + np.array([len(domains), 0], np.int64)) for plan in stream.plans
            ]
            domains += stream.domains
            if len(plans) >= batches:
                break
        kept = tuple(plans[:batches])
        used = 1 + max(int(plan.rows[:, 0].max()) for plan in kept)
        return Stream(tuple(domains[:used]), kept, self.batch_size, self.seed)

    def _transitions(self) -> Iterator[Stream]:
        """Yield each transition from one corruption to the next as a stream."""
        names = list(dict.fromkeys(self.corruptions))
        used = 0
        here = names[derive_seed(self.seed, "walk") % len(names)]
        for transition in itertools.count():
            others = [name for name in names if name != here]
            there = others[derive_seed(self.seed, "walk", transition) % len(others)]
            path = severity_path(self.difficulty(here, there), self.target, self.steps)
            path = path if transition == 0 else path[1:]  # the previous transition ended with the first pair
            blends = [
                replace(
                    _ordered(here, there, pair), constants=self.constants, frost=self.frost, seed=self.seed
                )
                for pair in path
            ]
            count = len(blends) * self.pace
            at = np.arange(count) // self.pace
            rows = np.stack([at, self._indices(used, count)], axis=1)
            cuts = [rows[i : i + self.batch_size] for i in range(0, count, self.batch_size)]
            plans = tuple(Plan(f"{here} > {there}", transition, cut) for cut in cuts)
            if plans:
                domains = tuple(Domain(self.images, blend) for blend in blends)
                yield Stream(domains, plans, self.batch_size, self.seed)
            used, here = used + count, there

    def _indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the indices of the images from position ``start`` on in consecutive random permutations."""
        size = len(self.images)
        turns = range(start // size, (start + count) // size + 1)
        order = [
            np.random.default_rng(derive_seed(self.seed, "images", turn)).permutation(size) for turn in turns
        ]
        begin = start - turns[0] * size
        return np.concatenate(order)[begin : begin + count].astype(np.int64)


def _ordered(first: str, second: str, severities: tuple[float, float]) -> Blend:
    """Return the blend with its corruptions in alphabetical order."""
    pairs = sorted(zip((first, second), severities, strict=True))
    return Blend(pairs[0][0], pairs[1][0], (float(pairs[0][1]), float(pairs[1][1])))
