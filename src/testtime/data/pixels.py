"""Decoding of label files: images of 8 and 16 bits, depth, normals and class ids."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.decoding import decoded, image_bytes, opened
from testtime.data.dense import IGNORE
from testtime.data.files import AGAIN
from testtime.data.listing import inside, read_lines
from testtime.errors import DataError

__all__ = [
    "axes_from_depth",
    "class_ids",
    "colour",
    "float_metres",
    "levels",
    "metres",
    "unit_normals",
]

Axes = tuple[int, int, int]
"""Signs that convert stored normals to (x right, y up, z towards the viewer)."""


def colour(path: Path) -> Tensor:
    """Return an image as (3, H, W) float32 in [0, 1] without EXIF rotation: labels and cameras refer to stored pixels.

    Raises:
        DataError: the file is missing, damaged or has more than 8 bits per channel.
    """
    pixels = decoded(image_bytes(path), 3, path, upright=False)
    return torch.from_numpy(pixels.copy()).float() / 255


def levels(path: Path, bits: int = 8) -> NDArray[np.int64]:
    """Return the stored numbers of an image with one channel, (H, W): 8 or 16 bits, or the indices of a palette.

    Args:
        path: path of the image.
        bits: least number of bits of a stored number: 16 for depth, since 8 bits are only a visualisation of it.

    Raises:
        DataError: the file is missing, damaged, too large, or has several channels or fewer bits.
        ImportError: Pillow is not installed.
    """
    array = stored_numbers(path)
    if array.ndim != 2:
        raise DataError(
            f"{path}: expected one channel of whole numbers, found {array.dtype} {array.shape}; "
            "a picture of the labels in colours is not the labels"
        )
    if 8 * array.dtype.itemsize < bits:
        raise DataError(
            f"{path}: expected numbers of {bits} bits, found {8 * array.dtype.itemsize} bits; a picture of the depth is "
            f"not the depth: save it with {bits} bits"
        )
    return array.astype(np.int64)


def stored_numbers(path: Path) -> NDArray[Any]:
    """Return the stored integers of an image, (H, W) or (H, W, C).

    Raises:
        DataError: the file is missing, damaged, too large, or contains other numbers.
        ImportError: Pillow is not installed.
    """
    with opened(image_bytes(path), path) as image:
        array = np.asarray(image)
    if array.dtype.kind not in "ui":
        raise DataError(f"{path}: expected whole numbers, found {array.dtype} {array.shape}; {AGAIN}")
    return array


def class_ids(ids: NDArray[Any], count: int, path: Path, first: int = 0) -> Tensor:
    """Return class indices (H, W) int64 from stored ids; ids below ``first``, and 255, become IGNORE.

    Args:
        ids: stored ids, (H, W).
        count: number of classes; 0 if it is unknown.
        path: path of the file, for the message.
        first: stored id of class 0; lower ids have no class.

    Raises:
        DataError: an id is not that of a class, or not an integer.
    """
    values = np.asarray(ids)
    if values.ndim != 2:
        raise DataError(f"{path}: expected a class for each pixel (H, W), found {values.shape}; {AGAIN}")
    whole = values if values.dtype.kind != "f" else np.rint(values)
    if not np.array_equal(whole, values):
        wrong = values[~(whole == values)][0]
        raise DataError(f"{path}: expected classes as whole numbers, found {wrong}; {AGAIN}")
    ids = values.astype(np.int64)
    shifted = np.where((ids == IGNORE) | (ids < first), IGNORE, ids - first)
    wrong = shifted[(shifted != IGNORE) & (shifted >= (count or IGNORE))]
    if wrong.size:
        raise DataError(
            f"{path}: expected ids {first} to {first + (count or IGNORE) - 1}, found {wrong[0] + first}; "
            "these are labels of another set"
        )
    return torch.from_numpy(shifted)


def metres(
    values: NDArray[Any], unit: float, unknown: Iterable[int] = (0,), path: Path | None = None
) -> Tensor:
    """Convert stored depth to metres, (1, H, W) float32.

    Args:
        values: stored depth, (H, W), (H, W, 1) or (1, H, W).
        unit: length in metres of a stored 1.
        unknown: stored values of pixels without a measurement, which become NaN, as do values that are not finite.
        path: path of the file, for the message.

    Raises:
        DataError: the values have another shape.

    >>> metres(np.array([[0, 512, 65535]]), 1 / 512, (65535,)).tolist()
    [[[0.0, 1.0, nan]]]
    """
    values = np.asarray(values)
    plane = values.reshape([n for n in values.shape if n != 1] if values.ndim == 3 else values.shape)
    if plane.ndim != 2:
        raise DataError(f"{_from(path)}expected depth of the form (H, W), found {values.shape}")
    depth = plane.astype(np.float32) * np.float32(unit)
    depth[np.isin(plane, list(unknown)) | ~np.isfinite(depth)] = np.nan
    return torch.from_numpy(depth)[None]


def float_metres(values: NDArray[Any], path: Path) -> Tensor:
    """Return depth stored in metres as (1, H, W) float32, NaN where it is not positive or not finite.

    Args:
        values: stored depth, (H, W), (H, W, 1) or (1, H, W).
        path: path of the file, for the message.

    Raises:
        DataError: the values are integers, too large to be metres, or have another shape.
    """
    if values.dtype.kind != "f":
        raise DataError(
            f"{path}: expected metres in floats, found {values.dtype}; divide millimetres by 1000"
        )
    depth = metres(values, 1.0, path=path)
    depth = depth.where(depth > 0, torch.nan)
    if float(depth.nanmedian()) > 500:
        raise DataError(
            f"{path}: expected metres, found a median of {float(depth.nanmedian()):g}; divide millimetres by 1000"
        )
    return depth


def _from(path: Path | None) -> str:
    return "" if path is None else f"{path}: "


def unit_normals(vectors: NDArray[Any], axes: Axes = (1, 1, 1), path: Path | None = None) -> Tensor:
    """Convert stored normals to unit vectors, (3, H, W) float32, NaN where a stored vector is not valid.

    A stored vector is valid if its length is between 0.5 and 1.5. Zero, the grey 127 and the black 0 of 2p/255 - 1 are not; all
    unit vectors rounded to 8 bits are.

    Args:
        vectors: stored normals, (H, W, 3); integers p are converted by 2p/255 - 1.
        axes: sign of each axis.
        path: path of the file, for the message.

    Raises:
        DataError: the values are not vectors of three numbers.

    >>> unit_normals(np.array([[[127, 127, 255], [0, 0, 0]]], np.uint8))[:, 0].round(decimals=1).T.tolist()
    [[-0.0, -0.0, 1.0], [nan, nan, nan]]
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 3 or vectors.shape[2] != 3:
        raise DataError(f"{_from(path)}expected normals of the form (H, W, 3), found {vectors.shape}")
    floats: NDArray[Any] = vectors.astype(np.float32)
    if vectors.dtype.kind in "ui":
        floats = 2 * floats / 255 - 1
    length = np.linalg.norm(floats, axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where((length > 0.5) & (length < 1.5), floats / length, np.nan)
    return torch.from_numpy(np.ascontiguousarray((found * np.array(axes)).transpose(2, 0, 1), np.float32))


def normals_image(path: Path, axes: Axes = (1, 1, 1)) -> Tensor:
    """Read the normals (3, H, W) of an image that stores 2p/255 - 1; see :func:`unit_normals`."""
    pixels = decoded(image_bytes(path), 3, path, upright=False)
    return unit_normals(pixels.transpose(1, 2, 0), axes, path)


def axes_from_depth(pairs: Iterable[tuple[Tensor, Tensor]]) -> Axes:
    """Determine the signs of the axes of stored normals from the depth of the same images.

    The depth Z of a plane in a pinhole camera has sign(n_x) = sign(d log Z / d column) and sign(n_y) = -sign(d log Z / d row)
    for any focal length, and n_z > 0 because the plane is visible.

    Args:
        pairs: stored normals (3, H, W) and depth (1, H, W) in metres of images, NaN where unknown.

    Returns:
        Factors of the stored normals for x right, y up, z towards the viewer.

    Raises:
        DataError: depth and normals agree with no signs.
    """
    sums, weights = np.zeros(3), np.full(3, 1e-12)
    for normals, depth in pairs:
        log = depth[0].double().log()
        across = (log[1:-1, 2:] - log[1:-1, :-2]).clamp(-0.05, 0.05)  # a step between objects is no slope
        down = (log[2:, 1:-1] - log[:-2, 1:-1]).clamp(-0.05, 0.05)
        inner = normals[:, 1:-1, 1:-1].double()
        for axis, slope in enumerate((across, -down, torch.ones_like(across))):
            product = (inner[axis] * slope).nan_to_num(0.0)
            sums[axis] += float(product.sum())
            weights[axis] += float(product.abs().sum())
    trust = sums / weights
    if (np.abs(trust) < 0.2).any():
        raise DataError(
            f"the depth does not determine the axes of the normals (agreement {trust.round(2).tolist()} of 1, at least "
            "0.2 needed); give axes=, the signs that bring them to x right, y up, z towards the viewer"
        )
    x, y, z = (1 if t > 0 else -1 for t in trust)
    return x, y, z


def keys_in(path: Path, what: str, folder: Path) -> list[str]:
    """Return the names of samples in a list.

    Args:
        path: path of the list, with a name on each line.
        what: description of its content, for the message.
        folder: folder in which the named files have to be.

    Raises:
        DataError: the list is missing, empty or not text, or a name refers to a path outside of the folder.
    """
    names = read_lines(path, what)
    for name in names:
        inside(folder, name)
    return names


def chosen_tasks(
    asked: Sequence[str] | None, known: Sequence[str], there: Iterable[str], place: Path
) -> tuple[str, ...]:
    """Return the tasks to read: the requested tasks, or the known tasks that exist.

    Args:
        asked: names of the requested tasks, or None.
        known: names of all tasks of the data set.
        there: names of the tasks that have files.
        place: folder of the data set, for the message.

    Raises:
        DataError: a requested task has no files.
        ValueError: there is no such task.
    """
    found = set(there)
    if asked is None:
        return tuple(task for task in known if task in found)
    unknown = [task for task in asked if task not in known]
    if unknown:
        raise ValueError(f"tasks must be among {', '.join(known)}; got {unknown[0]!r}")
    absent = [task for task in asked if task not in found]
    if absent:
        here = ", ".join(sorted(found)) or "none"
        raise DataError(
            f"{place}: expected labels of {absent[0]!r}, found those of {here}; leave it out of tasks="
        )
    return tuple(asked)
