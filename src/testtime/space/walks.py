"""A walk through one's own place: frames to pre-train on, and held-out frames with labels or depth to evaluate on.

Held out are the frames with labels, or without labels those with depth; where they are more than half of the walk, only those
in two of ten blocks of the walk, so that few of them have a neighbour among the others. Labels are PNG files of class ids
(255: no class) in the folder ``labels`` of the walk, or ``<video>-labels`` beside a video, with the name of their picture; the
names of the classes are the lines of ``classes.txt`` there. :func:`write_frames` stores frames of one resolution::

    frames.json              name, number, tasks and classes of the frames
    000000.safetensors, ...  a frame: "rgb" (3, H, W) uint8, and its labels by task
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from testtime.data.dense import IGNORE, DenseSet, Sample, blank, sized
from testtime.data.files import need_file
from testtime.data.listing import files, read_lines
from testtime.data.pixels import class_ids, levels
from testtime.errors import DataError
from testtime.files import damaged, read_json, read_tensors, write_json, write_tensors
from testtime.progress import progress
from testtime.scenes.groups import GROUPS
from testtime.space.sources import SensorSet, read_space

__all__ = ["StoredFrames", "Walk", "grouped", "write_frames"]

AGAIN = "delete its folder and give the same command again"
FEWEST, BLOCKS, HELD = 10, 10, (2, 7)
SYNONYMS: Mapping[str, str] = {
    **dict.fromkeys(("carpet", "mat"), "floor"),
    **dict.fromkeys(("blinds", "blind", "window frame"), "window"),
    **dict.fromkeys(("blanket", "comforter", "mattress"), "bed"),
    **dict.fromkeys(("couch", "loveseat"), "sofa"),
    **dict.fromkeys(("office chair", "armchair", "stool"), "chair"),
    **dict.fromkeys(("dining table", "coffee table", "office table", "counter", "nightstand"), "table"),
    **dict.fromkeys(("bookshelf", "bookcase", "shelves", "dresser", "kitchen cabinet"), "cabinet"),
    **dict.fromkeys(("refrigerator", "oven", "microwave", "television", "tv screen", "monitor"), "appliance"),
    **dict.fromkeys(("potted plant", "indoor plant", "table lamp", "painting", "books", "cup"), "objects"),
}
"""Groups of rendered houses (:data:`testtime.scenes.groups.GROUPS`) by names of classes that public data sets use."""


def grouped(names: Iterable[str]) -> Tensor:
    """Return the group of each class, (256,) int64; a class without a group is ignored.

    Args:
        names: names of the classes.

    Raises:
        DataError: no class has a group.

    >>> grouped(["Couch", "keyboard", "office_chair"])[:3].tolist()
    [6, 255, 7]
    """
    names, order = list(names), list(GROUPS)
    known = {**SYNONYMS, **{name: group for group, members in GROUPS.items() for name in (group, *members)}}
    table = torch.full((IGNORE + 1,), IGNORE)
    for index, name in enumerate(names[:IGNORE]):
        group = known.get(name.strip().lower().replace("_", " ").replace("-", " "))
        table[index] = order.index(group) if group else IGNORE
    if not bool((table != IGNORE).any()):
        raise DataError(
            f"expected names of classes such as {', '.join(order[:5])}, found {', '.join(names[:5]) or 'none'}"
        )
    return table


@final
class Walk:
    """Frames of a walk, and which of them are held out.

    Args:
        path: path of a video or folder, see :func:`testtime.space.sources.read_space`.
        layout: name of the layout; None recognises it.
        fov: field of view of the longer side in degrees, in place of intrinsics.
        digest: digest that the walk must have; None takes any.

    Attributes:
        name: name of the walk.
        sensors: modalities of sensors beside the picture, for pre-training.
        measured: "semseg" and "depth", those of them that held-out frames have.
        train, test: indices of the frames of the two parts.

    Raises:
        DataError: the path has no known layout, there are too few frames, none with labels or depth, or none of these can be
            held out; or the digest differs.
    """

    def __init__(
        self,
        path: str | Path,
        layout: str | None = None,
        fov: float | None = None,
        digest: str | None = None,
    ) -> None:
        root = Path(path)
        self.data = read_space(root, layout, fov=fov)
        self.name, count = self.data.name, len(self.data)
        if count < FEWEST:
            raise DataError(f"{root}: expected a walk of at least {FEWEST} frames, found {count}")
        self._labels = _labels(root, self.data)
        named = [i for i in range(count) if self._label_file(i) is not None]
        self.measured = (*(["semseg"] if named else []), *(t for t in ("depth",) if t in self.data.tasks))
        if not self.measured:
            raise DataError(
                f"{root}: expected depth or labels of some frames to evaluate on, found pictures alone; put depth beside them "
                "(depth/, 16-bit PNG in millimetres), or class ids of some of them in labels/ with classes.txt"
            )
        self.sensed = SensorSet(self.data)
        self.sensors = ("rgb", *self.sensed.tasks)
        known = named or list(range(count))
        blocks = {i for i in range(count) if BLOCKS * i // count in HELD}
        self.test = known if 2 * len(known) <= count else [i for i in known if i in blocks]
        if not self.test:
            raise DataError(
                f"{root}: {len(known)} of {count} frames have labels, none of them in the third or the eighth tenth of the "
                "walk, which are held out where more than half have; label some there, or at most half of the walk"
            )
        held = {*self.test}
        self.train = [i for i in range(count) if i not in held]
        if digest not in (None, self.digest):
            raise DataError(
                f"{root}: expected the frames that the run began with, found others; start another run"
            )

    @cached_property
    def digest(self) -> str:
        """Digest of names, eight frames with their labels, and which frames are held out."""
        found = hashlib.sha256(repr((self.name, len(self.data), self.sensors, self.test)).encode())
        for index in (*_even(range(len(self.data)), 8), *_even(self.test, 8)):
            sample = self.data[index]
            found.update(
                sample.name.encode() + (sample.image * 255).round().to(torch.uint8).numpy().tobytes()
            )
        for path in files(self._labels) if self._labels else ():
            found.update(path.name.encode() + path.read_bytes())
        return found.hexdigest()[:32]

    def write(self, folder: str | Path, size: tuple[int, int], frames: int, tests: int) -> dict[str, Any]:
        """Store the two parts in the folders ``train`` and ``test``, starting from existing frames.

        Args:
            folder: folder of the two.
            size: (H, W) of the held-out frames in pixels, which are cropped to its aspect; the others cover it.
            frames: largest number of frames to pre-train on, at equal distances.
            tests: largest number of held-out frames.

        Returns:
            numbers of "train" and "test" frames, and the origin of the "normals".
        """
        train, test = _even(self.train, frames), _even(self.test, tests)
        sensed = [task for task in self.sensed.tasks if task != "edge"]
        write_frames(
            Path(folder) / "train", self.sensed.subset(train), sensed, lambda one: _covering(one, size)
        )
        judged = _Judged(self, test)
        write_frames(
            Path(folder) / "test", judged, self.measured, lambda one: _middle(_covering(one, size), size)
        )
        return {"train": len(train), "test": len(test), "normals": self.sensed.normals}

    def label(self, index: int) -> Tensor | None:
        """Return the groups of a frame's pixels, (H, W) int64; None without labels."""
        path = self._label_file(index)
        if path is None:
            return None
        return self._groups[class_ids(levels(path), len(self._names), path)]

    @cached_property
    def _names(self) -> list[str]:
        return read_lines(Path(self._labels or ".") / "classes.txt", "the names of the classes, one a line")

    @cached_property
    def _groups(self) -> Tensor:
        return grouped(self._names)

    @cached_property
    def _files(self) -> dict[str, Path]:
        if self._labels is None:
            return {}
        found = {p.relative_to(self._labels).as_posix(): p for p in files(self._labels, [".png"], deep=True)}
        return {name.removesuffix(".png"): path for name, path in found.items()}

    def _label_file(self, index: int) -> Path | None:
        names = getattr(self.data, "keys", None)
        name = str(names[index]) if names else str(index)
        return self._files.get(name) or self._files.get(name.rpartition(".")[0])


