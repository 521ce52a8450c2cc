"""Public data sets as the domains of multi-task tables: a part of a set, in one size, with the classes of a transfer.

The readers of :mod:`testtime.data` know the published layouts; here values of JSON choose a part of a set, and labels that a
set does not have are derived from those that it has: edges between classes (CamVid), normals and edges from depth (7-Scenes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.data import camvid, nyud, pascal_context, replica, seven_scenes, shared_classes, taskonomy
from testtime.data.camvid import CAMVID11
from testtime.data.dense import IGNORE, DenseSet, Sample, blank, sized
from testtime.data.files import need_file
from testtime.data.fileset import FileSet
from testtime.data.listing import folders
from testtime.data.omnidata import read_split
from testtime.errors import DataError, unknown_name
from testtime.multitask.houses import TASKS, Noisy
from testtime.space.normals import normals_of
from testtime.tasks import Segmentation, Tasks

__all__ = ["CLASSES", "SETS", "Fitted", "Part", "PublicSet", "class_edges", "depth_edges", "tasks_with"]

CLASSES: dict[str, tuple[Mapping[str, str], Sequence[str]]] = {
    "taskonomy-nyud": (shared_classes.TASKONOMY_NYUD, shared_classes.TASKONOMY_NYUD_CLASSES),
    "taskonomy-pascal": (shared_classes.TASKONOMY_PASCAL, shared_classes.TASKONOMY_PASCAL_CLASSES),
    "camvid": ({name: name for name in CAMVID11}, CAMVID11),
}
"""Class by class of a set, and the classes in their order, by the name of a transfer."""
KEPT = 1 << 30  # bytes of decoded samples, at most, that a set keeps
PROBED = 8  # samples whose content is part of the digest
DEPTH_STEP = 0.1


@final
@dataclass(frozen=True)
class Part:
    """A part of a public data set, in values of JSON.

    Args:
        set: name of the set, of :data:`SETS`.
        size: height and width in pixels; images are scaled to fit in and padded.
        tasks: tasks whose labels are read; None for all of the set.
        split: name of the split, for sets that have splits.
        classes: name of the transfer whose classes "semseg" has, of :data:`CLASSES`; None keeps those of the set.
        images: number of images, evenly spaced over the part; None takes all.
        span: first and last share of the samples in their order, such as (0.0, 0.5) for the first half of a walk.
        drives: starts of the names of the samples, for the drives of CamVid.
        scene: name of the scene of 7-Scenes; "" where there is one.
        axes: signs of the normals of PASCAL-Context, see :func:`testtime.data.pascal_context`.
        noise: deviation of Gaussian noise on every image, as a share of the deviation of its pixels.

    Raises:
        ValueError: there is no such set or transfer.
    """

    set: str
    size: Sequence[int]
    tasks: Sequence[str] | None = None
    split: str | None = None
    classes: str | None = None
    images: int | None = None
    span: Sequence[float] = (0.0, 1.0)
    drives: Sequence[str] = ()
    scene: str = ""
    axes: Sequence[int] = (1, 1, 1)
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.set not in SETS:
            raise unknown_name("public set", self.set, SETS)
        if self.classes is not None and self.classes not in CLASSES:
            raise unknown_name("transfer", self.classes, CLASSES)
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    def read(self, data: str | Path) -> DenseSet:
        """Return the samples of the part.

        Args:
            data: folder of the data sets, see :class:`PublicSet`.

        Raises:
            DataError: the set is not there in its published layout; the message says what was expected and found.
        """
        return _read(self, str(data))


@final
@dataclass(frozen=True)
class PublicSet:
    """A public data set as a domain.

    Args:
        title: name of the set.
        places: names of its folder below the folder of data sets.
        layout: published layout, for messages.
        open: function from the set's folder and a part to its samples.
        derived: tasks whose labels ``derive`` makes.
        derive: function from the labels of a sample of final size to further labels.
    """

    title: str
    places: Sequence[str]
    layout: str
    open: Callable[[Path, Part], DenseSet]
    derived: Sequence[str] = ()
    derive: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = lambda labels: {}

    def find(self, data: str | Path) -> Path:
        """Return the folder of the set below the folder of data sets.

        Raises:
            DataError: there is none.
        """
        root = Path(data)
        for name in self.places:
            if (root / name).is_dir():
                return root / name
        there = ", ".join(path.name for path in folders(root)) if root.is_dir() else "no such folder"
        raise DataError(
            f"{root}: expected {self.title} in the folder {' or '.join(self.places)}, as {self.layout}; found "
            f"{there or 'no folders'}; give the folder that holds it (or links to it) with --data"
        )


@lru_cache(maxsize=8)
def _read(part: Part, data: str) -> DenseSet:
    published = SETS[part.set]
    root = published.find(data)
    try:
        found = published.open(root, part)
    except DataError as error:
        raise DataError(f"{error} ({published.title} is read as {published.layout})") from error
    first, last = (round(share * len(found)) for share in part.span)
    chosen = [i for i in range(first, last) if _named(found, i).startswith(tuple(part.drives) or "")]
    if part.images is not None and part.images < len(chosen):
        chosen = [chosen[i * len(chosen) // part.images] for i in range(part.images)]
    if not chosen:
        drives = f" whose names start with {' or '.join(part.drives)}" if part.drives else ""
        raise DataError(
            f"{root}: expected samples{drives} in the share {part.span[0]:g} to {part.span[1]:g} of {found.name}, "
            f"found none of {len(found)}"
        )
    found = found.subset(chosen)
    if part.classes is not None and "semseg" in found.tasks:
        found = shared_classes.relabelled(found, *CLASSES[part.classes])
    height, width = part.size
    found = Fitted(found, (height, width), published, part.tasks)
    return Noisy(found, part.noise) if part.noise else found


def _named(data: DenseSet, index: int) -> str:
    """The name of a sample without its folders; "" where only decoding it would tell."""
    return data.keys[index].split("/")[-1] if isinstance(data, FileSet) else ""


@final
class Fitted(DenseSet):
    """Samples in one size: scaled to fit in with their aspect, then padded with black and unknown labels around the middle.

    Samples are kept once they are decoded, if all of them need at most a gibibyte.

    Args:
        whole: samples.
        size: height and width in pixels.
        published: description of the set, which derives further labels.
        tasks: tasks that are kept; None for all.
    """

    def __init__(
        self,
        whole: DenseSet,
        size: tuple[int, int],
        published: PublicSet,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.whole, self.size, self.derive = whole, size, published.derive
        self.name, self.classes = whole.name, whole.classes
        there = {*whole.tasks, *published.derived}
        self.tasks = tuple(name for name in tasks or TASKS if name in there)
        self._kept: dict[int, Sample] = {}
        self._keeps = len(whole) * size[0] * size[1] * 40 <= KEPT  # bytes of image and labels

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._kept:
            sample = self._fit(self.whole[index])
            if not self._keeps:
                return sample
            self._kept[index] = sample
        return self._kept[index]

    def digest(self) -> str:
        """Return the SHA-256 of the number of samples, and of the name and content of eight of them, evenly spaced."""
        facts = self.name, len(self), self.tasks, tuple(self.classes), self.size
        found = hashlib.sha256(repr(facts).encode())
        for i in sorted({k * (len(self) - 1) // max(1, PROBED - 1) for k in range(PROBED)}):
            sample = self[i]
            found.update(sample.name.encode())
            for name in sorted(sample.labels):
                found.update(name.encode() + sample.labels[name].numpy().tobytes())
            found.update(sample.image.numpy().tobytes())
        return found.hexdigest()

    def _fit(self, sample: Sample) -> Sample:
        (height, width), (h, w) = self.size, sample.image.shape[-2:]
        scale = min(height / h, width / w)
        inner = min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
        small = sized(sample, inner)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        around = (left, width - inner[1] - left, top, height - inner[0] - top)
        image = F.pad(small.image, around)
        labels = {}
        for name, label in {**small.labels, **self.derive(small.labels)}.items():
            if name in self.tasks:
                nothing = blank(name, image).flatten()[0].item()
                labels[name] = F.pad(label, around, value=nothing)
        return Sample(image, labels, sample.name)


def tasks_with(classes: str | None) -> Tasks:
    """Return the dense tasks by name, with the classes of a transfer; None takes the groups of the rendered houses.

    >>> tasks_with("taskonomy-nyud")["semseg"].channels
    7
    """
    return TASKS if classes is None else {**TASKS, "semseg": Segmentation(tuple(CLASSES[classes][1]))}


def class_edges(labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return "edge" (1, H, W): 1 where the class of the pixel to the right or below is another, NaN where a class is unknown.

    >>> class_edges({"semseg": torch.tensor([[0, 0, 3, 255]])})["edge"].tolist()
    [[[0.0, 1.0, nan, nan]]]
    """
    ids = labels["semseg"]
    edge, known = torch.zeros(ids.shape), ids != IGNORE
    for one, other in _neighbours(ids):
        edge[one] = torch.maximum(edge[one], (ids[one] != ids[other]).float())
        known[one] &= ids[other] != IGNORE
    return {"edge": edge.where(known, torch.nan)[None]}


