r"""Detection: the encoder and a compact head that finds objects by their centres, without anchors and without suppression.

.. math:: L = \frac1B \Big[ -\sum_{p,c} \begin{cases} (1 - q_{pc})^2 \log q_{pc} & Y_{pc} = 1 \\
    (1 - Y_{pc})^4 \, q_{pc}^2 \log (1 - q_{pc}) & \text{else} \end{cases} \Big]
    + 5 \sum_p w_p \big(1 - \mathrm{GIoU}(b_p, \hat b_p)\big)

At every position p of a map four times as fine as the encoder's grid, the head says for each class c how likely a centre is
(q; Y is a Gaussian around the true ones, 1 at the centre) and how far away the four sides of the box are. The positions near a
centre learn the sides, weighted by the Gaussian (w sums to 1 over all B boxes); where boxes overlap, the smaller. What is found
are the local maxima of q.

Departures: the paper trains ViTDet's Cascade Mask R-CNN in Detectron2, with steps of the rate at epochs 133 and 144. Detectron2
and torchvision need a build for the machine, the detectors of Hugging Face transformers either backbones of other libraries, or
are whole models that no foreign encoder fits into (YOLOS), or need hundreds of epochs until their queries have found their
objects (DETR). This head is short, learns from hundreds of images, and ranks encoders on the same footing; its AP is not
comparable to that of Cascade Mask R-CNN. The rate falls as a cosine.

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

NEAR = 0.54  # the share of a box around its centre that learns its sides (TTFNet)
SIDES = 5.0  # the weight of their loss
BORN = 0.1  # the chance of a centre that a new head gives everywhere

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
        classes: of objects, in the order of labels.
        width, sub, depth: of the :class:`~testtime.space.segmenter.ConvNeXtHead`.
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
            bias[: len(self.classes)] = torch.tensor(BORN).logit()

    @property
    def stride(self) -> tuple[float, float]:
        """Pixels from one position to the next, down and right."""
        (height, width), (h, w), sub = self.encoder.size, self.encoder.grid, self.head.sub
        return height / (h * sub), width / (w * sub)

    def forward(self, images: Any) -> tuple[Tensor, Tensor]:
        """Logits of centres (N, C, h, w), and boxes (N, 4, h, w), x0, y0, x1, y1 in pixels, not clipped."""
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
        """See the module; ``several`` are the true boxes of each image, in pixels of the encoder's size."""
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
        """At most so many boxes for each image, the surest first, cut at the picture's sides."""
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
    """What the head should say of an image.

    Args:
        boxes: true, in pixels.
        classes: how many.
        shape: (h, w) of the map.
        stride: pixels from one position to the next, down and right.

    Returns:
        centres (C, h, w) in [0, 1]: 1 at the position a centre lies in, around it a Gaussian over 0.54 of the box;
        the box (4, h, w) that a position learns, the smallest of those near whose centre it is;
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
    """Intersection over union less the share of the enclosing box that is in neither, (n,) in [-1, 1], of boxes (n, 4).

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
    """Train on pictures and their boxes; the folder is that of :func:`testtime.space.transfer.fit`.

    Args:
        model: trained in place.
        data: pictures, brought to the encoder's size, and their boxes with them.
        boxes: of each, in order, in its own pixels (:func:`boxes_of`).
        recipe: how; pictures are mirrored but not cut.
        folder: of this run alone.
        seed: of order, mirror and all other chances.
        device: where to train.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: another number of boxes than pictures, a recipe that cuts, a label that is no class, or the folder belongs
            to another run.
        NonFiniteError: a loss, a gradient or a weight is not finite.
    """
    if len(boxes) != len(data):
        raise ValueError(f"{data.name} has {len(data)} pictures, but there are boxes of {len(boxes)}")
    if recipe.scale != (1.0, 1.0):
        raise ValueError(
            f"pictures are not cut here: expected a recipe with scale (1, 1), got {recipe.scale}"
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
    """COCO's average precision at the encoder's size, in percent.

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
    """The boxes in the scenes' records, frame by frame.

    Args:
        scenes: whose.
        classes: in the order of labels; objects of others are left out.
        mapping: by the name of a class of the scenes, that of ``classes`` it counts as; None for the same names.
        visible: the least share of an object that is not hidden.
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
    """A picture of this size, and its boxes in it."""
    sample = data[index]
    height, width = sample.image.shape[-2:]
    return sized(sample, size).image, boxes[index].scaled(size[1] / width, size[0] / height)