def _labels(root: Path, data: DenseSet) -> Path | None:
    """Return the folder of the labels, if there is one that can be read."""
    folder = root / "labels" if root.is_dir() else root.with_name(f"{root.stem}-labels")
    if not folder.is_dir():
        return None
    if not (folder / "classes.txt").is_file():
        raise DataError(f"{folder}: expected classes.txt, the names of the classes one a line, found none")
    grouped(read_lines(folder / "classes.txt", "the names of the classes, one a line"))
    return folder


class _Judged(DenseSet):
    """The held-out frames, with what they are evaluated on."""

    def __init__(self, walk: Walk, indices: list[int]) -> None:
        self.walk, self.indices = walk, indices
        self.name, self.tasks, self.classes = walk.name, walk.measured, tuple(GROUPS)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = self.walk.data[self.indices[index]]
        labels = {"depth": sample.labels["depth"]} if "depth" in sample.labels else {}
        if (own := self.walk.label(self.indices[index])) is not None:
            height, width = sample.image.shape[-2:]
            whole = Sample(torch.zeros(3, *own.shape), {"semseg": own})
            labels["semseg"] = sized(whole, (height, width)).labels["semseg"]
        return Sample(sample.image, labels, sample.name)


def write_frames(
    folder: str | Path,
    data: DenseSet,
    tasks: Iterable[str],
    change: Callable[[Sample], Sample] = lambda sample: sample,
) -> StoredFrames:
    """Store frames, starting from those that are there.

    Args:
        folder: folder of these frames alone.
        data: frames.
        tasks: tasks whose labels are stored; a missing label is filled with unknown values.
        change: function of every sample, such as a change of its size.
    """
    folder, tasks = Path(folder), tuple(tasks)
    folder.mkdir(parents=True, exist_ok=True)
    for index in progress(range(len(data)), len(data), f"frames of {data.name}"):
        path = folder / f"{index:06d}.safetensors"
        if path.is_file():
            continue
        sample = change(data[index])
        labels = {task: sample.labels.get(task, blank(task, sample.image)) for task in tasks}
        write_tensors(path, {"rgb": (sample.image * 255).round().to(torch.uint8), **labels})
    facts = {"name": data.name, "frames": len(data), "tasks": list(tasks), "classes": list(data.classes)}
    write_json(folder / "frames.json", facts)
    return StoredFrames(folder)


