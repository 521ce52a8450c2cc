"""Streams: sequences of batches whose order is planned in advance and whose images are rendered on demand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.streams.domain import Domain
from testtime.workers import release_locks

__all__ = ["Batch", "Plan", "Stream"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of a stream.

    Attributes:
        x: images, (N, C, H, W) float32 in [0, 1].
        y: class indices, (N,) int64, -1 for an unknown class.
        domain: name of the domain; "mixed" if the batch has several.
        index: index of the batch in the stream.
        visit: index of the visit, an uninterrupted sequence of batches of one domain; it counts domain shifts.
        ids: index of each image in its set, (N,).
        sources: index of each image's domain in ``stream.domains``, (N,).
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
    """The plan of one batch.

    Attributes:
        domain: name of the domain.
        visit: index of the visit.
        rows: indices of domain and image, (N, 2), in the order of the batch.
    """

    domain: str
    visit: int
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stream:
    """A sequence of batches; ``stream[t]`` depends on t alone, so that any worker can render any batch.

    Args:
        domains: domains of the images.
        plans: plan of each batch.
        batch_size: number of images in a full batch.
        seed: random seed of the order.
        workers: number of threads that render batches in advance during iteration; it does not change the stream.

    Raises:
        ValueError: the labels of two domains refer to different classes.
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
        """Number of images of the stream."""
        return sum(len(plan.rows) for plan in self.plans)

    def __getitem__(self, index: int) -> Batch:
        """Render one batch.

        Raises:
            IndexError: there is no such batch.
            ValueError: the domains of the batch have images of different sizes.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"the stream has {len(self)} batches, there is no batch {index}")
        plan = self.plans[index]
        sources, ids = plan.rows.T
        x: Tensor | None = None
        y = np.empty(len(ids), np.int64)
        for source in np.unique(sources):
            at = np.flatnonzero(sources == source)
            pixels = self.domains[source].render(ids[at])
            if len(at) == len(ids):
                x, y = pixels, self.domains[source].labels(ids)
                break
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
        """Iterate over the batches from index ``start`` on."""
        if self.workers <= 0:
            yield from (self[t] for t in range(start, len(self)))
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead, left = deque[Future[Batch]](), iter(range(start, len(self)))
            try:
                while True:
                    for t in islice(left, 2 * self.workers + 1 - len(ahead)):
                        ahead.append(pool.submit(self.__getitem__, t))
                    if not ahead:
                        return
                    batch = ahead[0].result()
                    ahead.popleft()
                    yield batch
            finally:
                release_locks(ahead)
                for future in ahead:
                    future.cancel()

    def prefetch(self, workers: int) -> Stream:
        """Return the same stream, rendered in advance by a number of threads."""
        return replace(self, workers=workers)


def _same_classes(first: Domain, other: Domain) -> None:
    """Check that labels refer to the same classes in both domains.

    Raises:
        ValueError: they do not.
    """
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
