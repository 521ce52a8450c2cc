"""A stream: which images arrive when. The plan is made at once, the images when a batch is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.streams.domain import Domain

__all__ = ["Batch", "Plan", "Stream"]


@dataclass(frozen=True, eq=False)
class Batch:
    """What arrives at one moment.

    Attributes:
        x: (N, C, H, W) float32 in [0, 1].
        y: (N,) int64, -1 for the unknown.
        domain: name of the domain; "mixed" where a batch holds several.
        index: number of the batch in the stream, from 0.
        visit: number of the stretch of the stream in one domain, from 0: it counts domain shifts.
        ids: (N,) index of each image in its set.
        sources: (N,) index of each image's domain in ``stream.domains``.
    """

    x: Tensor
    y: Tensor
    domain: str
    index: int
    visit: int
    ids: NDArray[np.int64]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of one batch: rows (N, 2) of (domain, image), in the order in which they arrive."""

    domain: str
    visit: int
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stream:
    """A sequence of batches; ``stream[t]`` is a function of t alone, so any worker may render any batch.

    Args:
        domains: where images come from.
        plans: one for each batch.
        batch_size: the size of a full batch.
        seed: what the order was drawn with.
        workers: threads that render ahead when the stream is iterated; the stream is the same for any number.

    Raises:
        ValueError: if the labels of two domains are numbers of different classes.
    """

    domains: tuple[Domain, ...]
    plans: tuple[Plan, ...]
    batch_size: int
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        labelled = [d for d in self.domains if d.known and d.images.labels is not None]
        for domain in labelled[1:]:
            _same_classes(labelled[0], domain)

    def __len__(self) -> int:
        return len(self.plans)

    @property
    def images(self) -> int:
        """How many images arrive in all."""
        return sum(len(plan.rows) for plan in self.plans)

    def __getitem__(self, index: int) -> Batch:
        """Render one batch; IndexError past the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"the stream has {len(self)} batches, there is no batch {index}")
        plan = self.plans[index]
        sources, ids = plan.rows.T
        x: Tensor | None = None
        y = np.empty(len(ids), np.int64)
        for source in np.unique(sources):
            at = np.flatnonzero(sources == source)
            pixels = self.domains[source].render(ids[at])
            if x is None:
                x = torch.empty(len(ids), *pixels.shape[1:], dtype=torch.uint8)
            if pixels.shape[1:] != x.shape[1:]:
                raise ValueError(
                    f"domain {self.domains[source].name} has images of {tuple(pixels.shape[1:])}, another of "
                    f"{tuple(x.shape[1:])}; give every domain the same size="
                )
            x[torch.from_numpy(at)] = pixels
            y[at] = self.domains[source].labels(ids[at])
        assert x is not None
        return Batch(
            x.float().div_(255), torch.from_numpy(y), plan.domain, index % len(self), plan.visit, ids, sources
        )

    def __iter__(self) -> Iterator[Batch]:
        return self.since(0)

    def since(self, start: int) -> Iterator[Batch]:
        """The batches from number ``start`` on."""
        if self.workers <= 0:
            yield from (self[t] for t in range(start, len(self)))
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for t in range(start, len(self)):
                    ahead.append(pool.submit(self.__getitem__, t))
                    if len(ahead) > 2 * self.workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def prefetch(self, workers: int) -> Stream:
        """The same stream, rendered ahead by this many threads."""
        return replace(self, workers=workers)


def _same_classes(first: Domain, other: Domain) -> None:
    """Raise ValueError if a label does not mean the same class in both domains."""
    here, there = first.images.classes, other.images.classes
    if here == there:
        return
    only = [[name for name in one if name not in set(two)] for one, two in ((here, there), (there, here))]
    differ = "; ".join(
        f"only in {domain.name}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for domain, names in zip((first, other), only, strict=True)
        if names
    )
    raise ValueError(
        f"the domains have different classes: {first.name} has {len(here)}, {other.name} has {len(there)} "
        f"({differ or 'in another order'}); give every domain the same class folders"
    )
