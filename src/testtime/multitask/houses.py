"""Rendered houses as data with four dense tasks: segmentation, depth, normals and edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from testtime.data.dense import DenseSet, Sample
from testtime.parts.randomness import generator
from testtime.scenes.disk import Recipe, make
from testtime.scenes.groups import GROUPS, read_grouped
from testtime.tasks import Depth, Edges, Normals, Segmentation, Task, Tasks

__all__ = ["TASKS", "Houses", "Noisy"]

_TASKS: tuple[Task, ...] = (Segmentation(tuple(GROUPS)), Depth(), Normals(), Edges())
TASKS: Tasks = {task.name: task for task in _TASKS}


@final
@dataclass(frozen=True)
class Houses:
    """Rendered houses, the frames of one domain.

    Args:
        first, houses: seed of the first house and number of houses.
        frames: frames of each house.
        size: height and width in pixels.
        style, shift: names of :mod:`testtime.scenes`.
        noise: deviation of Gaussian noise on every image, as a share of the deviation of its pixels (table 5).
    """

    first: int
    houses: int
    frames: int
    size: Sequence[int]
    style: str = "default"
    shift: str | None = None
    noise: float = 0.0

    def read(self, folder: Path, jobs: int = 1) -> DenseSet:
        """Return the samples, with groups of classes; what is not there is rendered, into a folder that all houses share.

        Args:
            folder: folder of the houses.
            jobs: processes that render.
        """
        (height, width), seeds = self.size, range(self.first, self.first + self.houses)
        root = folder / f"scenes-{height}x{width}-{self.frames}"
        recipes = [Recipe(seed, self.style, self.shift, self.frames, (height, width)) for seed in seeds]
        found = read_grouped(root, make(root, recipes, jobs))
        return Noisy(found, self.noise) if self.noise else found


@final
class Noisy(DenseSet):
    """Samples with Gaussian noise, whose deviation is a share of the deviation of each image's pixels."""

    def __init__(self, clean: DenseSet, scale: float) -> None:
        self.clean, self.scale = clean, scale
        self.name, self.tasks, self.classes = f"{clean.name} + noise {scale:g}", clean.tasks, clean.classes

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Sample:
        sample = self.clean[index]
        noise = torch.randn(sample.image.shape, generator=generator(0, index, "noise"))
        image = (sample.image + self.scale * sample.image.std() * noise).clamp(0, 1)
        return Sample(image, sample.labels, sample.name)
