"""Frames of a space: what was sensed, and what networks say of it, by the name of the modality."""

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
"""From pictures (N, 3, H, W) in [0, 1] to one value for each: a tensor with a leading N, or a list (boxes)."""


@final
class SpaceFrames(Sequence[Mapping[str, Any]]):
    """The frames of a set of samples, and what pseudo-labellers make of their pictures.

    Labels that are no sensor's ("semseg", edges of the geometry) are not among them: pre-training sees no label of the test
    space. Edges are Canny's, computed from the picture.

    Args:
        data: pictures with "depth" and "normals".
        sensors: which of "depth", "normals" and "edge" are used beside the picture.
        pseudo: by the name of the modality; any callable, such as a network of other houses.
        edge_side: a larger picture is brought to this shorter side before its edges are looked for, so that an edge is a pixel
            wide where tokens are made; None takes it as it is.

    Raises:
        ValueError: the data lack a sensor, or a name is no sensor's.

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
                f"{data.name} senses {', '.join(data.tasks)}; it has no {', '.join(wrong)} to learn from"
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
        """One modality of all frames at a size, as a tokenizer learns from them; feature maps keep their own."""
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
        """Canny's edges of a picture (3, H, W), (1, h, w) of 0 and 1."""
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
