"""PASCAL-Context as a multi-task data set: semantics, normals, edges, human parts and saliency."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.files import AGAIN, need_choice, need_folder
from testtime.data.fileset import Decode, FileSet
from testtime.data.matlab import matlab, matlab_struct
from testtime.data.pixels import (
    Axes,
    chosen_tasks,
    class_ids,
    keys_in,
    levels,
    normals_image,
)
from testtime.errors import DataError

__all__ = ["VOC21", "pascal_context", "thinned"]

_VOC = """
background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant
sheep sofa train tvmonitor
"""
VOC21 = tuple(_VOC.split())
"""Names of the 20 classes of PASCAL VOC and the background."""
PERSON = 15
PARTS = {
    1: "hair head lear lebrow leye mouth nose rear rebrow reye",
    2: "neck torso",
    3: "luarm ruarm",
    4: "lhand llarm rhand rlarm",
    5: "luleg ruleg",
    6: "lfoot llleg rfoot rlleg",
}
"""Names in the annotation of head, torso, upper arms, lower arms, upper legs and lower legs."""
PART_OF = {name: part for part, names in PARTS.items() for name in names.split()}
TASKS = ("semseg", "normals", "edge", "human_parts", "saliency")
FOLDERS = {
    "semseg": "semseg",
    "normals": "normals_distill",
    "edge": "pascal-context/trainval",
    "human_parts": "human_parts",
    "saliency": "sal_distill",
}


def pascal_context(
    root: str | Path,
    split: str = "val",
    tasks: Sequence[str] | None = None,
    axes: Axes = (1, 1, 1),
    normal_classes: Collection[int] | None = None,
) -> FileSet:
    """Return PASCAL-Context with the labels of PASCAL_MT; only files of requested tasks are read.

    ==============  ======================================  ====================================================
    task            file                                    label
    ==============  ======================================  ====================================================
    semseg          semseg/VOC12/<id>.png, or where that    :data:`VOC21`
                    is missing semseg/pascal-context/
    normals         normals_distill/<id>.png                2p/255-1; distilled from a network, not measured
    edge            pascal-context/trainval/<id>.mat        computed: where the Laplacian of ``LabelMap`` is not
                                                            zero, thinned
    human_parts     human_parts/<id>.mat                    (H, W): 0 none, 1 head, 2 torso, 3 upper and 4 lower
                                                            arms, 5 upper and 6 lower legs; absent without people
    saliency        sal_distill/<id>.png                    (1, H, W): 1 where the stored value is above 127
    ==============  ======================================  ====================================================

    The axes of the normals are not documented, and without depth they cannot be determined: the normals are returned as stored
    unless ``axes`` gives signs. The best guess is the signs that :func:`~testtime.data.nyud` determines on NYUD-v2 of the same
    authors.

    Args:
        root: folder of ``JPEGImages`` and ``ImageSets``, or the folder that contains it as ``PASCAL_MT``.
        split: name of the split: "train" (4,998 images) or "val" (5,105).
        tasks: tasks whose labels are read; None reads all that exist.
        axes: signs that convert the stored normals to x right, y up, z towards the viewer.
        normal_classes: ids in ``LabelMap`` of the classes whose normals are kept; None keeps all. The published protocol
            keeps the classes shared with NYUD-v2, and tvmonitor; the ids are in ``labels.txt`` of PASCAL-Context.

    Raises:
        DataError: files are missing or damaged.
        ImportError: Pillow is not installed.
        ValueError: there is no such split or task.

    Source: Mottaghi et al., *The Role of Context for Object Detection and Semantic Segmentation in the Wild*, CVPR
    2014; Chen et al., *Detect What You Can*, CVPR 2014 (parts); the tasks of Maninis et al., *Attentive
    Single-Tasking of Multiple Tasks*, CVPR 2019.
    """
    need_choice(split, ("train", "val"), "split")
    root = Path(root)
    folder = need_folder([root / "PASCAL_MT", root], "PASCAL-Context")
    keys = keys_in(folder / "ImageSets" / "Context" / f"{split}.txt", "the names of the split", folder)
    there = [task for task in TASKS if (folder / FOLDERS[task]).is_dir()]
    chosen = chosen_tasks(tasks, TASKS, there, folder)

    def locate(key: str, task: str) -> Path:
        if task == "image":
            return folder / "JPEGImages" / f"{key}.jpg"
        if task == "semseg":
            voc = folder / "semseg" / "VOC12" / f"{key}.png"
            return voc if voc.is_file() else folder / "semseg" / "pascal-context" / f"{key}.png"
        return folder / FOLDERS[task] / (key + (".mat" if task in ("edge", "human_parts") else ".png"))

    kept = None if normal_classes is None else np.array(sorted(normal_classes))
    decode: dict[str, Decode] = {
        "semseg": _semantics,
        "normals": partial(_normals, axes=axes, kept=kept),
        "edge": _edges,
        "human_parts": _parts,
        "saliency": _saliency,
    }
    return FileSet(f"pascal-context-{split}", keys, locate, {t: decode[t] for t in chosen}, VOC21)


def thinned(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin a mask (H, W) to lines of one pixel without disconnecting its parts.

    >>> thinned(np.ones((5, 3), bool)).sum(0).tolist()
    [0, 3, 0]

    Source: algorithm A1 of Guo and Hall, *Parallel Thinning with Two-Subiteration Algorithms*, CACM 1989.
    """
    mask = np.asarray(mask, dtype=bool)
    while True:
        before = mask
        for half in (0, 1):
            p = np.pad(mask, 1)
            n, e, s, w = p[:-2, 1:-1], p[1:-1, 2:], p[2:, 1:-1], p[1:-1, :-2]
            ne, se, sw, nw = p[:-2, 2:], p[2:, 2:], p[2:, :-2], p[:-2, :-2]
            arms = [(n, ne, e), (e, se, s), (s, sw, w), (w, nw, n)]
            crossings = sum((~a & (b | c)).astype(int) for a, b, c in arms)
            first = sum((a | b).astype(int) for a, b in ((nw, n), (ne, e), (se, s), (sw, w)))
            second = sum((a | b).astype(int) for a, b in ((n, ne), (e, se), (s, sw), (w, nw)))
            around = np.minimum(first, second)
            held = ((n | ne | ~se) & e) if half else ((s | sw | ~nw) & w)
            mask = mask & ~((crossings == 1) & (around >= 2) & (around <= 3) & ~held)
        if (mask == before).all():
            return mask


