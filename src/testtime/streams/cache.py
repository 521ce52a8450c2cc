"""Rendered images of a stream in files, so that many runs do not compute them again."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testtime.errors import DataError
from testtime.files import read_array, write_array
from testtime.streams.domain import Domain, fingerprint
from testtime.streams.stream import Stream

__all__ = ["cached", "missing", "render"]

LARGEST = 2**29  # bytes of one table; the images of larger ones are rendered when needed
BLOCK = 250  # images rendered at once


def cached(stream: Stream, folder: Path, whole: Stream | None = None) -> Stream:
    """Return the stream with its images in files, memory-mapped; tables that are missing or damaged are rendered.

    Args:
        stream: the stream.
        folder: folder of the tables.
        whole: a longer stream of the same domains, whose tables serve this one too.
    """
    source = whole or stream
    domains = []
    for index, (domain, ids) in enumerate(zip(source.domains, _needed(source), strict=True)):
        if not _fits(domain, ids):
            domains.append(domain)
            continue
        path = _path(domain, ids, folder)
        try:
            table = read_array(path, "", mapped=True)
        except (FileNotFoundError, DataError):
            render(source, index, folder)
            table = read_array(path, f"delete {folder}", mapped=True)
        rows = np.full(len(domain), -1, np.int64)
        rows[ids] = np.arange(len(ids))
        domains.append(replace(domain, table=(rows, table)))
    return replace(stream, domains=tuple(domains))


def missing(stream: Stream, folder: Path) -> list[tuple[int, Path]]:
    """Return the tables that :func:`cached` would render: number of the domain, and file."""
    found = []
    for index, (domain, ids) in enumerate(zip(stream.domains, _needed(stream), strict=True)):
        if _fits(domain, ids) and not (path := _path(domain, ids, folder)).exists():
            found.append((index, path))
    return found


def render(stream: Stream, index: int, folder: Path) -> None:
    """Render the images that a stream takes from one of its domains; the file appears whole or not at all.

    Args:
        stream: the stream.
        index: number of the domain.
        folder: folder of the tables.
    """
    domain, ids = stream.domains[index], _needed(stream)[index]
    blocks = [domain.render(ids[i : i + BLOCK]).numpy() for i in range(0, len(ids), BLOCK)]
    write_array(_path(domain, ids, folder), np.concatenate(blocks))


def _needed(stream: Stream) -> list[NDArray[np.int64]]:
    """The images that the stream takes from each domain, sorted."""
    rows = np.concatenate([plan.rows for plan in stream.plans])
    return [np.unique(rows[rows[:, 0] == index, 1]) for index in range(len(stream.domains))]


def _path(domain: Domain, ids: NDArray[np.int64], folder: Path) -> Path:
    digest = hashlib.sha256()
    condition = (
        [] if domain.ready else [*sorted(asdict(domain.condition).items()), fingerprint(domain.condition)]
    )
    digest.update(repr((domain.images.digest(), domain.size, condition)).encode())
    digest.update(ids.astype("<i8").tobytes())
    return folder / f"{domain.images.name}-{domain.name}-{digest.hexdigest()[:16]}.npy"


def _fits(domain: Domain, ids: NDArray[np.int64]) -> bool:
    if not len(ids):
        return False
    height, width = domain.shape
    return len(ids) * domain.images.channels * height * width <= LARGEST
