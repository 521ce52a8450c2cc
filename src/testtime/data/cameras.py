"""Cameras of frames: pinhole and fisheye intrinsics, and the pose, in one convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from testtime.errors import DataError

__all__ = ["Camera", "from_opencv", "rotation"]

DISTORTION = {"PINHOLE": 0, "OPENCV": 4, "OPENCV_FISHEYE": 4}
"""Number of distortion parameters of a model: k1 k2 p1 p2, and k1 k2 k3 k4 of the fisheye."""


@final
@dataclass(frozen=True, eq=False)
class Camera:
    """The camera of a frame.

    Attributes:
        width, height: size of the image, in pixels.
        fx, fy, cx, cy: focal lengths and principal point, in pixels.
        pose: camera-to-world matrix, (4, 4) float64, in metres; the viewing direction is -z, x is right and y up, as for the
            normals of :class:`~testtime.data.Sample`.
        model: camera model: "PINHOLE", "OPENCV" or "OPENCV_FISHEYE", as in COLMAP.
        distortion: distortion parameters of the model; empty for a pinhole.

    Raises:
        ValueError: the model is unknown, or has a different number of parameters.
        DataError: the pose is not a (4, 4) matrix of finite numbers, or the intrinsics are not valid.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    pose: NDArray[np.float64]
    model: str = "PINHOLE"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if DISTORTION.get(self.model) != len(self.distortion):
            known = ", ".join(f"{m} ({n})" for m, n in DISTORTION.items())
            raise ValueError(
                f"expected a camera model and its number of distortion parameters, {known}; "
                f"got {self.model} ({len(self.distortion)})"
            )
        lens = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.isfinite(lens).all() or min(self.fx, self.fy) <= 0 or min(self.width, self.height) < 1:
            raise DataError(
                f"expected a size of at least 1 x 1, focal lengths above 0 and finite numbers, found {self.width} x "
                f"{self.height} and {', '.join(map(str, lens))}"
            )
        pose = np.asarray(self.pose, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise DataError(f"expected a pose of 4 x 4 finite numbers, found {pose.shape}: {pose.tolist()}")
        object.__setattr__(self, "pose", pose)

    @property
    def k(self) -> NDArray[np.float64]:
        """Intrinsic matrix, (3, 3)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def sized(self, size: tuple[int, int]) -> Camera:
        """Return the camera of the resized image; pixel centres are at halves.

        Args:
            size: height and width, in pixels.

        >>> Camera(640, 480, 500, 500, 320, 240, np.eye(4)).sized((240, 320)).k.tolist()
        [[250.0, 0.0, 160.0], [0.0, 250.0, 120.0], [0.0, 0.0, 1.0]]
        """
        high, wide = size[0] / self.height, size[1] / self.width
        return replace(
            self,
            height=size[0],
            width=size[1],
            fx=self.fx * wide,
            cx=self.cx * wide,
            fy=self.fy * high,
            cy=self.cy * high,
        )


def from_opencv(pose: NDArray[Any]) -> NDArray[np.float64]:
    """Convert a camera-to-world matrix from x right, y down, z forward to x right, y up, z towards the viewer.

    >>> from_opencv(np.eye(4)).diagonal().tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    return np.asarray(pose, dtype=np.float64) * np.array([1.0, -1.0, -1.0, 1.0])


def rotation(quaternion: Sequence[float]) -> NDArray[np.float64]:
    """Return the rotation matrix (3, 3) of a quaternion (w, x, y, z), of any length but zero.

    >>> rotation([1, 0, 0, 1]).round(6).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    q = np.asarray(quaternion, dtype=np.float64)
    if q.shape != (4,) or not np.isfinite(q).all() or not np.linalg.norm(q) > 0:
        raise DataError(f"expected a quaternion (w, x, y, z), found {q.tolist()}")
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
