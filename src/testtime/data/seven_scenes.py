"""7-Scenes: sequences of seven rooms with depth and the pose of every frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.cameras import Camera, from_opencv
from testtime.data.files import AGAIN, need_choice, need_folder
from testtime.data.fileset import FileSet
from testtime.data.listing import by_key, files, folders, read_lines
from testtime.data.pixels import colour, levels, metres
from testtime.errors import DataError

__all__ = ["COLOUR_LENS", "seven_scenes"]

KINECT = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])
"""Intrinsic matrix of the authors for 640 x 480 pixels, that of the depth camera."""
COLOUR_LENS = (525.0, 0.025)
"""Colour camera of a Kinect: focal length in pixels of 640 x 480, and offset to the right of the depth camera in metres."""


def seven_scenes(
    root: str | Path,
    split: str | None = None,
    sequences: Sequence[int] | None = None,
    depth: bool = True,
    colour_lens: tuple[float, float] | None = None,
) -> FileSet:
    """Return one scene of 7-Scenes, from ``seq-<n>/frame-<i>.{color.png,depth.png,pose.txt}``.

    Depth is stored in millimetres; 0 and 65535 are not measured. ``camera(index)`` returns the pose, converted from x right,
    y down, z forward to x right, y up, z towards the viewer. The intrinsics are those of ``camera-intrinsics.txt`` beside the
    sequences if it exists, otherwise those of the authors (585, 585, 320, 240).

    Args:
        root: folder of the scene, such as ``7scenes/chess``.
        split: name of the split: "train" or "test", of ``TrainSplit.txt`` and ``TestSplit.txt``; None takes all sequences.
        sequences: numbers of the sequences; None takes all of the split.
        depth: whether depth is read.
        colour_lens: focal length of the colour camera in pixels, and its offset to the right of the depth camera in metres
            (:data:`COLOUR_LENS`). Depth is then reprojected to the colour camera, NaN where there is none, and ``camera``
            returns the colour camera. None keeps the stored depth of the depth camera. Both cameras are assumed to have the
            same orientation and pose.

    Raises:
        DataError: files are missing or damaged.
        ImportError: Pillow is not installed.
        ValueError: there is no such split, or the focal length is not positive.

    Source: Shotton et al., *Scene Coordinate Regression Forests for Camera Relocalization*, CVPR 2013.
    """
    if colour_lens is not None and not colour_lens[0] > 0:
        raise ValueError(f"the focal length of colour_lens is in pixels and positive, got {colour_lens[0]}")
    root = need_folder([Path(root)], "a scene of 7-Scenes")
    there = {int(p.name[4:]): p for p in folders(root) if re.fullmatch(r"seq-[0-9]+", p.name)}
    numbers = sorted(there)
    if split is not None:
        need_choice(split, ("train", "test"), "split")
        numbers = _sequences(root / f"{split.capitalize()}Split.txt")
    if sequences is not None:
        numbers = [n for n in sequences if n in numbers or split is None]
    absent = [n for n in numbers if n not in there]
    if absent or not numbers:
        found = ", ".join(path.name for path in there.values()) or "none"
        raise DataError(f"{root}: expected the folder seq-{(absent or [1])[0]:02d}, found {found}; {AGAIN}")
    colours = [
        path for n in numbers for path in files(there[n]) if re.fullmatch(r"frame-.*\.color\..*", path.name)
    ]
    images = by_key(colours, lambda path: f"{path.parent.name}/{path.name.split('.')[0]}")
    if not images:
        raise DataError(f"{root}: expected frame-*.color.png in the sequences, found none; {AGAIN}")
    matrix = root / "camera-intrinsics.txt"
    k = _matrix(matrix, 3) if matrix.is_file() else KINECT
    shrink = 1.0 if colour_lens is None else colour_lens[0] / k[0, 0]

    def locate(key: str, task: str) -> Path:
        return images[key] if task == "image" else root / f"{key}.depth.png"

    def camera(key: str) -> Camera:
        height, width = colour(images[key]).shape[-2:]
        pose = from_opencv(_matrix(root / f"{key}.pose.txt", 4))
        return Camera(width, height, shrink * k[0, 0], shrink * k[1, 1], k[0, 2], k[1, 2], pose)

    name = f"7scenes-{root.name}" + (f"-{split}" if split else "")
    lens = None if colour_lens is None else (k, *colour_lens)
    read = {"depth": partial(_depth, lens=lens)} if depth else {}
    return FileSet(name, images, locate, read, camera=camera)


def _depth(path: Path, lens: tuple[NDArray[np.float64], float, float] | None) -> Tensor:
    """Read depth (1, H, W) in metres, of the depth camera or reprojected to the colour camera with the nearest depth."""
    stored = metres(levels(path, bits=16), 1e-3, (0, 65535))
    if lens is None:
        return stored
    (k, focal, beside), values = lens, stored[0].double().numpy()
    rows, columns = np.nonzero(np.isfinite(values))
    z = values[rows, columns]
    at_y = np.rint(focal * (rows - k[1, 2]) / k[1, 1] + k[1, 2]).astype(np.int64)
    at_x = np.rint(focal * ((columns - k[0, 2]) / k[0, 0] - beside / z) + k[0, 2]).astype(np.int64)
    inside = (at_y >= 0) & (at_y < values.shape[0]) & (at_x >= 0) & (at_x < values.shape[1])
    found = np.full(values.shape, np.inf)
    np.minimum.at(found, (at_y[inside], at_x[inside]), z[inside])
    return torch.from_numpy(np.where(np.isfinite(found), found, np.nan)).to(stored)[None]


def _sequences(path: Path) -> list[int]:
    """Return the numbers of the sequences in a list with lines such as "sequence3"."""
    numbers = []
    for line in read_lines(path, "the sequences of the split"):
        match = re.fullmatch(r"[^0-9]*([0-9]+)[^0-9]*", line)
        if match is None:
            raise DataError(f"{path}: expected lines such as 'sequence3', found {line!r}; {AGAIN}")
        numbers.append(int(match[1]))
    return numbers


def _matrix(path: Path, size: int) -> NDArray[np.float64]:
    """Read the matrix in a text file; poses of frames whose tracking was lost have no finite numbers and are refused."""
    rows = [line.split() for line in read_lines(path, f"{size} x {size} numbers")]
    try:
        found = np.array([float(v) for row in rows for v in row]).reshape(size, size)
    except ValueError as error:
        wrong = next((f", such as {' '.join(row)!r}" for row in rows if len(row) != size), "")
        raise DataError(
            f"{path}: expected {size} x {size} numbers, found otherwise ({error}{wrong}); {AGAIN}"
        ) from error
    if not np.isfinite(found).all():
        raise DataError(
            f"{path}: expected {size} x {size} finite numbers, found {found.tolist()}; leave this frame out"
        )
    return found
