r"""Detection: an encoder and a compact head that detects objects by their centres, without anchors and without suppression.

.. math:: L = \frac1B \Big[ -\sum_{p,c} \begin{cases} (1 - q_{pc})^2 \log q_{pc} & Y_{pc} = 1 \\
    (1 - Y_{pc})^4 \, q_{pc}^2 \log (1 - q_{pc}) & \text{else} \end{cases} \Big]
    + 5 \sum_p w_p \big(1 - \mathrm{GIoU}(b_p, \hat b_p)\big)

At every position p of a map four times as fine as the encoder's grid, the head predicts for each class c the probability q of a
centre (Y is a Gaussian around the true centres, 1 at the centre) and the distances to the four sides of the box. The positions
near a centre learn the sides, weighted by the Gaussian (w sums to 1 over all B boxes); where boxes overlap, those of the
smaller box. Detections are the local maxima of q.

Departures: the paper trains ViTDet's Cascade Mask R-CNN in Detectron2, with steps of the rate at epochs 133 and 144. Detectron2
and torchvision need a build for the machine, the detectors of Hugging Face transformers either backbones of other libraries, or
are whole models that accept no other encoder (YOLOS), or need hundreds of epochs until their queries converge (DETR). This head
is short, learns from hundreds of images, and compares encoders on equal terms; its AP is not comparable to that of Cascade Mask
R-CNN. The learning rate falls as a cosine.

Reference: CenterNet (Zhou et al., Objects as Points, 2019) for the centres and their loss; TTFNet (Liu et al., AAAI 2020) for
the weighted sides; GIoU (Rezatofighi et al., CVPR 2019). Recipe: Singh, Garjani et al., TST-MM, table 12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.data.dense import DenseSet, sized
from testtime.metrics.boxes import BoxAP, Boxes
from testtime.parts.randomness import epochs, generator
from testtime.scenes.sceneset import SceneSet
from testtime.space.segmenter import ConvNeXtHead, Encoder
from testtime.space.transfer import RECIPES as SEGMENTATION
from testtime.space.transfer import TransferRecipe, fit

__all__ = [
    "RECIPES",
    "Detector",
    "boxes_of",
    "evaluate_detector",
    "generalised_iou",
    "targets",
    "train_detector",
]

NEAR = 0.54  # fraction of a box around its centre that learns the sides (TTFNet)
SIDES = 5.0  # weight of the loss of the sides
INITIAL = 0.1  # probability of a centre that an untrained head predicts everywhere

RECIPES: Mapping[str, TransferRecipe] = {
    "tiny": replace(SEGMENTATION["tiny"], scale=(1.0, 1.0)),
    "paper": TransferRecipe(
        epochs=150, batch=128, lr=1e-4, weight_decay=0.1, layer_decay=0.7, scale=(1.0, 1.0)
    ),
}
"""By name."""


@final
class Detector(nn.Module):
    """Encoder and head.

    Args:
        encoder: see :class:`~testtime.space.segmenter.Encoder`; trained in place.
        classes: names of the classes, in the order of labels.
        width: width of the :class:`~testtime.space.segmenter.ConvNeXtHead`.
        sub: positions along a side of a token.
        depth: ConvNeXt blocks of the head.
    """

    def __init__(
        self, encoder: Encoder, classes: Sequence[str], width: int = 256, sub: int = 4, depth: int = 4
    ) -> None:
        super().__init__()
        self.encoder, self.classes = encoder, tuple(classes)
        self.head = ConvNeXtHead(encoder.dim, encoder.grid, len(self.classes) + 4, width, sub, depth)
        with torch.no_grad():
            bias = self.head.answer.bias
            assert bias is not None
            bias[: len(self.classes)] = torch.tensor(INITIAL).logit()

    @property
    def stride(self) -> tuple[float, float]:
        """Pixels from one position to the next, vertically and horizontally."""
        (height, width), (h, w), sub = self.encoder.size, self.encoder.grid, self.head.sub
        return height / (h * sub), width / (w * sub)

    def forward(self, images: Any) -> tuple[Tensor, Tensor]:
        """Return logits of centres (N, C, h, w), and boxes (N, 4, h, w), x0, y0, x1, y1 in pixels, not clipped."""
        out = self.head(self.encoder(images)).float()
        logits, sides = out.split([len(self.classes), 4], 1)
        (down, right), (height, width) = self.stride, self.encoder.size
        left, top, x, y = (
            F.softplus(side) * reach / 8
            for side, reach in zip(sides.unbind(1), (width, height, width, height), strict=True)
        )
        rows = ((torch.arange(out.shape[-2], device=out.device) + 0.5) * down)[:, None]
        columns = ((torch.arange(out.shape[-1], device=out.device) + 0.5) * right)[None]
        return logits, torch.stack([columns - left, rows - top, columns + x, rows + y], 1)

    def loss(self, images: Any, several: Sequence[Boxes]) -> Tensor:
        """Compute the loss of the module's documentation.

        Args:
            images: input of the encoder.
            several: true boxes of each image, in pixels of the encoder's size.
        """
        logits, boxes = self(images)
        made = [targets(b, len(self.classes), logits.shape[-2:], self.stride) for b in several]
        heat, true, weight = (torch.stack(parts).to(logits.device) for parts in zip(*made, strict=True))
        count = max(sum(map(len, several)), 1)
        q = logits.sigmoid()
        right = (1 - q) ** 2 * F.logsigmoid(logits)
        wrong = (1 - heat) ** 4 * q**2 * F.logsigmoid(-logits)
        centres = -torch.where(heat == 1, right, wrong).sum() / count
        near = weight > 0
        overlap = generalised_iou(boxes.permute(0, 2, 3, 1)[near], true.permute(0, 2, 3, 1)[near])
        share = weight[near] / weight.sum().clamp(min=1e-9)
        return centres + SIDES * (share * (1 - overlap)).sum()

    @torch.no_grad()
    def find(self, images: Any, limit: int = 100) -> list[Boxes]:
        """Detect boxes, in the order of their scores, clipped to the image.

        Args:
            images: input of the encoder.
            limit: largest number of boxes of an image.
        """
        logits, boxes = self(images)
        q = logits.sigmoid()
        q = torch.where(q == F.max_pool2d(q, 3, 1, 1), q, 0.0)
        scores, at = q.flatten(1).topk(min(limit, q[0].numel()), 1)
        places = boxes.shape[-2] * boxes.shape[-1]
        corners = boxes.flatten(2).gather(2, (at % places)[:, None].expand(-1, 4, -1)).transpose(1, 2)
        height, width = self.encoder.size
        corners = torch.minimum(corners.clamp(min=0), corners.new_tensor([width, height, width, height]))
        found = []
        for c, label, score in zip(corners.cpu(), (at // places).cpu(), scores.cpu(), strict=True):
            kept = (score > 0) & (c[:, 2:] > c[:, :2]).all(1)
            found.append(Boxes(c[kept], label[kept], score[kept]))
        return found


def targets(
    boxes: Boxes, classes: int, shape: Sequence[int], stride: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets of an image.

    Args:
        boxes: true boxes in pixels.
        classes: number of classes.
        shape: (h, w) of the map.
        stride: pixels from one position to the next, vertically and horizontally.

    Returns:
        centres (C, h, w) in [0, 1]: 1 at the position of a centre, around it a Gaussian over 0.54 of the box;
        the box (4, h, w) of each position, the smallest of those whose centre is near;
        and its weight (h, w): the Gaussian over its sum in this box, 0 where no box is learned.
    """
    h, w = shape
    heat, corners, weight = torch.zeros(classes, h, w), torch.zeros(4, h, w), torch.zeros(h, w)
    size = boxes.corners[:, 2:] - boxes.corners[:, :2]
    for i in size.prod(1).argsort(descending=True, stable=True).tolist():
        x0, y0, x1, y1 = boxes.corners[i].tolist()
        row = min(max(int((y0 + y1) / 2 / stride[0]), 0), h - 1)
        column = min(max(int((x0 + x1) / 2 / stride[1]), 0), w - 1)
        tall, wide = int((y1 - y0) / 2 / stride[0] * NEAR), int((x1 - x0) / 2 / stride[1] * NEAR)
        rows = slice(max(row - tall, 0), row + tall + 1)
        columns = slice(max(column - wide, 0), column + wide + 1)
        down = torch.arange(h)[rows, None] - row
        right = torch.arange(w)[None, columns] - column
        bump = torch.exp(-((6 * down / (2 * tall + 1)) ** 2 + (6 * right / (2 * wide + 1)) ** 2) / 2)
        label = int(boxes.labels[i])
        heat[label, rows, columns] = torch.maximum(heat[label, rows, columns], bump)
        corners[:, rows, columns] = boxes.corners[i][:, None, None]
        weight[rows, columns] = bump / bump.sum()
    return heat, corners, weight


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection over union minus the fraction of the enclosing box that is in neither, (n,) in [-1, 1].

    Args:
        a: boxes (n, 4).
        b: boxes (n, 4).

    >>> generalised_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[2.0, 0, 4, 4]])).item()
    -0.25
    """
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inner = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    return inner / union - (around - union) / around


def train_detector(
    model: Detector,
    data: DenseSet,
    boxes: Sequence[Boxes],
    recipe: TransferRecipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Detector:
    """Train on images and their boxes; see :func:`testtime.space.transfer.fit` for the folder.

    Args:
        model: model that is trained in place.
        data: images, which are resized to the encoder's size together with their boxes.
        boxes: boxes of each image, in order, in its pixels (:func:`boxes_of`).
        recipe: recipe of the training; images are mirrored but not cropped.
        folder: folder of this run alone.
        seed: random seed of the order, the augmentations and the model.
        device: device of the training.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: another number of boxes than images, a recipe that crops, a label that is no class, or the folder belongs
            to another run.
        NonFiniteError: a loss, a gradient or a weight is not finite.
    """
    if len(boxes) != len(data):
        raise ValueError(f"{data.name} has {len(data)} images, but there are boxes of {len(boxes)}")
    if recipe.scale != (1.0, 1.0):
        raise ValueError(
            f"images are not cropped here: expected a recipe with scale (1, 1), got {recipe.scale}"
        )
    highest = max((int(b.labels.max()) for b in boxes if len(b)), default=0)
    if highest >= len(model.classes):
        raise ValueError(f"label {highest} is none of the {len(model.classes)} classes")

    def loss(step: int) -> Tensor:
        indices = epochs(len(data), recipe.batch, seed, step)
        chance = torch.rand(len(indices), generator=generator(seed, step, "batch"))
        turned = ((chance < 0.5) & recipe.flip).tolist()
        pairs = [_at(data, boxes, i, model.encoder.size) for i in indices]
        width = model.encoder.size[1]
        images = [image.flip(-1) if turn else image for (image, _), turn in zip(pairs, turned, strict=True)]
        several = [b.mirrored(width) if turn else b for (_, b), turn in zip(pairs, turned, strict=True)]
        return model.loss(torch.stack(images).to(device), several)

    what = {"task": "boxes", "data": data.name, "samples": len(data), "classes": list(model.classes)}
    fit(model, loss, recipe, len(data), folder, what, seed, device)
    return model


def evaluate_detector(
    model: Detector,
    data: DenseSet,
    boxes: Sequence[Boxes],
    batch: int = 32,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Compute COCO's average precision at the encoder's size, in percent.

    Args:
        model: the detector.
        data: images.
        boxes: true boxes of each image, in its pixels.
        batch: images per forward pass.
        device: device of the evaluation.

    Returns:
        ``{"AP": 0.5 to 0.95, "AP50": at 0.5, "by class": {class: AP}}``.

    Raises:
        ImportError: pycocotools is not installed.
    """
    meter = BoxAP(model.classes)
    training = model.training
    model.to(device).eval()
    for first in range(0, len(data), batch):
        indices = range(first, min(first + batch, len(data)))
        images, true = zip(*(_at(data, boxes, i, model.encoder.size) for i in indices), strict=True)
        meter.update(model.find(torch.stack(images).to(device)), true)
    model.train(training)
    return {"AP": meter.value(), "AP50": meter.at(0.5), "by class": meter.by_class}


