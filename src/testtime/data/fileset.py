"""Dense samples whose image and labels are a file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import final

from torch import Tensor

from testtime.data.cameras import Camera
from testtime.data.dense import DenseSet, Sample
from testtime.data.pixels import colour
from testtime.errors import DataError

__all__ = ["Decode", "FileSet"]

Decode = Callable[[Path], Tensor | None]
"""How a label's file is read; None if it holds no label of this image."""


@final
class FileSet(DenseSet):
    """Samples in files, each decoded when it is asked for.

    A label whose file is not there is absent from the sample; an image has to be there.

    Args:
        name: what it is, for reports.
        keys: the samples, in order; a sample's key is its name.
        locate: the file of a key's "image" or of one of its labels.
        decode: by task, how a label is read; it returns the label in the convention of :class:`Sample`.
        classes: the names of the classes of "semseg".
        image: how an image is read.
        camera: where a key was seen from, if the data set says.

    Raises:
        DataError: no sample at all has its label of a task.
    """

    def __init__(
        self,
        name: str,
        keys: Iterable[str],
        locate: Callable[[str, str], Path],
        decode: Mapping[str, Decode],
        classes: Iterable[str] = (),
        image: Callable[[Path], Tensor] = colour,
        camera: Callable[[str], Camera] | None = None,
    ) -> None:
        self.name, self.tasks, self.classes = name, tuple(decode), tuple(classes)
        self.keys = list(keys)
        self._locate, self._decode, self._image, self._camera = locate, dict(decode), image, camera
        for task in self.tasks if self.keys else ():
            if not any(locate(key, task).is_file() for key in self.keys):
                raise DataError(
                    f"{locate(self.keys[0], task)}: no such file, and none of the {len(self)} samples of {name} has its "
                    f"annotation of {task!r}; put the labels there, or do without this task"
                )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample.

        Raises:
            DataError: the image is missing, a file is damaged, or a label is not of the image's size.
            IndexError: there is no such sample.
        """
        key = self._key(index)
        image = self._image(self._locate(key, "image"))
        labels = {}
        for task, decode in self._decode.items():
            path = self._locate(key, task)
            if not path.is_file():
                continue
            label = decode(path)
            if label is None:
                continue
            if label.shape[-2:] != image.shape[-2:]:
                raise DataError(
                    f"{path}: expected a label of the image's height and width {tuple(image.shape[-2:])}, "
                    f"found {tuple(label.shape[-2:])}; it belongs to another image"
                )
            labels[task] = label
        return Sample(image, labels, key)

    def subset(self, indices: Iterable[int]) -> FileSet:
        """The set of these samples, in this order, with their cameras.

        Raises:
            IndexError: an index is out of range.
        """
        chosen = copy(self)  # of which no sample may have a label
        chosen.keys = [self._key(i) for i in indices]
        return chosen

    def camera(self, index: int) -> Camera:
        """Return the intrinsics and the pose of one sample.

        Raises:
            DataError: the data set has no poses, or none of this sample.
            IndexError: there is no such sample.
        """
        key = self._key(index)
        if self._camera is None:
            raise DataError(f"{self.name}: no poses and intrinsics are there")
        return self._camera(key)

    def _key(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no sample {index}, there are {len(self)}")
        return self.keys[index]