@final
class StoredFrames(DenseSet):
    """Frames that :func:`write_frames` stored, decoded on access.

    Args:
        folder: their folder.

    Raises:
        DataError: the folder is not complete, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = need_file(self.folder / "frames.json", "stored frames")
        facts = read_json(path, AGAIN)
        with damaged(path, AGAIN):
            self.name, self.count = str(facts["name"]), int(facts["frames"])
            self.tasks, self.classes = tuple(facts["tasks"]), tuple(facts["classes"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Read one frame."""
        number = range(len(self))[index]
        labels, _ = read_tensors(self.folder / f"{number:06d}.safetensors", AGAIN)
        return Sample(labels.pop("rgb").float() / 255, labels, f"{self.name} {number}")


def _even(indices: Iterable[int], count: int) -> list[int]:
    """Return at most ``count`` of the indices at equal distances."""
    indices = list(indices)
    if count >= len(indices):
        return indices
    return [indices[i] for i in np.linspace(0, len(indices) - 1, count).round().astype(int)]


def _covering(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize a sample, at its aspect, to the smallest that covers a size."""
    height, width = sample.image.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    return sized(sample, (max(size[0], round(height * factor)), max(size[1], round(width * factor))))


def _middle(sample: Sample, size: tuple[int, int]) -> Sample:
    """Crop the middle of a sample."""
    top, left = ((have - want) // 2 for have, want in zip(sample.image.shape[-2:], size, strict=True))
    inner = np.s_[..., top : top + size[0], left : left + size[1]]
    return Sample(sample.image[inner], {t: y[inner] for t, y in sample.labels.items()}, sample.name)
