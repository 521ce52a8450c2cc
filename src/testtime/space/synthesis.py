r"""Views that are synthesised from the frames around: their pixels, moved by depth and pose to the camera of another frame.

A pixel (u, v) of a source with depth Z and camera-to-world pose P is the point

.. math:: q = P \left(\tfrac{u - c_x}{f_x} Z,\; -\tfrac{v - c_y}{f_y} Z,\; -Z,\; 1\right)^T

which the target sees at its own pixel; of several points in a pixel, the nearest counts. Pixels that no point reaches have no
depth and no normals; their colour is that of the pixels around, spread step by step.

No pixel of the frame itself is used. This stands in for the radiance field of the paper's figure 20, which is trained on all
frames and rendered at their cameras: both replace a measured frame by what others show of the same view.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.cameras import Camera
from testtime.data.dense import DenseSet, Sample

__all__ = ["SynthesisedFrames", "nearest_poses", "splatted"]

Floats = NDArray[np.float64]


@final
class SynthesisedFrames(DenseSet):
    """Frames of a data set with poses, each synthesised from others at its own camera.

    Args:
        data: frames with "depth", perhaps "normals", and ``camera(index)``.
        sources: number of other frames that a view is made of.

    Raises:
        ValueError: the data have no depth or no cameras, or there are too few frames.
    """

    def __init__(self, data: Any, sources: int = 8) -> None:
        if "depth" not in data.tasks or not hasattr(data, "camera") or not 0 < sources < len(data):
            raise ValueError(
                f"{data.name}: expected more than {sources} frames with depth and cameras, got {len(data)} with "
                f"{', '.join(data.tasks) or 'no labels'}"
            )
        self.data, self.sources, self.name = data, sources, f"{data.name}, synthesised"
        self.tasks = tuple(task for task in ("depth", "normals") if task in data.tasks)
        self._cameras = [data.camera(i) for i in range(len(data))]
        self._poses = np.stack([camera.pose for camera in self._cameras])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """Synthesise one frame, of the frame's size."""
        index = range(len(self))[index]
        around = nearest_poses(self._poses, index, self.sources)
        planes, target = [], self._cameras[index]
        for other in around:
            sample, camera = self.data[other], self._cameras[other]
            values = [sample.image]
            if "normals" in self.tasks:
                turn = target.pose[:3, :3].T @ camera.pose[:3, :3]
                values.append(
                    torch.einsum("ij,jhw->ihw", torch.from_numpy(turn).float(), sample.labels["normals"])
                )
            planes.append((camera, sample.labels["depth"], torch.cat(values)))
        depth, shown = splatted(planes, target)
        labels = {"depth": depth, "normals": shown[3:]}
        return Sample(_filled(shown[:3]), {task: labels[task] for task in self.tasks}, f"{self.name} {index}")

    def camera(self, index: int) -> Camera:
        """Return the camera of one frame."""
        return self._cameras[index]


def nearest_poses(poses: Floats, index: int, count: int) -> list[int]:
    """Return the other cameras that see most alike: the least distance in metres plus angle in radians.

    Args:
        poses: camera-to-world matrices (N, 4, 4).
        index: index of the camera.
        count: number of other cameras.
    """
    away = np.linalg.norm(poses[:, :3, 3] - poses[index, :3, 3], axis=1)
    cosine = (poses[:, :3, 2] * poses[index, :3, 2]).sum(1)
    cost = away + np.arccos(np.clip(cosine, -1, 1))
    order = np.argsort(cost, kind="stable")
    return [int(i) for i in order if i != index][:count]


def splatted(sources: list[tuple[Camera, Tensor, Tensor]], target: Camera) -> tuple[Tensor, Tensor]:
    """Return depth (1, H, W) and values (C, H, W) at a camera, NaN where no point of a source is seen.

    Args:
        sources: camera, depth (1, h, w) in metres and values (C, h, w) of each source.
        target: the camera.
    """
    height, width = target.height, target.width
    points, colours = [], []
    for camera, depth, values in sources:
        z = depth[0].double().numpy()
        v, u = np.nonzero(z > 0)
        z = z[v, u]
        x, y = (u + 0.5 - camera.cx) / camera.fx * z, -(v + 0.5 - camera.cy) / camera.fy * z
        points.append(camera.pose @ np.stack([x, y, -z, np.ones_like(z)]))
        colours.append(values[:, torch.from_numpy(v), torch.from_numpy(u)])
    seen = np.linalg.inv(target.pose) @ np.concatenate(points, 1)
    z, colour = -seen[2], torch.cat(colours, 1)
    ahead = z > 1e-3
    safe = np.where(ahead, z, 1.0)
    u = np.floor(target.fx * seen[0] / safe + target.cx)
    v = np.floor(-target.fy * seen[1] / safe + target.cy)
    there = np.flatnonzero(ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height))
    order = torch.from_numpy(
        there[np.argsort(-z[there], kind="stable")]
    )  # the last one written is the nearest
    place = (v * width + u)[order.numpy()].astype(np.int64)
    last = np.full(height * width, -1)
    last[place] = np.arange(len(place))
    known = torch.from_numpy(last >= 0)
    chosen = order[torch.from_numpy(last[last >= 0])]
    found = torch.full((1, height * width), torch.nan)
    found[0, known] = torch.from_numpy(z).float()[chosen]
    shown = torch.full((len(colour), height * width), torch.nan)
    shown[:, known] = colour[:, chosen].float()
    return found.view(1, height, width), shown.view(-1, height, width)


def _filled(image: Tensor) -> Tensor:
    """Give unknown pixels the mean of the known ones among their eight neighbours, until all are known."""
    known = image.isfinite().all(0, keepdim=True)
    image = image.nan_to_num(0.0)
    if not known.any():
        return image + 0.5
    ones = torch.ones(1, 1, 3, 3)
    while not known.all():
        near = F.conv2d(known[None].float(), ones, padding=1)[0]
        total = F.conv2d((image * known)[:, None], ones, padding=1)[:, 0]
        image = torch.where(known, image, total / near.clamp(min=1))
        known = near > 0
    return image.clamp(0, 1)