def _label_map(path: Path) -> NDArray[np.int64]:
    labels = matlab(path, "LabelMap")
    if labels.ndim != 2:
        raise DataError(f"{path}: expected LabelMap of the form (H, W), found {labels.shape}; {AGAIN}")
    return labels.astype(np.int64)


def _edges(path: Path) -> Tensor:
    p = np.pad(_label_map(path), 1, mode="reflect")
    laplacian = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * p[1:-1, 1:-1]
    return torch.from_numpy(thinned(laplacian != 0)).float()[None]


def _semantics(path: Path) -> Tensor:
    return class_ids(levels(path), len(VOC21), path)


def _normals(path: Path, axes: Axes, kept: NDArray[Any] | None) -> Tensor:
    normals = normals_image(path, axes)
    if kept is not None:
        listing = path.parents[1] / FOLDERS["edge"] / f"{path.stem}.mat"
        labels = _label_map(listing)
        if labels.shape != normals.shape[1:]:
            raise DataError(
                f"{listing}: expected classes of the size of {path.name}, {tuple(normals.shape[1:])}, "
                f"found {labels.shape}; {AGAIN}"
            )
        normals[:, torch.from_numpy(~np.isin(labels, kept))] = torch.nan
    return normals


def _saliency(path: Path) -> Tensor:
    return torch.from_numpy(levels(path) > 127).float()[None]


def _parts(path: Path) -> Tensor | None:
    """Return the parts of all people of an image; None if no person has any."""
    label: NDArray[np.int64] | None = None
    try:
        for thing in np.atleast_1d(matlab_struct(path, "anno").objects):
            if int(thing.class_ind) != PERSON:
                continue
            for part in np.atleast_1d(thing.parts):
                mask = np.asarray(part.mask, dtype=bool)
                label = np.zeros(mask.shape, np.int64) if label is None else label
                label[mask] = PART_OF[str(part.part_name)]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: expected anno.objects with class_ind and parts of part_name and mask, found otherwise "
            f"({error}); {AGAIN}"
        ) from error
    return None if label is None else torch.from_numpy(label)