def boxes_of(
    scenes: SceneSet,
    classes: Sequence[str],
    mapping: Mapping[str, str] | None = None,
    visible: float = 0.15,
) -> list[Boxes]:
    """Return the boxes in the scenes' records, frame by frame.

    Args:
        scenes: the scenes.
        classes: names of the classes, in the order of labels; objects of other classes are left out.
        mapping: name in ``classes`` by class of the scenes; None for the same names.
        visible: smallest visible fraction of an object.
    """
    numbers = {name: i for i, name in enumerate(classes)}
    of = [numbers.get(name if mapping is None else mapping.get(name, "")) for name in scenes.classes]
    several = []
    for space, row in scenes.places:
        rows = scenes.spaces[space].records[row]["boxes"]
        kept = [(b, of[b["label"]]) for b in rows if b["visibility"] >= visible]
        several.append(
            Boxes.of([(b["x0"], b["y0"], b["x1"], b["y1"], label) for b, label in kept if label is not None])
        )
    return several


def _at(data: DenseSet, boxes: Sequence[Boxes], index: int, size: tuple[int, int]) -> tuple[Tensor, Boxes]:
    """Return an image in a size, and its boxes."""
    sample = data[index]
    height, width = sample.image.shape[-2:]
    return sized(sample, size).image, boxes[index].scaled(size[1] / width, size[0] / height)
