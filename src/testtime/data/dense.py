"""The interface of data sets with dense labels: samples of an image and the labels that are available for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from testtime.data.imageset import resized
from testtime.labels import IGNORE

__all__ = ["IGNORE", "DenseSet", "Sample", "blank", "collate", "sized"]

CLASS_TASKS = frozenset({"semseg", "human_parts"})
"""Tasks whose label is a class index for each pixel, (H, W) int64."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its labels; a task without a label is absent from the dictionary.

    Attributes:
        image: image, (3, H, W) float32 in [0, 1].
        labels: labels of the image's height and width, by name of the task:

            - ``"semseg"``: class indices, (H, W) int64, :data:`IGNORE` where the class is unknown;
            - ``"depth"``: depth along the optical axis in metres, (1, H, W) float32, NaN where it was not measured;
            - ``"normals"``: unit vectors in the camera frame (x right, y up, z towards the viewer), (3, H, W) float32, NaN
              where unknown;
            - ``"edge"``: edges, (1, H, W) float32 in [0, 1], NaN where unknown.
            name: name of the sample, for reports.
    """

    image: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = ""


class DenseSet(ABC):
    """A data set of :class:`Sample`, decoded on demand.

    Attributes:
        name: name of the data set, for reports.
        tasks: names of the tasks for which samples can have labels.
        classes: names of the classes of "semseg"; empty without that task.
    """

    name: str
    tasks: tuple[str, ...]
    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def subset(self, indices: Iterable[int]) -> DenseSet:
        """Return the set of these samples, in this order.

        Args:
            indices: indices of the samples.

        Raises:
            IndexError: an index is out of range.
        """
        return _Subset(self, list(indices))

    def batch(
        self, indices: Iterable[int], size: tuple[int, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return images (N, 3, H, W) and labels by task; a missing label of a sample is filled with ignored values.

        Args:
            indices: indices of the samples, in this order.
            size: height and width to which they are resized (:func:`sized`); None keeps their size.

        Raises:
            ValueError: the samples differ in size and no size is given.
        """
        return collate((self[i] if size is None else sized(self[i], size) for i in indices), self.tasks)


@final
class _Subset(DenseSet):
    def __init__(self, whole: DenseSet, indices: Sequence[int]) -> None:
        wrong = [i for i in indices if not 0 <= i < len(whole)]
        if wrong:
            raise IndexError(f"{whole.name}: no sample {wrong[0]}, there are {len(whole)}")
        self.whole, self.indices = whole, list(indices)
        self.name, self.tasks, self.classes = whole.name, whole.tasks, whole.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.indices[index]]


def blank(task: str, like: Tensor) -> Tensor:
    """Return a label of a task that is ignored everywhere, of the size of an image (3, H, W)."""
    height, width = like.shape[-2:]
    if task in CLASS_TASKS:
        return torch.full((height, width), IGNORE)
    return like.new_full((3 if task == "normals" else 1, height, width), torch.nan)


def collate(samples: Iterable[Sample], tasks: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Stack samples into a batch; a missing label of a sample is filled with ignored values.

    Args:
        samples: samples of one size, at least one.
        tasks: names of the tasks.

    >>> x = torch.zeros(3, 2, 2)
    >>> _, labels = collate([Sample(x, {"depth": torch.ones(1, 2, 2)}), Sample(x)], ["depth"])
    >>> labels["depth"].nanmean().item(), labels["depth"].isnan().sum().item()
    (1.0, 4)
    """
    samples = list(samples)
    if not samples:
        raise ValueError("a batch needs at least one sample")
    sizes = {tuple(s.image.shape[-2:]) for s in samples}
    if len(sizes) > 1:
        raise ValueError(f"the samples differ in size ({sorted(sizes)}); give size=(height, width)")
    images = torch.stack([s.image for s in samples])
    labels = {t: torch.stack([s.labels.get(t, blank(t, s.image)) for s in samples]) for t in tasks}
    return images, labels


def sized(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize a sample: the image bilinearly with antialiasing, the labels by nearest neighbour.

    Args:
        sample: sample to resize.
        size: height and width, in pixels.
    """
    if tuple(sample.image.shape[-2:]) == size:
        return sample

    def nearest(label: Tensor) -> Tensor:
        planes = label if label.dim() == 3 else label[None]
        # Nearest neighbours keep class ids and unknown values.
        rows, columns = (
            ((torch.arange(n) + 0.5) * (old / n)).long().clamp(max=old - 1)
            for n, old in zip(size, planes.shape[-2:], strict=True)
        )
        nearest_pixels = planes[:, rows][:, :, columns]
        return nearest_pixels if label.dim() == 3 else nearest_pixels[0]

    image = resized(sample.image[None], size)[0].clamp(0, 1)
    return Sample(image, {t: nearest(y) for t, y in sample.labels.items()}, sample.name)