def depth_edges(labels: Mapping[str, Tensor], step: float = DEPTH_STEP) -> dict[str, Tensor]:
    """Return "edge" (1, H, W): 1 on the nearer side of a step of depth, NaN where a depth is unknown.

    Args:
        labels: labels of a sample with "depth".
        step: least step between neighbours (left, right, above, below), as a share of the nearer depth.

    >>> depth_edges({"depth": torch.tensor([[[1.0, 1.05, 2.0, 2.0]]])})["edge"].tolist()
    [[[0.0, 1.0, 0.0, 0.0]]]
    """
    z = labels["depth"][0]
    edge, known = torch.zeros(z.shape), z.isfinite()
    for one, other in _neighbours(z):
        for here, there in ((one, other), (other, one)):
            edge[here] = torch.maximum(edge[here], (z[there] > z[here] * (1 + step)).float())
    return {"edge": edge.where(known, torch.nan)[None]}


def _neighbours(plane: Tensor) -> list[tuple[Any, Any]]:
    """Index pairs of the pixels of a plane (H, W) and those to the right, and of the pixels and those below."""
    everything = slice(None)
    return [
        ((everything, slice(None, -1)), (everything, slice(1, None))),
        ((slice(None, -1), everything), (slice(1, None), everything)),
    ]


