"""Dense data sets with a file for each image and each label."""

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
"""Function that reads the file of a label; it returns None if the file has no label for this image."""


@final
class FileSet(DenseSet):
    """A dense data set of files, decoded on demand.

    A label whose file is missing is absent from the sample; the file of an image is required.

    Args:
        name: name of the data set, for reports.
        keys: keys of the samples, in order, which are also their names.
        locate: function from a key and "image" or a task to the path of the file.
        decode: functions that read a label, by task, and return it in the convention of :class:`Sample`.
        classes: names of the classes of "semseg".
        image: function that reads an image.
        camera: function from a key to its camera; None if the data set has no cameras.

    Raises:
        DataError: no sample has a label for one of the tasks.
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
        """Return one sample.

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
        """Return the set of these samples, in this order, with their cameras.

        Args:
            indices: indices of the samples.

        Raises:
            IndexError: an index is out of range.
        """
        chosen = copy(self)  # not __init__, which requires a label for each task
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
            raise DataError(f"{self.name}: no poses and intrinsics in this data set")
        return self._camera(key)

    def _key(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no sample {index}, there are {len(self)}")
        return self.keys[index]
