"""Rendered images in files: they are the images, are made once, and are made again where they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from testtime.data import from_arrays
from testtime.streams import continual, open_set
from testtime.streams.cache import cached, missing, render

RNG = np.random.default_rng(0)
KNOWN = from_arrays("k", RNG.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), np.arange(40) % 2, ("a", "b"))
UNKNOWN = from_arrays("u", RNG.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))


def stream(limit: int):
    return open_set(continual(KNOWN, ["fog", "contrast"], batch_size=10, limit=limit, seed=1), UNKNOWN)


def test_tables_of_rendered_images_are_the_images(tmp_path: Path) -> None:
    whole, part = stream(30), stream(10)
    assert len(missing(whole, tmp_path)) == 4
    ready, head = cached(whole, tmp_path), cached(part, tmp_path, whole)
    assert missing(whole, tmp_path) == []
    assert len(list(tmp_path.glob("*.npy"))) == 4
    for plain, stored in ((whole, ready), (part, head)):
        assert len(plain) == len(stored)
        assert all(torch.equal(a.x, b.x) for a, b in zip(plain, stored, strict=True))
        assert all(torch.equal(a.y, b.y) for a, b in zip(plain, stored, strict=True))


def test_a_damaged_table_is_rendered_again(tmp_path: Path) -> None:
    whole = stream(30)
    before = cached(whole, tmp_path)[0].x
    for place, path in enumerate(sorted(tmp_path.glob("*.npy"))):
        path.write_bytes(path.read_bytes()[: 100 * place])
    assert torch.equal(cached(whole, tmp_path)[0].x, before)


def test_a_table_can_be_rendered_by_itself(tmp_path: Path) -> None:
    whole = stream(30)
    (index, path), *others = missing(whole, tmp_path)
    render(whole, index, tmp_path)
    assert path.is_file()
    assert missing(whole, tmp_path) == others
