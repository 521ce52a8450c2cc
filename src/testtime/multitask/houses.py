"""Rendered houses as data with four dense tasks: segmentation, depth, normals and edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from testtime.data.dense import DenseSet, Sample
from testtime.errors import unknown_name
from testtime.parts.randomness import generator
from testtime.scenes.disk import Recipe, make, read_scenes
from testtime.scenes.groups import GROUPS, read_grouped
from testtime.tasks import Depth, Edges, Normals, Segmentation, Task, Tasks

__all__ = ["TASKS", "Houses", "Misnormalised", "Noisy", "one_room_first"]

_TASKS: tuple[Task, ...] = (Segmentation(tuple(GROUPS)), Depth(), Normals(), Edges())
TASKS: Tasks = {task.name: task for task in _TASKS}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


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
        misnormalised: released transfer whose normalisation of the target is taken (:class:`Misnormalised`), or None.
    """

    first: int
    houses: int
    frames: int
    size: Sequence[int]
    style: str = "default"
    shift: str | None = None
    noise: float = 0.0
    misnormalised: str | None = None

    def read(self, folder: Path, jobs: int = 1) -> DenseSet:
        """Return the samples, with groups of classes; what is not there is rendered, into a folder that all houses share.

        Args:
            folder: folder of the houses.
            jobs: processes that render.
        """
        root, recipes = self._recipes(folder)
        found = read_grouped(root, make(root, recipes, jobs))
        if self.misnormalised is not None:
            found = Misnormalised(found, self.misnormalised)
        return Noisy(found, self.noise) if self.noise else found

    def rooms(self, folder: Path) -> list[tuple[int, int]]:
        """Return the house, counted from the first, and the room of every sample of :meth:`read`, which has rendered them."""
        root, recipes = self._recipes(folder)
        found = read_scenes(root, make(root, recipes))
        return [(house, found.spaces[house].records[row]["room"]) for house, row in found.places]

    def _recipes(self, folder: Path) -> tuple[Path, list[Recipe]]:
        (height, width), seeds = self.size, range(self.first, self.first + self.houses)
        root = folder / f"scenes-{height}x{width}-{self.frames}"
        return root, [Recipe(seed, self.style, self.shift, self.frames, (height, width)) for seed in seeds]


def one_room_first(order: Sequence[int], rooms: Sequence[tuple[int, int]], batch: int) -> list[int]:
    """Return an order of samples whose first batch is from one room: the first in the order that has enough frames.

    Args:
        order: indices of the samples.
        rooms: house and room of each sample.
        batch: number of frames of the room that come first; all others keep their order.

    Raises:
        ValueError: no room has enough frames.

    >>> one_room_first([0, 1, 2, 3], [(0, 0), (0, 1), (0, 0), (0, 1)], 2)
    [0, 2, 1, 3]
    """
    counts = Counter(rooms[i] for i in order)
    first = next((rooms[i] for i in order if counts[rooms[i]] >= batch), None)
    if first is None:
        raise ValueError(
            f"no room has {batch} frames, at most {max(counts.values())}; take more frames of each house"
        )
    chosen = [i for i in order if rooms[i] == first][:batch]
    return [*chosen, *(i for i in order if i not in {*chosen})]


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


@final
class Misnormalised(DenseSet):
    """Samples as a network sees them whose target is normalised otherwise than its source, as in the released code of S4T.

    That code brings images of Taskonomy to [-1, 1], and those of NYUD-v2 and PASCAL-Context to the mean and deviation of
    ImageNet. What reaches a network that was trained with the one and is tested with the other, is an affine change of colours,
    which re-estimated BatchNorm statistics undo.

    Args:
        clean: samples.
        transfer: "from Taskonomy" (trained on [-1, 1]) or "to Taskonomy" (tested on it).

    Raises:
        ValueError: there is no such transfer.
    """

    def __init__(self, clean: DenseSet, transfer: str) -> None:
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
        scale: Tensor = 1 / (2 * deviation)
        changes = {
            "from Taskonomy": (scale, 0.5 - mean * scale),
            "to Taskonomy": (1 / scale, mean - deviation),
        }
        if transfer not in changes:
            raise unknown_name("transfer", transfer, changes)
        self.clean, (self.scale, self.offset) = clean, changes[transfer]
        self.name, self.tasks, self.classes = f"{clean.name}, {transfer}", clean.tasks, clean.classes

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Sample:
        sample = self.clean[index]
        return Sample(self.scale * sample.image + self.offset, sample.labels, sample.name)
