"""Frames of a space: measured modalities and pseudo-labels, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, final, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.data.dense import DenseSet
from testtime.scenes.render import canny_edges
from testtime.space.crops import cropped
from testtime.space.modalities import EDGES, RGB, SENSORY, Modality

__all__ = ["PseudoLabeller", "SpaceFrames"]

PseudoLabeller = Callable[[Tensor], Any]
"""Function from pictures (N, 3, H, W) in [0, 1] to one value for each: a tensor with a leading N, or a list (boxes)."""


@final
class SpaceFrames(Sequence[Mapping[str, Any]]):
    """Frames of a data set with the modalities of sensors, and pseudo-labels of their pictures.

    Other labels ("semseg", edges of the geometry) are left out, so that pre-training uses no label of the test space. Edges are
    Canny edges of the picture.

    Args:
        data: images with "depth" and "normals".
        sensors: names among "depth", "normals" and "edge" that are used in addition to the picture.
        pseudo: pseudo-labellers by modality; any callable, such as a network trained on other spaces.
        edge_side: largest length of the shorter side, in pixels, at which edges are computed, so that an edge is one pixel wide
            at the resolution of the tokens; None keeps the resolution of the picture.

    Raises:
        ValueError: the data lack a sensor, or a name is not that of a sensor.

    >>> from testtime.data import Sample
    >>> class One(DenseSet):
    ...     name, tasks = "one", ("depth", "semseg")
    ...     __len__ = lambda self: 1
    ...     __getitem__ = lambda self, i: Sample(torch.zeros(3, 4, 4), {"depth": torch.ones(1, 4, 4)})
    >>> sorted(SpaceFrames(One(), ["depth"], {"brightness": lambda x: x.mean(1, keepdim=True)})[0])
    ['brightness', 'depth', 'rgb']
    """

    def __init__(
        self,
        data: DenseSet,
        sensors: Sequence[str] = (),
        pseudo: Mapping[str, PseudoLabeller] | None = None,
        edge_side: int | None = None,
    ) -> None:
        wrong = sorted({*sensors} - ({*data.tasks, EDGES.name} & {*SENSORY}))
        if wrong:
            raise ValueError(
                f"{data.name} has {', '.join(data.tasks)}, but no {', '.join(wrong)}; leave it out of sensors"
            )
        self.data, self.sensors, self.pseudo = data, tuple(sensors), dict(pseudo or {})
        self.edge_side = edge_side
        self._frame = lru_cache(maxsize=8)(self._made)

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._frame(range(len(self))[index])

    def values(self, modality: Modality, size: tuple[int, int]) -> Sequence[Tensor]:
        """Return one modality of all frames, resized for a tokenizer; feature maps keep their resolution.

        Args:
            modality: modality of the values.
            size: (H, W) in pixels.
        """
        return _Values(self, modality, size)

    def _made(self, index: int) -> Mapping[str, Any]:
        sample = self.data[index]
        frame: dict[str, Any] = {RGB.name: sample.image}
        for name in self.sensors:
            if name == EDGES.name:
                frame[name] = self._edges(sample.image)
                continue
            if name not in sample.labels:
                raise ValueError(f"{self.data.name}: frame {index} ({sample.name}) lacks {name}")
            frame[name] = sample.labels[name]
        with torch.no_grad():
            for name, labeller in self.pseudo.items():
                frame[name] = labeller(sample.image[None])[0]
        return frame

    def _edges(self, image: Tensor) -> Tensor:
        """Return the Canny edges, (1, h, w) of 0 and 1, of a picture (3, H, W)."""
        shrink = 1.0 if self.edge_side is None else min(1.0, self.edge_side / min(image.shape[-2:]))
        if shrink < 1:
            size = [round(shrink * side) for side in image.shape[-2:]]
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        picture = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        return torch.from_numpy(canny_edges(picture))[None].float()


class _Values(Sequence[Tensor]):
    def __init__(self, frames: SpaceFrames, modality: Modality, size: tuple[int, int]) -> None:
        self.frames, self.modality, self.size = frames, modality, size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        value = self.frames[index][self.modality.name]
        if self.modality.kind == "features" or tuple(value.shape[-2:]) == self.size:
            return value
        return cropped(value, self.modality, (0.0, 0.0, 1.0, 1.0, 0.0), self.size)
