"""A rendered house of ten frames, and the same with its labels changed."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from testtime.data import Camera, DenseSet, Sample
from testtime.scenes import SceneSet, render_space


def small_house() -> SceneSet:
    return render_space(seed=3, frames=10, size=(48, 64), tasks=("depth", "normals"))


class Changed(DenseSet):
    """A set with some of its labels, each changed."""

    def __init__(
        self, data: SceneSet, change: Callable[[Tensor], Tensor] = lambda x: x, only: str = ""
    ) -> None:
        self.data, self.change = data, change
        self.name, self.tasks = "changed", (only,) if only else data.tasks

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        return replace(sample, labels={t: self.change(sample.labels[t]) for t in self.tasks})

    def camera(self, index: int) -> Camera:
        return self.data.camera(index)
