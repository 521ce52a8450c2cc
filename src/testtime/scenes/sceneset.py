"""Data sets of frames of spaces: samples with labels in the convention of dense sets, and further annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.cameras import Camera
from testtime.data.dense import DenseSet, Sample
from testtime.data.files import need_choice
from testtime.errors import DataError

if TYPE_CHECKING:
    from testtime.scenes import Frame

__all__ = ["MODALITIES", "SOURCES", "SceneSet", "Space", "View", "stored"]

MODALITIES: dict[str, np.dtype[Any]] = {
    "rgb": np.dtype(np.uint8),
    "depth": np.dtype(np.uint16),
    "normal": np.dtype(np.uint8),
    "canny": np.dtype(np.uint8),
    "occlusion": np.dtype(np.uint8),
    "semantic": np.dtype(np.uint8),
    "instance": np.dtype(np.uint16),
}
"""Storage dtypes of the modalities; "rgb" and "normal" are (H, W, 3), the others (H, W)."""

SOURCES = {"semseg": "semantic", "depth": "depth", "normals": "normal", "edge": "occlusion"}
"""Modality of the label of each task."""


@final
@dataclass(frozen=True, eq=False)
class View:
    """Annotations of a frame beside its labels.

    Attributes:
        name: name of the frame, equal to that of its sample.
        camera: intrinsics and pose.
        room, ring: room and ring of the camera in the house.
        shift: name of the domain shift, or None.
        boxes: tight boxes in pixels, sorted by instance: dictionaries with instance, label, x0, y0, x1, y1 and visibility.
        caption: one or more English sentences.
        instance: instance of each pixel, (H, W) int64.
        canny: edges of the image, (H, W) bool.
    """

    name: str
    camera: Camera
    room: int
    ring: int
    shift: str | None
    boxes: tuple[dict[str, Any], ...]
    caption: str
    instance: Tensor
    canny: Tensor


@final
class Space:
    """The stored frames of one space.

    Args:
        facts: content of ``space.json``.
        records: lines of ``frames.jsonl``.
        read: function from a modality and the index of a frame to the stored array.
        keep: whether modalities stay in memory after they were read.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        read: Callable[[str, int], NDArray[Any]],
        keep: bool = True,
    ) -> None:
        self.facts, self.records, self.keep = dict(facts), [dict(r) for r in records], keep
        self.name, self.classes = str(facts["name"]), tuple(facts["classes"])
        self.size: tuple[int, int] = tuple(facts["recipe"]["size"])
        self._read, self._kept = read, dict[str, NDArray[Any]]()

    def __len__(self) -> int:
        return len(self.records)

    def array(self, modality: str) -> NDArray[Any]:
        """Return all frames of a modality as stored, (N, H, W) or (N, H, W, 3) (:data:`MODALITIES`).

        Raises:
            DataError: a file is missing, damaged, or not of the space's size.
            ValueError: there is no such modality.
        """
        need_choice(modality, MODALITIES, "modality")
        if modality in self._kept:
            return self._kept[modality]
        whole = np.stack([self._read(modality, i) for i in range(len(self))])
        if self.keep:
            self._kept[modality] = whole
        return whole

    def frame(self, modality: str, index: int) -> NDArray[Any]:
        """Return one frame of a modality; see :meth:`array`."""
        return self.array(modality)[index] if self.keep else self._read(modality, index)


