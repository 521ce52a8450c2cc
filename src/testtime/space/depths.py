r"""Depth up to a scale as a transfer: an encoder and a head that predicts the logarithm of the depth.

.. math:: L = \frac1n \sum_p d_p^2 - \Big(\frac1n \sum_p d_p\Big)^2, \qquad d_p = \hat z_p - \log y_p

over the known pixels p of an image, and the mean over the images with a known pixel. A factor of the depth changes nothing, so
that cameras of other focal lengths can be learned from. For the evaluation, each image's prediction is scaled by the median
of :math:`y_p / \hat y_p`; then

.. math:: e = \frac1n \sum_p \frac{|\hat y_p - y_p|}{y_p}, \qquad
          \delta = \frac1n \#\{p : \max(\hat y_p / y_p, y_p / \hat y_p) < 1.25\}

are pooled over all known pixels. The error of a constant depth, scaled likewise, is the control.

Reference: Eigen, Puhrsch and Fergus, Depth Map Prediction from a Single Image using a Multi-Scale Deep Network, NIPS 2014
(equation 4 with lambda = 1; their evaluation is without an alignment, that by the median is Zhou et al.'s, CVPR 2017).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from testtime.data.dense import DenseSet
from testtime.space.segmenter import Segmenter
from testtime.space.transfer import TransferRecipe, batches, fit

__all__ = ["depth_errors", "evaluate_depth", "scale_free_loss", "train_depth"]

CLOSE = 1.25


def scale_free_loss(output: Tensor, depth: Tensor) -> Tensor:
    """Return the mean over images of the variance of the difference of logarithms; 0 where nothing is known.

    Args:
        output: logarithms of depth (N, 1, H, W).
        depth: depth (N, 1, H, W) in metres, NaN or not positive where unknown.
    """
    known = depth > 0
    n = known.sum((1, 2, 3))
    apart = torch.where(known, output - depth.where(known, torch.ones_like(depth)).log(), 0.0)
    count = n.clamp(min=1)
    spread = apart.square().sum((1, 2, 3)) / count - (apart.sum((1, 2, 3)) / count).square()
    return spread.sum() / (n > 0).sum().clamp(min=1)


def depth_errors(output: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return relative errors of known pixels after the scaling, and whether they are close.

    Args:
        output: logarithms of depth (1, H, W) of one image.
        depth: depth (1, H, W) in metres, NaN or not positive where unknown.

    >>> errors, close = depth_errors(torch.zeros(1, 1, 3), torch.tensor([[[2.0, 2.0, 4.0]]]))
    >>> errors.round(decimals=6).tolist(), close.tolist()
    ([0.0, 0.0, 0.5], [True, True, False])
    """
    known = depth > 0
    apart = (output[known] - depth[known].log()).double()
    if not len(apart):
        return apart, apart > 0
    apart = apart - apart.median()
    return apart.exp().sub(1).abs(), apart.abs() < torch.tensor(CLOSE).log()


def train_depth(
    model: Segmenter,
    data: DenseSet,
    recipe: TransferRecipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Fine-tune for depth; see :func:`testtime.space.transfer.fit` for the folder and how an interrupted run continues.

    Args:
        model: encoder of pictures and a head of one channel; trained in place.
        data: images with "depth"; resized to the encoder's size.
        recipe: recipe of the training.
        folder: folder of this run alone.
        seed: random seed of the order, the augmentations and the model.
        device: device of the training.

    Raises:
        ValueError: the data have no samples or no "depth", or the folder belongs to another run.
        NonFiniteError: a loss, a gradient or a weight is not finite.
    """
    _check(model, data)
    drawn = batches(data, recipe, model.encoder.size, ["depth"], seed)

    def loss(step: int) -> Tensor:
        images, labels = drawn(step)
        return scale_free_loss(model(images.to(device)).float(), labels["depth"].to(device))

    what = {"task": "depth", "data": data.name, "samples": len(data)}
    fit(model, loss, recipe, len(data), folder, what, seed, device)
    return model


def evaluate_depth(
    model: Segmenter, data: DenseSet, batch: int = 32, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Measure depth up to a scale, at the encoder's size.

    Args:
        model: encoder of pictures and a head of one channel.
        data: images with "depth".
        batch: images per forward pass.
        device: device of the evaluation.

    Returns:
        "relative depth error", "relative depth error of a constant" and "within 25 %", all in percent.

    Raises:
        ValueError: see :func:`train_depth`, or no pixel has a known depth.
    """
    _check(model, data)
    errors: list[Tensor] = []
    close: list[Tensor] = []
    constant: list[Tensor] = []
    model.to(device).eval()
    with torch.no_grad():
        for first in range(0, len(data), batch):
            rows = range(first, min(first + batch, len(data)))
            images, labels = data.batch(rows, model.encoder.size)
            for output, depth in zip(model(images.to(device)).float().cpu(), labels["depth"], strict=True):
                found = depth_errors(output, depth)
                errors.append(found[0])
                close.append(found[1])
                constant.append(depth_errors(torch.zeros_like(output), depth)[0])
    if not sum(map(len, errors)):
        raise ValueError(f"{data.name}: expected depth of some pixels, found none")
    names = ("relative depth error", "relative depth error of a constant", "within 25 %")
    parts = (errors, constant, close)
    return {n: 100 * float(torch.cat(p).double().mean()) for n, p in zip(names, parts, strict=True)}


def _check(model: Segmenter, data: DenseSet) -> None:
    if "depth" not in data.tasks or len(data) == 0 or model.modalities != ("rgb",):
        raise ValueError(
            f"{data.name}: expected images with depth and an encoder of pictures, got {len(data)} images with "
            f"{', '.join(data.tasks) or 'no labels'} and an encoder of {', '.join(model.modalities)}"
        )
