"""The classes of furnished houses in groups that a small network can distinguish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from testtime.data.dense import DenseSet
from testtime.data.shared_classes import relabelled
from testtime.scenes.disk import read_scenes

__all__ = ["GROUPS", "read_grouped"]

GROUPS: dict[str, tuple[str, ...]] = {
    "wall": ("wall",),
    "floor": ("floor", "rug"),
    "ceiling": ("ceiling",),
    "window": ("window", "curtain"),
    "door": ("door",),
    "bed": ("bed", "pillow"),
    "sofa": ("sofa",),
    "chair": ("chair",),
    "table": ("table", "desk"),
    "cabinet": ("cabinet", "shelf", "wardrobe"),
    "appliance": ("fridge", "stove", "tv"),
    "bathroom": ("toilet", "sink", "bathtub"),
    "objects": ("lamp", "plant", "picture", "mirror", "book", "mug", "bottle", "vase", "box"),
}
"""Classes of scenes by the name of their group."""


def read_grouped(root: str | Path, spaces: Sequence[str] | None = None) -> DenseSet:
    """Read spaces as :func:`testtime.scenes.disk.read_scenes` does, with :data:`GROUPS` as their classes."""
    classes = {name: group for group, members in GROUPS.items() for name in members}
    return relabelled(read_scenes(root, spaces), classes, tuple(GROUPS))
