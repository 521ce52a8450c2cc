"""Orders of a stream: by domain, of gradual severity, mixed, by class, and with images of unknown classes.

Every stream consists of domains and a seed. The order of the images depends on (seed, domain), the random numbers of a
corruption on (seed, set, image, corruption); neither depends on batch size, workers or hardware.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from testtime.data import ImageSet
from testtime.moved import renamed
from testtime.streams.domain import Domain, clean, corrupted, derive_seed
from testtime.streams.stream import Plan, Stream

__all__ = [
    "GRADUAL_SEVERITIES",
    "continual",
    "correlated",
    "gradual",
    "label_shift",
    "mixed",
    "open_set",
    "recorded",
]

__getattr__ = renamed(__name__, {"LADDER": "GRADUAL_SEVERITIES"})

Rows = NDArray[np.int64]
Conditions = Iterable[str | Domain]
GRADUAL_SEVERITIES = (1, 2, 3, 4, 5, 4, 3, 2, 1)
"""Severities of a corruption in a gradual stream, in their order."""


def continual(
    images: ImageSet | None,
    corruptions: Conditions,
    severity: int = 5,
    batch_size: int = 200,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Stream:
    """Create a stream of one domain after the other, each with all images in a new order.

    The last batch of a domain may be smaller.

    Args:
        images: images of known classes; None if every domain is given as a `Domain`.
        corruptions: names of corruptions, or domains (`clean`, `corrupted`, `published`); repetitions are allowed.
        severity: severity of the named corruptions, 1 to 5.
        batch_size: number of images in a batch.
        limit: number of images in each domain, drawn independently; None takes all.
        seed: random seed of the order and of the corruptions.
        workers: number of threads that render batches in advance.

    Raises:
        ValueError: there are no domains, a batch size or limit is below 1, or a corruption is named without images.

    Reference: Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022.

    >>> from testtime.data import from_arrays
    >>> grey = from_arrays("grey", np.full((5, 8, 8), 99, np.uint8), [0, 1, 0, 1, 0], ("a", "b"))
    >>> [(b.domain, len(b)) for b in continual(grey, ["contrast", "fog"], batch_size=3)]
    [('contrast', 3), ('contrast', 2), ('fog', 3), ('fog', 2)]
    """
    domains = _domains(images, corruptions, severity, seed)
    _positive(batch_size, limit)
    visits = [(d.name, _rows(i, _order(d, limit, seed, f"visit {i}"))) for i, d in enumerate(domains)]
    return Stream(tuple(domains), _cut(visits, batch_size), batch_size, seed, workers)


def recorded(images: ImageSet | Domain, batch_size: int = 200, workers: int = 0) -> Stream:
    """Create a stream of unchanged images in the order in which they are stored, such as recorded data.

    Args:
        images: image set, or a domain of one (``clean(images, size)`` resizes).
        batch_size: number of images in a batch; the last batch may be smaller.
        workers: number of threads that read batches in advance.

    Raises:
        ValueError: there are no images, or the batch size is below 1.

    >>> from testtime.data import from_arrays
    >>> grey = from_arrays("grey", np.full((5, 8, 8), 99, np.uint8))
    >>> [batch.ids.tolist() for batch in recorded(grey, 2)]
    [[0, 1], [2, 3], [4]]
    """
    domain = images if isinstance(images, Domain) else clean(images)
    _positive(batch_size, len(domain))
    rows = _rows(0, np.arange(len(domain), dtype=np.int64))
    return Stream((domain,), _cut([(domain.name, rows)], batch_size), batch_size, 0, workers)


def gradual(
    images: ImageSet,
    corruptions: Sequence[str],
    batch_size: int = 200,
    limit: int | None = None,
    seed: int = 0,
    severities: Sequence[int] = GRADUAL_SEVERITIES,
    workers: int = 0,
) -> Stream:
    """Create a stream in which the severity of each corruption increases and decreases: 1, 2, 3, 4, 5, 4, 3, 2, 1.

    The arguments are those of `continual`; ``limit`` is the number of images for each corruption and severity.

    Reference: Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022, section 4.4.
    """
    domains = [corrupted(images, name, level, seed=seed) for name in corruptions for level in severities]
    return continual(None, domains, 5, batch_size, limit, seed, workers)


def mixed(
    images: ImageSet | None,
    corruptions: Conditions,
    severity: int = 5,
    batch_size: int = 200,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Stream:
    """Create a stream of all domains in one random order.

    The arguments are those of `continual`; ``limit`` is the number of images for each domain.
    """
    domains = _domains(images, corruptions, severity, seed)
    _positive(batch_size, limit)
    rows = np.concatenate([_rows(i, _order(d, limit, seed, f"visit {i}")) for i, d in enumerate(domains)])
    np.random.default_rng(derive_seed(seed, "mixed")).shuffle(rows)
    name = domains[0].name if len(domains) == 1 else "mixed"
    return Stream(tuple(domains), _cut([(name, rows)], batch_size), batch_size, seed, workers)


def correlated(
    images: ImageSet | None,
    corruptions: Conditions,
    severity: int = 5,
    batch_size: int = 200,
    limit: int | None = None,
    seed: int = 0,
    delta: float = 0.1,
    slots: int | None = None,
    workers: int = 0,
    together: bool = False,
) -> Stream:
    """Create a stream of one domain after the other with temporally correlated classes.

    The images of each class are distributed over ``slots`` periods by a draw from a Dirichlet distribution, and shuffled within
    a period.

    Args:
        images, corruptions, severity, batch_size, limit, seed, workers: arguments of `continual`.
        delta: concentration of the Dirichlet distribution; the smaller, the stronger the correlation.
        slots: number of periods per domain; None takes the number of classes.
        together: whether the domains are mixed and the classes are correlated across all of them.

    Raises:
        ValueError: delta is not positive, or a domain has no labels.

    Reference: Yuan, Xie and Li, Robust Test-Time Adaptation in Dynamic Scenarios, CVPR 2023.
    """
    if delta <= 0:
        raise ValueError(f"delta is the concentration of a Dirichlet distribution and positive, got {delta}")
    domains = _domains(images, corruptions, severity, seed)
    _positive(batch_size, limit)
    _labelled(domains, "correlated")
    orders = [_rows(i, _order(d, limit, seed, f"visit {i}")) for i, d in enumerate(domains)]
    parts = [(d.name, rows) for d, rows in zip(domains, orders, strict=True)]
    if together:
        parts = [("mixed" if len(domains) > 1 else domains[0].name, np.concatenate(orders))]
    visits = []
    for i, (name, rows) in enumerate(parts):
        labels = _labels(domains, rows)
        rng = np.random.default_rng(derive_seed(seed, "correlated", i))
        periods: list[list[Rows]] = [[] for _ in range(slots or len(domains[i].images.classes))]
        for label in np.unique(labels):
            members = rng.permutation(rows[labels == label]) if together else rows[labels == label]
            share = rng.dirichlet(np.full(len(periods), delta))
            ends = np.round(np.cumsum(share) * len(members)).astype(int)
            for period, part in zip(periods, np.split(members, ends[:-1]), strict=True):
                period.append(part)
        visits.append((name, np.concatenate([rng.permutation(np.concatenate(s)) for s in periods])))
    return Stream(tuple(domains), _cut(visits, batch_size), batch_size, seed, workers)


def label_shift(
    images: ImageSet | None,
    corruptions: Conditions,
    severity: int = 5,
    batch_size: int = 200,
    limit: int | None = None,
    seed: int = 0,
    imbalance: float = 100.0,
    workers: int = 0,
) -> Stream:
    """Create a stream of one domain after the other, in each of which every class dominates for a period.

    A domain is divided into periods of equal length, one for each class in a random order. In its period, the class is
    ``imbalance`` times as likely as each other class. The image is drawn without replacement from those of its class, and from
    all again when they are used up.

    Args:
        images, corruptions, severity, batch_size, limit, seed, workers: arguments of `continual`.
        imbalance: ratio of the probabilities of the dominant class and of each other; 1 is no shift, ``math.inf`` gives one
            class after the other.

    Raises:
        ValueError: imbalance is below 1, or a domain has no labels.

    Reference: Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World (SAR), ICLR 2023 (online imbalanced label
    shift, ratios of 1 to 500,000).

    >>> from testtime.data import from_arrays
    >>> grey = from_arrays("grey", np.full((60, 8, 8), 99, np.uint8), [0, 1, 2] * 20, ("a", "b", "c"))
    >>> [batch.y.unique().tolist() for batch in label_shift(grey, ["fog"], batch_size=20, imbalance=float("inf"))]
    [[1], [2], [0]]
    """
    if not imbalance >= 1:
        raise ValueError(
            f"imbalance is the ratio of the probabilities of two classes and at least 1, got {imbalance}"
        )
    domains = _domains(images, corruptions, severity, seed)
    _positive(batch_size, limit)
    _labelled(domains, "label-shifted")
    visits = []
    for i, domain in enumerate(domains):
        order = _order(domain, limit, seed, f"visit {i}")
        labels = domain.labels(order)
        rng = np.random.default_rng(derive_seed(seed, "label shift", i))
        classes = rng.permutation(np.unique(labels))
        own = 1.0 if np.isinf(imbalance) else imbalance / (imbalance + len(classes) - 1)
        time = np.arange(len(order)) * len(classes) // len(order)
        others = (time + rng.integers(1, max(len(classes), 2), len(order))) % len(classes)
        drawn = classes[np.where(rng.random(len(order)) < own, time, others)]
        rows = np.empty(len(order), np.int64)
        for label in classes:
            at, members = np.flatnonzero(drawn == label), order[labels == label]
            rows[at] = members[_cycle(len(members), len(at), derive_seed(seed, "label shift", i, label))]
        visits.append((domain.name, _rows(i, rows)))
    return Stream(tuple(domains), _cut(visits, batch_size), batch_size, seed, workers)


def open_set(stream: Stream, unknown: ImageSet | Domain, ratio: float = 1.0) -> Stream:
    """Mix images of unknown classes into a stream: of every batch of B images, B / (1 + ratio) are known.

    The known images keep their order and their corruption. The unknown images are resized to their size and get the corruption
    of the domain of their batch. Each domain has them in a new order; if there are too few, they are repeated. With ratio 1 and
    B = 200, a batch has 100 known and 100 unknown images; a smaller last batch keeps the ratio.

    Args:
        stream: stream of the known images.
        unknown: images of other classes; their labels are ignored. Those of a `Domain` keep its condition and size.
        ratio: number of unknown images for each known image.

    Raises:
        ValueError: the ratio is negative, or so large that a batch has no known image.

    >>> from testtime.data import from_arrays
    >>> grey = from_arrays("grey", np.full((6, 8, 8), 99, np.uint8), [0, 1, 0, 1, 0, 1], ("a", "b"))
    >>> other = from_arrays("other", np.full((4, 16, 16), 9, np.uint8))
    >>> [(b.y < 0).int().sum().item() for b in open_set(continual(grey, ["fog"], batch_size=8), other)]
    [4, 2]
    """
    known = round(stream.batch_size / (1 + ratio)) if ratio >= 0 else 0
    if known < 1:
        raise ValueError(
            f"expected a ratio of unknown to known that is at least 0 and leaves a known image in a batch of "
            f"{stream.batch_size}, got {ratio}"
        )
    count = len(stream.domains)
    if isinstance(unknown, Domain):
        others, name = (replace(unknown, known=False),) * count, unknown.images.name
    else:
        others, name = tuple(domain.of_unknown(unknown) for domain in stream.domains), unknown.name
    domains = stream.domains + others
    plans = []
    visits = sorted({plan.visit for plan in stream.plans})
    for visit in visits:
        parts = [plan for plan in stream.plans if plan.visit == visit]
        rows = np.concatenate([plan.rows for plan in parts])
        cuts = [rows[i : i + known] for i in range(0, len(rows), known)]
        extra = [round(len(cut) * (stream.batch_size - known) / known) for cut in cuts]
        ids = _cycle(len(unknown), sum(extra), derive_seed(stream.seed, "unknown", name, visit))
        for number_of, (cut, more) in enumerate(zip(cuts, extra, strict=True)):
            mine, ids = ids[:more], ids[more:]
            like = cut[np.arange(more) * len(cut) // max(more, 1), 0]
            both = np.concatenate([cut, np.stack([count + like, mine], axis=1)])
            np.random.default_rng(derive_seed(stream.seed, "batch", visit, number_of)).shuffle(both)
            plans.append(Plan(parts[0].domain, visit, both))
    return replace(stream, domains=domains, plans=tuple(plans))


def _domains(images: ImageSet | None, corruptions: Conditions, severity: int, seed: int) -> list[Domain]:
    domains = []
    for one in [corruptions] if isinstance(corruptions, str) else corruptions:
        if isinstance(one, Domain):
            domains.append(one)
        elif images is None:
            raise ValueError(f"the corruption {one!r} needs images; give them, or a Domain in its place")
        else:
            domains.append(corrupted(images, one, severity, seed=seed))
    if not domains:
        raise ValueError("a stream needs at least one domain, got none")
    return domains


def _labelled(domains: Sequence[Domain], how: str) -> None:
    for domain in domains:
        if domain.images.labels is None:
            raise ValueError(f"{domain.images.name} has no labels, and a {how} stream is ordered by them")


def _labels(domains: Sequence[Domain], rows: Rows) -> NDArray[np.int64]:
    """Return the class of each row (domain, image)."""
    found = np.empty(len(rows), np.int64)
    for source in np.unique(rows[:, 0]):
        at = rows[:, 0] == source
        found[at] = domains[source].labels(rows[at, 1])
    return found


def _positive(batch_size: int, limit: int | None) -> None:
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit are at least 1, got {batch_size} and {limit}")


def _order(domain: Domain, limit: int | None, seed: int, purpose: str) -> Rows:
    return np.random.default_rng(derive_seed(seed, purpose)).permutation(len(domain)).astype(np.int64)[:limit]


def _rows(domain: int, ids: Rows) -> Rows:
    return np.stack([np.full(len(ids), domain, np.int64), ids], axis=1)


def _cycle(size: int, count: int, seed: int) -> Rows:
    """Return ``count`` indices below ``size`` from consecutive random permutations."""
    if size == 0:
        raise ValueError("the set of unknown images is empty")
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:count].astype(np.int64)


def _cut(visits: list[tuple[str, Rows]], batch_size: int) -> tuple[Plan, ...]:
    return tuple(
        Plan(name, visit, rows[i : i + batch_size])
        for visit, (name, rows) in enumerate(visits)
        for i in range(0, len(rows), batch_size)
    )
