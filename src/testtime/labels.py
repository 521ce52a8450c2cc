"""Labels of data sets, tasks and metrics: the class that is not known, and the check of class numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.errors import DataError

__all__ = ["IGNORE", "class_labels"]

IGNORE = 255
"""Label of a pixel of unknown class."""


def class_labels(values: ArrayLike, count: int, classes: int, name: str) -> NDArray[np.int64]:
    """Check that labels are class indices, or -1 for unknown, and return them as int64 (N,).

    Args:
        values: labels (N,), integers or floats with integer values.
        count: number of labels N.
        classes: number of classes.
        name: name of the data set or file, for the message.

    Raises:
        DataError: the number of labels differs from N, or a label is not an integer in [-1, classes).

    >>> class_labels([1.0, -1.0], 2, 2, "digits")
    array([ 1, -1])
    """
    labels = np.asarray(values)
    if labels.shape != (count,):
        raise DataError(f"{name}: {count} images but labels of shape {labels.shape}")
    if labels.dtype.kind not in "iuf" or (labels.dtype.kind == "f" and (labels != np.floor(labels)).any()):
        some = ", ".join(map(str, labels[:5].tolist()))
        raise DataError(
            f"{name}: expected labels that are integers, numbers of classes, found {labels.dtype} ({some}, ...)"
        )
    if count and not -1 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{name}: labels from {labels.min():.0f} to {labels.max():.0f}, but {classes} classes (-1: unknown)"
        )
    return labels.astype(np.int64)
