"""CamVid: road scenes with 11 classes, one of whose drives was at dusk."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from testtime.data.files import AGAIN, need_choice, need_folder
from testtime.data.fileset import FileSet
from testtime.data.folders import SUFFIXES
from testtime.data.pixels import class_ids, levels
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
UNLABELLED = 11
DUSK = "0001TP"
SPLITS = ("train", "val", "test")


def camvid(root: str | Path, split: str = "train", light: str | None = None) -> FileSet:
    """Return CamVid in the folders of SegNet, ``<split>/`` and ``<split>annot/``; a shift of light is in it.

    701 frames of four drives: 577 by day and 124 of the drive 0001TP, at dusk. A model of the frames by day meets a
    natural shift in those at dusk.

    Args:
        root: the folder of these folders, or the one that holds it as ``CamVid``.
        split: "train" (367), "val" (101), "test" (233) or "all".
        light: "day", "dusk", or None for both.

    Raises:
        DataError: files are missing or damaged, or nothing is left.
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
    for part in SPLITS if split == "all" else (split,):
        folder = need_folder([root / "CamVid" / part, root / part], f"CamVid's folder {part}")
        need_folder([folder.with_name(f"{part}annot")], "the labels of CamVid")
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        files |= {f"{part}/{path.stem}": path for path in found}
    keys = [k for k in files if light is None or (light == "dusk") == k.split("/")[1].startswith(DUSK)]
    if not keys:
        raise DataError(f"{root}: expected images of CamVid {split} {light or ''}, found none; {AGAIN}")

    def locate(key: str, task: str) -> Path:
        path = files[key]
        return (
            path
            if task == "image"
            else path.parent.with_name(f"{path.parent.name}annot") / f"{path.stem}.png"
        )

    name = "-".join(["camvid", split, *([light] if light else [])])
    return FileSet(name, keys, locate, {"semseg": _semantics}, CAMVID11)


def _semantics(path: Path) -> Tensor:
    ids = levels(path)
    ids[ids == UNLABELLED] = 255
    return class_ids(ids, len(CAMVID11), path)
