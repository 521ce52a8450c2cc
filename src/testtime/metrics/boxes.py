"""Average precision of boxes by the definition of COCO, computed by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from testtime.errors import missing_extra

__all__ = ["BoxAP", "Boxes"]


@final
@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of an image, true or predicted.

    Attributes:
        corners: corners x0, y0, x1, y1, (n, 4) float32, in pixels; x1 and y1 are exclusive.
        labels: class indices, (n,) int64.
        scores: confidences of predicted boxes, (n,) float32, higher is more confident; ones for true boxes.

    Raises:
        ValueError: the lengths differ, or a box has no area.
    """

    corners: Tensor
    labels: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        n = len(self.labels)
        if tuple(self.corners.shape) != (n, 4) or len(self.scores) != n:
            raise ValueError(
                f"expected corners (n, 4), labels (n,) and scores (n,), got {tuple(self.corners.shape)}, "
                f"{tuple(self.labels.shape)} and {tuple(self.scores.shape)}"
            )
        if not bool((self.corners[:, 2:] > self.corners[:, :2]).all()):
            raise ValueError("a box needs x0 < x1 and y0 < y1")

    @classmethod
    def of(cls, boxes: Sequence[tuple[float, float, float, float, int]]) -> Boxes:
        """Return true boxes from tuples of x0, y0, x1, y1 and label.

        >>> Boxes.of([(0, 0, 4, 8, 2)]).corners
        tensor([[0., 0., 4., 8.]])
        """
        corners = torch.tensor([b[:4] for b in boxes], dtype=torch.float32).view(-1, 4)
        return cls(corners, torch.tensor([b[4] for b in boxes], dtype=torch.long), torch.ones(len(boxes)))

    def __len__(self) -> int:
        return len(self.labels)

    def mirrored(self, width: float) -> Boxes:
        """Return the boxes in the horizontally flipped image, whose width is in pixels."""
        x0, y0, x1, y1 = self.corners.unbind(1)
        return Boxes(torch.stack([width - x1, y0, width - x0, y1], 1), self.labels, self.scores)

    def scaled(self, x: float, y: float) -> Boxes:
        """Return the boxes in the image resized by the factors x of its width and y of its height."""
        return Boxes(self.corners * self.corners.new_tensor([x, y, x, y]), self.labels, self.scores)


@final
class BoxAP:
    """Mean average precision of COCO in percent: the area under precision over recall, interpolated at 101 recalls.

    The mean is over classes that have a true box and, if no threshold is given, over thresholds of IoU from 0.5 to 0.95 in
    steps of 0.05. Of each image, the 100 boxes with the highest scores count.

    Args:
        classes: names of the classes, in the order of the labels.

    Raises:
        ImportError: pycocotools is not installed.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        _pycocotools()
        self.classes = tuple(classes)
        self.found: list[Boxes] = []
        self.true: list[Boxes] = []
        self._shown = -1
        self._precision = np.zeros(0)

    def update(self, found: Sequence[Boxes], true: Sequence[Boxes]) -> None:
        """Add the predicted and the true boxes of images.

        Args:
            found: predicted boxes of each image.
            true: true boxes of each image.

        Raises:
            ValueError: the lists differ in length, a label is not in [0, len(classes)), or a box or score is not finite.
        """
        if len(found) != len(true):
            raise ValueError(f"expected true boxes of each of {len(found)} images, got {len(true)}")
        for boxes in (*found, *true):
            wrong = boxes.labels[(boxes.labels < 0) | (boxes.labels >= len(self.classes))]
            if len(wrong):
                raise ValueError(f"label {wrong[0].item()} is none of the {len(self.classes)} classes")
            if not bool(torch.isfinite(boxes.corners).all() & torch.isfinite(boxes.scores).all()):
                raise ValueError("a box or a score is not finite: the model has diverged")
        self.found += found
        self.true += true

    def value(self) -> float:
        """Return AP at IoU 0.5 to 0.95 in percent; NaN without a true box."""
        return self._mean(self.precision)

    def at(self, iou: float) -> float:
        """Return AP in percent at one threshold of IoU: 0.5, 0.55 ... 0.95."""
        index = round((iou - 0.5) / 0.05)
        if not 0 <= index < 10 or abs(0.5 + 0.05 * index - iou) > 1e-9:
            raise ValueError(f"thresholds are 0.5, 0.55 ... 0.95, not {iou}")
        return self._mean(self.precision[index])

    @property
    def by_class(self) -> dict[str, float]:
        """AP at IoU 0.5 to 0.95 of each class in percent; NaN for a class without a true box."""
        return {name: self._mean(self.precision[..., i]) for i, name in enumerate(self.classes)}

    @property
    def precision(self) -> Any:
        """Precision (10, 101, C) in [0, 1] by threshold of IoU, recall and class; -1 for a class without a true box."""
        if self._shown != len(self.true):
            self._precision, self._shown = self._evaluated(), len(self.true)
        return self._precision

    @staticmethod
    def _mean(precision: Any) -> float:
        counted = precision[precision > -1]
        return float(100 * counted.mean()) if counted.size else float("nan")

    def _evaluated(self) -> Any:
        if not any(map(len, self.true)):
            return np.full((10, 101, len(self.classes)), -1.0)
        coco, evaluation = _pycocotools()
        with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            true, found = coco(), coco()
            for api, several in ((true, self.true), (found, self.found)):
                api.dataset = {
                    "images": [{"id": i} for i in range(len(several))],
                    "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes)],
                    "annotations": _annotations(several),
                }
                api.createIndex()
            run = evaluation(true, found, "bbox")
            run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
            run.params.maxDets = [100]
            run.evaluate()
            run.accumulate()
        return run.eval["precision"][:, :, :, 0, 0]


def _annotations(several: Sequence[Boxes]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for image, boxes in enumerate(several):
        rows = zip(boxes.corners.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
        for (x0, y0, x1, y1), label, score in rows:
            size = [x1 - x0, y1 - y0]
            line = {"id": len(lines) + 1, "image_id": image, "category_id": label, "score": score}
            lines.append({**line, "bbox": [x0, y0, *size], "area": size[0] * size[1], "iscrowd": 0})
    return lines


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing_extra("pycocotools", "space") from error
    return COCO, COCOeval
