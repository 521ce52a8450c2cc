"""Sizes of the whole: what network, branch, training and data an experiment has, from two cores to the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch

from testtime.data.dense import DenseSet, Sample
from testtime.data.shared_classes import relabelled
from testtime.models.assisted import Assisted
from testtime.models.multitask import MultiTaskNet, multitask_resnet
from testtime.models.synchronizer import Synchronizer
from testtime.multitask.training import Recipe
from testtime.parts.randomness import generator
from testtime.tasks import Depth, Edges, Normals, Segmentation, Task, Tasks

__all__ = ["GROUPS", "NOISE", "PRESETS", "Domain", "Noisy", "Preset"]

NOISE = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4)
"""The noise scales of the paper's table 5."""

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
"""The classes of scenes as the segmentation of a small network has them."""


@dataclass(frozen=True)
class Domain:
    """Rendered houses: which, how many frames of each, in which style and under which shift.

    Attributes:
        first, houses: the seeds of the houses.
        frames: for each house.
        size: (H, W) in pixels.
        style, shift: names of ``testtime.scenes``.
        noise: deviation of Gaussian noise on every image, as a share of the deviation of its pixels (S4T, table 5).
    """

    first: int
    houses: int
    frames: int
    size: tuple[int, int]
    style: str = "default"
    shift: str | None = None
    noise: float = 0.0

    def prepare(self, folder: Path, jobs: int = 1) -> None:
        """Render what is not there yet, into ``folder/scenes``."""
        from testtime.scenes.disk import make

        make(self._root(folder), self._recipes(), jobs)

    def read(self, folder: Path) -> DenseSet:
        """The samples, their classes being :data:`GROUPS`."""
        from testtime.scenes.disk import read_scenes

        scenes = read_scenes(self._root(folder), [r.name for r in self._recipes()])
        grouped = relabelled(scenes, {c: g for g, members in GROUPS.items() for c in members}, tuple(GROUPS))
        return Noisy(grouped, self.noise) if self.noise else grouped

    def _root(self, folder: Path) -> Path:
        return folder / f"scenes-{self.size[0]}x{self.size[1]}-{self.frames}"

    def _recipes(self) -> list[Any]:
        from testtime.scenes.disk import Recipe as Space

        seeds = range(self.first, self.first + self.houses)
        return [Space(seed, self.style, self.shift, self.frames, self.size) for seed in seeds]


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


@dataclass(frozen=True)
class Preset:
    """The size of an experiment.

    Attributes:
        name: of the preset.
        depth, width: of the ResNet.
        branch: arguments of :class:`Synchronizer`.
        recipe: of the training.
        domains: by name; "source", "validation" (a shift to choose learning rates on) and the targets.
        imagenet: a file of public ImageNet weights to start from, or None.
    """

    name: str
    depth: int
    width: int
    branch: Mapping[str, Any]
    recipe: Recipe
    domains: Mapping[str, Domain] = field(default_factory=dict)
    imagenet: str | None = None

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def tasks(self) -> Tasks:
        """Segmentation, depth, normals and edges."""
        tasks: tuple[Task, ...] = (Segmentation(tuple(GROUPS)), Depth(), Normals(), Edges())
        return {task.name: task for task in tasks}

    def domain(self, name: str) -> Domain:
        """A domain by name.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.domains:
            raise ValueError(f"preset {self.name} has the domains {', '.join(self.domains)}, not {name!r}")
        return self.domains[name]

    def network(self) -> MultiTaskNet:
        """The network without any branch."""
        net = multitask_resnet(self.tasks, self.depth, self.width)
        if self.imagenet is not None:
            net.encoder.load_imagenet(self.imagenet)  # type: ignore[operator]
        return net

    def synchronized(self, net: MultiTaskNet, tasks: Tasks | None = None, **changes: Any) -> Assisted:
        """The network with the synchronizer of this size; ``changes`` are arguments of :class:`Synchronizer`."""
        channels = net.encoder.channels
        return Assisted(net, Synchronizer(tasks or self.tasks, channels, **{**self.branch, **changes}))  # type: ignore[arg-type]


def _houses(size: tuple[int, int], source: int, frames: int, others: int, each: int) -> dict[str, Domain]:
    target = Domain(9000, others, each, size, style="other")
    return {
        "source": Domain(0, source, frames, size),
        "validation": Domain(5000, others // 2, each, size, style="minimal", shift="cold"),
        "target": target,
        **{f"target + noise {scale:g}": replace(target, noise=scale) for scale in NOISE[1:]},
    }


TINY = Preset(
    "tiny",
    18,
    16,
    {"features": 16, "size": 32, "patch": 4, "ratio": 0.8},
    Recipe(iterations=5000, batch=16, lr=2e-3, every=500),
    _houses((64, 64), 120, 20, 20, 10),
)
PAPER = Preset(
    "paper",
    50,
    64,
    {},
    Recipe(iterations=40_000, batch=8, lr=2e-5, scale=(0.5, 2.0), photometric=0.3),
    _houses((256, 256), 200, 100, 60, 20),
)
PRESETS = {preset.name: preset for preset in (TINY, PAPER)}
