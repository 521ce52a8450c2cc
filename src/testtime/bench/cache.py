"""Corrupted images on disk, so that many methods and seeds of order do not compute them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testtime.streams import Domain, Stream

__all__ = ["cached", "missing", "render"]

LARGEST = 2**29  # bytes of one table; larger ones are computed when needed


def needed(stream: Stream) -> list[NDArray[np.int64]]:
    """For each domain of a stream, which images it will ask for, sorted."""
    rows = np.concatenate([plan.rows for plan in stream.plans])
    return [np.unique(rows[rows[:, 0] == i, 1]) for i in range(len(stream.domains))]


def cached(stream: Stream, folder: Path, whole: Stream | None = None) -> Stream:
    """The stream with its images on disk, memory-mapped; those that are not there yet are rendered.

    Args:
        stream: what will run.
        folder: where the tables lie.
        whole: a longer stream over the same domains whose tables serve this one too.
    """
    return _with_tables(stream, folder, whole or stream, render)


def missing(stream: Stream, folder: Path) -> list[tuple[Domain, NDArray[np.int64], Path]]:
    """The tables that `cached` would render: domain, images, file."""
    jobs = {}
    for domain, ids in zip(stream.domains, needed(stream), strict=True):
        path = _path(domain, ids, folder)
        if len(ids) and not path.exists() and _bytes(domain, ids) <= LARGEST:
            jobs[path] = (domain, ids, path)
    return list(jobs.values())


def render(domain: Domain, ids: NDArray[np.int64], path: Path) -> None:
    """Render the images and write them: the file appears whole or not at all."""
    blocks = [domain.render(ids[i : i + 250]).numpy() for i in range(0, len(ids), 250)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as file:
        np.save(file, np.concatenate(blocks), allow_pickle=False)
    partial.replace(path)


def _with_tables(
    stream: Stream, folder: Path, whole: Stream, make: Callable[[Domain, NDArray[np.int64], Path], None]
) -> Stream:
    domains = []
    for domain, ids in zip(whole.domains, needed(whole), strict=True):
        if not len(ids) or _bytes(domain, ids) > LARGEST:
            domains.append(domain)
            continue
        path = _path(domain, ids, folder)
        if not path.exists():
            make(domain, ids, path)
        rows = np.full(len(domain), -1, np.int64)
        rows[ids] = np.arange(len(ids))
        domains.append(replace(domain, table=(rows, np.load(path, mmap_mode="r", allow_pickle=False))))
    return replace(stream, domains=tuple(domains))


def _path(domain: Domain, ids: NDArray[np.int64], folder: Path) -> Path:
    digest = hashlib.sha256()
    condition = None if domain.ready else sorted(asdict(domain.condition).items())
    digest.update(repr((domain.images.digest(), domain.size, condition)).encode())
    digest.update(ids.astype("<i8").tobytes())
    return folder / f"{domain.images.name}-{domain.name}-{digest.hexdigest()[:16]}.npy"


def _bytes(domain: Domain, ids: NDArray[np.int64]) -> int:
    height, width = domain.size or tuple(domain.images[0].shape[-2:])
    return len(ids) * domain.images.channels * height * width