@final
class _WithNormals(DenseSet):
    """Frames of a walk with depth as the median of blocks of pixels, and the normals of that depth."""

    tasks = ("depth", "normals")

    def __init__(self, frames: FileSet, size: Sequence[int]) -> None:
        self.frames, self.size, self.name = frames, tuple(size), frames.name

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        sample, camera = self.frames[index], self.frames.camera(index)
        depth = sample.labels["depth"]
        block = max(1, min(depth.shape[1] // self.size[0], depth.shape[2] // self.size[1]))
        h, w = (n // block for n in depth.shape[-2:])
        tiles = depth[0, : h * block, : w * block].unflatten(0, (h, block)).unflatten(2, (w, block))
        small = tiles.transpose(1, 2).flatten(2).nanmedian(-1).values[None]
        image = sized(Sample(sample.image[:, : h * block, : w * block]), (h, w)).image
        k = [[camera.fx / block, 0, camera.cx / block], [0, camera.fy / block, camera.cy / block], [0, 0, 1]]
        return Sample(image, {"depth": small, "normals": normals_of(small, k)}, sample.name)


def _taskonomy(root: Path, part: Part) -> DenseSet:
    names = ("splits_taskonomy/train_val_test_tiny.csv", "train_val_test_tiny.csv")
    table = next((root / name for name in names if (root / name).is_file()), root / names[0])
    wanted = read_split(need_file(table, "the table of the splits of Taskonomy"), part.split or "train")
    by_domain = root / "rgb" / "taskonomy"
    there = folders(by_domain) if by_domain.is_dir() else [p for p in folders(root) if (p / "rgb").is_dir()]
    inside = [path.name for path in there if path.name in wanted]
    if not inside:
        raise DataError(
            f"{root}: expected images of buildings of the split {part.split} of {table.name} "
            f"({', '.join(wanted[:3]) or 'which has none'}), found those of {', '.join(p.name for p in there[:3]) or 'none'}"
        )
    return taskonomy(root, part.tasks, buildings=inside)


def _pascal(root: Path, part: Part) -> DenseSet:
    x, y, z = part.axes
    return pascal_context(root, part.split or "val", part.tasks, (x, y, z))


def _walk(root: Path, part: Part) -> DenseSet:
    scenes = [path.name for path in folders(root)]
    if any(name.startswith("seq-") for name in scenes):
        place = root
    elif part.scene in scenes or (not part.scene and len(scenes) == 1):
        place = root / (part.scene or scenes[0])
    else:
        asked = part.scene or "one scene"
        raise DataError(
            f"{root}: expected {asked}, found {', '.join(scenes) or 'none'}; choose with --set scene=NAME"
        )
    return _WithNormals(seven_scenes(place), part.size)


_OMNIDATA = "<domain>/{0}/<{1}>/point_*_view_*_domain_*.png or <{1}>/<domain>/..., domains rgb, {2}"
SETS: dict[str, PublicSet] = {
    "taskonomy": PublicSet(
        "Taskonomy",
        ("taskonomy", "Taskonomy"),
        _OMNIDATA.format("taskonomy", "building", "segment_semantic, depth_zbuffer, normal, edge_occlusion")
        + ", and splits_taskonomy/train_val_test_tiny.csv",
        _taskonomy,
    ),
    "nyud": PublicSet(
        "NYUD-v2",
        ("NYUD_MT", "nyuv2", "nyud", "NYUDv2"),
        "{images,segmentation,depth,normals,edge}/ and gt_sets/{train,val}.txt",
        lambda root, part: nyud(root, part.split or "val", part.tasks),
    ),
    "pascal-context": PublicSet(
        "PASCAL-Context",
        ("PASCAL_MT", "pascal-context"),
        "JPEGImages/, ImageSets/Context/{train,val}.txt, semseg/VOC12/, normals_distill/, pascal-context/trainval/",
        _pascal,
    ),
    "replica": PublicSet(
        "Replica",
        ("replica", "Replica"),
        _OMNIDATA.format("replica", "scene", "depth_zbuffer, normal, edge_occlusion"),
        lambda root, part: replica(root, part.tasks, partial_labels=False),
    ),
    "camvid": PublicSet(
        "CamVid",
        ("CamVid", "camvid"),
        "{train,val,test}/ and {train,val,test}annot/ (or _labels/)",
        lambda root, part: camvid(root, part.split or "all"),
        ("edge",),
        class_edges,
    ),
    "7scenes": PublicSet(
        "7-Scenes",
        ("7scenes", "7-scenes"),
        "<scene>/seq-<n>/frame-*.{color.png,depth.png,pose.txt}",
        _walk,
        ("edge",),
        depth_edges,
    ),
}
"""Public sets by name."""
