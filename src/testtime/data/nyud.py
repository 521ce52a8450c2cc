"""NYUD-v2 with semantics, depth, normals and edges, in five releases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.bounded import numpy_array
from testtime.data.dense import DenseSet, Sample
from testtime.data.files import AGAIN, need_choice, need_file, need_folder
from testtime.data.fileset import Decode, FileSet
from testtime.data.listing import files
from testtime.data.matlab import matlab, open_hdf5, planar
from testtime.data.pixels import (
    Axes,
    axes_from_depth,
    chosen_tasks,
    class_ids,
    float_metres,
    keys_in,
    levels,
    normals_image,
    unit_normals,
)
from testtime.errors import DataError

__all__ = ["NYUD13", "NYUD40", "nyud", "nyud_layout"]

_FORTY = """
wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk shelves curtain dresser
pillow mirror floor-mat clothes ceiling books refrigerator television paper towel shower-curtain box whiteboard person
night-stand toilet sink lamp bathtub bag other-structure other-furniture other-prop
"""
_THIRTEEN = "bed books ceiling chair floor furniture objects picture sofa table tv wall window"
NYUD40 = tuple(_FORTY.split())
"""Names of the 40 classes of NYUD-v2."""
NYUD13 = tuple(_THIRTEEN.split())
"""Names of the 13 classes of NYUD-v2."""
TASKS = ("semseg", "depth", "normals", "edge")
FOLDERS = {
    "image": "images",
    "edge": "edge",
    "semseg": "segmentation",
    "normals": "normals",
    "depth": "depth",
}
LAYOUTS = {
    "astmt": {"image": ".jpg", "edge": ".png", "semseg": ".mat", "normals": ".jpg", "depth": ".mat"},
    "mti": {"image": ".jpg", "edge": ".npy", "semseg": ".png", "normals": ".npy", "depth": ".npy"},
    "atrc": {"image": ".png", "edge": ".png", "semseg": ".png", "normals": ".png", "depth": ".npy"},
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".npy", ".mat")
OFFICIAL, MAPPING, INDICES = "nyu_depth_v2_labeled.mat", "classMapping40.mat", "splits.mat"
MTAN = {"image": "image", "semseg": "label", "normals": "normal", "depth": "depth"}


def nyud(
    root: str | Path, split: str = "val", tasks: Sequence[str] | None = None, axes: Axes | None = None
) -> DenseSet:
    """Return NYUD-v2; the release is determined by its files.

    Five releases are supported. Three have the folders ``{images,edge,segmentation,normals,depth}/`` and
    ``gt_sets/{train,val}.txt`` (795 and 654 names) and differ in their files:

    =========  ==============  ===============  =============================
    task       ASTMT           MTI-Net          ATRC (also InvPT and S4T)
    =========  ==============  ===============  =============================
    images     jpg             jpg              png
    edge       png 0/255       npy              png 0/255
    semseg     mat, 0 to 40    png, 0 to 40     png, 0 to 40
    normals    jpg, 2p/255-1   npy              png, 2p/255-1
    depth      mat, metres     npy, metres      npy, metres
    =========  ==============  ===============  =============================

    Their 40 classes are :data:`NYUD40`; 0 is ignored (ASTMT's own loader makes it a 41st class). The fourth release, of MTAN
    and LibMTL, is ``{train,val}/{image,label,depth,normal}/<i>.npy``: the 13 classes of :data:`NYUD13`, -1 ignored, no edges.
    The fifth is that of the authors, ``nyu_depth_v2_labeled.mat`` (Matlab 7.3) with ``splits.mat``: depth, and with
    ``classMapping40.mat`` of Gupta et al. the 40 classes. In all releases, depth 0 is not measured.

    No release documents the axes of its normals, so they are determined from the depth of the first images
    (:func:`~testtime.data.pixels.axes_from_depth`) and converted to x right, y up, z towards the viewer.

    Args:
        root: folder of these folders, or the folder that contains it as ``NYUD_MT`` or ``nyuv2``.
        split: name of the split: "train" or "val".
        tasks: tasks whose labels are read; None reads all that exist.
        axes: signs that convert the stored normals to that convention; None determines them from depth.

    Raises:
        DataError: files are missing, damaged, or of two releases.
        ImportError: h5py (for .mat of version 7.3) or Pillow is not installed.
        ValueError: there is no such split or task.

    Source: Silberman et al., *Indoor Segmentation and Support Inference from RGBD Images*, ECCV 2012; the tasks of
    Maninis et al., *Attentive Single-Tasking of Multiple Tasks*, CVPR 2019; the last release of Liu et al.,
    *End-to-End Multi-Task Learning with Attention*, CVPR 2019.
    """
    need_choice(split, ("train", "val"), "split")
    root = Path(root)
    folder = need_folder([root / "NYUD_MT", root / "nyuv2", root], "NYUD-v2")
    layout = nyud_layout(folder)
    if layout == "official":
        return _Official(folder, split, tasks)
    return _mtan(folder, split, tasks, axes) if layout == "mtan" else _mt(folder, layout, split, tasks, axes)


def nyud_layout(folder: str | Path) -> str:
    """Return the release of NYUD-v2 in a folder: "astmt", "mti", "atrc", "mtan" or "official".

    Raises:
        DataError: the folder contains no release, or files of two releases.
    """
    folder = Path(folder)
    if (folder / OFFICIAL).is_file():
        return "official"
    if any((folder / split / "image").is_dir() for split in ("train", "val")):
        return "mtan"
    found = {task: _suffix(folder / name) for task, name in FOLDERS.items() if (folder / name).is_dir()}
    if "image" not in found:
        raise DataError(
            f"{folder}: expected NYUD-v2, as images/ and gt_sets/ or as train/image/ and val/image/ or as {OFFICIAL}, "
            "found none of these"
        )
    fits = [name for name, kinds in LAYOUTS.items() if all(kinds[t] == s for t, s in found.items())]
    if not fits:
        mixed = ", ".join(f"{FOLDERS[task]} {suffix or 'empty'}" for task, suffix in found.items())
        raise DataError(
            f"{folder}: expected the files of one release of NYUD-v2 ({', '.join(LAYOUTS)}), found {mixed}; "
            "unpack one archive into an empty folder"
        )
    return fits[0]


def _suffix(folder: Path) -> str:
    return next((path.suffix.lower() for path in files(folder, SUFFIXES)), "")


def _mt(folder: Path, layout: str, split: str, tasks: Sequence[str] | None, axes: Axes | None) -> FileSet:
    keys = keys_in(folder / "gt_sets" / f"{split}.txt", "the names of the split", folder)
    there = [t for t in TASKS if (folder / FOLDERS[t]).is_dir()]
    chosen = chosen_tasks(tasks, TASKS, there, folder)

    def locate(key: str, task: str) -> Path:
        return folder / FOLDERS[task] / (key + LAYOUTS[layout][task])

    if "normals" in chosen and axes is None:
        axes = axes_from_depth(_pairs([(locate(k, "normals"), locate(k, "depth")) for k in keys]))
    decode: dict[str, Decode] = {
        "semseg": _semantics,
        "depth": _depth,
        "normals": partial(_normals, axes=axes or (1, 1, 1)),
        "edge": _edges,
    }
    return FileSet(f"nyud-{layout}-{split}", keys, locate, {t: decode[t] for t in chosen}, NYUD40)


def _mtan(folder: Path, split: str, tasks: Sequence[str] | None, axes: Axes | None) -> FileSet:
    place = need_folder([folder / split], f"NYUD-v2's folder {split}")
    need_folder([place / "image"], "the images of NYUD-v2")
    stems = [path.stem for path in files(place / "image", [".npy"])]
    wrong = [stem for stem in stems if not stem.isdigit()]
    if not stems or wrong:
        raise DataError(
            f"{place / 'image'}: expected 0.npy, 1.npy, ..., found {wrong[:1] or 'none'}; {AGAIN}"
        )
    keys = sorted(stems, key=int)
    there = [t for t in TASKS if t in MTAN and (place / MTAN[t]).is_dir()]
    chosen = chosen_tasks(tasks, TASKS, there, place)

    def locate(key: str, task: str) -> Path:
        return place / MTAN[task] / f"{key}.npy"

    if "normals" in chosen and axes is None:
        axes = axes_from_depth(_pairs([(locate(k, "normals"), locate(k, "depth")) for k in keys]))
    decode: dict[str, Decode] = {
        "semseg": _thirteen,
        "depth": _depth,
        "normals": partial(_normals, axes=axes or (1, 1, 1)),
    }
    name = f"nyud-mtan-{split}"
    return FileSet(name, keys, locate, {t: decode[t] for t in chosen}, NYUD13, image=_floats)


def _pairs(files: Sequence[tuple[Path, Path]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normals and depth of up to eight images that have both, spread over the set."""
    both = [
        (n, d) for n, d in islice(files, 0, None, max(1, len(files) // 64)) if n.is_file() and d.is_file()
    ]
    for normals, depth in both[:: max(1, len(both) // 8)][:8]:
        yield _normals(normals), _depth(depth)


def _semantics(path: Path) -> Tensor:
    ids = matlab(path, "segmentation") if path.suffix == ".mat" else levels(path)
    return class_ids(ids, len(NYUD40), path, first=1)


def _thirteen(path: Path) -> Tensor:
    return class_ids(np.rint(numpy_array(path, "class ids")), len(NYUD13), path)


def _depth(path: Path) -> Tensor:
    stored = matlab(path, "depth") if path.suffix == ".mat" else numpy_array(path, "depth in metres")
    return float_metres(stored, path)


def _normals(path: Path, axes: Axes = (1, 1, 1)) -> Tensor:
    if path.suffix != ".npy":
        return normals_image(path, axes)
    return unit_normals(numpy_array(path, "normals").astype(np.float32), axes, path)


def _edges(path: Path) -> Tensor:
    stored = numpy_array(path, "edges in [0, 1]") if path.suffix == ".npy" else levels(path) / 255
    plane = stored.squeeze(2) if stored.ndim == 3 and stored.shape[2] == 1 else stored
    if plane.ndim != 2 or _outside(plane):
        raise DataError(
            f"{path}: expected edges (H, W) in [0, 1], found {stored.dtype} {stored.shape} up to {stored.max()}; {AGAIN}"
        )
    return torch.from_numpy(plane.astype(np.float32))[None].clamp(0, 1)


def _floats(path: Path) -> Tensor:
    stored = numpy_array(path, "an image (H, W, 3) in [0, 1]")
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype.kind != "f" or _outside(stored):
        raise DataError(
            f"{path}: expected floats (H, W, 3) in [0, 1], found {stored.dtype} {stored.shape} up to {stored.max()}; {AGAIN}"
        )
    return torch.from_numpy(np.ascontiguousarray(stored.transpose(2, 0, 1), dtype=np.float32)).clamp(0, 1)


def _outside(values: NDArray[Any]) -> bool:
    """Return whether a value is outside of [0, 1] by more than rounding."""
    return not (values.size and values.min() >= -0.01 and values.max() <= 1.01)


@final
class _Official(DenseSet):
    """The release of the authors: a file of Matlab's version 7.3 with 1,449 images."""

    def __init__(self, folder: Path, split: str, tasks: Sequence[str] | None) -> None:
        self.name, self.path = f"nyud-official-{split}", folder / OFFICIAL
        mapping = folder / MAPPING
        there = ["depth", *(["semseg"] if mapping.is_file() else [])]
        if tasks is not None and "semseg" in tasks:
            need_file(mapping, "the class of 40 of each of the 894 stored")
        self.tasks = chosen_tasks(tasks, TASKS, there, folder)
        self._class: NDArray[np.int64] | None = None
        if "semseg" in self.tasks:
            self.classes = NYUD40
            self._class = np.concatenate([[0], matlab(mapping, "mapClass").ravel().astype(np.int64)])
        indices = need_file(folder / INDICES, "the indices of the images of train and val")
        numbers = matlab(indices, "trainNdxs" if split == "train" else "testNdxs").ravel()
        with open_hdf5(self.path) as variables:
            count = len(variables["images"]) if "images" in variables else 0
        if not numbers.size or numbers.min() < 1 or numbers.max() > count:
            raise DataError(f"{indices}: expected indices from 1 to {count}, found others; {AGAIN}")
        self.indices = [int(n) - 1 for n in numbers]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: the file is damaged.
            IndexError: there is no such sample.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no sample {index}, there are {len(self)}")
        number = self.indices[index]
        with open_hdf5(self.path) as variables:
            image = planar(variables, "images", self.path, number)
            labels = {}
            if "depth" in self.tasks:
                labels["depth"] = float_metres(planar(variables, "depths", self.path, number), self.path)
            if self._class is not None:
                stored = planar(variables, "labels", self.path, number).astype(np.int64)
                if stored.max(initial=0) >= len(self._class) or stored.min(initial=0) < 0:
                    raise DataError(
                        f"{self.path}: expected classes below {len(self._class)}, found {stored.max()}; {AGAIN}"
                    )
                labels["semseg"] = class_ids(self._class[stored], len(NYUD40), self.path, first=1)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"{self.path}: expected images of 8 bits (H, W, 3), found {image.dtype} {image.shape}; {AGAIN}"
            )
        colours = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(colours.float() / 255, labels, f"{number + 1:04d}")