@final
class SceneSet(DenseSet):
    """A dense data set of frames of spaces with exact labels.

    Args:
        spaces: spaces of the frames, in order.
        tasks: tasks whose labels the samples have, among "semseg", "depth", "normals" and "edge".
        name: name of the data set, for reports.

    Raises:
        DataError: the spaces differ in their classes.
        ValueError: there is no space, or there is no such task.
    """

    def __init__(
        self, spaces: Iterable[Space], tasks: Sequence[str] = tuple(SOURCES), name: str = "scenes"
    ) -> None:
        self.spaces, self.tasks, self.name = tuple(spaces), tuple(tasks), name
        for task in self.tasks:
            need_choice(task, SOURCES, "tasks")
        if not self.spaces:
            raise ValueError("a set of scenes needs at least one space")
        self.classes = self.spaces[0].classes
        for space in self.spaces:
            if space.classes != self.classes:
                raise DataError(
                    f"{space.name}: expected the {len(self.classes)} classes of {self.spaces[0].name}, found others "
                    f"({len(space.classes)}); make both with the same version of testtime"
                )
        self.places = [(s, i) for s, space in enumerate(self.spaces) for i in range(len(space))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of one frame.

        Raises:
            DataError: a file is missing, damaged, or not of the space's size.
            IndexError: there is no such frame.
        """
        images, labels = self._gather([index])
        return Sample(images[0], {task: label[0] for task, label in labels.items()}, self.title(index))

    def subset(self, indices: Iterable[int]) -> SceneSet:
        """Return the set of these frames, in this order."""
        chosen = SceneSet(self.spaces, self.tasks, self.name)
        chosen.places = [self._place(i) for i in indices]
        return chosen

    def batch(
        self, indices: Iterable[int], size: tuple[int, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return images and labels of several frames; see :meth:`DenseSet.batch`."""
        indices = list(indices)
        sizes = {self.spaces[self._place(i)[0]].size for i in indices}
        if len(sizes) == 1 and size in (None, *sizes):
            return self._gather(indices)
        return super().batch(indices, size)

    def title(self, index: int) -> str:
        """Return the name of a frame with the name of its space."""
        space, row = self._place(index)
        return f"{self.spaces[space].name}/{self.spaces[space].records[row]['frame']}"

    def stored(self, modality: str, index: int) -> NDArray[Any]:
        """Return a modality of one frame as stored (:data:`MODALITIES`)."""
        space, row = self._place(index)
        return self.spaces[space].frame(modality, row)

    def camera(self, index: int) -> Camera:
        """Return intrinsics and pose of one frame.

        Raises:
            DataError: the frame has none, or they are not valid.
        """
        space, row = self._place(index)
        (height, width), record = self.spaces[space].size, self.spaces[space].records[row]
        try:
            (fx, _, cx), (_, fy, cy), _ = record["intrinsics"]
            return Camera(width, height, fx, fy, cx, cy, np.asarray(record["pose"], dtype=np.float64))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.title(index)}: expected pose and intrinsics in frames.jsonl, found otherwise ({error}); "
                "make the space again"
            ) from error

    def view(self, index: int) -> View:
        """Return the annotations of one frame beside its labels."""
        space, row = self._place(index)
        record = self.spaces[space].records[row]
        return View(
            self.title(index),
            self.camera(index),
            record["room"],
            record["ring"],
            record["shift"],
            tuple(record["boxes"]),
            record["caption"],
            torch.from_numpy(self.stored("instance", index).astype(np.int64)),
            torch.from_numpy(self.stored("canny", index) > 0),
        )

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no frame {index}, there are {len(self)}")
        return self.places[index]

    def _gather(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        def taken(modality: str) -> NDArray[Any]:
            return np.stack([self.stored(modality, i) for i in indices])

        images = torch.from_numpy(taken("rgb")).permute(0, 3, 1, 2).float() / 255
        return images.contiguous(), {task: _label(task, taken(SOURCES[task])) for task in self.tasks}


def _label(task: str, values: NDArray[Any]) -> Tensor:
    """Convert a stored modality (N, H, W) or (N, H, W, 3) to the labels of a task, as a batch."""
    if task == "semseg":
        return torch.from_numpy(values.astype(np.int64))
    if task == "edge":
        return torch.from_numpy((values > 127).astype(np.float32))[:, None]
    if task == "depth":
        metres = values.astype(np.float32) / np.float32(1000)
        metres[values == 0] = np.nan
        return torch.from_numpy(metres)[:, None]
    vectors = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 0.5, vectors / length, torch.nan).contiguous()


def stored(frame: Frame) -> dict[str, NDArray[Any]]:
    """Convert a frame to stored modalities (:data:`MODALITIES`)."""
    normal = np.rint((np.asarray(frame.normal) + 1) * 127.5)
    normal[(np.asarray(frame.normal) == 0).all(axis=2)] = 127
    values = {
        "rgb": frame.rgb,
        "depth": np.clip(np.rint(np.asarray(frame.depth, dtype=np.float64) * 1000), 0, 65535),
        "normal": normal,
        "canny": np.asarray(frame.canny) * 255,
        "occlusion": np.asarray(frame.occlusion) * 255,
        "semantic": frame.semantic,
        "instance": frame.instance,
    }
    return {m: np.ascontiguousarray(values[m], dtype=kind) for m, kind in MODALITIES.items()}
